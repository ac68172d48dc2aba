"""Parameters arrive in another process as they were."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moebind import (
    AttentionType,
    ContextParams,
    ContextType,
    Device,
    FlashAttnType,
    GgmlType,
    LazyMode,
    LoadMode,
    ModelParams,
    PoolingType,
    RopeScalingType,
    SplitMode,
)
from moebind.params import serialize
from moebind.params.params import CACHE_TYPES

NUMBERS = st.integers(1, 2**20)
ENUMS = {
    AttentionType: None, ContextType: None, FlashAttnType: None, LazyMode: None, LoadMode: None, PoolingType: None,
    RopeScalingType: None, SplitMode: None, GgmlType: CACHE_TYPES,
}  # fmt: skip


def _values(field: dataclasses.Field[object]) -> st.SearchStrategy[object]:
    for kind, allowed in ENUMS.items():
        if field.type == kind.__name__:
            return st.sampled_from(list(allowed or kind.__members__.values()))
    if field.name in {"n_threads", "n_threads_batch", "n_seq_max"}:
        return st.integers(1, 64)
    if field.name == "main_gpu":
        return st.integers(0, 15)
    if field.name == "n_rs_seq":
        return st.integers(0, 9)
    return {"int": NUMBERS, "Size": NUMBERS, "float": st.floats(0, 1e6), "bool": st.booleans()}[str(field.type)]


def _fields(kind: type[ModelParams] | type[ContextParams], without: set[str]) -> st.SearchStrategy[dict[str, object]]:
    return st.fixed_dictionaries(
        {}, optional={field.name: _values(field) for field in dataclasses.fields(kind) if field.name not in without}
    )


@given(_fields(ContextParams, {"eval_callback", "abort_callback"}))
def test_contexts(fields: dict[str, object]) -> None:
    params = ContextParams(**fields)  # type: ignore[arg-type]
    assert serialize.context_params(json.loads(json.dumps(serialize.carried(params)))) == params


@given(
    _fields(ModelParams, {"devices", "tensor_overrides", "tensor_split", "progress_callback", "kv_overrides"}),
    st.lists(st.floats(0, 9), min_size=1, max_size=4),
    st.dictionaries(
        st.text("abc.", min_size=1, max_size=9),
        st.booleans() | st.integers(-(2**60), 2**60) | st.floats(-9, 9) | st.text("xyz é", max_size=9),
        max_size=4,
    ),
)
def test_models(fields: dict[str, object], split: list[float], overrides: dict[str, bool | int | float | str]) -> None:
    params = ModelParams(**fields, tensor_split=split, kv_overrides=overrides)  # type: ignore[arg-type]
    params = params.with_cpu_moe_all().with_tensor_override("ffn_up", "CPU", strict=False)
    assert serialize.model_params(json.loads(json.dumps(serialize.carried(params)))) == params


def test_every_field_is_carried() -> None:
    """A field of a kind that this knows nothing of would come out as something else, or not at all."""
    known = {"int", "Size", "float", "bool", *(kind.__name__ for kind in ENUMS)}
    special = {
        "devices", "tensor_overrides", "tensor_split", "kv_overrides",
        "progress_callback", "eval_callback", "abort_callback",
    }  # fmt: skip
    for kind in (ModelParams, ContextParams):
        assert {str(f.type) for f in dataclasses.fields(kind) if f.name not in special} <= known


def test_devices_go_by_name(device: Device) -> None:
    params = ModelParams(devices=[device])
    told = serialize.carried(params)
    assert told == {"devices": [device.name]}
    assert serialize.model_params(told) == params
    assert serialize.model_params(serialize.carried(ModelParams(devices=()))).devices == ()
    with pytest.raises(ValueError, match="no device 'CUDA9'"):
        serialize.model_params({"devices": ["CUDA9"]})


def test_callbacks_are_not() -> None:
    with pytest.raises(ValueError, match="progress_callback"):
        serialize.carried(ModelParams(progress_callback=lambda _: True))
    with pytest.raises(ValueError, match="eval_callback"):
        serialize.carried(ContextParams(eval_callback=lambda *_: True))
