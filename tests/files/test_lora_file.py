"""LoRA files that are damaged, of another model, or would end the process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import bounds
import lora
import numpy as np
import pytest
import tiny
from lora import EXACT, WEIGHTS, logits, logits_of

from conftest import CPU
from moebind import ClosedError, LoraAdapter, LoraError, LoraNotFoundError, Model, ModelLoadError

MakeTiny = Callable[..., Path]


def test_files_that_are_not_there(moe: Model, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("GGUF, they say")
    with pytest.raises(LoraNotFoundError):
        moe.lora_adapter_init(tmp_path / "missing")
    with pytest.raises(FileNotFoundError):
        moe.lora_adapter_init(str(tmp_path / "no" / "missing"))
    for name in ("pipe", "empty", "text", ""):
        with pytest.raises(LoraError):
            moe.lora_adapter_init(tmp_path / name)
    for path in ("a\0b", "", 7, None, b"x"):
        with pytest.raises((TypeError, ValueError), match="path"):
            moe.lora_adapter_init(path)  # type: ignore[arg-type]


def test_a_model_is_no_adapter(moe: Model) -> None:
    with pytest.raises(LoraError, match="general.type"):
        moe.lora_adapter_init(moe.path)


def test_an_adapter_is_no_model(adapter: LoraAdapter) -> None:
    with pytest.raises(ModelLoadError):
        Model.load_from_file(adapter.path, CPU)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"general.type": None}, "general.type is None, not 'adapter'"),
        ({"general.type": "model"}, "general.type is 'model'"),
        ({"general.type": np.uint32(1)}, "general.type has the type UINT32"),
        ({"general.architecture": "qwen2"}, "general.architecture is 'qwen2'"),
        ({"general.architecture": np.float32(1)}, "general.architecture has the type FLOAT32"),
        ({"general.architecture": None}, "general.architecture is None"),
        ({"adapter.type": "control"}, "adapter.type is 'control'"),
        ({"adapter.type": None}, "adapter.type is None"),
        ({"adapter.type": np.float32(1)}, "adapter.type has the type FLOAT32"),
        ({"adapter.lora.alpha": np.uint32(8)}, "adapter.lora.alpha has the type UINT32"),
        ({"adapter.lora.alpha": np.float64(8)}, "adapter.lora.alpha has the type FLOAT64"),
        ({"adapter.lora.alpha": "8"}, "adapter.lora.alpha has the type STRING"),
        ({"adapter.lora.alpha": np.float32("nan")}, "adapter.lora.alpha is nan"),
        ({"adapter.lora.alpha": np.float32("inf")}, "adapter.lora.alpha is inf"),
        ({"adapter.alora.invocation_tokens": "5"}, "invocation_tokens must be an array"),
        ({"adapter.alora.invocation_tokens": np.array([5], np.int32)}, "invocation_tokens must be an array"),
        ({"adapter.alora.invocation_tokens": np.array([5, 10**6], np.uint32)}, "outside the vocabulary"),
    ],
)
def test_metadata_that_is_wrong(
    moe: Model, first: lora.Pairs, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    file = lora.write(tmp_path / "bad.gguf", first, metadata={**lora.METADATA, **change})
    with pytest.raises(LoraError, match=message):
        moe.lora_adapter_init(file)


def matrix(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.ones(shape, dtype)


@pytest.mark.parametrize(
    ("matrices", "message"),
    [
        ({}, "no matrices"),
        ({"blk.0.attn_q.weight": (matrix(4, 64), None)}, "blk.0.attn_q.weight has no lora_b"),
        ({"blk.0.attn_q.weight": (None, matrix(64, 4))}, "blk.0.attn_q.weight has no lora_a"),
        ({"blk.9.attn_q.weight": (matrix(4, 64), matrix(64, 4))}, "no tensor blk.9.attn_q.weight"),
        ({"": (matrix(4, 64), matrix(64, 4))}, "no tensor"),
        ({"blk.0.attn_q.weight": (matrix(4, 63), matrix(64, 4))}, "must be 64 x 4 x 1 x 1"),
        ({"blk.0.attn_q.weight": (matrix(4, 64), matrix(63, 4))}, "must be 4 x 64 x 1 x 1"),
        ({"blk.0.attn_q.weight": (matrix(64, 4), matrix(4, 64))}, "must be"),
        ({"blk.0.attn_q.weight": (matrix(4, 64), matrix(64, 5))}, "must be 4 x 64"),
        ({"blk.0.attn_q.weight": (matrix(64), matrix(64))}, "must be"),
        # Each of these is taken by llama.cpp, which then ends the process when it computes.
        ({"blk.0.attn_q.weight": (matrix(2, 4, 64), matrix(2, 64, 4))}, "must be 64 x 4 x 1 x 1"),
        ({"blk.0.ffn_up_exps.weight": (matrix(4, 64), matrix(96, 4))}, "must be 64 x 4 x 4 x 1"),
        ({"blk.0.ffn_up_exps.weight": (matrix(3, 4, 64), matrix(3, 96, 4))}, "must be 64 x 4 x 4 x 1"),
        ({"blk.0.ffn_up_exps.weight": (matrix(4, 4, 64), matrix(3, 96, 4))}, "must be 4 x 96 x 4 x 1"),
        ({"blk.0.attn_q.weight": (matrix(4, 64, dtype=np.int32), matrix(64, 4))}, "lora_a is I32"),
        ({"blk.0.attn_q.weight": (matrix(4, 64), matrix(64, 4, dtype=np.int8))}, "lora_b is I8"),
        ({"blk.0.attn_q.weight": (matrix(4, 64, dtype=np.float64), matrix(64, 4))}, "lora_a is F64"),
        ({"token_embd.weight": (matrix(295, 4), matrix(64, 4))}, "must be 4 x 296"),
        ({"token_embd.weight": (matrix(296, 4), matrix(64, 5))}, "must be 4 x 64"),
    ],
)
def test_matrices_that_are_wrong(
    moe: Model, tmp_path: Path, matrices: dict[str, tuple[np.ndarray, np.ndarray]], message: str
) -> None:
    with pytest.raises(LoraError, match=message):
        moe.lora_adapter_init(lora.write(tmp_path / "bad.gguf", matrices))


@pytest.mark.parametrize(
    "name", ["blk.0.attn_q.weight", "x.lora_c", "lora_a", "a.lora_b.lora_a", "blk.0.attn_q.lora_a.x"]
)
def test_tensors_that_belong_to_no_pair(moe: Model, first: lora.Pairs, tmp_path: Path, name: str) -> None:
    extra = {name: matrix(4, 64)}
    with pytest.raises(LoraError, match=r"neither NAME\.lora_a nor NAME\.lora_b"):
        moe.lora_adapter_init(lora.write(tmp_path / "bad.gguf", first, extra=extra))


def test_embeddings_that_are_the_output_too(tmp_path: Path) -> None:
    shape = tiny.Shape(tied=True)
    matrices = lora.pairs({"token_embd.weight": WEIGHTS["token_embd.weight"], "blk.0.attn_q.weight": (64, 64)})
    with Model.load_from_file(tiny.write(tmp_path / "tied.gguf", shape), CPU) as model:
        with pytest.raises(LoraError, match="output matrix too"):
            model.lora_adapter_init(lora.write(tmp_path / "both.gguf", matrices))
        del matrices["token_embd.weight"]
        with model.lora_adapter_init(lora.write(tmp_path / "one.gguf", matrices)) as adapter:
            with model.new_context(EXACT) as context:
                context.set_lora_adapters({adapter: 1})
                merged = logits_of(tiny.write(tmp_path / "merged.gguf", shape, add=lora.added(matrices, 1)))
                np.testing.assert_allclose(logits(context), merged, atol=bounds.ORDER)


def test_files_cut_short_anywhere(moe: Model, adapter: LoraAdapter, tmp_path: Path) -> None:
    data = Path(adapter.path).read_bytes()
    for size in [*range(0, 3000, 71), *range(3000, len(data) - 40, 9973)]:
        (tmp_path / "cut.gguf").write_bytes(data[:size])
        with pytest.raises(LoraError):
            moe.lora_adapter_init(tmp_path / "cut.gguf")


#: Loads mutants of an adapter, and computes with those that are taken.
MUTANTS = """
import sys
import numpy as np
from moebind import Batch, ContextParams, LoraError, Model, ModelParams, set_log
set_log(None)
model = Model.load_from_file(sys.argv[1], ModelParams(n_gpu_layers=0))
context = model.new_context(ContextParams(n_ctx=256, n_threads=1, n_threads_batch=1))
original, random = open(sys.argv[2], "rb").read(), np.random.default_rng(int(sys.argv[4]))
taken = 0
for _ in range(int(sys.argv[5])):
    mutant = bytearray(original)
    for _ in range(random.integers(1, 4)):
        place = int(random.integers(0, int(sys.argv[3])))
        if random.integers(2):
            mutant[place] ^= 1 << int(random.integers(8))
        else:
            size = int(random.choice([1, 4, 8]))
            mutant[place : place + size] = int(random.choice([0, 1, 2, 3, 64, 127])).to_bytes(size, "little")
    open(sys.argv[2] + ".mutant", "wb").write(mutant)
    try:
        adapter = model.lora_adapter_init(sys.argv[2] + ".mutant")
    except LoraError:
        continue
    context.set_lora_adapters({adapter: 1.0})
    context.kv_cache_clear()
    context.decode(Batch.get_one([1, 5, 9]))
    assert adapter.meta is not None
    context.clear_lora_adapters()
    adapter.close()
    taken += 1
context.close()
model.close()
print("taken", taken)
"""


def test_mutants_never_end_the_process(moe: Model, first: lora.Pairs, tmp_path: Path) -> None:
    small = {name: first[name] for name in ("token_embd.weight", "blk.0.attn_q.weight", "blk.1.ffn_down_exps.weight")}
    file = lora.write(tmp_path / "original.gguf", small)
    header = file.read_bytes().index(b"blk.1.ffn_down_exps.weight.lora_b") + 80
    command = [sys.executable, "-c", MUTANTS, moe.path, str(file), str(header), "1", "300"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 5


def test_models_without_weights(tiny_path: MakeTiny, adapter: LoraAdapter) -> None:
    for params in (CPU.with_vocab_only(True), CPU.with_no_alloc(True)):
        with Model.load_from_file(tiny_path(n_expert=4), params) as model, pytest.raises(LoraError, match="no_alloc"):
            model.lora_adapter_init(adapter.path)


def test_closed_models(tiny_path: MakeTiny, adapter: LoraAdapter) -> None:
    model = Model.load_from_file(tiny_path(n_expert=4), CPU)
    model.close()
    with pytest.raises(ClosedError):
        model.lora_adapter_init(adapter.path)
