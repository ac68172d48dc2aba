"""moebind embed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import Capture, run

import moebind
from conftest import CPU
from moebind import PoolingType

MakeTiny = Callable[..., Path]
TEXTS = ["it is", "the cat is on the mat", "a"]


@pytest.fixture(scope="module")
def path(tiny_path: MakeTiny) -> Path:
    return tiny_path(arch="bert", n_head_kv=4, n_ctx_train=64)


def embedded(path: Path, **arguments: object) -> np.ndarray:
    with moebind.Model.load_from_file(path, CPU) as model:
        return model.embed(TEXTS, **arguments)  # type: ignore[arg-type]


def read(capsys: Capture) -> np.ndarray:
    lines = capsys.readouterr().out.splitlines()
    return np.array([[float(each) for each in line.split()] for line in lines], np.float32)


def test_lines_of_numbers(path: Path, tmp_path: Path, capsys: Capture) -> None:
    expected = embedded(path, normalize=True)
    assert run("embed", path, *TEXTS, "-t", 1) == 0
    found = read(capsys)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)  # seven digits are written
    file = tmp_path / "texts"
    file.write_text("\n".join(TEXTS), encoding="utf-8")
    assert run("embed", "-m", path, "-f", file, "--no-normalize", "--pooling", "cls", "-t", 1) == 0
    expected = embedded(path, pooling_type=PoolingType.CLS)
    np.testing.assert_allclose(read(capsys), expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


def test_json_and_arrays(path: Path, tmp_path: Path, capsys: Capture) -> None:
    assert run("embed", path, *TEXTS, "--json", "-t", 1) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["index"] for each in found["data"]] == [0, 1, 2]
    assert run("embed", path, *TEXTS, "-o", tmp_path / "out.npy", "-t", 1) == 0
    assert capsys.readouterr().out == ""
    array = np.load(tmp_path / "out.npy")
    assert array.dtype == np.float32
    assert np.array_equal(array, np.array([each["embedding"] for each in found["data"]], np.float32))
    np.testing.assert_allclose(np.linalg.norm(array, axis=1), 1, rtol=1e-5)


def test_long_texts(path: Path, capsys: Capture) -> None:
    long = "the cat " * 200
    assert run("embed", path, "it is", long, "-t", 1) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "texts[1] has" in said.err
    assert run("embed", path, "it is", long, "--truncate", "-t", 1) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["MODEL", "a", "--json", "-o", "x.npy"], 2, "--json and --output are both given"),
        (["MODEL", "a", "-o", "x.csv"], 2, "--output is 'x.csv'; it takes a name that ends in .npy"),
        (["MODEL", "a", "-o", "nowhere/x.npy"], 1, "nowhere"),
        (["MODEL", "a", "--pooling", "max"], 2, "--pooling is 'max'; it takes one of none, mean"),
        (["MODEL", "a", "--pooling", "rank"], 1, "--pooling is RANK; a text's embedding takes"),
        (["MODEL", "a", "-f", "x"], 2, "TEXT is 'a', and --file is given too"),
        (["none.gguf", "a"], 1, "none.gguf does not exist"),
    ],
)
def test_misuse(path: Path, capsys: Capture, arguments: list[str], status: int, message: str) -> None:
    assert run("embed", *[path if each == "MODEL" else each for each in arguments], "-t", 1) == status
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err
    assert said.err.count("\n") == 1
