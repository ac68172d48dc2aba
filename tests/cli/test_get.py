"""moebind get."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Capture, run
from hub_server import REPO, Hub, cached

FITS = ["--device", "1GiB", "--host", "8GiB"]


def test_a_plan_and_a_download(hub: Hub, tmp_path: Path, capsys: Capture) -> None:
    assert run("get", f"{REPO}:Q4_K", "--dry-run", *FITS) == 0
    planned = capsys.readouterr()
    assert planned.out.splitlines()[0].startswith("tiny-Q4_K.gguf: ")
    assert "4 experts" in planned.out
    assert "Here: all on GPU0, context " in planned.out
    assert hub.sent < hub.size(REPO, "tiny-Q4_K.gguf")
    assert cached(tmp_path) == []
    assert run("get", f"{REPO}:Q4_K", "--yes", *FITS) == 0
    said = capsys.readouterr()
    assert Path(said.out.strip()).name == "tiny-Q4_K.gguf"
    assert Path(said.out.strip()).is_file()
    assert "Here: all on GPU0" in said.err
    hub.forget()
    assert run("get", "-hf", f"{REPO}:Q4_K", *FITS) == 0  # it is here: there is nothing to ask
    assert capsys.readouterr().out == said.out
    assert hub.sent == 0


def test_all_files_of_a_split_model_and_json(hub: Hub, tmp_path: Path, capsys: Capture) -> None:
    assert run("get", f"hf://{REPO}/F32", "--dry-run", "--json", *FITS) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["fits"], told["here"], told["paths"]) == (True, False, [])
    assert run("get", f"hf://{REPO}/F32", "-y", "--json", *FITS) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["paths"]) == 3
    assert sum(Path(path).stat().st_size for path in told["paths"]) == told["nbytes"]


def test_without_a_terminal_it_says_what_to_give(hub: Hub, tmp_path: Path, capsys: Capture) -> None:
    assert run("get", f"{REPO}:Q4_K", *FITS) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-1] == (
        "moebind: there is no terminal to ask on: give --yes to download, or --dry-run to only look"
    )
    assert cached(tmp_path) == []


def asked(hub: Hub, tmp_path: Path, answer: bytes, *arguments: str) -> tuple[int, str, str]:
    """Run it on a terminal: its status, what it wrote to a pipe, and what the terminal shows."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HUB_CACHE": str(tmp_path / "cache")}
    process = subprocess.Popen(
        [sys.executable, "-m", "moebind", "get", f"{REPO}:Q4_K", *arguments],
        stdin=theirs,
        stderr=theirs,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            read = os.read(ours, 2**16)
        except OSError:  # Linux's way of saying that the other side is closed
            break
        if not read:
            break
        shown += read
        if shown.endswith(b"[y/N] "):
            os.write(ours, answer)
    out, _ = process.communicate()
    os.close(ours)
    return process.returncode, out, shown.decode()


def test_a_yes_on_a_terminal(hub: Hub, tmp_path: Path) -> None:
    status, out, shown = asked(hub, tmp_path, b"y\n", *FITS)
    assert status == 0
    assert Path(out.strip()).is_file()
    assert "Download " in shown


def test_a_no_on_a_terminal(hub: Hub, tmp_path: Path) -> None:
    status, out, shown = asked(hub, tmp_path, b"n\n", "--device", "none", "--host", "8GiB", "--memory", "Host=1MiB")
    assert (status, out) == (1, "")
    assert "does not fit: Host lacks " in shown
    assert "which does not fit here? [y/N]" in shown
    assert "Nothing was downloaded." in shown
    assert cached(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "there is no model"),
        ([f"{REPO}:F32", "-hf", REPO], 2, "there is no model, or two"),
        (["nothing"], 2, "what to download is 'nothing'; it takes OWNER/REPO, or OWNER/REPO:QUANT"),
        ([f"{REPO}:Q9", "--yes"], 1, "matches 'Q9'"),
        (["someone/nothing", "--yes"], 1, "no repository of models someone/nothing"),
        ([f"{REPO}:Q4_K", "--memory", "much"], 2, "--memory is 'much'"),
    ],
)
def test_misuse(hub: Hub, arguments: list[str], status: int, message: str, capsys: Capture) -> None:
    assert run("get", *arguments) == status
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err
    assert said.err.count("\n") == 1


def test_what_lies_beside_a_model(hub: Hub, tmp_path: Path, capsys: Capture) -> None:
    hub.repos[REPO] |= {f"mtp-{number}.gguf": b"GGUF" for number in range(9)}
    assert run("get", f"{REPO}:Q4_K", "--dry-run", *FITS) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "eside it" in line or "more" in line]
    assert lines[0] == f"Beside it: hf://{REPO}/mmproj-tiny-F16.gguf (a projector, by which it sees or hears: --mmproj)"
    assert lines[1] == f"Beside it: hf://{REPO}/mtp-0.gguf (what drafts for it: --spec-type draft-mtp)"
    assert lines[-1] == "  and 2 more"
    assert run("get", f"{REPO}:Q4_K", "--dry-run", "--json", *FITS) == 0
    told = json.loads(capsys.readouterr().out)["beside"]
    assert told[0] == {"address": f"hf://{REPO}/mmproj-tiny-F16.gguf", "kind": "mmproj", "nbytes": 4}
    assert len(told) == 10


def test_what_drafts_for_a_model(hub: Hub, tiny_path: Callable[..., Path], tmp_path: Path, capsys: Capture) -> None:
    ahead = {"arch": "glm4moe", "n_layer": 4, "n_expert": 4, "n_mtp": 1, "n_head_kv": 4}
    model, drafts = tiny_path(**{**ahead, "n_layer": 3, "n_mtp": 0}), tiny_path(**ahead)
    hub.repos["someone/ahead"] = {"model.gguf": model, "mtp-model.gguf": drafts}
    hub.repos["someone/whole"] = {"model.gguf": drafts}
    ask = ["get", "someone/ahead", "--spec-type", "draft-mtp", *FITS]
    assert run(*ask, "--dry-run") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1].startswith("With mtp-model.gguf: ")
    assert cached(tmp_path) == []
    assert run(*ask) == 2  # there is no terminal to ask on
    assert run("get", "someone/ahead", "--yes", *FITS) == 0
    assert cached(tmp_path) == ["model.gguf"]
    capsys.readouterr()
    assert run(*ask) == 2  # the draft is not here yet
    assert run(*ask, "--yes") == 0
    said_now = capsys.readouterr()
    assert Path(said_now.out.strip()).name == "model.gguf"
    assert "What drafts for it: " in said_now.err
    assert cached(tmp_path) == ["model.gguf", "mtp-model.gguf"]
    hub.forget()
    assert run(*ask, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert [Path(path).read_bytes() for path in told["drafts"]] == [drafts.read_bytes()]
    assert hub.sent == 0
    assert run("get", "someone/whole", "--spec-type", "draft-mtp", "--yes", "--json", *FITS) == 0
    assert json.loads(capsys.readouterr().out)["drafts"] == []  # the layers are in the model's own file
    for kind, message in (
        ("draft-eagle3", "no eagle3-*.gguf lies beside"),
        ("quick", "--spec-type is 'quick'"),
        ("ngram-mod", "--spec-type is ngram-mod, of which a repository has no file; it takes draft-"),
        ("draft-simple", "--spec-type is draft-simple, of which"),
    ):
        assert run("get", "someone/ahead", "--spec-type", kind, *FITS) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["draft-mtp", "draft-eagle3"])
def test_what_is_to_be_done_where_nothing_drafts(
    hub: Hub, tiny_path: Callable[..., Path], kind: str, capsys: Capture
) -> None:
    model = tiny_path(n_expert=4)
    hub.repos["someone/bare"] = {"model.gguf": model}
    assert run("get", "someone/bare", "--spec-type", kind, "--yes", *FITS) != 0
    said = capsys.readouterr().err
    assert f"no {kind.removeprefix('draft-')}-*.gguf lies beside" in said
    assert "leave --spec-type out" in said
    assert "--model-draft" not in said  # which this command does not have
    # Of a file nobody knows the repository.
    assert run("plan", model, "--spec-type", kind) != 0
    said = capsys.readouterr().err
    assert f"add --model-draft FILE (moebind get OWNER/REPO:QUANT --spec-type {kind} brings one that" in said


def test_what_lies_beside_models_is_brought_as_it_is(hub: Hub, tmp_path: Path, capsys: Capture) -> None:
    address = f"hf://{REPO}/mmproj-tiny-F16.gguf"
    assert run("get", address, "--dry-run") == 0
    assert "mmproj-tiny-F16.gguf: " in capsys.readouterr().out
    assert run("get", address) == 2
    assert "there is no terminal to ask on" in capsys.readouterr().err
    assert cached(tmp_path) == []
    assert run("get", address, "--yes", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["kind"], told["here"], told["nbytes"]) == ("mmproj", False, 4)
    assert Path(told["paths"][0]).read_bytes() == b"GGUF"
    assert run("get", address) == 0  # it is here
    assert capsys.readouterr().out.strip() == told["paths"][0]
    assert run("list", "--hub", "--no-fit") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if address in line]
    assert line.split()[-1] == "mmproj"
