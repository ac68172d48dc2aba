"""The plugin in the command-line tool llm, before and after it imports moebind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

llm = pytest.importorskip("llm", reason="needs the extra [llm]")

import hub_server
from click.testing import CliRunner, Result
from hub_server import REPO, Hub
from llm.cli import cli

from moebind import list_models
from moebind_launcher.llm_plugin import TAKERS, folders, models

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


@pytest.fixture
def online(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A Hub, and its cache where the plugin looks for it, by another way there."""
    (tmp_path / "link").symlink_to(tmp_path / "cache")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "link"))
    return hub


def run(*arguments: str, given: str | None = None) -> Result:
    return CliRunner().invoke(cli, arguments, given, catch_exceptions=False)


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


def test_revisions_in_the_cache(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    cached(hub, "someone/one", "a" * 40, "tiny.gguf", main=True)
    cached(hub, "someone/one", "b" * 40, "tiny.gguf")
    cached(hub, "someone/one", "c" * 40, "tiny.gguf")
    cached(hub, "someone/one", "e" * 40, "newest.gguf")
    refs = hub / "models--someone--one" / "refs"
    (refs / "refs" / "pr").mkdir(parents=True)
    for ref, commit in (("v1", "b"), ("same", "a"), ("gone", "d"), ("refs/pr/7", "c")):
        (refs / ref).write_text(commit * 40, encoding="utf-8")
    found = {name: Path(path).parent.name[0] for name, path in models().items() if path.startswith(str(hub))}
    assert found == {
        "moebind/someone/one/tiny": "a",
        "moebind/someone/one@refs%2Fpr%2F7/tiny": "c",
        "moebind/someone/one@v1/tiny": "b",
    }
    for name in ("one/tiny.gguf", "one@v1/tiny.gguf"):
        assert llm.get_model(f"hf://someone/{name}").model_id == f"moebind/someone/{name.removesuffix('.gguf')}"
    # What is newest has a name where main is not here; the address without a revision is main's.
    (refs / "main").unlink()
    (refs / "same").unlink()
    os.utime(refs.parent / "snapshots" / ("a" * 40), (2**33, 2**33))
    assert "moebind/someone/one/tiny" in models()
    with pytest.raises(llm.UnknownModelError):
        llm.get_model("hf://someone/one/tiny.gguf")


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


def test_an_address(online: Hub, tmp_path: Path) -> None:
    prompt = ["Hello", "-o", "max_tokens", "6", *SMALL]
    here = run("prompt", "-m", "moebind/tiny", *prompt, "--no-log")
    done = run("prompt", "-m", f"hf://{REPO}/Q4_K", *prompt)  # the same file
    assert done.exit_code == 0, done.output
    assert done.stdout == here.stdout
    assert hub_server.cached(tmp_path) == ["tiny-Q4_K.gguf"]
    # From then on it has a name, by which llm keeps what was asked.
    name = f"moebind/{REPO}/tiny-Q4_K"
    assert name in run("logs", "-n", "1", "--short").output
    assert run("prompt", "-c", *prompt).exit_code == 0
    address = f"hf://{REPO}/tiny-Q4_K.gguf"
    assert llm.get_model(address).model_id == llm.get_embedding_model(address).model_id == name
    online.forget()
    assert run("prompt", "-m", address, *prompt).output == here.output
    assert online.sent == 0


@pytest.mark.parametrize(
    ("before", "behind"),
    [
        ("prompt", ["Hello", "-o", "max_tokens", "2", *SMALL]),
        ("chat", ["-o", "max_tokens", "2", *SMALL]),
        ("embed", ["-c", "a cat"]),
        ("embed-multi", ["cats", "-"]),
        ("models default", []),
        ("models options set", ["n_ctx", "512"]),
        ("embed-models default", []),
        ("aliases set", []),
    ],
)
def test_every_place_that_takes_a_model(online: Hub, tmp_path: Path, before: str, behind: list[str]) -> None:
    taken = [f"hf://{REPO}/F32/tiny-F32-00002-of-00003.gguf"]
    taken = taken if TAKERS[before] == "model" and " " in before else ["-m", *taken]
    if before == "aliases set":
        taken = ["small", taken[-1]]
    given = "Hello\nexit\n" if before == "chat" else '[{"id": "1", "content": "a cat"}]'
    done = run(*before.split(), *taken, *behind, given=given)
    assert done.exit_code == 0, done.output
    assert len(hub_server.cached(tmp_path)) == 3
    name = f"moebind/{REPO}/F32/tiny-F32"
    asked = {
        "prompt": ["logs", "-n", "1", "--short"],
        "chat": ["logs", "-n", "1", "--short"],
        "embed-multi": ["collections", "list"],
        "models options set": ["models", "options", "list"],
        "aliases set": ["aliases", "list"],
        "embed": ["embed-models", "list"],
    }
    assert name in run(*asked.get(before, before.split())).output


def test_every_place_is_there() -> None:
    for command, parameter in TAKERS.items():
        found = cli
        for word in command.split():
            found = found.commands[word]
        assert [each.callback for each in found.params if each.name == parameter] != [None], command


def test_a_line_that_is_being_completed_downloads_nothing(online: Hub) -> None:
    address = f"hf://{REPO}/Q4_K"
    context = cli.commands["prompt"].make_context("prompt", ["-m", address], resilient_parsing=True)
    assert context.params["model_id"] == address
    assert not online.requests


def test_addresses_with_a_revision(online: Hub, tmp_path: Path) -> None:
    prompt = ["Hello", "-o", "max_tokens", "2", *SMALL]
    assert run("prompt", "-m", f"hf://{REPO}@refs/pr/7/Q4_K", *prompt).exit_code == 0
    assert f"moebind/{REPO}@refs%2Fpr%2F7/tiny-Q4_K" in run("logs", "-n", "1", "--short").output
    assert run("prompt", "-m", f"hf://{REPO}@{online.commit(REPO)}/Q4_K", *prompt).exit_code == 0  # the same
    cached(tmp_path / "cache", "someone/two", "a" * 40, "tiny.gguf", main=True)
    online.repos["someone/two"] = {"tiny.gguf": online.repos[REPO]["tiny-Q4_K_M.gguf"]}
    wrong = run("prompt", "-m", f"hf://someone/two@{online.commit('someone/two')}", *prompt)
    assert wrong.exit_code == 1
    assert "llm knows no model by that file: " in wrong.output
    assert wrong.output.endswith("its revision is a commit that is no branch and no tag\n")


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("hf://someone/none/Q4_K", "Error: the Hub has no repository of models someone/none"),
        (f"hf://{REPO}/Q9", f"Error: {REPO} has no GGUF file that matches 'Q9'; there is\n  F32/tiny"),
        (f"hf://{REPO}", f"Error: {REPO} has 3 models; give the name of one:\n  F32/tiny"),
        ("hf://one", "Error: 'hf://one' is not the address of a file on the Hugging Face Hub"),
        (f"hf://{REPO}/mmproj-tiny-F16.gguf", f"Error: hf://{REPO}/mmproj-tiny-F16.gguf is /"),
    ],
)
def test_addresses_of_no_model(online: Hub, address: str, told: str) -> None:
    for command in (["prompt", "Hello"], ["embed", "-c", "a cat"]):
        wrong = run(*command, "-m", address)
        assert wrong.exit_code == 1
        assert wrong.output.startswith(told)


def test_addresses_without_what_it_takes() -> None:
    code = "cli(['prompt', '-m', 'hf://someone/tiny', 'Hello'])"
    done = imported(f"sys.modules['huggingface_hub'] = None\n{code}")
    assert done.returncode == 1
    assert done.stderr == "Error: the Hugging Face Hub is reached through huggingface_hub: pip install 'moebind[hub]'\n"
    done = imported(f"sys.modules['moebind._libllama'] = None\n{code}")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: moebind cannot be loaded: ")


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
