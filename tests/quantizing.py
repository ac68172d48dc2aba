"""Quantising in tests: on one thread, in silence, and with an importance that is made up."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

import moebind
from moebind import Ftype, Gguf, QuantizeResult


def quantize(src: object, dst: object, ftype: object = Ftype.Q8_0, **options: object) -> QuantizeResult:
    return moebind.quantize(src, dst, ftype, **{"n_threads": 1, "progress": False, **options})  # type: ignore[arg-type]


def importance(path: Path) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    tensors = Gguf.from_file(path).tensors.values()
    return {
        each.name: random.uniform(0.1, 2, each.shape[0] * math.prod(each.shape[2:])).astype(np.float32)
        for each in tensors
        if len(each.shape) > 1
    }
