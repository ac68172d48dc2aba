"""benchmarks/weights.py: files of random weights that compute as a trained model's would."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import CPU, SMALL
from moebind import Batch, GgmlType, Gguf, GgufTensor, Model, ModelParams, Sampler, ffi, lib

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import shapes
import weights

Make = Callable[..., Path]


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Writes a shape in small, each once."""
    folder = tmp_path_factory.mktemp("weights")

    def make(name: str, seed: int = 1) -> Path:
        path = folder / f"{name}-{seed}.gguf"
        return path if path.exists() else weights.write(path, small(name), seed)

    return make


def small(name: str) -> shapes.Shape:
    shape = shapes.small(shapes.SHAPES[name])
    return replace(shape, n_expert=min(shape.n_expert, 16))


def numbers(tensor: GgufTensor) -> np.ndarray:
    """What a tensor's bytes mean, by ggml's own reckoning."""
    data = np.ascontiguousarray(tensor.data())
    if tensor.type == GgmlType.F32:
        return data
    result = np.empty(tensor.shape[::-1], np.float32)
    to_float = lib.ggml_get_type_traits(tensor.type).to_float
    to_float(ffi.from_buffer(data), ffi.from_buffer("float[]", result, require_writable=True), result.size)
    return result


#: All but those that are like another one, and those of several kinds of layers, of which there is no small one.
ARCHITECTURES = [
    name
    for name, shape in shapes.SHAPES.items()
    if shape.is_uniform and not name.startswith(("qwen3-235b", "gpt-oss-20b", "kimi"))
]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_numbers_are_what_a_network_begins_with(filled: Make, name: str) -> None:
    seen: set[GgmlType] = set()
    for tensor in Gguf.from_file(filled(name)).tensors.values():
        values = numbers(tensor)
        assert np.isfinite(values).all(), tensor
        if tensor.name == "output.weight":
            values = values[values.any(axis=1)]  # without those for what is no text
            assert len(values) >= 1024 - 260
        wanted = weights.spread(tensor.name, tensor.shape[0], 4)
        if wanted is None:
            assert (values == 1).all(), tensor
        elif tensor.n_elements >= 1000:
            assert abs(values.std() / wanted - 1) < 0.1, tensor
            assert abs(values.mean()) < 0.05 * wanted, tensor
        seen.add(tensor.type)
    assert len(seen) > 1  # norms, at least, are no quantised ones


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_models_with_them_compute(filled: Make, name: str) -> None:
    with Model.load_from_file(filled(name), CPU) as model:
        texts, logits = [], []
        # With random weights, the end of the text may be the greedy choice.
        ends = {token: -math.inf for token in range(model.n_vocab) if model.is_eog_token(token)}
        for _ in range(2):
            sampler = Sampler.chain([Sampler.logit_bias(ends), Sampler.greedy()])
            with model.new_context(SMALL) as context:
                pieces = context.generate([1, 300, 400, 500], max_tokens=24, sampler=sampler)
                texts.append([piece.token for piece in pieces])
                logits.append(context.get_logits_ith(-1).astype(np.float64))
    assert texts[0] == texts[1]
    assert len(texts[0]) == 24
    assert len(set(texts[0])) > 4  # not always the same
    assert np.array_equal(*logits)
    assert np.isfinite(logits[0]).all()
    # As spread as they were meant to be: nothing died or exploded on the way.
    assert 2 < logits[0].std() < 4
    chances = np.exp(logits[0] - logits[0].max())
    chances /= chances.sum()
    assert 0.5 < -(chances * np.log(chances)).sum() < 0.9 * np.log(len(chances))


def test_experts_layers_and_rows_differ(filled: Make) -> None:
    tensors = Gguf.from_file(filled("phi-3.5-moe-q4_k_m")).tensors
    experts = [tensors[f"blk.{layer}.ffn_up_exps.weight"].data() for layer in range(4)]
    rows = np.concatenate([matrices.reshape(-1, matrices.shape[-1]) for matrices in experts])
    assert len(np.unique(rows, axis=0)) > 0.99 * len(rows)  # there are only 2^24 rows of two blocks
    # The embedding and the output are not alike, or the model would say what it read.
    embedding, output = numbers(tensors["token_embd.weight"]), numbers(tensors["output.weight"])
    alike = np.corrcoef(embedding[300:600], output[300:600])[:300, 300:]
    assert np.abs(alike).max() < 0.3


def test_what_is_no_text_has_no_logit(filled: Make) -> None:
    path = filled("mixtral-8x7b-q4_k_m")
    with Model.load_from_file(path, CPU) as model, model.new_context(SMALL) as context:
        context.decode(Batch.get_one([1, 300, 400]))
        logits = context.get_logits_ith(-1)
        assert (logits[:259] == 0).all()
        assert (logits[259:] != 0).all()


def test_a_seed_is_a_file(tmp_path: Path) -> None:
    made = []
    for name, seed, threads in [("one", 1, 1), ("again", 1, 3), ("other", 2, 1)]:
        path = tmp_path / name
        shapes.write(path, small("phi-3.5-moe-q4_k_m"))
        told: list[int] = []
        size = weights.fill(path, seed, threads, told.append)
        assert size == sum(told) == sum(tensor.nbytes for tensor in Gguf.from_file(path).tensors.values())
        header = min(tensor.offset for tensor in Gguf.from_file(path).tensors.values())
        made.append(path.read_bytes()[header:])
    assert made[0] == made[1] != made[2]


def test_parts_of_a_tensor_are_written_where_they_belong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shapes.write(tmp_path / "in parts", small("phi-3.5-moe-q4_k_m"))
    monkeypatch.setattr(weights, "CHUNK", 10_000)
    weights.fill(path)
    for tensor in Gguf.from_file(path).tensors.values():
        if tensor.n_elements >= 1000 and (wanted := weights.spread(tensor.name, tensor.shape[0], 4)):
            values = numbers(tensor).reshape(-1, tensor.shape[0])
            deviations = values.reshape(-1)[: len(values.reshape(-1)) // 500 * 500].reshape(-1, 500).std(axis=1)
            quiet = deviations < 0.5 * wanted
            assert quiet.mean() < (0.3 if tensor.name == "output.weight" else 0.001), tensor


def test_too_little_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shapes.write(tmp_path / "large", small("phi-3.5-moe-q4_k_m"))
    before = path.stat().st_blocks
    usage = type("Usage", (), {"free": 10**6})
    monkeypatch.setattr("weights.shutil.disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"has 0\.0 GB free; the weights of large take 0\.0"):
        weights.fill(path)
    assert path.stat().st_blocks == before


def test_a_file_that_is_not_whole_has_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, "fill", stop)
    with pytest.raises(KeyboardInterrupt):
        weights.write(tmp_path / "model.gguf", small("phi-3.5-moe-q4_k_m"))
    assert not (tmp_path / "model.gguf").exists()


def test_the_headers_alone_are_loaded_by_their_own_names(filled: Make, tmp_path: Path) -> None:
    # llama.cpp looks for "phi-3" in a model's name, and then for certain tokens.
    path = weights.write(tmp_path / "phi-3.5-moe.gguf", small("phi-3.5-moe-q4_k_m"))
    with Model.load_from_file(path, ModelParams(n_gpu_layers=0, vocab_only=True)) as model:
        assert model.meta["general.name"].startswith("phi-3.5-moe")
