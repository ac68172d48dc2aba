"""The encoders of ``tests/projectors.py`` in numpy, in float64: what libmtmd's embeddings are compared with.

They follow the models' own code: SigLIP with Gemma 3's and Idefics 3's projectors, Qwen2-VL's vision transformer, and
Whisper's encoder with Ultravox's projector, whose input is Whisper's log-mel spectrogram.
"""

from __future__ import annotations

import math

import numpy as np
import projectors
from numpy.typing import NDArray

Array = NDArray[np.float64]
EPS = projectors.EPS
N_FFT, HOP, RATE = 400, 160, 16_000


def embeddings(kind: str, data: np.ndarray, weights: dict[str, np.ndarray]) -> Array:
    """``(n_tokens, N_OUT)`` for pixels ``(height, width, 3)`` of the projector's size, or for samples."""
    w = {name: tensor.astype(np.float64) for name, tensor in weights.items()}
    if kind == "ultravox":
        return _ultravox(w, log_mel(data.astype(np.float64)))
    image = (data / 255 - projectors.MEAN) / projectors.DEVIATION
    if kind == "qwen2vl_merger":
        return _qwen2vl(w, image)
    side = data.shape[0] // projectors.PATCH
    x = _patches(image) @ w["v.patch_embd.weight"].reshape(projectors.N_EMBD, -1).T + w["v.patch_embd.bias"]
    x = _transformer(w, "v", x + w["v.position_embd.weight"])
    grid = x.reshape(side // 2, 2, side // 2, 2, -1)
    if kind == "gemma3":
        pooled = _rms(grid.mean(axis=(1, 3)).reshape(-1, projectors.N_EMBD)) * w["mm.soft_emb_norm.weight"]
        return np.asarray(pooled @ w["mm.input_projection.weight"])
    merged = grid.transpose(0, 2, 1, 3, 4).reshape((side // 2) ** 2, -1)
    return np.asarray(merged @ w["mm.model.fc.weight"].T)


def _patches(image: Array) -> Array:
    """Each patch as a row: colours, then rows and columns."""
    p = projectors.PATCH
    high, wide = image.shape[0] // p, image.shape[1] // p
    return image.reshape(high, p, wide, p, 3).transpose(0, 2, 4, 1, 3).reshape(high * wide, -1)


def _norm(x: Array, weight: Array, bias: Array) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    return np.asarray(centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + EPS) * weight + bias)


def _rms(x: Array) -> Array:
    return np.asarray(x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + EPS))


def _gelu(x: Array) -> Array:
    return np.asarray(x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


def _gelu_erf(x: Array) -> Array:
    return np.asarray(x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))))


def _transformer(w: dict[str, Array], prefix: str, x: Array, rotate: Array | None = None) -> Array:
    act = _gelu if prefix == "v" else _gelu_erf
    n_head = projectors.N_HEAD
    for layer in range(projectors.N_LAYER):
        b = f"{prefix}.blk.{layer}."

        def product(name: str, y: Array, b: str = b) -> Array:
            return np.asarray(y @ w[f"{b}{name}.weight"].T + w.get(f"{b}{name}.bias", np.zeros(1)))

        y = _norm(x, w[b + "ln1.weight"], w[b + "ln1.bias"])
        q, k, v = (
            product(f"attn_{part}", y).reshape(len(x), n_head, -1).transpose(1, 0, 2) for part in ("q", "k", "v")
        )
        if rotate is not None:
            q, k = _rotated(q, rotate), _rotated(k, rotate)
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1])
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        seen = (scores / scores.sum(axis=-1, keepdims=True)) @ v
        x = x + product("attn_out", seen.transpose(1, 0, 2).reshape(len(x), -1))
        y = _norm(x, w[b + "ln2.weight"], w[b + "ln2.bias"])
        x = x + product("ffn_down", act(product("ffn_up", y)))
    return _norm(x, w[f"{prefix}.post_ln.weight"], w[f"{prefix}.post_ln.bias"])


def _rotated(x: Array, angles: Array) -> Array:
    half = x.shape[-1] // 2
    cos, sin = np.cos(angles), np.sin(angles)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def _qwen2vl(w: dict[str, Array], image: Array) -> Array:
    high, wide = image.shape[0] // projectors.PATCH, image.shape[1] // projectors.PATCH
    # A still picture is two equal frames; four patches that become one token stand together.
    frames = w["v.patch_embd.weight"] + w["v.patch_embd.weight.1"]
    x = _patches(image) @ frames.reshape(projectors.N_EMBD, -1).T
    order = np.arange(high * wide).reshape(high // 2, 2, wide // 2, 2).transpose(0, 2, 1, 3).reshape(-1)
    rows, columns = order // wide, order % wide
    quarter = projectors.N_EMBD // projectors.N_HEAD // 4
    steps = 10_000.0 ** -(np.arange(quarter) / quarter)
    angles = np.concatenate([rows[:, None] * steps, columns[:, None] * steps], axis=1)
    x = _transformer(w, "v", x[order], angles).reshape(len(x) // 4, -1)
    return np.asarray(_gelu(x @ w["mm.0.weight"].T + w["mm.0.bias"]) @ w["mm.2.weight"].T + w["mm.2.bias"])


def _ultravox(w: dict[str, Array], mel: Array) -> Array:
    x = mel
    for number, step in ((1, 1), (2, 2)):
        padded = np.pad(x, ((0, 0), (1, 1)))
        windows = np.stack([padded[:, at : at + x.shape[1] : step] for at in range(3)], axis=2)  # (in, time, 3)
        x = np.einsum("oik,itk->ot", w[f"a.conv1d.{number}.weight"], windows)
        x = _gelu_erf(x + w[f"a.conv1d.{number}.bias"])
    y = _transformer(w, "a", x.T + w["a.position_embd.weight"])
    y = np.pad(y, ((0, -len(y) % projectors.STACK), (0, 0)))
    y = _rms(y.reshape(len(y) // projectors.STACK, -1)) * w["mm.a.norm_pre.weight"]
    y = y @ w["mm.a.mlp.1.weight"].T
    passed, gate = np.split(y, 2, axis=1)
    y = _rms(passed * gate / (1 + np.exp(-gate))) * w["mm.a.norm_mid.weight"]
    return np.asarray(y @ w["mm.a.mlp.2.weight"].T)


def log_mel(samples: Array) -> Array:
    """Whisper's input: ``(N_MEL, 3000)`` for thirty seconds."""
    padded = np.pad(np.pad(samples, (0, 30 * RATE - samples.size)), N_FFT // 2, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * math.pi * np.arange(N_FFT) / N_FFT)
    frames = np.stack([padded[at : at + N_FFT] * window for at in range(0, 3000 * HOP, HOP)])
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    logged = np.log10(np.maximum(_filters() @ power.T, 1e-10))
    return np.asarray((np.maximum(logged, logged.max() - 8) + 4) / 4)


def _filters() -> Array:
    """Slaney's triangles on the mel scale, each of area one."""

    def hertz(mel: Array) -> Array:
        linear = 200 / 3 * mel
        return np.where(mel < 15, linear, 1000 * np.exp(math.log(6.4) / 27 * (mel - 15)))

    top = 15 + math.log(RATE / 2 / 1000) / (math.log(6.4) / 27)
    edges = hertz(np.linspace(0, top, projectors.N_MEL + 2))
    bins = np.linspace(0, RATE / 2, N_FFT // 2 + 1)
    up = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    down = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    return np.asarray(np.maximum(0, np.minimum(up, down)) * (2 / (edges[2:] - edges[:-2]))[:, None])
