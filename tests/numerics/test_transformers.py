"""Logits against transformers: tiny random models of each architecture, whose references are in ``data/``.

``make_references.py`` makes both, and keeps tokens away from router ties; every position of every model is compared.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from references import (
    COMPARISONS,
    CPU,
    DATA,
    DIFFERING,
    EXACT,
    MOE,
    WAYS,
    Comparison,
    agreement,
    batch_logits,
    context_of,
    difference,
    measured,
    measured_way,
    step_logits,
)

from moebind import Batch, Device, Model, ModelParams

PAGE = Path(__file__).resolve().parents[2] / "docs" / "numerics.md"
GPT_OSS, PHIMOE = DIFFERING


@pytest.mark.parametrize("compute", [batch_logits, step_logits], ids=["batch", "steps"])
@pytest.mark.parametrize("each", COMPARISONS, ids=str)
def test_logits_are_those_of_the_reference(each: Comparison, compute: Callable[..., np.ndarray]) -> None:
    with each.context() as context:
        computed = compute(context, each.tokens())
    expected = each.logits()
    assert computed.shape == expected.shape
    assert 1.5 < expected.std() < 2.5  # what the bounds are for
    assert difference(computed, expected) < each.bound
    assert agreement(computed, expected) == 1


def test_gpt_oss_differs_by_the_rounded_range_of_yarn() -> None:
    with context_of("gpt-oss") as context:
        computed = batch_logits(context, GPT_OSS.tokens())
    # The lower bound: when llama.cpp no longer rounds, docs/numerics.md is to say so.
    assert 1e-3 < difference(computed, GPT_OSS.logits()) < GPT_OSS.bound
    assert agreement(computed, GPT_OSS.logits()) == 1


def test_phimoe_is_another_model_in_transformers() -> None:
    with context_of("phimoe") as context:
        computed = batch_logits(context, PHIMOE.tokens())
    # When this fails llama.cpp has come nearer to the model: measure again, and say so in docs/numerics.md.
    assert difference(computed, PHIMOE.logits()) > 1
    assert agreement(computed, PHIMOE.logits()) < 0.9


def test_the_scale_of_the_file_can_be_overridden() -> None:
    overridden = next(each for each in COMPARISONS if each.reference == "graph_mscale")
    with context_of("phimoe") as context:
        assert float(context.model.meta["phimoe.rope.scaling.attn_factor"]) == pytest.approx((1 + 3 / 8) ** 0.5)
        computed = batch_logits(context, overridden.tokens())
    assert difference(computed, overridden.logits()) > 0.1


def test_a_longer_context_takes_the_long_factors_for_the_same_tokens() -> None:
    # 257 is padded to 512, which is more than the 256 of the file.
    short, long, _ = (each for each in COMPARISONS if each.name == "phimoe")
    with context_of("phimoe", EXACT.with_n_ctx(257)) as context:
        assert context.n_ctx == 512
        computed = batch_logits(context, short.tokens())
    assert difference(computed, long.logits()) < long.bound
    assert agreement(computed, short.logits()) < 1


def test_padding_does_not_reach_the_long_factors() -> None:
    short = next(each for each in COMPARISONS if each.name == "phimoe")
    with context_of("phimoe", EXACT.with_n_ctx(65)) as context:
        assert context.n_ctx == 256
        assert difference(batch_logits(context, short.tokens()), short.logits()) < short.bound


#: Those of experts that a placement's parameters alone give.
SAME_PARAMS = [each for each in COMPARISONS if each.name in MOE and (each.n_ctx, each.params) == (256, CPU)]
PLACEMENTS = {
    "device": lambda params: params,
    "cpu_moe_all": ModelParams.with_cpu_moe_all,
    "n_cpu_moe": lambda params: params.with_n_cpu_moe(1),
    "attention on the CPU": lambda params: params.with_cpu_override(r"attn_(q|k|v|output)\."),
    "half of the experts": lambda params: params.with_cpu_override(r"ffn_down_exps"),
    "one layer": lambda params: params.with_n_gpu_layers(2),
}


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("each", SAME_PARAMS, ids=str)
def test_logits_do_not_depend_on_where_the_weights_are(each: Comparison, placement: str, device: Device) -> None:
    params = PLACEMENTS[placement](ModelParams(devices=[device]))
    with context_of(each.name, EXACT, params) as context:
        held = {entry.name: entry.model for entry in context.memory_breakdown().devices}
        assert held[device.name] > 0
        computed = batch_logits(context, each.tokens())
        context.kv_cache_clear()
        steps = step_logits(context, each.tokens()[:8])
    assert difference(computed, each.logits()) < each.bound
    assert agreement(computed, each.logits()) == 1
    assert difference(steps, each.logits()[:8]) < each.bound


@pytest.mark.parametrize("each", COMPARISONS, ids=str)
def test_logits_after_a_chosen_prefix(each: Comparison) -> None:
    # Only some positions asked for, in batches of uneven size: the same numbers in the same rows.
    tokens, expected = each.tokens(), each.logits()
    asked = np.arange(len(tokens)) % 3 == 0
    with each.context() as context:
        for first, last in [(0, 1), (1, 24), (24, 31), (31, len(tokens))]:
            batch = Batch(last - first)
            batch.extend(tokens[first:last], first, 0, asked[first:last])
            context.decode(batch)
            if asked[first:last].any():
                assert difference(context.get_logits(), expected[first:last][asked[first:last]]) < each.bound


def test_the_documentation_has_the_figures_that_are_measured() -> None:
    page = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\S+) \| `(\w+)` \| (\d+) \| (\S+) \| (\d+)% \|$", page, re.M)
    told = {(name, reference): (int(n), float(largest), int(same)) for name, reference, n, largest, same in rows}
    assert set(told) == {(each.name, each.reference) for each in (*COMPARISONS, *DIFFERING)}
    for each in (*COMPARISONS, *DIFFERING):
        positions, largest, same = told[each.name, each.reference]
        n, found, agreed = measured(each)
        assert positions == n
        assert near(largest, found), each
        assert same == pytest.approx(100 * agreed, abs=2)
    ways = dict(re.findall(r"^\| ([^|]+) \| (\de[-+]\d\d) \|$", page, re.M))
    assert set(ways) == set(WAYS)
    for way, largest in ways.items():
        assert near(float(largest), measured_way(way)), way


def near(told: float, found: float) -> bool:
    """Within a factor of four; the last bits, below 2e-5, are another processor's."""
    if told == 0:
        return found == 0
    told, found = max(told, 2e-5), max(found, 2e-5)
    return told / 4 <= found <= told * 4


def test_the_files_are_small() -> None:
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 3_000_000


def test_the_models_are_what_they_are_named() -> None:
    found = {}
    for path in sorted(DATA.glob("*.gguf")):
        with Model.load_from_file(path, ModelParams(n_gpu_layers=0)) as model:
            found[path.stem] = (model.meta["general.architecture"], model.n_layer, model.n_expert, model.n_expert_used)
    assert found == {
        "llama": ("llama", 4, 0, 0),
        "mixtral": ("llama", 2, 8, 2),
        "qwen2moe": ("qwen2moe", 2, 6, 3),
        "qwen3moe": ("qwen3moe", 3, 8, 4),
        "olmoe": ("olmoe", 2, 8, 3),
        "gpt-oss": ("gpt-oss", 3, 4, 2),
        "phimoe": ("phimoe", 2, 6, 2),
    }
