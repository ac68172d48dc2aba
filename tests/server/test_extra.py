"""Arguments for llama-server itself."""

from __future__ import annotations

import pytest
from hub_server import REPO, Hub

from moebind.server.arguments import ROWS, Settings
from moebind.server.extra import _OURS, EXAMPLES, check_extra, downloaded, given, left_open, option_names


def test_names_are_read_from_the_help() -> None:
    names = option_names()
    assert {"-ngl", "--gpu-layers", "--n-gpu-layers"} == names["-ngl"]
    assert {"-nkvo", "--no-kv-offload", "-kvo", "--kv-offload"} == names["--no-kv-offload"]
    assert names["--host"] == {"--host"}
    assert {"-c", "--ctx-size"} == names["-c"]
    assert not [name for name in names if not name.startswith("-") or "<" in name or "[" in name]


def test_what_is_its_own_passes() -> None:
    arguments = [
        "--temp",
        "0",
        "-n",
        "-1",
        "--spec-draft-n-max",
        "4",
        "--cors-origins",
        "https://me.example",
        "-td",
        "2",
    ]
    assert check_extra(arguments) == arguments
    assert check_extra(iter(arguments)) == arguments
    assert check_extra(()) == []


@pytest.mark.parametrize("option", [*_OURS, *(row.option for row in ROWS.values() if row.option and row.planned)])
def test_every_name_of_what_is_moebinds_is_refused(option: str) -> None:
    names = option_names()[f"--{option}"]
    assert names
    for name in names:
        for written in {name, "--" + name[2:].replace("-", "_") if name.startswith("--") else name}:  # it reads both
            with pytest.raises(ValueError, match=f"^{written} is among the arguments for llama-server itself"):
                check_extra(["--temp", "0", written, "1"])


@pytest.mark.parametrize(("option", "value"), sorted(set(EXAMPLES.values())))
def test_what_is_said_in_place_of_an_argument_may_be_given(option: str, value: str) -> None:
    assert option in option_names()
    assert check_extra([option, value])


def test_what_is_no_list_of_texts_is_refused() -> None:
    with pytest.raises(TypeError, match="it takes a list of arguments"):
        check_extra("--temp 0")
    with pytest.raises(TypeError, match=r"extra\[1\]"):
        check_extra(["--temp", 0])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"extra\[0\]"):
        check_extra(["a\0b"])


def test_only_files_have_addresses(hub: Hub) -> None:
    arguments = ["--chat-template", f"hf://{REPO}/Q4_K is {{{{ x }}}}", "--lora", "a.gguf,./hf://b.gguf", "--temp", "0"]
    assert downloaded(arguments) == arguments
    assert not hub.requests
    first, second = downloaded([f"a.gguf,hf://{REPO}/Q4_K:1e-2,b.gguf:-1", f"hf://{REPO}@main/tiny-Q4_K.gguf"])
    assert first.startswith("a.gguf,/")
    assert first.endswith("/tiny-Q4_K.gguf:1e-2,b.gguf:-1")
    assert second == first.split(",")[1].removesuffix(":1e-2")


def test_what_no_plan_depends_on_may_be_given() -> None:
    unplanned = [row.option for row in ROWS.values() if not row.planned]
    assert "threads" in unplanned
    assert check_extra([f"--{option}" for option in unplanned])
    options: Settings = {"threads": "2", "rope-freq-base": "0", "ctx-size": "256"}
    assert left_open(options, ["-t", "1", "--rope_freq_base", "1"]) == {"ctx-size": "256"}
    assert left_open(options, ["--temp", "1"]) == options


def test_whether_an_option_is_given() -> None:
    assert given("cache-ram", ["-cram", "0"])
    assert given("cache-ram", ["--cache_ram", "0"])
    assert not given("cache-ram", ["cache-ram", "--temp", "0"])
