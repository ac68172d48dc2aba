"""libllama against itself: what docs/numerics.md says changes nothing, the last bits, or more than those."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import bounds
import numpy as np
import pytest
import tiny  # put on the path by conftest.py
from references import (
    CPU,
    DATA,
    EXACT,
    NAMES,
    WAYS,
    Comparison,
    agreement,
    batch_logits,
    context_of,
    difference,
    divergence,
    step_logits,
)

import moebind
from conftest import SMALL
from moebind import Batch, ContextParams, Device, FlashAttnType, Ftype, GgmlType, LoadMode, Model, ModelParams
from moebind.diagnosis.facts import features_of


def tokens_of(name: str) -> np.ndarray:
    return Comparison(name, "transformers", 0).tokens()


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    with Model.load_from_file(DATA / f"{request.param}.gguf", CPU) as model:
        yield model


@pytest.fixture
def tokens(model: Model) -> np.ndarray:
    return tokens_of(Path(model.path).stem)


def computed(model: Model, params: ContextParams, tokens: np.ndarray) -> np.ndarray:
    with model.new_context(params) as context:
        return batch_logits(context, tokens)


def test_threads_change_nothing() -> None:
    # For whole batches of every model, test_the_documentation_has_the_figures_that_are_measured shows it.
    tokens = tokens_of("mixtral")[:4]
    two, _ = WAYS["another number of threads"]
    with context_of("mixtral") as one, context_of("mixtral", two) as other:
        assert np.array_equal(step_logits(one, tokens), step_logits(other, tokens))


def test_a_second_run_changes_nothing(model: Model, tokens: np.ndarray) -> None:
    with model.new_context(EXACT) as context:
        first = batch_logits(context, tokens)
        context.kv_cache_clear()
        assert np.array_equal(batch_logits(context, tokens), first)


def test_the_way_of_loading_changes_nothing(model: Model, tokens: np.ndarray) -> None:
    with Model.load_from_file(model.path, CPU.with_load_mode(LoadMode.NONE)) as other:
        assert np.array_equal(computed(model, EXACT, tokens), computed(other, EXACT, tokens))


def test_steps_change_the_last_bits(model: Model, tokens: np.ndarray) -> None:
    with model.new_context(EXACT) as context:
        steps = step_logits(context, tokens)
    batch = computed(model, EXACT, tokens)
    assert difference(steps, batch) < bounds.ORDER
    assert agreement(steps, batch) == 1


@pytest.mark.parametrize("n_ubatch", [1, 7, 16])
def test_smaller_batches_change_the_last_bits(model: Model, tokens: np.ndarray, n_ubatch: int) -> None:
    batch = computed(model, EXACT, tokens)
    assert difference(computed(model, EXACT.with_n_ubatch(n_ubatch), tokens), batch) < bounds.ORDER


def test_a_neighbour_changes_the_last_bits(model: Model, tokens: np.ndarray) -> None:
    with model.new_context(EXACT.with_n_seq_max(2).with_n_ctx(512)) as context:
        batch = Batch(2 * len(tokens))
        batch.extend(np.repeat(tokens, 2), np.repeat(np.arange(len(tokens)), 2), [0, 1] * len(tokens), True)
        batch.token[1::2] = tokens[::-1]  # another text in sequence 1, token by token between those of 0
        context.decode(batch)
        mixed = context.get_logits()[::2]
        assert difference(mixed, computed(model, EXACT, tokens)) < bounds.ORDER


def test_a_half_precision_cache_is_near(model: Model, tokens: np.ndarray) -> None:
    exact, half = (computed(model, params, tokens) for params in (EXACT, WAYS["a cache in F16"][0]))
    assert 0 < difference(half, exact) < bounds.HALF
    assert divergence(exact, half) < bounds.divergence(bounds.HALF / 6)


def test_the_defaults_are_near(model: Model, tokens: np.ndarray) -> None:
    defaults, _ = WAYS["the defaults: both"]
    assert (defaults.type_k, defaults.type_v) == (GgmlType.F16, GgmlType.F16)
    assert defaults.flash_attn_type == FlashAttnType.AUTO
    exact, usual = (computed(model, params, tokens) for params in (EXACT, defaults))
    assert 0 < difference(usual, exact) < bounds.HALF
    with model.new_context(defaults) as context:
        assert 0 < difference(step_logits(context, tokens), exact) < bounds.HALF


def test_flash_attention_is_near(model: Model, tokens: np.ndarray) -> None:
    # It reads keys and values in half precision, whatever the cache holds.
    flash = computed(model, EXACT.with_flash_attn_type(FlashAttnType.ENABLED), tokens)
    assert difference(flash, computed(model, EXACT, tokens)) < bounds.HALF


def test_repacked_weights_are_the_same_weights(tmp_path: Path) -> None:
    # Rows of several blocks: the sum in one block is of integers, whose order changes nothing.
    shape = tiny.Shape(n_embd=256, n_ff=512, n_expert=4)
    path = tmp_path / "q4_0.gguf"
    moebind.quantize(tiny.write(tmp_path / "f32.gguf", shape), path, Ftype.Q4_0)
    tokens = np.random.default_rng(5).integers(3, len(tiny.TOKENS), 64)
    found, layouts = [], []
    for repack in (True, False):
        params = CPU.with_use_extra_bufts(repack)
        with Model.load_from_file(path, params) as model, model.new_context(EXACT) as context:
            kinds = {buffer.name for buffer in context.memory_breakdown().host.buffers if buffer.model}
            layouts.append(kinds - {"CPU", "CPU_Mapped"})
            found.append(batch_logits(context, tokens))
            context.kv_cache_clear()
            found.append(step_logits(context, tokens))
    # Not every processor has a layout of its own for these; if not, both are the same.
    assert layouts[0] or "AVX2" not in features_of(moebind.system_info())
    assert not layouts[1]
    bound = bounds.divergence(bounds.quantised(shape.n_layer, size=float(found[0].std())))
    for other in found[1:]:
        assert divergence(found[0], other) < bound
        assert agreement(found[0], other) >= 0.9
    with Model.load_from_file(tiny.write(tmp_path / "other.gguf", replace(shape, seed=2)), CPU) as model:
        with model.new_context(EXACT) as context:
            unlike = batch_logits(context, tokens)
    assert divergence(found[0], unlike) > 100 * bound


def test_quantised_weights_amplify_the_last_bits(demo: Model, demo_path: Path, device: Device) -> None:
    # 135 million weights in Q4_1: activations are rounded to eight bits, and a last bit can tip one over.
    tokens = demo.str_to_token(
        "The city was founded on the river, where ships from the sea could land their goods, and it grew quickly. "
        "Two hundred years later a bridge of stone took the place of the ferry."
    )
    whole = computed(demo, SMALL, tokens)
    single = computed(demo, SMALL.with_n_ubatch(1), tokens)  # other kernels
    with Model.load_from_file(demo_path, ModelParams(devices=[device]).with_cpu_moe_all()) as model:
        placed = computed(model, SMALL, tokens)
    # Thirty layers, in which a few steps become as many as there are, on any processor: docs/numerics.md has 3e-4, and
    # the same argmax for 96 of 100. Of so few, chance has to leave four times as many others.
    for other in (single, placed):
        assert divergence(whole, other) < 5e-3
        assert agreement(whole, other) >= 0.8


def test_what_is_measured_here() -> None:
    a, b = np.array([[0.0, 1.0]], np.float32), np.array([[0.0, 1.5]], np.float32)
    p, q = (np.exp(x) / np.exp(x).sum() for x in (a.astype(float), b.astype(float)))
    assert divergence(a, b) == pytest.approx(float((p * np.log(p / q)).sum()))
    assert divergence(a, a + 7) == pytest.approx(0, abs=1e-12)
    assert difference(a, b) == 0.5
    assert agreement(a, b) == 1
    assert agreement(a, -b) == 0
    with context_of("llama") as context:
        assert context.params == EXACT
