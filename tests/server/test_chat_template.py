"""The chat template among the arguments for llama-server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from chats import WEATHER
from serving import SMALL_SERVER, ask

import moebind
from moebind.chat.named_templates import CHATML_TOOLS_FILE
from moebind.server import Server
from moebind.server.chat_template import with_template

MakeTiny = Callable[..., Path]
JINJA = "{% for message in messages %}<{{ message.content }}>{% endfor %}"


def test_what_llama_server_gets(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(JINJA, encoding="utf-8")
    for given, expected in (
        ("chatml-tools", ["--chat-template-file", str(CHATML_TOOLS_FILE)]),
        ("chatml", ["--chat-template", "chatml"]),
        ("llama2", ["--chat-template", "llama2", "--no-jinja"]),
        (JINJA, ["--chat-template", JINJA]),
        (str(file), ["--chat-template-file", str(file)]),
    ):
        for name in ("--chat-template", "--chat_template"):  # it reads both
            assert with_template(["--temp", "0", name, given, "--top-k", "1"]) == [
                *("--temp", "0"),
                *expected,
                *("--top-k", "1"),
            ]
    for others in ([], ["--temp", "0"], ["--chat-template-file", "chatml-tools"]):
        assert with_template(others) == others


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--chat-template", "chatml_tools"],
            "--chat-template is 'chatml_tools'; it takes chatml-tools, a template of",
        ),
        (["--chat-template", ""], "--chat-template is ''; it takes"),
        (["--chat-template", "none/such.jinja"], "Jinja source, or a file with that"),
        (["--chat-template"], "--chat-template has no value; it takes"),
        (["--chat-template", "chatml", "--chat-template", "chatml"], "--chat-template is given 2 times; give one"),
    ],
)
def test_what_it_would_take_for_text_is_refused(arguments: list[str], message: str, tiny_path: MakeTiny) -> None:
    with pytest.raises(ValueError, match=message):
        with_template(arguments)
    with pytest.raises(ValueError, match=message):
        Server(tiny_path(), **{**SMALL_SERVER, "extra": arguments})


@pytest.mark.parametrize("name", ["chatml-tools", "llama2", JINJA])
def test_prompts_are_as_in_python(name: str, tiny_path: MakeTiny) -> None:
    path, messages = tiny_path(n_expert=4), [{"role": "user", "content": "Hello"}]
    tools = [WEATHER] if name == "chatml-tools" else None
    with moebind.Model.load_from_file(path, moebind.ModelParams(vocab_only=True)) as model:
        expected = model.apply_chat_template(messages, template=name, tools=tools)
    with Server(path, **{**SMALL_SERVER, "extra": [*SMALL_SERVER["extra"], "--chat-template", name]}) as server:
        found = ask(server.url, "/apply-template", {"messages": messages, **({"tools": tools} if tools else {})})
    assert found.said["prompt"] == expected
    assert "Hello" in expected
