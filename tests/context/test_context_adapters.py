"""LoRA adapters in contexts: what they add, how they are changed, and what is refused."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import bounds
import gguf
import lora
import numpy as np
import pytest
import tiny
from lora import EXACT, SHAPE, TOKENS, WEIGHTS, logits, logits_of

from conftest import CPU
from moebind import Batch, ClosedError, Context, Device, Ftype, LoraAdapter, LoraError, Model, ModelParams, ffi, lib

MakeTiny = Callable[..., Path]


# --- what they add ---


@pytest.mark.parametrize("scale", [1.0, 0.25, -2.0])
def test_an_adapter_is_as_good_as_merged_weights(
    exact: Context, adapter: LoraAdapter, first: lora.Pairs, tmp_path: Path, scale: float
) -> None:
    plain = logits(exact)
    exact.set_lora_adapters({adapter: scale})
    merged = logits_of(tiny.write(tmp_path / "merged.gguf", SHAPE, add=lora.added(first, scale)))
    np.testing.assert_allclose(logits(exact), merged, atol=bounds.ORDER)
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
        np.testing.assert_allclose(logits(exact), merged, atol=bounds.ORDER)
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
            np.testing.assert_allclose(logits(context), merged, atol=bounds.ORDER)
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
            np.testing.assert_allclose(logits(exact), merged, atol=bounds.ORDER)


def test_swapped_between_decodes(exact: Context, adapter: LoraAdapter) -> None:
    whole = logits(exact)
    exact.kv_cache_clear()
    exact.decode(Batch.get_one(TOKENS[:3]))
    exact.set_lora_adapters({adapter: 1})
    exact.clear_lora_adapters()
    batch = Batch(3)
    batch.add_sequence(TOKENS[3:], 0, logits_all=True, pos=3)
    exact.decode(batch)
    np.testing.assert_allclose(exact.get_logits(), whole[3:], atol=bounds.ORDER)


def test_without_alpha_the_scale_is_all(exact: Context, moe: Model, tmp_path: Path) -> None:
    matrices = lora.pairs({"output.weight": WEIGHTS["output.weight"]})
    metadata = {**lora.METADATA, "adapter.lora.alpha": None}
    with moe.lora_adapter_init(lora.write(tmp_path / "one.gguf", matrices, metadata=metadata)) as adapter:
        exact.set_lora_adapters({adapter: 2})
        merged = logits_of(tiny.write(tmp_path / "merged.gguf", SHAPE, add=lora.added(matrices, 2, alpha=0)))
        np.testing.assert_allclose(logits(exact), merged, atol=bounds.ORDER)


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


def test_weights_that_the_cpu_holds_in_another_order(tmp_path: Path) -> None:
    shape = tiny.Shape(n_embd=256, n_ff=512)
    params = ffi.new("struct llama_model_quantize_params *", lib.llama_model_quantize_default_params())
    params.ftype, params.nthread = Ftype.Q4_0, 1
    plain, quantised = tiny.write(tmp_path / "f32.gguf", shape), tmp_path / "q4_0.gguf"
    assert lib.llama_model_quantize(os.fsencode(plain), os.fsencode(quantised), params) == 0
    matrices = lora.pairs({"blk.0.attn_q.weight": (256, 256), "blk.1.ffn_down.weight": (256, 512)})
    file = lora.write(tmp_path / "one.gguf", matrices)
    found = []
    for use_extra_bufts in (True, False):
        other = CPU.with_use_extra_bufts(use_extra_bufts)
        with Model.load_from_file(quantised, other) as model, model.new_context(EXACT) as context:
            with model.lora_adapter_init(file) as adapter:
                context.set_lora_adapters({adapter: 1})
                found.append(logits(context))
    # Six positions of all tokens: the largest difference is 4.5 standard deviations.
    apart = 4.5 * bounds.quantised(shape.n_layer, size=float(found[1].std()))
    np.testing.assert_allclose(*found, rtol=0, atol=apart)
    assert np.abs(found[0] - logits_of(quantised)).max() > 3 * apart


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
                np.testing.assert_allclose(logits(context), merged, atol=bounds.ORDER)


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


# --- setting and closing ---


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
