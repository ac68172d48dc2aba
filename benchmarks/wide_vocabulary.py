"""A model with more tokens than it had: for what depends on the size of a vocabulary."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gguf
import numpy as np

#: What has a row for each token.
ROWS = {"token_embd.weight", "output.weight"}


@contextmanager
def widened(source: str, n_vocab: int | None) -> Iterator[str]:
    """The path of a model like this one with so many tokens; without a number, of this one.

    The texts of the tokens that are added are those of two others, and their embeddings those of the first of them.
    """
    if n_vocab is None:
        yield source
        return
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / f"{Path(source).stem}-{n_vocab}.gguf"
        write(source, target, n_vocab)
        yield str(target)


def write(source: str | Path, target: Path, n_vocab: int) -> None:
    """Write a model with so many tokens; see :func:`widened`."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    texts: list[str] = reader.fields["tokenizer.ggml.tokens"].contents()
    before, known = len(texts), set(texts)
    if n_vocab < before:
        raise SystemExit(f"{source} has {before} tokens already")
    # The commonest come first: pairs of these are like the longer words of larger vocabularies.
    common = [text for text in texts[300:10_000] or texts if text.isalpha()]
    random = np.random.default_rng(1)
    while len(texts) < n_vocab:
        pair = "".join(common[each] for each in random.integers(0, len(common), 2))
        if pair not in known:
            known.add(pair)
            texts.append(pair)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kind, value = field.types[0], field.contents()
        sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        if field.name == "tokenizer.ggml.tokens":
            value = texts
        elif field.name in {"tokenizer.ggml.token_type", "tokenizer.ggml.scores"}:
            value = [*value, *([1] * (n_vocab - before))]
        elif field.name == f"{architecture}.vocab_size":
            value = n_vocab
        writer.add_key_value(field.name, value, kind, sub_type=sub)
    data = []
    for tensor in reader.tensors:
        rows = np.asarray(tensor.data)
        if tensor.name in ROWS:
            rows = rows[np.arange(n_vocab) % before]
        quantised = rows.dtype == np.uint8
        writer.add_tensor_info(
            tensor.name, rows.shape, rows.dtype, rows.nbytes, tensor.tensor_type if quantised else None
        )
        data.append(rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for rows in data:
        writer.write_tensor_data(np.ascontiguousarray(rows))
    writer.close()
