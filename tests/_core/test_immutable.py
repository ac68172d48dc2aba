"""Parameters that are set: the error says how a changed copy is made, and what it says works."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest

from moebind import ContextParams, ModelParams
from moebind.mtmd import MtmdContextParams


@pytest.mark.parametrize(
    ("params", "name", "said"),
    [
        (
            ContextParams(),
            "n_ctx",
            "ContextParams cannot be changed: params = params.with_n_ctx(5) makes a changed copy",
        ),
        (
            ModelParams(),
            "n_gpu_layer",
            "cannot be changed, and has no 'n_gpu_layer': params = params.with_n_gpu_layers(5) ",
        ),
        (ModelParams(), "xyzzy", "ModelParams cannot be changed, and has no 'xyzzy'"),
        (MtmdContextParams(), "n_threads", "params = dataclasses.replace(params, n_threads=5) makes a changed copy"),
    ],
)
def test_fields_that_are_set(params: object, name: str, said: str) -> None:
    before = repr(params)
    with pytest.raises(dataclasses.FrozenInstanceError) as caught:
        setattr(params, name, 5)
    assert said in str(caught.value)
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot be changed"):
        delattr(params, name)
    assert repr(params) == before


def test_what_is_said_can_be_written() -> None:
    for kind in (ModelParams, ContextParams):
        for field in dataclasses.fields(kind):
            assert hasattr(kind, f"with_{field.name}")
    params = ContextParams()
    with pytest.raises(dataclasses.FrozenInstanceError) as caught:
        params.n_ctx = 5  # type: ignore[misc]
    code = str(caught.value).partition(": ")[2].partition(" makes")[0]
    names: dict[str, object] = {"params": params}
    exec(code, names)  # noqa: S102
    assert names["params"] == ContextParams(n_ctx=5)


def test_copies_and_hashes_are_as_before() -> None:
    params = ContextParams(n_ctx=5)
    for other in (copy.copy(params), copy.deepcopy(params), pickle.loads(pickle.dumps(params))):  # noqa: S301
        assert other == params
        assert hash(other) == hash(params)
