"""moebind generate."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import Capture, run

import moebind
from conftest import CPU
from moebind import ContextParams, Sampler

MakeTiny = Callable[..., Path]
MOEBIND = Path(sys.executable).with_name("moebind")
FAST = ["-ngl", 0, "-t", 1, "-c", 256]
PROMPT = "it is"


@pytest.fixture(scope="module")
def path(tiny_path: MakeTiny) -> Path:
    return tiny_path(n_expert=4)


def written(path: Path, **arguments: Any) -> moebind.Completion:
    params = ContextParams(n_ctx=256, n_threads=1, n_threads_batch=1)
    with moebind.Model.load_from_file(path, CPU) as model, model.new_context(params) as context:
        if "grammar" in arguments:
            arguments["sampler"] = Sampler.chain([Sampler.grammar(model, arguments.pop("grammar")), Sampler.greedy()])
        return context.generate(PROMPT, **arguments).complete()


def lines(capsys: Capture) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_text_is_the_librarys(path: Path, capsys: Capture) -> None:
    expected = written(path, max_tokens=12).text
    assert run("generate", path, PROMPT, "-n", 12, *FAST) == 0
    said = capsys.readouterr()
    assert said.out.rstrip("\n") == expected.rstrip("\n")
    assert said.err == ""
    assert run("generate", "-m", path, "-p", PROMPT, "--predict", 12, *FAST, "--timings") == 0
    told = capsys.readouterr()
    assert told.out == said.out
    assert told.err.startswith("moebind: prompt 7 tokens in ")


def test_where_the_prompt_comes_from(path: Path, tmp_path: Path, capsys: Capture, monkeypatch: Any) -> None:
    assert run("generate", path, PROMPT, "-n", 4, *FAST) == 0
    expected = capsys.readouterr().out
    file = tmp_path / "prompt.txt"
    file.write_text(PROMPT, encoding="utf-8")
    for arguments in ([path, "-f", file], ["-m", path, "--file", file], [path, "-f", "-"], [path], ["-m", path]):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(PROMPT.encode())))
        assert run("generate", *arguments, "-n", 4, *FAST) == 0
        assert capsys.readouterr().out == expected


def test_json_lines(path: Path, capsys: Capture) -> None:
    expected = written(path, max_tokens=5)
    assert run("generate", path, PROMPT, "-n", 5, *FAST, "--json") == 0
    *pieces, last = lines(capsys)
    assert [each["token"] for each in pieces] == list(expected.tokens)
    assert [each["index"] for each in pieces] == [0, 1, 2, 3, 4]
    assert "".join(each["text"] for each in pieces) == last["text"] == expected.text
    assert (last["stop_reason"], last["stop"]) == ("length", None)
    assert last["usage"] == {"prompt_tokens": 7, "cached_tokens": 0, "generated_tokens": 5, "total_tokens": 12}
    timings = last["timings"]
    assert (timings["prompt_n"], timings["predicted_n"]) == (7, 4)
    assert timings["predicted_per_second"] > 0


def test_nothing_is_asked_for(path: Path, capsys: Capture) -> None:
    assert run("generate", path, PROMPT, "-n", 0, *FAST, "--json") == 0
    [last] = lines(capsys)
    assert (last["text"], last["stop_reason"]) == ("", "length")
    assert run("generate", path, PROMPT, "-n", 0, *FAST) == 0
    assert capsys.readouterr().out == ""


def test_stops(path: Path, capsys: Capture) -> None:
    whole = written(path, max_tokens=8)
    stop = next(piece.text for piece in whole.pieces[2:] if piece.text.strip())
    assert run("generate", path, PROMPT, "-n", 8, *FAST, "--stop", "never so", "--stop", stop, "--json") == 0
    last = lines(capsys)[-1]
    assert (last["stop_reason"], last["stop"]) == ("stop", stop)
    assert last["text"] == whole.text.partition(stop)[0]


def test_a_grammar_and_a_schema(path: Path, tmp_path: Path, capsys: Capture) -> None:
    grammar = 'root ::= "yes" | "no, " [a-c]{3}'
    expected = written(path, max_tokens=20, grammar=grammar).text
    file = tmp_path / "rules.gbnf"
    file.write_text(grammar, encoding="utf-8")
    for options in (["--grammar", grammar], ["--grammar-file", file]):
        assert run("generate", path, PROMPT, "-n", 20, *FAST, *options) == 0
        assert capsys.readouterr().out == f"{expected}\n"
    assert run("generate", path, PROMPT, "-n", 20, *FAST, "--grammar", grammar, "--temp", 2, "--seed", 3) == 0
    said = capsys.readouterr().out
    assert said == "yes\n" or (said.startswith("no, ") and set(said[4:-1]) <= set("abc"))
    schema = (
        '{"type": "object", "properties": {"n": {"enum": [1, 22]}}, "required": ["n"], "additionalProperties": false}'
    )
    file.write_text(schema, encoding="utf-8")
    for options in (["--json-schema", schema], ["-j", schema], ["-jf", file]):
        assert run("generate", path, PROMPT, "-n", 40, *FAST, *options) == 0
        assert json.loads(capsys.readouterr().out)["n"] in {1, 22}


def test_choices_are_the_librarys(path: Path, capsys: Capture) -> None:
    settings = {"temperature": 1.5, "top_k": 30, "top_p": 0.9, "min_p": 0.01, "repeat_penalty": 1.2, "seed": 7}
    settings |= {"presence_penalty": 0.1, "frequency_penalty": 0.2}
    flags = {"temperature": "--temp"}
    options = [
        part for name, value in settings.items() for part in (flags.get(name, f"--{name.replace('_', '-')}"), value)
    ]
    assert run("generate", path, PROMPT, "-n", 12, *FAST, *options) == 0
    expected = written(path, max_tokens=12, **settings).text
    assert capsys.readouterr().out.rstrip("\n") == expected.rstrip("\n")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "there is no model"),
        (["MODEL", "a", "-p", "b"], 2, "the text is given as an argument and as --prompt"),
        (["MODEL", "-p", "b", "-f", "FILE"], 2, "the text is given as --prompt and as --file"),
        (["MODEL", "a", "-n", "-2"], 2, "--predict"),
        (["MODEL", "a", "--temp", "-1"], 2, "--temp is -1;"),
        (["MODEL", "a", "--top-p", "2"], 2, "--top-p is 2;"),
        (["MODEL", "a", "--top-k", "some"], 2, "--top-k"),
        (["MODEL", "a", "--seed", "-5"], 2, "--seed is -5"),
        (["MODEL", "a", "--stop", ""], 2, "--stop holds an empty text"),
        (["MODEL", "a", "--grammar", "root ::= ("], 2, "grammar"),
        (["MODEL", "a", "--grammar", "x", "--grammar-file", "FILE"], 2, "--grammar and --grammar-file are both given"),
        (["MODEL", "a", "--grammar", "x", "-j", "{}"], 2, "--grammar and --json-schema are both given"),
        (["MODEL", "a", "--json-schema", "{"], 2, "JSON"),
        (["MODEL", "a", "--json-schema", '{"type": "nothing"}'], 2, "nothing"),
        (["MODEL", "a", "--device", "24GiB"], 2, "--device is '24GiB', which describes a device, and this computes"),
        (["MODEL", "a", "--fit", "perhaps"], 2, "--fit is 'perhaps'; it takes on or off"),
        (["MODEL", "word " * 400], 2, "--ctx-size"),
        (["MODEL", "-f", "none.txt"], 1, "none.txt"),
        (["MODEL", "-f", "BYTES"], 2, "is not text in UTF-8"),
        (["none.gguf", "a"], 1, "none.gguf does not exist"),
        (["FILE", "a"], 1, "is not a GGUF file"),
        (["ENCODER", "a"], 2, "has no cache, so it cannot generate"),
    ],
)
def test_misuse(
    path: Path,
    tiny_path: MakeTiny,
    tmp_path: Path,
    capsys: Capture,
    arguments: list[str],
    status: int,
    message: str,
) -> None:
    named = {"MODEL": path, "FILE": tmp_path / "text.txt", "BYTES": tmp_path / "bytes"}
    named["FILE"].write_text("some text", encoding="utf-8")
    named["BYTES"].write_bytes(b"\xff\xfe")
    if "ENCODER" in arguments:
        named["ENCODER"] = tiny_path(arch="bert", n_head_kv=4, n_ctx_train=256)
    assert run("generate", *[named.get(each, each) for each in arguments], *FAST) == status
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("moebind: ")
    assert message in said.err
    assert said.err.count("\n") == 1


def test_without_a_prompt_somebody_who_types_is_told(path: Path, capsys: Capture, monkeypatch: Any) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert run("generate", path, *FAST) == 2
    assert "there is no text: give it as an argument, --prompt, --file" in capsys.readouterr().err


def endless(path: Path, *options: str) -> subprocess.Popen[str]:
    grammar = 'root ::= many{1000}\nmany ::= ("a" | "b"){50}'  # it does not end within any patience
    command = [MOEBIND, "generate", path, PROMPT, "--grammar", grammar, "-ngl", "0", "-t", "1", "-c", "60000", *options]
    return subprocess.Popen(
        [str(each) for each in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )


def without_notes(said: str) -> str:
    """What is said besides that the context is longer than the model knows."""
    return "".join(line for line in said.splitlines(keepends=True) if not line.startswith("moebind: note: "))


def test_ctrl_c_keeps_what_came(path: Path) -> None:
    with endless(path, "--json") as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        out = process.stdout.read()  # communicate() would leave out what was read ahead
        assert process.wait(60) == 130
        assert process.stderr is not None
        assert without_notes(process.stderr.read()) == ""
    *pieces, last = map(json.loads, out.splitlines())
    # Ctrl-C may come between a token and its line.
    assert last["text"].startswith("".join(each["text"] for each in [first, *pieces]))
    assert last["usage"]["generated_tokens"] - len([first, *pieces]) in {0, 1}
    assert last["stop_reason"] is None


def test_a_reader_who_has_seen_enough(path: Path) -> None:
    with endless(path, "--json") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == 1
        assert process.stderr is not None
        assert without_notes(process.stderr.read()) == ""


def test_an_encoding_that_lacks_characters(path: Path) -> None:
    command = [MOEBIND, "generate", path, PROMPT, "--grammar", 'root ::= "ü"', "-ngl", "0", "-t", "1", "-c", "256"]
    variables = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, check=False, env=variables)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"?\n", b"")
