"""Layers, spread over several devices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import moebind
from moebind import ContextParams, ModelParams

MakeShape = Callable[..., Path]
GIB = 2**30
CONTEXT = ContextParams(n_ctx=4096)


def test_two_devices_are_balanced(shape_path: MakeShape) -> None:
    path = shape_path("qwen3-30b-a3b-q4_k_m", 24)
    fit = moebind.fit(path, memory={"GPU0": "3GiB", "GPU1": "2GiB"}, context_params=CONTEXT, devices=["24GiB", "24GiB"])
    held = [device.total for device in fit.plan.devices[:-1]]
    assert 0.93 * 3 * GIB < held[0] <= 3 * GIB
    assert 0.90 * 2 * GIB < held[1] <= 2 * GIB
    assert fit.model_params.tensor_split is not None
    assert len(fit.model_params.tensor_split) == 2
    alike = moebind.fit(path, context_params=CONTEXT, devices=["24GiB", "24GiB"])
    assert alike.model_params == ModelParams()
