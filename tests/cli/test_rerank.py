"""moebind rerank."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Capture, run

import moebind
from conftest import CPU

MakeTiny = Callable[..., Path]
QUERY, TEXTS = "is it a cat", ["it is", "the cat is on the mat", "a cat"]


@pytest.fixture(scope="module")
def path(tiny_path: MakeTiny) -> Path:
    return tiny_path(arch="bert", n_head_kv=4, n_ctx_train=64, n_cls_out=1)


def test_the_best_come_first(path: Path, tmp_path: Path, capsys: Capture) -> None:
    with moebind.Model.load_from_file(path, CPU) as model:
        scores = model.rerank(QUERY, TEXTS)
    order = (-scores).argsort().tolist()
    assert run("rerank", path, QUERY, *TEXTS, "-t", 1) == 0
    told = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    assert [(int(at), text) for _, at, text in told] == [(at, TEXTS[at]) for at in order]
    assert [float(score) for score, *_ in told] == pytest.approx(scores[order], abs=6e-5)  # four digits are written
    file = tmp_path / "texts"
    file.write_text("\n".join(TEXTS), encoding="utf-8")
    assert run("rerank", "-m", path, QUERY, "-f", file, "--top-n", 2, "--json", "-t", 1) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [(each["index"], each["document"]) for each in results] == [(at, TEXTS[at]) for at in order[:2]]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["MODEL"], 2, "there is no QUERY"),
        (["-m", "MODEL"], 2, "there is no QUERY"),
        (["MODEL", "q", "a", "--top-n", "0"], 2, "--top-n"),
        (["MODEL", "q", "a", "-f", "x"], 2, "TEXT is 'a', and --file is given too"),
        (["MODEL", "q", "-f", "none.txt"], 1, "none.txt"),
        (["DENSE", "q", "a"], 1, "has no classification head"),
        (["none.gguf", "q", "a"], 1, "none.gguf does not exist"),
    ],
)
def test_misuse(
    path: Path, tiny_path: MakeTiny, capsys: Capture, arguments: list[str], status: int, message: str
) -> None:
    named = {"MODEL": path, "DENSE": tiny_path()}
    assert run("rerank", *[named.get(each, each) for each in arguments], "-t", 1) == status
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err
    assert said.err.count("\n") == 1
