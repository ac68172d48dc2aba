"""Files that benchmarks/speed.py needs besides the demo models: many tokens, many tensors in nine files."""

from __future__ import annotations

import os
from pathlib import Path

import gguf
import numpy as np
import programs
import shapes
from speed_settings import Settings

N_WIDE = 150_000
LARGE, SPLIT, N_FILES = "phi-3.5-moe-q4_k_m", "deepseek-v3-q4_k_m", 9


def wide_model(dense: Path, folder: Path, n_vocab: int = N_WIDE) -> Path:
    """The dense model with as many tokens: made-up ones follow its own, each a pair of those, and are never likely."""
    path = folder / f"{dense.stem}-{n_vocab}.gguf"
    if path.exists():
        return path
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    reader = gguf.GGUFReader(dense)
    writer = gguf.GGUFWriter(unfinished, "llama")
    words = reader.fields["tokenizer.ggml.tokens"].contents()
    kinds = reader.fields["tokenizer.ggml.token_type"].contents()
    plain = [word for word, kind in zip(words, kinds, strict=True) if kind == gguf.TokenType.NORMAL]
    known = set(words)
    for at in range(n_vocab * 4):
        word = plain[at % len(plain)] + plain[(at * 7 + at // len(plain)) % len(plain)]
        if len(words) == n_vocab:
            break
        if word not in known:
            known.add(word)
            words.append(word)
    more = n_vocab - len(kinds)
    changed = {"tokenizer.ggml.tokens": words, "tokenizer.ggml.token_type": [*kinds, *[1] * more]}
    if "tokenizer.ggml.scores" in reader.fields:
        changed["tokenizer.ggml.scores"] = [*reader.fields["tokenizer.ggml.scores"].contents(), *[-1e6] * more]
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in {"general.architecture", "llama.vocab_size"}:
            continue
        kind = field.types[0]
        sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, changed.get(field.name, field.contents()), kind, sub_type=sub)
    writer.add_vocab_size(n_vocab)
    data = []
    for tensor in reader.tensors:
        rows = np.asarray(tensor.data)
        if rows.shape[0] == len(kinds):  # embeddings; what they look like does not matter, as long as they are small
            rows = np.concatenate([rows, np.zeros((more, *rows.shape[1:]), rows.dtype)])
        writer.add_tensor_info(
            tensor.name, rows.shape, rows.dtype, rows.nbytes, tensor.tensor_type if rows.dtype == np.uint8 else None
        )
        data.append(rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for rows in data:
        writer.write_tensor_data(np.ascontiguousarray(rows))
    writer.close()
    unfinished.replace(path)
    return path


def settings(folder: Path, **sizes: int) -> Settings:
    """Everything that there is to measure with, made where it is missing."""
    dense = Path(programs.demo_model(dense=True))
    large = shapes.write(folder / f"{LARGE}.gguf", shapes.SHAPES[LARGE])
    split = shapes.write(folder / f"{SPLIT}.gguf", shapes.SHAPES[SPLIT], N_FILES)
    wide = wide_model(dense, dense.parent)
    return Settings(programs.demo_model(), str(dense), str(wide), str(large), str(split), **sizes)
