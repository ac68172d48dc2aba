"""The file of presets, as llama-server reads it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from serving import SMALL_SERVER, ask

from moebind.server import Server
from moebind.server.presets import presets, unwritable

MakeTiny = Callable[..., Path]


def test_the_file() -> None:
    written = presets({"a": {"model": "/x/a.gguf", "repack": True}, "b": {"kv-offload": False}})
    assert written == "version = 1\n\n[a]\nmodel = /x/a.gguf\nrepack = true\n\n[b]\nkv-offload = false\n"


@pytest.mark.parametrize("value", ["a;b", "a#b", " a", "a "])
def test_what_would_be_cut_is_found(value: str) -> None:
    assert "a value at ; and #" in str(unwritable({"n": "1", "model": value}))


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\t", "\udcff"])
def test_what_cannot_be_in_it_is_found(value: str) -> None:
    assert "characters that llama-server's file" in str(unwritable({"n": "1", "model": value}))


def test_what_would_not_be_cut_passes() -> None:
    assert unwritable({"model": "/x y/ä,=[]'\"\\{}.gguf", "repack": True}) is None


def test_llama_server_reads_back_what_was_written(tiny_path: MakeTiny, tmp_path: Path) -> None:
    folder = tmp_path / "ä 'b\" [c] = {d}, \\e"
    folder.mkdir()
    (folder / "m.gguf").symlink_to(tiny_path(n_expert=4))
    with Server(models_dir=folder, **SMALL_SERVER) as server:
        [model] = server.models
        [listed] = ask(server.url, "/models").said["data"]
        arguments = listed["status"]["args"]
    for option, value in model.options.items():
        if isinstance(value, bool):
            assert (f"--{option}" if value else f"--no-{option}") in arguments
        else:
            assert arguments[arguments.index(f"--{option}") + 1] == value


def test_a_model_that_cannot_be_written_is_not_offered(tiny_path: MakeTiny, tmp_path: Path) -> None:
    for name in ("a.gguf", "b;c.gguf", os.fsdecode(b"\xff.gguf")):
        (tmp_path / name).symlink_to(tiny_path(n_expert=4))
    with Server(models_dir=tmp_path, **SMALL_SERVER) as server:
        good, bad, worse = server.models
        assert [listed["id"] for listed in ask(server.url, "/models").said["data"]] == ["a"]
    assert (good.offered, bad.offered, worse.offered) == (True, False, False)
    assert "rename it, or serve the model alone" in str(bad.reason)
    with Server(tmp_path / "b;c.gguf", **SMALL_SERVER) as server:
        assert ask(server.url, "/v1/models").said["data"][0]["id"] == "b-c"
