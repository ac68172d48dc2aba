"""Experts in host memory: what moves, and what it saves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import bounds
import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import CPU, EXACT, SMALL
from moebind import Batch, Device, Model, ModelLoadError, ModelParams
from moebind.files.tensor_patterns import matching
from moebind.params.tensor_overrides import written_rules

MakeTiny = Callable[..., Path]


@pytest.fixture(scope="module")
def on_device(device: Device) -> ModelParams:
    return ModelParams(devices=(device,), n_gpu_layers=-1)


def logits_of(path: Path, params: ModelParams) -> np.ndarray:
    with Model.load_from_file(path, params) as model, model.new_context(EXACT) as context:
        batch = Batch(4)
        batch.add_sequence([1, 5, 9, 200], 0, logits_all=True)
        context.decode(batch)
        return context.get_logits().copy()


SHAPES: list[dict[str, object]] = [
    {"n_expert": 4},
    {"arch": "deepseek", "n_expert": 4, "n_layer": 3, "n_dense_layers": 1},
    {"arch": "granite_swa", "n_expert": 4},
    {"arch": "grovemoe", "n_expert": 4},
]
KINDS = [{"gate", "up", "down"}, {"gate", "up", "down"}, {"gate_up", "down"}, {"gate", "up", "down"}]


@pytest.mark.parametrize(
    ("shape", "parts"), list(zip(SHAPES, KINDS, strict=True)), ids=["llama", "shared", "fused", "chunks"]
)
def test_all_experts_move_and_nothing_else(
    tiny_path: MakeTiny, on_device: ModelParams, shape: dict[str, object], parts: set[str]
) -> None:
    path = tiny_path(**shape)
    sizes = {tensor.name: tensor.n_bytes for tensor in gguf.GGUFReader(path).tensors}
    experts = {name: size for name, size in sizes.items() if "exps" in name}
    with Model.load_from_file(path, on_device.with_cpu_moe_all()) as model:
        (placed,) = model.placement
        assert {tensor.name: tensor.nbytes for tensor in placed.tensors} == experts
        assert {tensor.name.split("ffn_")[1].rsplit("_", 1)[0] for tensor in placed.tensors} == parts
        assert placed.nbytes == sum(experts.values())
        assert all(where.startswith("CPU") for where in placed.buffer_types)
        assert f"{len(experts)} tensors" in str(placed)
        assert [each.name for each in model.devices] == [on_device.devices[0].name]  # type: ignore[index]
        with model.new_context(SMALL) as context:
            less = context.memory_breakdown()
    with Model.load_from_file(path, on_device) as model, model.new_context(SMALL) as context:
        assert model.placement == ()
        assert (repr(model.placement), str(model.placement)) == ("no tensor overrides",) * 2
        more = context.memory_breakdown()
    saved = more.devices[0].model - less.devices[0].model
    assert saved == pytest.approx(sum(experts.values()), abs=4096)
    assert less.reduction_vs(more) > 0


@pytest.mark.parametrize("shape", SHAPES, ids=["llama", "shared", "fused", "chunks"])
def test_placements_compute_the_same(tiny_path: MakeTiny, on_device: ModelParams, shape: dict[str, object]) -> None:
    path = tiny_path(**shape)
    expected = logits_of(path, CPU)
    for params in (
        on_device,
        on_device.with_cpu_moe_all(),
        on_device.with_n_cpu_moe(2),
        on_device.with_cpu_override("attn"),
    ):
        np.testing.assert_allclose(logits_of(path, params), expected, atol=bounds.ORDER)


def test_the_first_layers_experts(tiny_path: MakeTiny, on_device: ModelParams) -> None:
    with Model.load_from_file(tiny_path(n_layer=4, n_expert=4), on_device.with_n_cpu_moe(3)) as model:
        layers = {tensor.name.split(".")[1] for tensor in model.placement[0].tensors}
    assert layers == {"0", "1", "2"}
    with Model.load_from_file(tiny_path(n_layer=4, n_expert=4), on_device.with_n_cpu_moe(99)) as model:
        assert len(model.placement[0].tensors) == 12


def test_split_models_too(tiny_path: MakeTiny, on_device: ModelParams) -> None:
    with Model.load_from_file(tiny_path(split=3, n_expert=4), on_device.with_cpu_moe_all()) as model:
        assert len(model.placement[0].tensors) == 6


def test_the_first_match_wins(tiny_path: MakeTiny, on_device: ModelParams, device: Device) -> None:
    params = on_device.with_cpu_override("ffn_up_exps").with_tensor_override("_exps", device).with_cpu_override("blk")
    with Model.load_from_file(tiny_path(n_expert=4), params) as model:
        up, others, rest = model.placement
        assert {tensor.name.split(".")[2] for tensor in up.tensors} == {"ffn_up_exps"}
        assert {tensor.name.split(".")[2] for tensor in others.tensors} == {"ffn_gate_exps", "ffn_down_exps"}
        assert {tensor.device for tensor in others.tensors} == {device.name}
        assert {tensor.device for tensor in up.tensors} == {"CPU"}
        assert not {tensor.name for tensor in rest.tensors} & {tensor.name for tensor in up.tensors + others.tensors}
        assert repr(model.placement) == str(model.placement) == f"{up}\n{others}\n{rest}"
        assert repr(others) == f"<PlacedOverride {others}>"
        assert str(others) == f"_exps: 4 tensors, {others.nbytes / 2**20:.1f} MiB to {others.buffer_types[0]}"
        assert model.placement[1:] == (others, rest)
        assert model.placement == (up, others, rest)


def test_targets_by_name(tiny_path: MakeTiny, on_device: ModelParams, device: Device) -> None:
    for target in (device, device.name, f"RPC0[{device.description}]", "CPU"):
        with Model.load_from_file(tiny_path(n_expert=4), on_device.with_tensor_override("_exps", target)) as model:
            assert len(model.placement[0].tensors) == 6
    with pytest.raises(ValueError, match=r"the target 'CUDA7' of '_exps' is neither.*there are .*CPU"):
        Model.load_from_file(tiny_path(n_expert=4), on_device.with_tensor_override("_exps", "CUDA7"))


def test_many_overrides_stay_alive(tiny_path: MakeTiny) -> None:
    params = CPU
    for layer in range(40):
        params = params.with_cpu_override(rf"blk\.{layer % 4}\.ffn_(up|down)_exps")
    with Model.load_from_file(tiny_path(n_layer=4, n_expert=4), params) as model:
        assert [len(each.tensors) for each in model.placement] == [2] * 4 + [0] * 36


def test_a_pattern_that_matches_nothing_shows_names_that_would(tiny_path: MakeTiny) -> None:
    with pytest.raises(
        ModelLoadError, match=r"'ffn_up_expert' matches none of the \d+ tensors.*blk\.0\.ffn_up_exps\.weight"
    ):
        Model.load_from_file(tiny_path(n_expert=4), CPU.with_cpu_override("ffn_up_expert"))
    with Model.load_from_file(tiny_path(n_expert=4), CPU.with_cpu_override("ffn_up_expert", strict=False)) as model:
        assert model.placement[0].tensors == ()


def test_a_model_without_experts(tiny_path: MakeTiny) -> None:
    for params in (CPU.with_cpu_moe_all(), CPU.with_n_cpu_moe(2)):
        with pytest.raises(ModelLoadError, match="has no experts"):
            Model.load_from_file(tiny_path(), params)
    with Model.load_from_file(tiny_path(), CPU.with_cpu_moe_all(strict=False).with_n_cpu_moe(1, strict=False)) as model:
        assert [each.tensors for each in model.placement] == [(), ()]


def test_layers_without_experts(tiny_path: MakeTiny) -> None:
    path = tiny_path(arch="deepseek", n_expert=4, n_layer=3, n_dense_layers=1)
    with pytest.raises(ModelLoadError, match="matches none"):
        Model.load_from_file(path, CPU.with_n_cpu_moe(1))


@pytest.fixture(scope="module")
def demo_texts(demo_path: Path, on_device: ModelParams) -> list[tuple[str, int, int]]:
    rows = []
    for params in (on_device, on_device.with_n_cpu_moe(15), on_device.with_cpu_moe_all()):
        with Model.load_from_file(demo_path, params) as model, model.new_context(SMALL) as context:
            text = "".join(piece.text for piece in context.generate("Once upon a time", max_tokens=24))
            memory = context.memory_breakdown().devices[0]
            rows.append((text, memory.model, memory.total))
    return rows


def test_the_demo_models_text_is_the_same(demo_texts: list[tuple[str, int, int]]) -> None:
    assert len({text for text, _, _ in demo_texts}) == 1
    assert len(demo_texts[0][0]) > 40


def test_the_demo_models_experts_leave_the_device(demo_texts: list[tuple[str, int, int]]) -> None:
    everything, half, none = (model for _, model, _ in demo_texts)
    assert none <= 0.12 * everything
    assert none < half < everything


# --- as text ---

#: What stands in a name of a device or of a buffer type.
TARGETS = st.sampled_from(["CPU", "CUDA0", "CUDA_Host", "RPC0[127.0.0.1:50052]", "CPU_REPACK", "GPU1"])
#: Pieces of patterns, with the commas, braces and equal signs that regular expressions may have.
PIECES = st.sampled_from([r"blk\.", r"\d{1,2}", "ffn_(up|down)", "a{2,}", "(?=x)", "[=,]", "exps", ".", "_,"])
PATTERNS = st.lists(PIECES, min_size=1, max_size=5).map("".join)


@given(st.lists(st.tuples(PATTERNS, TARGETS), min_size=1, max_size=4))
def test_rules_are_read_as_they_were_written(rules: list[tuple[str, str]]) -> None:
    text = ",".join(f"{pattern}={target}" for pattern, target in rules)
    found = written_rules("rules", text)
    assert [(rule.pattern, rule.target) for rule in found] == rules


def test_layers_by_number() -> None:
    names = [f"blk.{at}.{part}.weight" for at in range(120) for part in ("attn_q", "ffn_up_exps", "ffn_gate_inp")]

    def layers(text: str) -> list[tuple[int, str]]:
        [rule] = written_rules("rules", f"{text}=CUDA1")
        assert rule.target == "CUDA1"
        return [(int(name.split(".")[1]), name.split(".")[2]) for name in matching(rule.pattern, names)]

    assert layers("experts:0-11") == [(at, "ffn_up_exps") for at in range(12)]
    assert layers("experts:7") == [(7, "ffn_up_exps")]
    assert layers("experts:98-101") == [(at, "ffn_up_exps") for at in range(98, 102)]
    assert {at for at, _ in layers("layers:112-")} == set(range(112, 120))
    assert {part for _, part in layers("layers:112-")} == {"attn_q", "ffn_up_exps", "ffn_gate_inp"}
    assert [rule.target for rule in written_rules("rules", "experts:0-3=CPU, layers:4-=CUDA0")] == ["CPU", "CUDA0"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "rules is ''; it takes PATTERN=TARGET"),
        ("ffn_up", "rules is 'ffn_up'; it takes PATTERN=TARGET"),
        ("=CPU", "it takes PATTERN=TARGET"),
        ("ffn_up=", "it takes PATTERN=TARGET"),
        ("ffn_up=CPU,ffn_down", "it takes PATTERN=TARGET"),
        ("ffn_up=CPU,=CUDA0", "it takes PATTERN=TARGET"),
        ("experts:11-0=CPU", "rules has 'experts:11-0'; the first layer comes first, as in experts:0-11"),
        ("experts:a-b=CPU", "rules has 'experts:a-b'; layers have numbers"),
        ("layers:=CPU", "rules has 'layers:'; layers have numbers"),
        ("layers:0-99999=CPU", "layers have numbers"),
        ("a\0b=CPU", "NUL"),
    ],
)
def test_what_is_no_rule(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        written_rules("rules", text)


def test_layers_beyond_the_last_are_passed_over(tiny_path: MakeTiny) -> None:
    # As llama.cpp's users write it for "all"; what matches nothing at all is no wish that could be meant.
    path = tiny_path(n_expert=4, n_layer=3)
    placed = []
    for rules in (
        CPU.with_cpu_moe_all(),
        CPU.with_n_cpu_moe(999),
        CPU.with_tensor_overrides(written_rules("rules", "experts:0-40=CPU")),
    ):
        with Model.load_from_file(path, rules) as model:
            placed.append(model.placement[0].tensors)
    assert len({name.name.split(".")[1] for name in placed[0]}) == 3
    assert placed[0] == placed[1] == placed[2]
    with pytest.raises(ModelLoadError, match="matches none of the"):
        Model.load_from_file(path, CPU.with_tensor_overrides(written_rules("rules", "experts:3-40=CPU")))
