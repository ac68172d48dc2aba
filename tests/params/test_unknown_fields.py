"""Fields that parameters do not have: each answer says what to write."""

from __future__ import annotations

import copy

import pytest

from moebind import ContextParams, ModelParams


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        (ModelParams, {"n_gpu_layer": 3}, r"no parameter 'n_gpu_layer'\. Write ModelParams\(n_gpu_layers=3\)"),
        (ContextParams, {"nctx": 512}, r"Write ContextParams\(n_ctx=512\)"),
        (ModelParams, {"use_mmap": True}, r"Write ModelParams\(\)\.with_use_mmap\(True\)"),
        (ModelParams, {"n_ctx": 512}, r"'n_ctx': ContextParams has\. Write ContextParams\(n_ctx=512\)"),
        (ContextParams, {"n_gpu_layers": 1}, r"ModelParams has\. Write ModelParams\(n_gpu_layers=1\)"),
        (ContextParams, {"n_ctx": 512, "zzz": 1}, "ContextParams has no parameter 'zzz'$"),
    ],
)
def test_what_to_write_instead(
    kind: type[ModelParams] | type[ContextParams], given: dict[str, object], said: str
) -> None:
    with pytest.raises(TypeError, match=said):
        kind(**given)  # type: ignore[arg-type]


def test_what_there_is_can_still_be_made_and_copied() -> None:
    for params in (ModelParams(n_gpu_layers=3), ContextParams(n_ctx=512)):
        assert copy.copy(params) == copy.deepcopy(params) == params
