"""moebind chat."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from chats import WEATHER
from commands import Capture, run
from typist import type_lines

import moebind
from conftest import CPU
from moebind import ContextParams

MOEBIND = Path(sys.executable).with_name("moebind")
FAST = ["-ngl", "0", "-t", "1", "-c", "512"]
TEMPLATE = Path(moebind.__file__).parent / "chat/chatml_tools.jinja"
PATIENCE = 60


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has these lines come on standard input."""

    return partial(type_lines, monkeypatch)


def answers(path: Path, *questions: str, system: str | None = None, **arguments: Any) -> list[dict[str, object]]:
    """The whole chat, as the library has it."""
    params = ContextParams(n_ctx=512, n_threads=1, n_threads_batch=1)
    messages: list[dict[str, object]] = [] if system is None else [{"role": "system", "content": system}]
    with moebind.Model.load_from_file(path, CPU) as model, model.new_context(params) as context:
        for question in questions:
            messages.append({"role": "user", "content": question})
            messages.append(dict(context.chat(messages, **arguments).complete()))
    return messages


def test_each_line_is_a_turn(demo_path: Path, typed: Any, capsys: Capture) -> None:
    questions = ["What is the capital of France?", "And of\nItaly?"]
    expected = answers(demo_path, *questions, system="Answer briefly.", max_tokens=4)
    typed(questions[0], "", *questions[1].replace("\n", "\\\n").split("\n"))
    assert run("chat", demo_path, "-sys", "Answer briefly.", "-n", 4, *FAST) == 0
    said = capsys.readouterr()
    replies = [str(each["content"]).strip("\n") for each in expected if each["role"] == "assistant"]
    assert said.out.rstrip("\n") == "\n".join(replies)
    assert said.err == ""


def test_json_lines(demo_path: Path, typed: Any, capsys: Capture) -> None:
    expected = answers(demo_path, "Hello", max_tokens=4, temperature=0.9, seed=5)
    typed()
    assert run("chat", demo_path, "-p", "Hello", "-n", 4, "--temp", 0.9, "--seed", 5, *FAST, "--json") == 0
    [line] = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert found["message"] == expected[1]
    assert (found["stop_reason"], found["usage"]["generated_tokens"]) == ("length", 4)


def test_a_single_turn_reads_nothing(demo_path: Path, typed: Any, capsys: Capture) -> None:
    typed("And of Italy?")
    assert run("chat", demo_path, "-p", "What is the capital of France?", "-st", "-n", 4, *FAST) == 0
    assert sys.stdin.read() == "And of Italy?\n"
    assert capsys.readouterr().out.strip()
    assert run("chat", demo_path, "-st", *FAST) == 2
    assert "--single-turn is given without --prompt" in capsys.readouterr().err


def test_tools(demo_path: Path, typed: Any, capsys: Capture, tmp_path: Path) -> None:
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps([WEATHER]), encoding="utf-8")
    typed("Hello")
    options = ["--tools", tools, "--tool-choice", "required", "--chat-template-file", TEMPLATE]
    assert run("chat", demo_path, "-n", 3, *options, *FAST, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["usage"]["prompt_tokens"] > 100  # it was told of them
    assert found["message"]["content"] == ""  # and begins a call


def test_reasoning_is_apart(demo_path: Path, typed: Any, capsys: Capture, tmp_path: Path) -> None:
    # A template whose prompt begins the reasoning: what a model writes then is reasoning until it says otherwise.
    template = tmp_path / "thinking.jinja"
    text = TEMPLATE.read_text(encoding="utf-8")
    head, mark, tail = text.rpartition("{{- '<|im_start|>assistant\\n' }}")
    template.write_text(f"{head}{mark[:-3]} ~ '<think>\\n' }}}}{tail}", encoding="utf-8")
    typed("Hello")
    assert run("chat", demo_path, "-n", 6, "--chat-template-file", template, *FAST, "--json") == 0
    message = json.loads(capsys.readouterr().out)["message"]
    assert message["reasoning_content"]
    assert message["content"] == ""
    typed("Hello")
    assert run("chat", demo_path, "-n", 6, "--chat-template-file", template, *FAST) == 0
    said = capsys.readouterr()
    assert said.err == f"{message['reasoning_content'].rstrip()}\n"
    assert said.out == ""


@pytest.mark.filterwarnings("default")  # they are shown
def test_warnings_name_options(demo_path: Path, typed: Any, capsys: Capture, tmp_path: Path) -> None:
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps([WEATHER]), encoding="utf-8")
    typed("Hello")
    assert run("chat", demo_path, "--tools", tools, "-n", 1, *FAST) == 0
    said = capsys.readouterr().err
    assert said.startswith("moebind: warning: the chat template does not write the tools into the prompt")
    assert "; --chat-template chatml-tools does\n" in said
    typed("Hello")
    assert run("chat", demo_path, "--tools", tools, "--tool-choice", "required", "-n", 1, *FAST) == 2
    said = capsys.readouterr().err
    assert "such as --chat-template chatml-tools, or --tool-choice auto" in said
    assert "use_grammar" not in said
    typed("Hello")
    assert run("chat", demo_path, "--tools", tools, "--chat-template", "chatml-tools", "-n", 1, *FAST) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.filterwarnings("default")  # they are shown
def test_a_schema_and_arguments_of_the_template(demo_path: Path, typed: Any, capsys: Capture) -> None:
    schema = '{"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}'
    arguments = ["--chat-template-file", TEMPLATE, "--chat-template-kwargs", '{"enable_thinking": false}']
    typed("A number?")
    assert run("chat", demo_path, "-j", schema, "-n", 40, *arguments, *FAST) == 0
    assert json.loads(capsys.readouterr().out)["n"] in {1, 2}
    typed("Hello")
    assert run("chat", demo_path, "--chat-template-kwargs", '{"no_such_thing": 1}', "-n", 1, *FAST) == 0
    said = capsys.readouterr().err
    assert said.startswith("moebind: warning: the chat template does not mention the argument 'no_such_thing'")


@pytest.mark.parametrize(
    ("arguments", "lines", "status", "message"),
    [
        ([], [], 2, "there is no model"),
        (["MODEL", "-sys", "a", "-sysf", "TEXT"], [], 2, "--system-prompt and --system-prompt-file are both given"),
        (["MODEL", "--tools", "TEXT"], [], 2, "--tools is not JSON"),
        (["MODEL", "--tools", "OBJECT"], ["hi"], 2, "--tools"),
        (["MODEL", "--chat-template-kwargs", "{"], [], 2, "--chat-template-kwargs is not JSON"),
        (["MODEL", "--chat-template-kwargs", "[1]"], ["hi"], 2, "--chat-template-kwargs"),
        (["MODEL", "--chat-template", "none such"], ["hi"], 1, "none such"),
        (["MODEL", "--chat-template-file", "none.jinja"], [], 1, "none.jinja"),
        (["MODEL", "--reasoning-format", "loud"], ["hi"], 2, "--reasoning-format is 'loud'"),
        (["MODEL", "--tool-choice", "sometimes"], ["hi"], 2, "--tool-choice"),
        (["MODEL", "--load", "TEXT"], [], 2, "is not JSON, as chats are saved in"),
        (["MODEL", "--load", "OBJECT"], [], 2, "holds no chat"),
        (["MODEL", "--load", "none.json"], [], 1, "none.json"),
        (["MODEL", "--temp", "-1"], ["hi"], 2, "--temp is -1"),
        (["MODEL"], ["/nothing"], 2, "there is no command /nonsense; there are".replace("nonsense", "nothing")),
        (["MODEL"], ["/save"], 2, "/save takes FILE; it is '/save'"),
        (["MODEL"], ["/undo it"], 2, "/undo takes nothing; it is '/undo it'"),
        (["MODEL"], ["/undo"], 2, "nothing was asked yet"),
        (["MODEL"], ["/retry"], 2, "nothing was asked yet"),
        (["MODEL"], ["/save chat.json"], 2, "there is nothing to save yet"),
        (["MODEL"], ["/system x", "/save TEXT"], 2, "is not JSON, as chats are saved in"),
        (["MODEL"], ["/system x", "/save no/chat.json"], 1, "no"),
        (["MODEL"], ["/load none.json"], 1, "none.json"),
        (["MODEL"], ["word " * 600], 2, "--ctx-size"),
        (["none.gguf"], [], 1, "none.gguf does not exist"),
    ],
)
def test_misuse(
    demo_path: Path,
    typed: Any,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    lines: list[str],
    status: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    named = {"MODEL": demo_path, "TEXT": tmp_path / "text", "OBJECT": tmp_path / "object.json"}
    named["TEXT"].write_text("some text", encoding="utf-8")
    named["OBJECT"].write_text('{"role": "user"}', encoding="utf-8")
    typed(*(line.replace("TEXT", str(named["TEXT"])) for line in lines), "/quit")
    assert run("chat", *[named.get(each, each) for each in arguments], *FAST, "-n", 1) == status
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("moebind: ")
    assert message in said.err
    assert said.err.count("\n") == 1
    assert named["TEXT"].read_text(encoding="utf-8") == "some text"
