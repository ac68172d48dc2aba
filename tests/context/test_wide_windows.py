"""Sliding windows that are wider than any context (vendor/patches/wide-windows.patch)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import bounds
import numpy as np
import pytest

from conftest import CPU, EXACT
from moebind import Batch, ContextParams, Model

MakeTiny = Callable[..., Path]
TEXT = [3 + (7 * at) % 200 for at in range(300)]
#: libllama adds 32 and a position, and multiplies with the number of sequences.
WIDTHS = [2**16, 2**30, 2**31 - 40, 2**31 - 33, 2**31 - 32, 2**31 - 1]


def logits(path: Path, params: ContextParams, sequences: tuple[int, ...] = (0,)) -> np.ndarray:
    """Of all tokens of the text, in each of the sequences."""
    with Model.load_from_file(path, CPU) as model, model.new_context(params) as context:
        found = []
        for sequence in sequences:
            batch = Batch(len(TEXT))
            batch.add_sequence(TEXT, sequence, logits_all=True)
            context.decode(batch)
            found.append(np.copy(context.get_logits()))
        return np.concatenate(found)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_window_that_is_wider_than_the_text_hides_nothing(tiny_path: MakeTiny, width: int) -> None:
    params = EXACT.with_n_ctx(1024).with_n_batch(512).with_n_ubatch(512)
    expected = logits(tiny_path(arch="granite_swa", n_swa=1000), params)
    found = logits(tiny_path(arch="granite_swa", n_swa=width), params)
    np.testing.assert_allclose(found, expected, atol=bounds.ORDER)


@pytest.mark.parametrize("width", WIDTHS)
def test_there_is_room_for_several_sequences(tiny_path: MakeTiny, width: int) -> None:
    params = EXACT.with_n_ctx(1024).with_n_batch(512).with_n_ubatch(32).with_n_seq_max(2).with_kv_unified(True)
    path = tiny_path(arch="granite_swa", n_swa=width)
    found = logits(path, params.with_swa_full(False), (0, 1))
    np.testing.assert_allclose(found, logits(path, params, (0, 1)), atol=bounds.ORDER)


@pytest.mark.parametrize("width", WIDTHS)
def test_generating_goes_on_and_back(tiny_path: MakeTiny, width: int) -> None:
    params = EXACT.with_n_ctx(1024).with_n_ubatch(32).with_swa_full(False)
    with Model.load_from_file(tiny_path(arch="granite_swa", n_swa=width), CPU) as model:
        assert model.n_swa == width
        with model.new_context(params) as context:
            first = [piece.token for piece in context.generate(TEXT, max_tokens=4)]
            assert [piece.token for piece in context.generate(TEXT[:200], max_tokens=2)]
            assert [piece.token for piece in context.generate(TEXT, max_tokens=4)] == first


SCRIPT = """
import resource, sys
from moebind import ContextParams, Model, ModelParams

with Model.load_from_file(sys.argv[1], ModelParams(n_gpu_layers=0)) as model:
    with model.new_context(ContextParams(n_ctx=64, n_threads=1, n_threads_batch=1)) as context:
        pages = int(open("/proc/self/statm").read().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30,) * 2)
        print(len(list(context.generate([5, 6, 7], max_tokens=3))))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the script reads /proc, and limits its addresses")
def test_no_addresses_are_reserved_for_it(tiny_path: MakeTiny) -> None:
    path = tiny_path(arch="granite_swa", n_swa=2**31 - 1)
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
