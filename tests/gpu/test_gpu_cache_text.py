"""The cache of experts changes no text where a stand-in computes as the CPU does: as in tests/context."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import GPU_TESTS
from moebind import Device, Model, ModelParams

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "context"))
from test_moe_cache_text import (  # noqa: F401  # these are run here again, with another model
    expected,
    test_an_abort_in_the_middle,
    test_batches_of_any_size,
    test_contexts_of_one_model_have_caches_of_their_own,
    test_several_sequences,
    test_states,
    test_what_it_counts,
)

pytestmark = pytest.mark.skipif(
    os.environ.get(GPU_TESTS) not in {"pretend", "loopback"},
    reason="a GPU adds in another order than the host, whose experts it takes over: near ties may fall otherwise",
)


@pytest.fixture(scope="module")
def model(tiny_path: Callable[..., Path], gpu: Device) -> Iterator[Model]:
    params = ModelParams(n_gpu_layers=-1, devices=(gpu,), use_extra_bufts=False).with_cpu_moe_all()
    with Model.load_from_file(tiny_path(n_expert=8, n_layer=3), params) as model:
        yield model
