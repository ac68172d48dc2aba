"""Options of commands that draft."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Capture, run

MakeTiny = Callable[..., Path]
FAST = ["-ngl", 0, "-t", 1, "-c", 256]
PROMPT = "the a of the a of the a of"


@pytest.fixture(scope="module")
def path(tiny_path: MakeTiny) -> Path:
    return tiny_path(n_expert=4)


@pytest.fixture(scope="module")
def other(tiny_path: MakeTiny) -> Path:
    return tiny_path(seed=2, n_layer=1)


def told(path: Path, capsys: Capture, *options: object) -> tuple[str, str]:
    assert run("generate", path, PROMPT, "-n", 24, *FAST, "--timings", *options) == 0
    said = capsys.readouterr()
    return said.out, said.err


NGRAMS = ["--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", 2, "--spec-ngram-simple-size-m", 4]


def test_the_text_is_the_one_without(path: Path, other: Path, capsys: Capture) -> None:
    plain, timings = told(path, capsys)
    assert "drafted" not in timings
    for options in (
        ["-md", path, "--spec-draft-n-max", 4],
        ["--model-draft", other, "--spec-type", "draft-simple", "--draft-p-min", 0.1, "-ngld", 0],
        NGRAMS,
        ["--spec-type", "ngram-mod,ngram-map-k", "--spec-ngram-mod-n-match", 2, "--spec-ngram-mod-n-min", 1],
        ["--spec-type", "auto"],
        ["--spec-type", "none"],
    ):
        text, timings = told(path, capsys, *options)
        assert text == plain
        assert ("drafted" in timings) == ("-md" in options or "--model-draft" in options or options is NGRAMS)


def test_a_chat_drafts(path: Path, capsys: Capture) -> None:
    ask = ["chat", path, "-p", "the a", "--single-turn", "-n", 12, *FAST, "--json", "--chat-template", "chatml"]
    messages = []
    for options in ([], ["-md", path]):
        assert run(*ask, *options) == 0
        messages.append(json.loads(capsys.readouterr().out)["message"])
    assert messages[0] == messages[1]


def test_the_models_own_layers_draft(tiny_path: MakeTiny, capsys: Capture) -> None:
    path = tiny_path(arch="glm4moe", n_layer=4, n_expert=4, n_mtp=1, n_head_kv=4)
    plain, _ = told(path, capsys)
    text, timings = told(path, capsys, "--spec-type", "draft-mtp", "--spec-draft-n-max", 2)
    assert text == plain
    assert "drafted" in timings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--spec-draft-n-max", 3], "add --spec-type or --model-draft"),
        (["--spec-type", "ngram-simple", "--spec-ngram-mod-n-max", 3], "without --spec-type ngram-mod"),
        (["--spec-type", "ngrams"], "ngram-simple"),
        (["--spec-type", "draft-simple"], "takes a draft"),
        (["--spec-type", "draft-mtp"], "has no layers that predict further ahead"),
        (["-md", "nothing.gguf"], "nothing.gguf"),
    ],
)
def test_options_that_do_not_go_together(path: Path, capsys: Capture, options: list[object], message: str) -> None:
    assert run("generate", path, PROMPT, *FAST, *options) != 0
    assert message in capsys.readouterr().err
