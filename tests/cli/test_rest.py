"""Arguments for llama-server itself, and its options in the place of moebind's."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from commands import Capture, run

from moebind.cli.app import app
from moebind.cli.rest import rest_of
from moebind.server.extra import _OURS, _PARAMETERS, option_names

#: What llama-server must not get.
REFUSED = (*_OURS, *_PARAMETERS)


@pytest.fixture(scope="module")
def path(tiny_path: Callable[..., Path]) -> Path:
    return tiny_path(n_expert=4)


def test_options_of_llama_server_go_behind_the_dashes(path: Path, capsys: Capture) -> None:
    assert run("serve", path, "--temp", "0") == 2
    told = "--temp is an option of llama-server's: give it behind --, as in moebind serve MODEL -- --temp ..."
    assert capsys.readouterr().err == f"moebind: {told}\n"
    assert run("serve", path, "--spec-draft-prio", "2") == 2  # which other commands refuse
    assert "give it behind --, as in moebind serve MODEL -- --spec-draft-prio ..." in capsys.readouterr().err
    assert run("serve", path, "--tempp", "0") == 2
    assert capsys.readouterr().err == f"moebind: there is no option --tempp; did you mean --temp? {told}\n"
    assert run("serve", path, "--", "--host", "::") == 2
    assert "is moebind's to set: give it before --" in capsys.readouterr().err
    tuned = "give --tuned, or --params FILE, which moebind tune --save FILE wrote\n"
    for arguments, said in {
        ("-fa",): "-fa is the last word; it takes a value",
        ("--no-webui",): "but is moebind's to set: use --no-ui\n",
        ("--draft-max", "4"): "there is no --draft-max here: llama.cpp has taken it away: use --spec-draft-n-max",
        ("--mlock",): "there is no option --mlock; did you mean --load-mode mlock?",
        ("--preset", "p.ini"): f"there is no --preset here: a preset is for llama-server itself; {tuned}",
        ("--models-preset", "p.ini"): f"but is moebind's to set: moebind writes it; {tuned}",
    }.items():
        assert run("serve", path, *arguments) == 2
        told = capsys.readouterr().err
        assert said in told
        assert "behind --" not in told


#: What is behind --, and what is said of it.
BEHIND = {
    ("-c", "512"): "where no plan would know of it: give it before --",
    ("--ctx_size", "512"): "where no plan would know of it: give it before --",
    ("-nkvo",): "where no plan would know of it: give it before --",
    ("--no-kv-offload",): "where no plan would know of it: give it before --",
    ("--embeddings",): "where no plan would know of it: give it before --",
    ("--lazy-mode", "on"): "know of it: set lazy_mode in a file of parameters (--params) instead, before --",
    ("--override-kv", "a=int:1"): "know of it: set kv_overrides in a file of parameters (--params) instead, before --",
    ("--moe-cache-mib", "1"): "where no plan would know of it: use --moe-cache instead, before --",
    ("-cmoe",): "but is moebind's to set: give it before --",
    ("-hf", "o/r"): "but is moebind's to set: give it before --",
    ("-m", "a.gguf"): "but is moebind's to set: give it before --",
    ("--no-ui",): "but is moebind's to set: give it before --",
    ("--no-webui",): "but is moebind's to set: use --no-ui, before --",
    ("--api-key", "x"): "is moebind's to set: whoever lists processes could read it; use --api-key-file, before --",
    ("--api-key-file", "x"): "but is moebind's to set: give it before --",
    ("-ncffn", "1"): "but is moebind's to set: use --override-tensor instead, before --",
    ("--rerank",): "but is moebind's to set: use --embeddings, and --pooling rank, before --",
    ("--models-max", "1"): "it follows from the models' sizes; use --one-at-a-time, before --",
    ("--offline",): "but is moebind's to set: it is set",
}


@pytest.mark.parametrize("given", BEHIND, ids=" ".join)
def test_what_belongs_before_the_dashes_is_told(given: tuple[str, ...], path: Path, capsys: Capture) -> None:
    assert run("serve", path, "--", "--temp", "0", *given) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"moebind: {given[0]} is behind --, ")
    assert said.endswith(f"{BEHIND[given]}\n")


def test_a_draft_that_no_plan_would_count_belongs_before_the_dashes(path: Path, capsys: Capture) -> None:
    assert run("serve", path, "--", "--spec-type", "draft-mtp") == 2
    assert capsys.readouterr().err == (
        "moebind: --spec-type draft-mtp is behind --, where no plan would count the draft: give it before --\n"
    )


def test_every_option_that_is_to_be_used_instead_is_one(path: Path, capsys: Capture) -> None:
    group = typer.main.get_command(app)
    params = group.get_command(typer.Context(group), "serve").params  # type: ignore[attr-defined]
    own = {name for each in params for name in (*each.opts, *each.secondary_opts)}
    for name in sorted(set().union(*(option_names()[f"--{each}"] for each in REFUSED))):
        assert run("serve", path, "--", name) == 2
        subject, _, told = capsys.readouterr().err.partition(" is behind --, ")
        assert subject == f"moebind: {name}"
        assert told.endswith("give it before --\n") == (name in own), told
        here = told.replace("moebind tune --save FILE", "")
        assert set(re.findall(r"--[a-z][a-z-]*", here)) <= own, told
        assert not re.search(r"\b(?!kv_overrides|lazy_mode|no_host)[a-z]+_[a-z_]+", told), told


def test_a_shell_completes_what_is_not_whole() -> None:
    group = typer.main.get_command(app)
    command = group.get_command(typer.Context(group), "serve")  # type: ignore[attr-defined]
    context = command.make_context("serve", ["m.gguf", "--", "-c"], resilient_parsing=True)
    assert rest_of(context) == ["-c"]
