"""Parameters as dictionaries, for JSON: they come back as they were, whatever their fields are."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from parameter_values import Params, made

from moebind import ContextParams, Device, GgmlType, LoadMode, ModelParams, RoutingRecorder, SplitMode
from moebind.params import serialize

KINDS = [ModelParams, ContextParams]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_they_come_back_as_they_were(kind: type[Params], data: st.DataObject) -> None:
    params = data.draw(made(kind))
    told = params.to_dict()
    back = kind.from_dict(json.loads(json.dumps(told, allow_nan=False)))
    assert back == params
    assert repr(back) == repr(params)  # True is no 1
    changed = {field.name for field in dataclasses.fields(kind) if getattr(params, field.name) != field.default}
    assert list(told) == [field.name for field in dataclasses.fields(kind) if field.name in changed]


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_any_json_is_parameters_or_an_error(kind: type[Params], data: st.DataObject) -> None:
    names = st.sampled_from([field.name for field in dataclasses.fields(kind)])
    given_ = data.draw(st.dictionaries(names | st.text(max_size=9), JSON, max_size=3) | JSON)
    with contextlib.suppress(TypeError, ValueError):
        params = kind.from_dict(given_)
        assert kind.from_dict(params.to_dict()) == params


def test_what_it_looks_like() -> None:
    params = ModelParams(n_gpu_layers=3, split_mode=SplitMode.NONE, load_mode=LoadMode.MMAP, tensor_split=[3, 1])
    assert params.with_tensor_override("ffn_up", "CPU", strict=False).to_dict() == {
        "tensor_overrides": [{"pattern": "ffn_up", "target": "CPU", "strict": False}],
        "n_gpu_layers": 3,
        "split_mode": "NONE",
        "load_mode": "MMAP",
        "tensor_split": [3.0, 1.0],
    }
    assert ModelParams().to_dict() == ContextParams().to_dict() == {}
    assert ContextParams(type_k=GgmlType.Q8_0).to_dict() == {"type_k": "Q8_0"}
    rule = {"pattern": "ffn_up", "target": "CPU"}
    assert ModelParams.from_dict({"tensor_overrides": [rule]}) == ModelParams().with_cpu_override("ffn_up")


def test_devices_go_by_name(device: Device) -> None:
    params = ModelParams(devices=[device])
    assert params.to_dict() == {"devices": [device.name]}
    assert ModelParams.from_dict(params.to_dict()) == params
    assert ModelParams.from_dict(ModelParams(devices=()).to_dict()).devices == ()
    with pytest.raises(ValueError, match="no device 'CUDA9'"):
        ModelParams.from_dict({"devices": ["CUDA9"]})


def test_functions_cannot_be_written() -> None:
    for params, name in (
        (ModelParams(progress_callback=lambda _: True), "progress_callback"),
        (ContextParams(eval_callback=lambda *_: True), "eval_callback"),
        (ContextParams(eval_callback=RoutingRecorder()), "eval_callback"),
        (ContextParams(abort_callback=lambda: False), "abort_callback"),
    ):
        with pytest.raises(ValueError, match=f"{name} is set: a function can be neither written down nor sent"):
            params.to_dict()
        assert serialize.write(params, callbacks=False) == {}
    assert ModelParams(progress_callback=True).to_dict() == {"progress_callback": True}


BAD: list[tuple[type[Params], object, type[Exception], str]] = [
    (ModelParams, {"n_gpu_layer": 3}, ValueError, "no 'n_gpu_layer'; did you mean 'n_gpu_layers'?"),
    (ContextParams, {"n_gpu_layers": 3}, ValueError, r"no 'n_gpu_layers' in moebind .* a newer version"),
    (ContextParams, {"n_ctx": "many"}, TypeError, "n_ctx is 'many'"),
    (ContextParams, {"n_ctx": -1}, ValueError, "n_ctx is -1; it takes 0 to"),
    (ContextParams, {"type_k": "Q8"}, ValueError, "type_k is 'Q8'; did you mean 'Q8_"),
    (ContextParams, {"type_k": "Q6_K"}, ValueError, "type_k"),
    (ContextParams, {"type_k": 8}, TypeError, "type_k is 8; it takes the name of a member of GgmlType"),
    (ModelParams, {"split_mode": "columns"}, ValueError, "it takes one of NONE, LAYER, ROW, TENSOR"),
    (ModelParams, {"tensor_overrides": [{"pattern": "a"}]}, ValueError, "which lacks target"),
    (ModelParams, {"tensor_overrides": [{"patern": "a"}]}, ValueError, "no 'patern'; did you mean 'pattern'?"),
    (
        ModelParams,
        {"tensor_overrides": [{"pattern": "a", "target": "CPU", "strict": "no"}]},
        TypeError,
        "strict is 'no' .*; it takes True or False",
    ),
    (ModelParams, {"tensor_overrides": [{"pattern": "a", "target": 3}]}, TypeError, "target is 3"),
    (ModelParams, {"tensor_overrides": ["a=CPU"]}, TypeError, "tensor_overrides holds 'a=CPU'"),
    (ModelParams, {"tensor_overrides": "a=CPU"}, TypeError, "tensor_overrides is 'a=CPU'; it takes a list"),
    (ModelParams, {"tensor_overrides": [{"pattern": "(", "target": "CPU"}]}, ValueError, "regular expression"),
    (ModelParams, {"kv_overrides": ["a"]}, TypeError, "kv_overrides is .*; it takes a mapping"),
    (ModelParams, {"devices": "CUDA0"}, TypeError, "devices is 'CUDA0'; it takes a list"),
    (ModelParams, {"progress_callback": "print"}, TypeError, "progress_callback"),
    (ModelParams, [("n_gpu_layers", 3)], TypeError, "ModelParams is read from"),
]


@pytest.mark.parametrize(("kind", "given_", "error", "message"), BAD, ids=lambda each: ascii(each)[:50])
def test_what_is_wrong_is_told(kind: type[Params], given_: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        kind.from_dict(given_)
