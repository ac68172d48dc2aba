"""What the tests of this folder share: prompts, logits, how far they agree, and processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import numpy as np

from conftest import GPU_TESTS
from moebind import Batch, Context, ContextParams, Model

#: Enough tokens that llama.cpp computes them as a prompt (from 32 on, weights in host memory can be copied to the GPU).
N_PROMPT = 96
TEXT = (
    "The old lighthouse keeper climbed the stairs every evening to light the lamp. One night a storm came from the "
    "west, and the waves were higher than he had ever seen. He counted the ships that passed, and wrote their names "
    "into a book, as his father had done before him. In the morning the sea was calm again, and the book was wet."
)
#: Tolerances, mean Kullback-Leibler divergence in nats and share of tokens with the same greedy choice, against the CPU
#: (docs/numerics.md has what the CPU's own paths differ by). Quantised weights: activations are rounded to 8 bits, and
#: the last bit is amplified. F32: cuBLAS multiplies with TensorFloat-32, whose mantissa has 10 bits.
QUANTISED, FLOATS = (1e-2, 0.9), (1e-3, 0.9)


def prompt(model: Model, n: int = N_PROMPT) -> np.ndarray:
    """The first ``n`` tokens of a text, which is said again and again."""
    tokens = model.str_to_token(TEXT)
    return np.resize(tokens, n).astype(np.int32)


def all_logits(context: Context, tokens: np.ndarray, pos: int = 0) -> np.ndarray:
    """One row a token, of which the first is at ``pos``."""
    batch = Batch(len(tokens))
    batch.add_sequence(tokens, 0, logits_all=True, pos=pos)
    context.decode(batch)
    return context.get_logits().copy()


def logits_of(model: Model, params: ContextParams, tokens: np.ndarray) -> np.ndarray:
    """The same, in a context of its own."""
    with model.new_context(params) as context:
        return all_logits(context, tokens)


def agreement(reference: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Mean KL(reference || other) in nats, and the share of rows with the same greatest logit."""
    assert np.isfinite(other).all()
    p, q = (logits - logits.max(axis=1, keepdims=True) for logits in (reference.astype("f8"), other.astype("f8")))
    p -= np.log(np.exp(p).sum(axis=1, keepdims=True))
    q -= np.log(np.exp(q).sum(axis=1, keepdims=True))
    divergence = float((np.exp(p) * (p - q)).sum(axis=1).mean())
    return divergence, float((reference.argmax(axis=1) == other.argmax(axis=1)).mean())


def assert_agree(reference: np.ndarray, other: np.ndarray, tolerance: tuple[float, float]) -> None:
    """They are within the tolerance."""
    divergence, same = agreement(reference, other)
    assert divergence <= tolerance[0], f"mean KL {divergence:.2e}, {same:.1%} the same"
    assert same >= tolerance[1], f"mean KL {divergence:.2e}, {same:.1%} the same"


#: The head of a program: the same device as that of the tests, in a process of its own.
HEAD = """
import json, os, sys, time, warnings
from contextlib import nullcontext
import moebind
from moebind import Batch, ClosedError, ContextParams, LoadMode, Model, ModelParams, MoebindError, ffi, lib

if "MOEBIND_PRETEND_LIBRARY" in os.environ:
    moebind.init()
    assert lib.ggml_backend_load(os.environ["MOEBIND_PRETEND_LIBRARY"].encode())
loopback = os.environ.get("MOEBIND_GPU_TESTS") == "loopback"
holder = moebind.loopback_device() if loopback else nullcontext(
    next((each for each in moebind.devices() if each.backend in {"CUDA", "Vulkan"}), None))
cpu = ModelParams(n_gpu_layers=0, devices=())
small = ContextParams(n_ctx=512, n_threads=1, n_threads_batch=1)

def text(context, n=8):
    return [int(piece.token) for piece in context.generate("Once upon a time", max_tokens=n)]
"""


def program(code: str, *arguments: object, timeout: float = 900, **environment: str) -> list[dict[str, Any]]:
    """Run a program, which must end well, and read the JSON that it printed, one object a line."""
    assert GPU_TESTS in HEAD
    command = [sys.executable, "-W", "ignore", "-c", HEAD + code, *map(str, arguments)]
    variables = {**os.environ, "OMP_WAIT_POLICY": "passive", **environment}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout, env=variables)
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
