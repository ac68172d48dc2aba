"""The tiny encoder (bert) in numpy, and what becomes of it when its activations are looked up in half precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

Activation = Callable[[np.ndarray], np.ndarray]


def gelu(x: np.ndarray) -> np.ndarray:
    """As ggml computes it: with a tanh."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * x * (1 + 0.044715 * x * x)))


def looked_up(x: np.ndarray) -> np.ndarray:
    """What ggml_vec_gelu_f32 finds in its table: x and the result are rounded to F16."""
    return gelu(x.astype(np.float16).astype(np.float64)).astype(np.float16).astype(np.float64)


def tipped(random: np.random.Generator) -> Activation:
    """The same, with each x rounded up or down by chance instead of to the nearer one."""

    def activation(x: np.ndarray) -> np.ndarray:
        nearest = x.astype(np.float16)
        beyond = np.nextafter(nearest, np.where(x > nearest, np.inf, -np.inf).astype(np.float16))
        return looked_up(np.where(random.random(x.shape) < 0.5, nearest, beyond))

    return activation


def bert(
    tensors: Mapping[str, np.ndarray], tokens: Sequence[int], n_head: int = 4, activation: Activation = looked_up
) -> np.ndarray:
    """Embeddings of the tokens, float64 ``(n_tokens, n_embd)``."""

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
        return x * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

    n = len(tokens)
    x = tensors["token_embd.weight"][tokens].astype(np.float64) + tensors["token_types.weight"][0]
    x = norm(x + tensors["position_embd.weight"][:n], "token_embd_norm")
    layer = 0
    while f"blk.{layer}.attn_q.weight" in tensors:
        b = f"blk.{layer}."
        q, k, v = ((x @ tensors[f"{b}attn_{part}.weight"].T).reshape(n, n_head, -1) for part in "qkv")
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        seen = np.einsum("hqk,khd->qhd", weights, v).reshape(n, -1)
        x = norm(x + seen @ tensors[b + "attn_output.weight"].T, b + "attn_output_norm")
        up = activation(x @ tensors[b + "ffn_up.weight"].T)
        x = norm(x + up @ tensors[b + "ffn_down.weight"].T, b + "layer_output_norm")
        layer += 1
    return x
