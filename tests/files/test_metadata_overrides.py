"""Metadata that a load takes in place of the file's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import moebind
from conftest import CPU, SMALL
from moebind import Model, ModelParams, ffi, lib
from moebind.files.metadata_overrides import KvOverrides, KvValue, native_kv_overrides

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


def test_values_of_different_types_are_different() -> None:
    kinds: list[KvValue] = [True, 1, 1.0, "1"]
    for first in kinds:
        for other in kinds:
            same = type(first) is type(other)
            assert (KvOverrides({"a": first}) == KvOverrides({"a": other})) is same
            assert (KvOverrides({"a": first}) == {"a": other}) is same
    assert KvOverrides({"a": 1}) != [("a", 1)]
    assert len({KvOverrides({"a": 1}), KvOverrides([("a", 1)]), KvOverrides({"a": 1.0})}) == 2
    assert repr(KvOverrides({"a": 1})) == "{'a': 1}"
    assert len(KvOverrides()) == 0


@pytest.mark.parametrize(
    ("items", "error", "message"),
    [
        ({"": 1}, ValueError, "'' is empty or too long"),
        ({"k" * 128: 1}, ValueError, "too long: 127 bytes"),
        ({"ü" * 64: 1}, ValueError, "too long: 127 bytes"),
        ({"k": "v" * 128}, ValueError, "too long: 127 bytes"),
        ({"k\0": 1}, ValueError, "NUL"),
        ({"k": "\ud800"}, ValueError, "surrogate"),
        ({"k": 2**63}, ValueError, "the kv override 'k' is"),
        ({"k": float("nan")}, ValueError, "finite"),
        ({"k": None}, TypeError, "the kv override 'k'"),
        ({"k": [1]}, TypeError, "the kv override 'k'"),
        ({3: 1}, TypeError, "the key of a kv override is 3"),
    ],
)
def test_overrides_that_are_none(items: dict[str, KvValue], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        KvOverrides(items)


def test_overrides_as_llama_cpp_takes_them() -> None:
    items: dict[str, KvValue] = {"bool": True, "int": -(2**63), "float": 0.5, "k" * 127: "ü" * 63}
    native = native_kv_overrides(KvOverrides(items))
    assert [ffi.string(entry.key).decode() for entry in native] == [*items, ""]
    tags = [lib.LLAMA_KV_OVERRIDE_TYPE_BOOL, lib.LLAMA_KV_OVERRIDE_TYPE_INT, lib.LLAMA_KV_OVERRIDE_TYPE_FLOAT]
    assert [entry.tag for entry in native][:4] == [*tags, lib.LLAMA_KV_OVERRIDE_TYPE_STR]
    assert (native[0].val_bool, native[1].val_i64, native[2].val_f64) == (True, -(2**63), 0.5)
    assert ffi.string(native[3].val_str).decode() == "ü" * 63
