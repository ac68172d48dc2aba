"""Tiny LoRA adapters, and what they add to a model's weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import tiny

from conftest import CPU, EXACT
from moebind import Batch, Context, Model

TOKENS = [1, 5, 9, 40, 7, 100]
SHAPE = tiny.Shape(n_expert=4)
WEIGHTS = {
    "token_embd.weight": (len(tiny.TOKENS), 64),
    "output.weight": (len(tiny.TOKENS), 64),
    "blk.0.attn_q.weight": (64, 64),
    "blk.1.attn_v.weight": (32, 64),
    "blk.1.attn_output.weight": (64, 64),
    "blk.0.ffn_gate_exps.weight": (4, 96, 64),
    "blk.0.ffn_up_exps.weight": (4, 96, 64),
    "blk.1.ffn_down_exps.weight": (4, 64, 96),
}
#: What a right adapter's metadata is.
METADATA: dict[str, object] = {
    "general.type": "adapter",
    "adapter.type": "lora",
    "adapter.lora.alpha": np.float32(8),
}
Pairs = dict[str, tuple[np.ndarray, np.ndarray]]


def pairs(shapes: Mapping[str, tuple[int, ...]], rank: int = 4, seed: int = 1) -> Pairs:
    """Random matrices for weights of these numpy shapes, ``(n_out, n_in)``, or with the experts in front."""
    random = np.random.default_rng(seed)
    made: Pairs = {}
    for name, (*experts, n_out, n_in) in shapes.items():
        a_shape, b_shape = (*experts, rank, n_in), (*experts, n_out, rank)
        if name == "token_embd.weight":
            a_shape, b_shape = (n_out, rank), (n_in, rank)
        a, b = (random.standard_normal(shape).astype(np.float32) for shape in (a_shape, b_shape))
        made[name] = (a / 8, b / 8)
    return made


def added(matrices: Pairs, scale: float, alpha: float = 8.0) -> dict[str, np.ndarray]:
    """What the adapter adds to each weight."""
    total = {}
    for name, (a, b) in matrices.items():
        factor = scale * (alpha / b.shape[-1] if alpha else 1.0)
        total[name] = factor * (a @ b.T if name == "token_embd.weight" else b @ a)
    return total


def write(
    path: Path,
    matrices: Mapping[str, tuple[np.ndarray | None, np.ndarray | None]],
    *,
    arch: str = "llama",
    metadata: Mapping[str, object] = METADATA,
    extra: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Write an adapter. A metadata value of None is left out; numpy's types choose those of the file."""
    writer = gguf.GGUFWriter(path, arch)
    kinds = {np.float32: writer.add_float32, np.uint32: writer.add_uint32, np.float64: writer.add_float64}
    for key, value in metadata.items():
        if key == "general.architecture":
            writer.kv_data[0].pop(key)
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, np.ndarray):
            kind = {"u": gguf.GGUFValueType.UINT32, "i": gguf.GGUFValueType.INT32}[value.dtype.kind]
            writer.add_key_value(key, value.tolist(), gguf.GGUFValueType.ARRAY, sub_type=kind)
        elif value is not None:
            kinds[type(value)](key, value)  # type: ignore[index, operator]
    for name, pair in matrices.items():
        for part, matrix in zip("ab", pair, strict=True):
            if matrix is not None:
                writer.add_tensor(f"{name}.lora_{part}", matrix)
    for name, tensor in (extra or {}).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits(context: Context) -> np.ndarray:
    context.kv_cache_clear()
    batch = Batch(len(TOKENS))
    batch.add_sequence(TOKENS, 0, logits_all=True)
    context.decode(batch)
    return context.get_logits().copy()


def logits_of(path: Path) -> np.ndarray:
    with Model.load_from_file(path, CPU) as model, model.new_context(EXACT) as context:
        return logits(context)
