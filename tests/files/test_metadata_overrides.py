"""Metadata that a load takes in place of the file's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import moebind
from conftest import CPU, SMALL
from moebind import Model, ModelParams

MakeTiny = Callable[..., Path]


def test_kv_overrides_are_an_immutable_mapping() -> None:
    params = ModelParams().with_kv_override("llama.expert_used_count", 1).with_kv_override("a", "b")
    assert dict(params.kv_overrides) == {"llama.expert_used_count": 1, "a": "b"}
    assert params == ModelParams(kv_overrides={"llama.expert_used_count": 1, "a": "b"})  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        params.kv_overrides["a"] = 3  # type: ignore[index]


def test_kv_overrides_are_applied(tiny_path: MakeTiny) -> None:
    params = CPU.with_kv_override("llama.expert_used_count", 1).with_kv_override("general.name", "other")
    with Model.load_from_file(tiny_path(n_expert=4), params) as model:
        with model.new_context(SMALL) as context:
            context.decode(moebind.Batch.get_one([1, 5, 7]))
            one = context.get_logits_ith(-1).copy()
    with Model.load_from_file(tiny_path(n_expert=4), CPU) as model, model.new_context(SMALL) as context:
        context.decode(moebind.Batch.get_one([1, 5, 7]))
        assert np.abs(context.get_logits_ith(-1) - one).max() > 0.01
