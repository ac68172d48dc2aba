"""What every part of a model may ask of the whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

from conftest import CPU
from moebind import ClosedError, Model

MakeTiny = Callable[..., Path]


def test_meta_is_a_mapping(moe: Model) -> None:
    assert moe.meta["general.architecture"] == "llama"
    assert moe.meta["llama.expert_count"] == "4"
    assert "none" not in moe.meta
    assert len(moe.meta) == len(list(moe.meta))
    with pytest.raises(KeyError):
        moe.meta["none"]
    with pytest.raises(TypeError):
        moe.meta["a"] = "b"  # type: ignore[index]


def test_long_metadata_is_whole(demo: Model) -> None:
    template = demo.meta["tokenizer.chat_template"]
    assert len(template) > 256
    assert template == demo.chat_template()


def test_paths_and_sizes(tiny_path: MakeTiny) -> None:
    first = tiny_path(split=3, n_expert=4)
    with Model.load_from_file(first, CPU) as model:
        assert model.path == str(first)
        assert model.n_vocab == len(tiny.TOKENS)
    assert model.path == str(first)  # a closed one still says what it was
    for read in (lambda: model.n_vocab, lambda: model.meta, model._open_vocab, model._usable_vocab):
        with pytest.raises(ClosedError):
            read()


def test_metadata_is_read_once(dense: Model) -> None:
    assert dense.meta is dense.meta
    assert dense._architecture == "llama"
