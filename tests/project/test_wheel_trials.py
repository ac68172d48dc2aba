"""``tools/wheels try``: what it refuses, what it would run in a distribution, and a wheel that it installs and runs.

The wheel here is a stand-in of a few lines: what ``tools/wheels/smoke.py`` asks of moebind.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools/wheels"))
import clean
import roots
import smoke
import tested

WHEEL = "moebind-9.0-py3-none-any.whl"
INFO = "moebind-9.0.dist-info"
#: A package that writes as many tokens as it is asked for, and has programs.
PACKAGE = """
import contextlib, os, sys, types

__version__ = "9.0"

class Model:
    n_vocab, closed = 2, False

    @classmethod
    @contextlib.contextmanager
    def load_from_file(cls, path, params):
        assert os.path.isfile(path), path
        yield cls()

    def is_eog_token(self, token):
        return False

    @contextlib.contextmanager
    def new_context(self, params):
        yield self

    def generate(self, prompt, max_tokens, sampler):
        return [types.SimpleNamespace(token=number) for number in range(max_tokens)]

ModelParams = ContextParams = lambda **params: None
Sampler = types.SimpleNamespace(chain=lambda of: None, logit_bias=lambda ends: None, greedy=lambda: None)
doctor = lambda: "all is well\\nin detail"
"""
FILES = {
    "moebind/__init__.py": PACKAGE,
    "moebind/__main__.py": "print('moebind 9.0')",
    "moebind/server/__init__.py": "",
    "moebind/server/process.py": "def program():\n    return '/bin/echo'\n",
    f"{INFO}/METADATA": "Metadata-Version: 2.1\nName: moebind\nVersion: 9.0\n",
    f"{INFO}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
}


def write_index(folder: Path, requires: str = "", **changed: str) -> Path:
    """An index with the stand-in; it may require something, and ``__init__`` or ``__main__`` may be another one."""
    files = FILES | {f"moebind/{name}.py": text for name, text in changed.items()}
    if requires:
        files[f"{INFO}/METADATA"] += f"Requires-Dist: {requires}\n"
    folder.mkdir()
    with zipfile.ZipFile(folder / WHEEL, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr(f"{INFO}/RECORD", "".join(f"{name},,\n" for name in [*files, f"{INFO}/RECORD"]))
    return folder


def wheels(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "tools/wheels", *arguments]
    # Nothing may come from an index on the network.
    told = {**os.environ, "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0"}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=told)


# --- what it refuses ---


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["index", "--tests", "a.py"], "--tests are run in a distribution: give --root"),
        (["index", "--root", "nowhere"], "nowhere is no distribution: tools/wheels root makes one"),
        (["index", "--root", "."], ". is no distribution: tools/wheels root makes one"),
        (["empty", "--root", "nowhere"], "empty is no index with a wheel of moebind: tools/wheels index makes one"),
        (
            ["index", "--model", "no.gguf"],
            "{cwd}/no.gguf is not there; without --model, the wheel is tried with a tiny one",
        ),
    ],
)
def test_what_is_refused_is_refused_before_anything_is_made(arguments: list[str], said: str, tmp_path: Path) -> None:
    write_index(tmp_path / "index")
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    done = wheels("try", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"wheels: {said.format(cwd=tmp_path)}\n"
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("arguments", [[], ["index", "more"], ["index", "--tests"], ["index", "--jobs", "2"]])
def test_arguments_that_it_does_not_take(arguments: list[str], tmp_path: Path) -> None:
    done = wheels("try", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: python tools/wheels")


# --- in a distribution ---


class Entered(NamedTuple):
    """A command that would be run there."""

    command: list[str]
    environment: Mapping[str, str]


@pytest.fixture
def entered(monkeypatch: pytest.MonkeyPatch, demo_path: Path) -> list[Entered]:
    """What is run in a distribution, in order; nothing is."""
    seen: list[Entered] = []

    def enter(
        root: Path, command: Sequence[str], environment: Mapping[str, str] | None = None, *, captured: bool = False
    ) -> str:
        assert (root / "trial/index" / WHEEL).is_file()  # what is run finds it
        seen.append(Entered([*command], environment or {}))
        return json.dumps({"moebind": "9.0"}) if captured else ""

    monkeypatch.setattr(clean, "enter", enter)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return seen


@pytest.fixture
def distribution(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "trial/old").mkdir(parents=True)
    (root / roots.STAMP).write_text("debian-13\n", encoding="utf-8")
    return root


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "a.gguf"
    path.write_text("a model", encoding="utf-8")
    return path


def test_what_is_run_in_a_distribution(entered: list[Entered], distribution: Path, model: Path, tmp_path: Path) -> None:
    index = write_index(tmp_path / "index")
    said = clean.try_in(distribution, "python9", index, model, ["one", "two"])
    assert said == {"moebind": "9.0"}
    compiler, environment, install, tried, more, tests = [each.command for each in entered]
    assert compiler[-1] == "! command -v cc && ! command -v gcc && ! command -v clang"
    assert environment == ["python9", "-m", "venv", "/trial/env"]
    offline = ["/trial/env/bin/python", "-m", "pip", "install", "--quiet", "--no-index", "--find-links", "/trial/index"]
    assert install == [*offline, "moebind"]  # alone: what it takes besides would be missed otherwise
    assert tried == [
        *("/trial/env/bin/python", "-I", "-W", "error"),
        *("/trial/checkout/tools/wheels/smoke.py", "/trial/model.gguf"),
    ]
    assert more == [*offline, *tested.TESTERS]
    assert tests == [
        "/trial/env/bin/python", "/trial/checkout/tools/wheels/tested.py", "one", "two",
    ]  # fmt: skip
    assert entered[-1].environment == {"MOEBIND_CACHE": "/trial/cache"}


def test_what_is_put_into_a_distribution(
    entered: list[Entered], distribution: Path, model: Path, demo_path: Path, tmp_path: Path
) -> None:
    clean.try_in(distribution, "python9", write_index(tmp_path / "index"), model)
    trial = distribution / "trial"
    assert not (trial / "old").exists()
    assert (trial / "model.gguf").read_text(encoding="utf-8") == "a model"
    assert (trial / "cache" / demo_path.name).stat().st_size == demo_path.stat().st_size
    checkout = trial / "checkout"
    assert all((checkout / name).exists() for name in (*clean.TREE, *tested.TESTED, "tools/wheels/smoke.py"))
    assert not (checkout / "src").exists()  # the tests would find the sources in the place of the wheel
    assert not [*checkout.rglob("__pycache__")]


def test_a_distribution_with_a_compiler(
    distribution: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def enter(root: Path, command: Sequence[str]) -> str:
        assert "gcc" in command[-1]
        raise roots.RootError("it has gcc")

    monkeypatch.setattr(clean, "enter", enter)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(roots.RootError, match="it has gcc"):
        clean.try_in(distribution, "python9", write_index(tmp_path / "index"), model)


def test_a_distribution_takes_root(
    distribution: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(roots.RootError, match="takes root, for unshare and chroot"):
        clean.try_in(distribution, "python9", write_index(tmp_path / "index"), model)
    assert (distribution / "trial/old").is_dir()


# --- here ---


def answered(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert (done.returncode, done.stderr) == (0, "")
    return dict(json.loads(done.stdout))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("named", [True, pytest.param(False, marks=pytest.mark.thorough)])
def test_a_wheel_is_installed_and_run(named: bool, model: Path, tmp_path: Path) -> None:
    write_index(tmp_path / "index")
    said = answered(wheels("try", "index", *(["--model", model.name] * named), cwd=tmp_path))
    assert said["moebind"] == "9.0"
    assert said["python"] == platform.python_version()
    assert said["doctor"] == "all is well"
    assert said["programs"][::2] == ["moebind 9.0", "--list-devices"]
    assert said["tokens"] == [*range(smoke.N_TOKENS)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "index"]  # nothing is left


@pytest.mark.thorough
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"__init__": PACKAGE + "import warnings\nwarnings.warn('at the import')"}, "UserWarning: at the import"),
        ({"__init__": PACKAGE.replace("range(max_tokens)", "range(3)")}, "3 tokens were written instead of 16"),
        ({"__main__": "raise SystemExit(3)"}, "returned non-zero exit status 3"),
    ],
)
def test_a_wheel_that_does_not_work(changed: dict[str, str], told: str, tmp_path: Path) -> None:
    write_index(tmp_path / "index", **changed)
    done = wheels("try", "index", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert told in done.stderr
    assert done.stderr.endswith("wheels: the wheel was installed and does not work; what it said is above\n")


@pytest.mark.thorough
@pytest.mark.timeout(600)
def test_what_a_wheel_depends_on_comes_from_the_index_alone(tmp_path: Path) -> None:
    write_index(tmp_path / "index", "cffi")
    done = wheels("try", "index", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "No matching distribution found for cffi" in done.stderr
