"""The model of a command: by its place, or by an option."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
import typer
from commands import Capture, run
from hub_server import Hub

from moebind.cli import bench
from moebind.cli import options as o
from moebind.cli.app import COMMANDS
from moebind.cli.model_argument import on_hub, takes_model

READ: list[Any] = []


@takes_model
def several(
    model: o.ModelPath,
    query: Annotated[str | None, typer.Argument()] = None,
    texts: Annotated[list[str] | None, typer.Argument()] = None,
    count: int = 1,
) -> None:
    READ.append((model, query, texts or [], count))


@takes_model
def one(model: o.ModelPath) -> None:
    READ.append(model)


@takes_model
def perhaps(model: Annotated[str | None, typer.Argument()] = None) -> None:
    READ.append(model)


def read(command: Any, *arguments: str) -> Any:
    app = typer.Typer(add_completion=False)
    app.command()(command)
    READ.clear()
    app(list(arguments), standalone_mode=False)
    return READ.pop()


@pytest.mark.parametrize(
    "model", [["m.gguf"], ["-m", "m.gguf"], ["--model", "m.gguf"], ["-hf", "m/n:Q8_0"], ["--hf-repo", "m/n:Q8_0"]]
)
@pytest.mark.parametrize("words", [[], ["q"], ["q", "a"], ["q", "a", "b"]])
def test_a_model_and_what_is_behind_it(model: list[str], words: list[str]) -> None:
    name = "m.gguf" if "m.gguf" in model else "hf://m/n/Q8_0"
    expected = (name, words[0] if words else None, words[1:], 2)
    assert read(several, *model, *words, "--count", "2") == expected
    if len(model) == 2:
        assert read(several, "--count", "2", *words, *model) == expected


def test_models_of_commands_that_take_nothing_else() -> None:
    assert read(one, "m.gguf") == read(one, "-m", "m.gguf") == "m.gguf"
    assert read(perhaps) is None
    assert read(perhaps, "-hf", "m/n") == "hf://m/n"


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (one, [], "there is no model: give a file"),
        (several, [], "there is no model: give a file"),
        (one, ["-m", "a", "b"], "MODEL is 'b', and --model is given too"),
        (perhaps, ["-hf", "a/b", "b"], "MODEL is 'b', and --hf-repo is given too"),
        (several, ["-m", "a", "-hf", "b/c"], "--model and --hf-repo are both given"),
        (several, ["m.gguf", "-hf", "b/c", "q"], "'m.gguf', and --hf-repo is given too; .*: leave one out"),
        (several, ["hf://b/c", "-m", "m.gguf"], "'hf://b/c', and --model is given too; .*: leave one out"),
        (one, ["llama3"], "MODEL is 'llama3', which does not exist; it takes a GGUF file, or hf://OWNER/REPO"),
        (one, ["a/b:Q4_K_M"], "does not exist; if it is on the Hugging Face Hub, write hf://a/b/Q4_K_M$"),
        (one, ["HF://a/b"], "does not exist; if it is on the Hugging Face Hub, write hf://a/b$"),
        (one, ["-hf", "llama3"], "--hf-repo is 'llama3'; it takes OWNER/REPO, or"),
        (several, ["Hello"], "MODEL is 'Hello', which does not exist: MODEL comes first, as in MODEL QUERY TEXTS"),
        (several, ["Hello", "m.gguf"], "which does not exist, and 'm.gguf' is behind it: MODEL comes first"),
        (several, ["Hello", "a", "hf://a/b"], "which does not exist, and 'hf://a/b' is behind it: MODEL comes first"),
    ],
)
def test_too_many_and_too_few(command: Any, arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(command, *arguments)


def test_addresses() -> None:
    assert on_hub("owner/repo") == "hf://owner/repo"
    assert on_hub("owner/repo:Q4_K_M") == "hf://owner/repo/Q4_K_M"


#: Commands of no one model; of all others, how they are called, behind the model.
WITHOUT_MODEL = {"devices", "list", "rpc-worker"}
BEHIND: dict[tuple[str, ...], list[str]] = {
    ("generate",): ["it is"],
    ("chat",): ["-p", "it is", "-st"],
    ("probe",): [],
    ("embed",): ["it is"],
    ("rerank",): ["it is", "it was"],
    ("tokenize",): ["it is"],
    ("plan",): [],
    ("fit",): [],
    ("tune",): ["--minutes", "1"],
    ("experts",): [],
    ("inspect",): [],
    ("get",): [],
    ("quantize",): ["Q8_0", "--dry-run"],
    ("routing",): [],
    ("cache",): [],
    ("doctor",): [],
    ("serve",): ["--port", "0"],
    ("bench", "offload"): ["--device", "loopback"],
    ("bench", "decode"): [],
    ("bench", "prompt"): [],
    ("bench", "batch"): [],
}


#: A name on the Hub; and the first of three files.
OTHERWISE = {("get",), ("quantize",)}


def test_there_is_no_other_command() -> None:
    assert {*COMMANDS} == WITHOUT_MODEL | {name for name, *_ in BEHIND}
    assert {each.name for each in bench.app.registered_commands} == {rest[0] for _, *rest in BEHIND if rest}


@pytest.mark.parametrize("command", BEHIND, ids=" ".join)
def test_every_command_takes_a_model_of_the_hub(command: tuple[str, ...], hub: Hub, capsys: Capture) -> None:
    assert run(*command, "-hf", "someone/nothing:F32", *BEHIND[command]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert "someone/nothing" in told.err
    assert told.err.count("\n") == 1
    assert any("someone/nothing" in each for each in hub.requests)


@pytest.mark.parametrize("command", [each for each in BEHIND if each not in OTHERWISE], ids=" ".join)
def test_every_command_takes_a_model_as_an_option(command: tuple[str, ...], capsys: Capture) -> None:
    assert run(*command, "-m", "none.gguf", *BEHIND[command]) == 1
    assert "none.gguf" in capsys.readouterr().err


def test_what_is_on_the_hub_is_what_an_address_names(hub: Hub, capsys: Capture) -> None:
    assert run("experts", "-hf", "someone/tiny:F32") == 0
    told = capsys.readouterr().out
    assert run("experts", "hf://someone/tiny/F32") == 0
    assert capsys.readouterr().out == told


def test_a_model_that_is_forgotten(capsys: Capture) -> None:
    for command in (["plan"], ["fit"], ["experts"], ["cache"], ["bench", "offload"]):
        assert run(*command) == 2
        assert capsys.readouterr().err.startswith("moebind: there is no model: ")
