"""LoRA adapters: what they add, how they are changed, and files that would end the process."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import lora
import numpy as np
import pytest
import tiny

from conftest import CPU, SMALL
from moebind import (
    Batch,
    ClosedError,
    Context,
    Device,
    FlashAttnType,
    GgmlType,
    LoraAdapter,
    LoraError,
    LoraNotFoundError,
    Model,
    ModelParams,
)

MakeTiny = Callable[..., Path]
TOKENS = [1, 5, 9, 40, 7, 100]
#: As exact as llama.cpp computes.
EXACT = SMALL.with_type_k(GgmlType.F32).with_type_v(GgmlType.F32).with_flash_attn_type(FlashAttnType.DISABLED)
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


def logits(context: Context) -> np.ndarray:
    context.kv_cache_clear()
    batch = Batch(len(TOKENS))
    batch.add_sequence(TOKENS, 0, logits_all=True)
    context.decode(batch)
    return context.get_logits().copy()


def logits_of(path: Path) -> np.ndarray:
    with Model.load_from_file(path, CPU) as model, model.new_context(EXACT) as context:
        return logits(context)


@pytest.fixture
def exact(moe: Model) -> Iterator[Context]:
    with moe.new_context(EXACT) as context:
        yield context


@pytest.fixture(scope="module")
def first() -> lora.Pairs:
    return lora.pairs(WEIGHTS)


@pytest.fixture(scope="module")
def adapter(moe: Model, first: lora.Pairs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoraAdapter]:
    path = lora.write(tmp_path_factory.mktemp("lora") / "first.gguf", first)
    with moe.lora_adapter_init(path) as adapter:
        yield adapter


# --- what they add ---


@pytest.mark.parametrize("scale", [1.0, 0.25, -2.0])
def test_an_adapter_is_as_good_as_merged_weights(
    exact: Context, adapter: LoraAdapter, first: lora.Pairs, tmp_path: Path, scale: float
) -> None:
    plain = logits(exact)
    exact.set_lora_adapters({adapter: scale})
    merged = logits_of(tiny.write(tmp_path / "merged.gguf", SHAPE, add=lora.added(first, scale)))
    np.testing.assert_allclose(logits(exact), merged, atol=1e-4)
    assert np.abs(merged - plain).max() > 0.1
    exact.clear_lora_adapters()
    np.testing.assert_array_equal(logits(exact), plain)


@pytest.mark.parametrize("weight", sorted(WEIGHTS))
def test_each_kind_of_weight(exact: Context, moe: Model, tmp_path: Path, weight: str) -> None:
    matrices = lora.pairs({weight: WEIGHTS[weight]}, rank=3, seed=5)
    plain = logits(exact)
    with moe.lora_adapter_init(lora.write(tmp_path / "one.gguf", matrices)) as adapter:
        exact.set_lora_adapters({adapter: 1})
        merged = logits_of(tiny.write(tmp_path / "merged.gguf", SHAPE, add=lora.added(matrices, 1)))
        np.testing.assert_allclose(logits(exact), merged, atol=1e-4)
        assert np.abs(merged - plain).max() > 1e-3


@pytest.mark.parametrize("arch", ["llama", "granite_swa"])
def test_other_models(tiny_path: MakeTiny, tmp_path: Path, arch: str) -> None:
    swa = arch == "granite_swa"
    shape = tiny.Shape(arch=arch, n_expert=4 if swa else 0)
    weights = {"blk.0.ffn_gate_up_exps.weight": (4, 192, 64)} if swa else {"blk.0.ffn_down.weight": (64, 96)}
    matrices = lora.pairs({**weights, "blk.1.attn_k.weight": (32, 64)})
    file = lora.write(tmp_path / "one.gguf", matrices, arch=arch)
    path = tiny_path(arch=arch, n_expert=shape.n_expert)
    with Model.load_from_file(path, CPU) as model, model.new_context(EXACT) as context:
        plain = logits(context)
        with model.lora_adapter_init(file) as adapter:
            context.set_lora_adapters({adapter: 1})
            merged = logits_of(tiny.write(tmp_path / "merged.gguf", shape, add=lora.added(matrices, 1)))
            np.testing.assert_allclose(logits(context), merged, atol=1e-4)
            assert np.abs(merged - plain).max() > 1e-3


def test_several_at_once_and_hot_swap(
    exact: Context, moe: Model, adapter: LoraAdapter, first: lora.Pairs, tmp_path: Path
) -> None:
    names = ["blk.0.attn_q.weight", "blk.1.ffn_down_exps.weight"]
    other = lora.pairs({name: WEIGHTS[name] for name in names}, rank=2, seed=7)
    with moe.lora_adapter_init(lora.write(tmp_path / "second.gguf", other)) as second:
        for one, two in ((1.0, 0.0), (1.0, -1.5), (0.0, 1.0), (0.5, 0.5), (0.0, 0.0)):
            exact.set_lora_adapters({adapter: one, second: two})
            change = lora.added(first, one)
            for name, matrix in lora.added(other, two).items():
                change[name] = change[name] + matrix
            merged = logits_of(tiny.write(tmp_path / "merged.gguf", SHAPE, add=change))
            np.testing.assert_allclose(logits(exact), merged, atol=1e-4)


def test_swapped_between_decodes(exact: Context, adapter: LoraAdapter) -> None:
    whole = logits(exact)
    exact.kv_cache_clear()
    exact.decode(Batch.get_one(TOKENS[:3]))
    exact.set_lora_adapters({adapter: 1})
    exact.clear_lora_adapters()
    batch = Batch(3)
    batch.add_sequence(TOKENS[3:], 0, logits_all=True, pos=3)
    exact.decode(batch)
    np.testing.assert_allclose(exact.get_logits(), whole[3:], atol=1e-5)


def test_without_alpha_the_scale_is_all(exact: Context, moe: Model, tmp_path: Path) -> None:
    matrices = lora.pairs({"output.weight": WEIGHTS["output.weight"]})
    metadata = {**lora.METADATA, "adapter.lora.alpha": None}
    with moe.lora_adapter_init(lora.write(tmp_path / "one.gguf", matrices, metadata=metadata)) as adapter:
        exact.set_lora_adapters({adapter: 2})
        merged = logits_of(tiny.write(tmp_path / "merged.gguf", SHAPE, add=lora.added(matrices, 2, alpha=0)))
        np.testing.assert_allclose(logits(exact), merged, atol=1e-4)


def test_half_precision_and_quantised_matrices(exact: Context, moe: Model, tmp_path: Path) -> None:
    # After the router, where the last bit cannot choose other experts.
    matrices = lora.pairs({"output.weight": WEIGHTS["output.weight"]}, rank=32)
    plain = logits(exact)
    merged = logits_of(tiny.write(tmp_path / "merged.gguf", SHAPE, add=lora.added(matrices, 1)))
    half = {name: (a.astype(np.float16), b.astype(np.float16)) for name, (a, b) in matrices.items()}
    with moe.lora_adapter_init(lora.write(tmp_path / "half.gguf", half)) as adapter:
        exact.set_lora_adapters({adapter: 1})
        assert np.abs(logits(exact) - merged).max() < 0.01 * np.abs(merged - plain).max()
    writer = gguf.GGUFWriter(tmp_path / "q8.gguf", "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8)
    for name, pair in matrices.items():
        for part, matrix in zip("ab", pair, strict=True):
            data = gguf.quantize(matrix, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(f"{name}.lora_{part}", data, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with moe.lora_adapter_init(tmp_path / "q8.gguf") as adapter:
        exact.set_lora_adapters({adapter: 1})
        assert np.abs(logits(exact) - merged).max() < 0.05 * np.abs(merged - plain).max()


def test_norms_are_left_out_as_llama_cpp_does(exact: Context, moe: Model, first: lora.Pairs, tmp_path: Path) -> None:
    extra = {"blk.0.attn_norm.weight": np.ones(64, np.float32)}
    with moe.lora_adapter_init(lora.write(tmp_path / "norm.gguf", first, extra=extra)) as adapter:
        exact.set_lora_adapters({adapter: 1})
        assert np.isfinite(logits(exact)).all()


def test_experts_on_the_host_and_the_rest_on_a_device(
    tiny_path: MakeTiny, device: Device, first: lora.Pairs, tmp_path: Path
) -> None:
    file = lora.write(tmp_path / "first.gguf", first)
    merged = logits_of(tiny.write(tmp_path / "merged.gguf", SHAPE, add=lora.added(first, 1)))
    for params in (ModelParams(devices=[device]), ModelParams(devices=[device]).with_cpu_moe_all()):
        with Model.load_from_file(tiny_path(n_expert=4), params) as model, model.new_context(EXACT) as context:
            with model.lora_adapter_init(file) as adapter:
                context.set_lora_adapters({adapter: 1})
                np.testing.assert_allclose(logits(context), merged, atol=1e-4)


def test_a_change_makes_generate_decode_its_prompt_again(exact: Context, adapter: LoraAdapter, moe: Model) -> None:
    prompt = [1, *range(10, 40)]
    with moe.new_context(EXACT) as fresh:
        fresh.set_lora_adapters({adapter: 1})
        expected = [piece.token for piece in fresh.generate(prompt, max_tokens=8)]
    list(exact.generate(prompt, max_tokens=8))
    exact.set_lora_adapters({adapter: 1})
    assert [piece.token for piece in exact.generate(prompt, max_tokens=8)] == expected
    exact.reset_timings()
    exact.set_lora_adapters({adapter: 1})  # no change
    list(exact.generate(prompt, max_tokens=1))
    assert exact.timings().n_p_eval == 1


# --- the object ---


def test_metadata(moe: Model, adapter: LoraAdapter, first: lora.Pairs, tmp_path: Path) -> None:
    assert adapter.meta["adapter.type"] == "lora"
    assert adapter.meta["general.architecture"] == "llama"
    assert float(adapter.meta["adapter.lora.alpha"]) == 8
    assert adapter.model is moe
    assert adapter.path.endswith("first.gguf")
    assert "first.gguf" in repr(adapter)
    assert adapter.alora_invocation_tokens.shape == (0,)
    with pytest.raises(TypeError, match="does not support item assignment"):
        adapter.meta["x"] = "y"  # type: ignore[index]
    told = {**lora.METADATA, "general.description": "ü" * 1000, "adapter.lora.task_name": "x"}
    told["adapter.alora.invocation_tokens"] = np.array([5, 9, 13], np.uint32)
    with moe.lora_adapter_init(lora.write(tmp_path / "told.gguf", first, metadata=told)) as activated:
        assert activated.meta["general.description"] == "ü" * 1000
        assert activated.meta["adapter.lora.task_name"] == "x"
        assert activated.alora_invocation_tokens.dtype == np.int32
        assert activated.alora_invocation_tokens.tolist() == [5, 9, 13]


def test_closed_adapters(exact: Context, moe: Model, first: lora.Pairs, tmp_path: Path) -> None:
    adapter = moe.lora_adapter_init(lora.write(tmp_path / "one.gguf", first))
    adapter.close()
    adapter.close()
    assert adapter.closed
    assert repr(adapter) == "<LoraAdapter, closed>"
    for call in (
        lambda: exact.set_lora_adapters({adapter: 1}),
        lambda: adapter.meta,
        lambda: adapter.alora_invocation_tokens,
        lambda: adapter.native,
    ):
        with pytest.raises(ClosedError):
            call()
    with pytest.raises(TypeError, match="lora_adapter_init"):
        LoraAdapter()


def test_an_adapter_in_use_outlives_its_closing(exact: Context, moe: Model, first: lora.Pairs, tmp_path: Path) -> None:
    adapter = moe.lora_adapter_init(lora.write(tmp_path / "one.gguf", first))
    exact.set_lora_adapters({adapter: 1})
    expected = logits(exact)
    kept = weakref.ref(adapter)
    adapter.close()
    np.testing.assert_array_equal(logits(exact), expected)
    del adapter
    gc.collect()
    assert kept() is None
    np.testing.assert_array_equal(logits(exact), expected)
    exact.set_embeddings(True)
    assert np.isfinite(logits(exact)).all()
    exact.clear_lora_adapters()
    assert np.abs(logits(exact) - expected).max() > 0.1


def test_closing_a_model_closes_its_adapters(tiny_path: MakeTiny, first: lora.Pairs, tmp_path: Path) -> None:
    file = lora.write(tmp_path / "one.gguf", first)
    for order in ("model", "adapter", "context"):
        model = Model.load_from_file(tiny_path(n_expert=4), CPU)
        adapter, context = model.lora_adapter_init(file), model.new_context(EXACT)
        context.set_lora_adapters({adapter: 1})
        {"model": model, "adapter": adapter, "context": context}[order].close()
        if order != "context":
            assert adapter.closed
        model.close()
        assert adapter.closed
        assert context.closed
        del model, adapter, context
        gc.collect()


def test_adapters_of_another_model(exact: Context, tiny_path: MakeTiny, first: lora.Pairs, tmp_path: Path) -> None:
    file = lora.write(tmp_path / "one.gguf", first)
    with Model.load_from_file(tiny_path(n_expert=4), CPU) as same, same.lora_adapter_init(file) as adapter:
        with pytest.raises(LoraError, match="another model"):
            exact.set_lora_adapters({adapter: 1})


@pytest.mark.parametrize(
    ("adapters", "error"),
    [
        (None, TypeError),
        ([], TypeError),
        ("abc", TypeError),
        ({"adapter.gguf": 1.0}, TypeError),
        ({None: 1.0}, TypeError),
    ],
)
def test_what_are_no_adapters(exact: Context, adapters: dict[LoraAdapter, float], error: type[Exception]) -> None:
    with pytest.raises(error, match="adapters"):
        exact.set_lora_adapters(adapters)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 1e39, -1e300, "1", None, True, [1], 10**400])
def test_what_is_no_scale(exact: Context, adapter: LoraAdapter, scale: float) -> None:
    plain = logits(exact)
    with pytest.raises((TypeError, ValueError, OverflowError)):
        exact.set_lora_adapters({adapter: scale})
    np.testing.assert_array_equal(logits(exact), plain)


def test_closed_contexts(moe: Model, adapter: LoraAdapter) -> None:
    context = moe.new_context(EXACT)
    context.close()
    for call in (lambda: context.set_lora_adapters({adapter: 1}), context.clear_lora_adapters):
        with pytest.raises(ClosedError):
            call()


def test_several_threads(moe: Model, first: lora.Pairs, tmp_path: Path) -> None:
    file = lora.write(tmp_path / "one.gguf", first)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(5):
                with moe.lora_adapter_init(file) as adapter, moe.new_context(EXACT) as context:
                    context.set_lora_adapters({adapter: 1})
                    logits(context)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# --- files ---


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
    from moebind import ModelLoadError

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
                np.testing.assert_allclose(logits(context), merged, atol=1e-4)


def test_files_cut_short_anywhere(moe: Model, adapter: LoraAdapter, tmp_path: Path) -> None:
    data = Path(adapter.path).read_bytes()
    for size in [*range(0, 3000, 71), *range(3000, len(data) - 40, 9973)]:
        (tmp_path / "cut.gguf").write_bytes(data[:size])
        with pytest.raises(LoraError):
            moe.lora_adapter_init(tmp_path / "cut.gguf")


def test_models_without_weights(tiny_path: MakeTiny, adapter: LoraAdapter) -> None:
    for params in (CPU.with_vocab_only(True), CPU.with_no_alloc(True)):
        with Model.load_from_file(tiny_path(n_expert=4), params) as model, pytest.raises(LoraError, match="no_alloc"):
            model.lora_adapter_init(adapter.path)


def test_closed_models(tiny_path: MakeTiny, adapter: LoraAdapter) -> None:
    model = Model.load_from_file(tiny_path(n_expert=4), CPU)
    model.close()
    with pytest.raises(ClosedError):
        model.lora_adapter_init(adapter.path)
