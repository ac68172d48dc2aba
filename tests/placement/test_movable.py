"""Which matrices of experts stay on a device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import moebind
from moebind import ContextParams

MakeShape = Callable[..., Path]
MIB = 2**20
CONTEXT = ContextParams(n_ctx=4096)


def test_some_experts_and_single_matrices(shape_path: MakeShape) -> None:
    path = shape_path("phi-3.5-moe-q4_k_m", 8)
    seen = set()
    for budget in range(1200, 6600, 300):
        fit = moebind.fit(path, memory=budget * MIB, context_params=CONTEXT, devices=["24GiB"])
        patterns = [rule.pattern for rule in fit.model_params.tensor_overrides]
        assert all(rule.target == "CPU" for rule in fit.model_params.tensor_overrides)
        seen.add(len(patterns))
        assert fit.model_params.n_gpu_layers == -1
    assert seen == {0, 1, 2} or seen == {1, 2}
