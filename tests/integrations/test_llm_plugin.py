"""The plugin in the command-line tool llm, before and after it imports moebind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

llm = pytest.importorskip("llm", reason="needs the extra [llm]")

from click.testing import CliRunner, Result
from llm.cli import cli

from moebind import list_models
from moebind_launcher.llm_plugin import folders, models

#: The tiny models write nonsense of bytes, and have no template.
SMALL = ["-o", "n_gpu_layers", "0", "-o", "n_threads", "1", "-o", "template", "chatml"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, tiny_path: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with models, an empty cache of the Hub's, and a folder for llm."""
    for name in ("models/deep/.hidden", "hub", "llm"):
        (tmp_path / name).mkdir(parents=True)
    top = tmp_path / "models"
    (top / "tiny.gguf").symlink_to(tiny_path(n_expert=4))
    for part in sorted(tiny_path(3, n_expert=4).parent.glob(tiny_path(3, n_expert=4).name.replace("00001", "*"))):
        (top / "deep" / f"split-{part.name[-19:]}").symlink_to(part)
    (top / "deep" / "mmproj-tiny.gguf").write_bytes(b"GGUF")
    (top / "deep" / ".hidden" / "tiny.gguf").write_bytes(b"GGUF")
    (top / "part-00002-of-00002.gguf").write_bytes(b"GGUF")
    monkeypatch.setenv("MOEBIND_MODELS", os.pathsep.join([str(top), str(tmp_path / "none")]))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path / "llm"))
    return top


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments, catch_exceptions=False)


def cached(hub: Path, repo: str, commit: str, *names: str, main: bool = False) -> None:
    """Files in a cache of the Hub's."""
    top = hub / f"models--{repo.replace('/', '--')}"
    for name in names:
        path = top / "snapshots" / commit / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"GGUF")
    if main:
        (top / "refs").mkdir()
        (top / "refs" / "main").write_text(commit, encoding="utf-8")


def test_models_in_folders(folder: Path) -> None:
    assert models() == {
        "moebind/deep/split": str(folder / "deep" / "split-00001-of-00003.gguf"),
        "moebind/tiny": str(folder / "tiny.gguf"),
    }
    rows = [row for row in list_models([folder], fits=False) if row.kind == "model" and not row.problem]
    assert [f"moebind/{row.name.removesuffix('.gguf')}" for row in rows] == [*models()]


def test_models_in_the_cache(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    cached(hub, "someone/one", "a" * 40, "old.gguf")
    cached(hub, "someone/one", "b" * 40, "new.gguf", "Q4/new-Q4.gguf", "README.md", main=True)
    cached(hub, "some-one/t--wo", "c" * 40, "tiny.gguf")
    cached(hub, "someone/three", "d" * 40, "config.json")
    found = {name: path for name, path in models().items() if path.startswith(str(hub))}
    assert [*found] == [
        "moebind/some-one/t--wo/tiny",
        "moebind/someone/one/Q4/new-Q4",
        "moebind/someone/one/new",
    ]
    assert found["moebind/someone/one/new"].endswith(f"snapshots/{'b' * 40}/new.gguf")


def test_without_folders_and_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOEBIND_MODELS", "")
    assert folders() == []
    assert models() == {}


def test_names_that_two_have_are_no_short_ones(folder: Path) -> None:
    (folder / "deep" / "tiny.gguf").symlink_to(folder / "tiny.gguf")
    assert llm.get_model("split").model_id == "moebind/deep/split"
    assert llm.get_model("moebind/deep/tiny").model_id == "moebind/deep/tiny"
    with pytest.raises(llm.UnknownModelError):
        llm.get_model("tiny")


def test_the_command(folder: Path) -> None:
    first = run("prompt", "-m", "tiny", "Hello", "-o", "max_tokens", "6", *SMALL)
    assert first.exit_code == 0, first.output
    assert first.output.strip()
    whole = run("prompt", "-m", "tiny", "Hello", "-o", "max_tokens", "6", *SMALL, "--no-stream")
    assert whole.output == first.output
    # llm keeps conversations, and goes on with them in another process.
    following = run("prompt", "-c", "And then?", "-o", "max_tokens", "6", *SMALL, "--usage")
    assert "6 output" in following.output
    logged = run("logs", "-n", "2", "--short")
    assert logged.output.count("moebind/tiny") == 2


def test_what_is_wrong_is_told_as_llm_tells_it() -> None:
    wrong = run("prompt", "-m", "tiny", "Hello", "-o", "n_ctx", "-5")
    assert (wrong.exit_code, wrong.output) == (1, "Error: n_ctx is -5; it takes 0 to 134217728\n")
    wrong = run("prompt", "-m", "tiny", "Hello", "-o", "temperature", "warm")
    assert wrong.exit_code == 1
    assert "temperature" in wrong.output
    wrong = run("moebind", "models")
    assert wrong.exit_code == 1
    assert wrong.output.startswith("Error: the folder ")
    assert wrong.output.endswith("/none does not exist\n")


def test_embeddings_and_the_list(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOEBIND_MODELS", str(folder))
    done = run("embed", "-m", "moebind/tiny", "-c", "a cat", "-f", "json")
    assert done.output.count(",") == 63
    listed = run("moebind", "models")
    assert listed.exit_code == 0, listed.output
    assert {line.split()[0] for line in listed.output.splitlines()} >= {"moebind/tiny", "moebind/deep/split"}
    assert "the file is one of 2" in listed.output or "part" in listed.output


def imported(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    program = f"import sys\nfrom llm.cli import cli\n{code}"
    return subprocess.run(
        [sys.executable, "-c", program], env=os.environ | environment, capture_output=True, text=True, check=False
    )


def test_llm_starts_without_moebind() -> None:
    code = (
        "for arguments in (['models'], ['embed-models'], ['plugins'], ['moebind', '--help']):\n"
        "    cli(arguments, standalone_mode=False)\n"
        "print(sorted(name for name in sys.modules if name.startswith('moebind')))"
    )
    done = imported(code)
    assert done.returncode == 0, done.stderr
    assert "moebind/tiny" in done.stdout
    names = ["moebind_launcher", "moebind_launcher.llm_plugin", "moebind_launcher.model_names"]
    assert done.stdout.splitlines()[-1] == str(names)


def test_llm_works_where_moebind_does_not() -> None:
    code = (
        "sys.modules['moebind._libllama'] = None\n"  # as if it could not be loaded
        "cli(['models'], standalone_mode=False)\n"
        "cli(['prompt', '-m', 'tiny', 'Hello'])"
    )
    done = imported(code)
    assert done.returncode == 1
    assert "moebind/tiny" in done.stdout
    assert done.stderr.startswith("Error: moebind cannot be loaded: ")


def test_an_older_llm_is_told_of() -> None:
    done = imported("sys.modules['llm.parts'] = None\ncli(['moebind', 'models'])")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: moebind cannot be loaded: ")
    assert done.stderr.endswith("; it needs llm 0.36 or newer\n")
