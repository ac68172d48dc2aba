"""Models on a GPU: wherever the experts are, it is the same model, and it takes what was planned."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from on_gpu import FLOATS, QUANTISED, assert_agree, logits_of, prompt

import moebind
from conftest import CPU, SMALL
from moebind import (
    ContextParams,
    Device,
    DeviceMemory,
    FlashAttnType,
    GgmlType,
    LoadMode,
    Model,
    ModelParams,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import shapes
import weights

MakeTiny = Callable[..., Path]
Change = Callable[[ModelParams], ModelParams]

PLACEMENTS: dict[str, Change] = {
    "all on the GPU": lambda params: params,
    "experts on the host": lambda params: params.with_cpu_moe_all(),
    "experts of some layers": lambda params: params.with_n_cpu_moe(2, strict=False),
    "one matrix": lambda params: params.with_cpu_override("ffn_down_exps"),
    "only some experts on the GPU": lambda params: params.with_n_gpu_layers(0).with_tensor_override(
        r"blk\.[12]\.ffn_.*_exps", _target(params)
    ),
    "some layers": lambda params: params.with_n_gpu_layers(2),
    "nothing": lambda params: params.with_n_gpu_layers(0),
}
CONTEXTS: dict[str, ContextParams] = {
    "defaults": SMALL,
    "long": SMALL.with_n_ctx(4096),
    "quantised cache": SMALL.with_type_k(GgmlType.Q8_0).with_type_v(GgmlType.Q8_0),
    "plain attention": SMALL.with_flash_attn_type(FlashAttnType.DISABLED),
    "large batches": SMALL.with_n_ctx(2048).with_n_batch(2048).with_n_ubatch(2048),
    "several sequences": SMALL.with_n_seq_max(4).with_n_ctx(1024).with_n_ubatch(128),
    "cache on the host": SMALL.with_offload_kqv(False),
    "work stays on the host": SMALL.with_op_offload(False),
}
MODELS = ("demo", "phi in small", "experts", "dense first")
#: Every placement with every model; contexts and ways of reading take turns.
COMBINATIONS = [
    (model, placement, list(CONTEXTS)[number % len(CONTEXTS)], [LoadMode.AUTO, LoadMode.NONE][number // 3 % 2])
    for number, (model, placement) in enumerate((model, placement) for model in MODELS for placement in PLACEMENTS)
]


def _target(params: ModelParams) -> Device:
    assert params.devices is not None
    return params.devices[0]


@pytest.fixture(scope="module")
def model_path(demo_path: Path, tiny_path: MakeTiny, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    phi = weights.write(tmp_path_factory.mktemp("phi") / "phi.gguf", shapes.small(shapes.SHAPES["phi-3.5-moe-q4_k_m"]))

    # CUDA's flash attention, which a quantised cache needs, has no kernels for smaller heads than 64.
    wide: dict[str, object] = {"n_embd": 128, "n_head": 2, "n_head_kv": 1}

    def find(name: str) -> Path:
        if name == "demo":
            return demo_path
        if name == "phi in small":
            return phi
        if name == "experts":
            return tiny_path(n_expert=4, n_layer=3, **wide)
        return tiny_path(arch="deepseek", n_expert=4, n_dense_layers=1, n_layer=3, **wide)

    return find


@pytest.fixture(scope="module")
def expected(demo: Model) -> np.ndarray:
    """Logits of the demo model on the CPU."""
    return logits_of(demo, SMALL, prompt(demo))


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_placement_changes_nothing_that_is_computed(
    gpu: Device, demo_path: Path, expected: np.ndarray, placement: str
) -> None:
    params = PLACEMENTS[placement](ModelParams(devices=(gpu,)))
    with Model.load_from_file(demo_path, params) as model:
        assert_agree(expected, logits_of(model, SMALL, prompt(model)), QUANTISED)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("placement", ["all on the GPU", "experts on the host"])
def test_nor_does_a_context(
    gpu: Device, demo_path: Path, expected: np.ndarray, loaded: Callable[[str], Model], placement: str, context: str
) -> None:
    model = loaded(placement)
    assert_agree(expected, logits_of(model, CONTEXTS[context], prompt(model)), QUANTISED)


@pytest.fixture(scope="module")
def loaded(gpu: Device, demo_path: Path) -> Iterator[Callable[[str], Model]]:
    """The demo model, each placement once."""
    models: dict[str, Model] = {}

    def load(placement: str) -> Model:
        if placement not in models:
            models[placement] = Model.load_from_file(demo_path, PLACEMENTS[placement](ModelParams(devices=(gpu,))))
        return models[placement]

    yield load
    for model in models.values():
        model.close()


@pytest.mark.parametrize(
    "arch",
    [{}, {"n_expert": 4}, {"arch": "deepseek", "n_expert": 4}, {"arch": "granite_swa", "n_expert": 4}],
    ids=["dense", "experts", "shared experts", "fused"],
)
def test_other_models_compute_the_same(gpu: Device, tiny_path: MakeTiny, arch: dict[str, object]) -> None:
    path = tiny_path(**arch)
    with Model.load_from_file(path, CPU) as on_cpu, Model.load_from_file(path, ModelParams(devices=(gpu,))) as on_gpu:
        tokens = np.arange(3, 67, dtype=np.int32)
        assert_agree(logits_of(on_cpu, SMALL, tokens), logits_of(on_gpu, SMALL, tokens), FLOATS)


def close(planned: int, actual: int) -> bool:
    """Within a hundredth, or 4 MiB."""
    return abs(planned - actual) <= max(0.01 * actual, 4 * 2**20)


def assert_planned(planned: tuple[DeviceMemory, ...], actual: tuple[DeviceMemory, ...]) -> None:
    for ours, theirs in zip(planned, actual, strict=True):
        assert (ours.name, ours.type) == (theirs.name, theirs.type)
        assert [buffer.name for buffer in ours.buffers if buffer.total] == [
            buffer.name for buffer in theirs.buffers if buffer.total
        ]
        for part in ("model", "context", "compute"):
            assert close(getattr(ours, part), getattr(theirs, part)), (part, ours, theirs)


@pytest.mark.parametrize(("model", "placement", "context", "mode"), COMBINATIONS)
def test_a_plan_is_what_a_load_holds(
    gpu: Device, model_path: Callable[[str], Path], model: str, placement: str, context: str, mode: LoadMode
) -> None:
    path = model_path(model)
    params = PLACEMENTS[placement](ModelParams(devices=(gpu,), load_mode=mode))
    plan = moebind.plan(path, params, CONTEXTS[context])
    with Model.load_from_file(path, params) as on_gpu, on_gpu.new_context(CONTEXTS[context]) as live:
        assert_planned(plan.devices, live.memory_breakdown().devices)


def test_experts_on_the_host_leave_the_gpu_empty(gpu: Device, loaded: Callable[[str], Model]) -> None:
    held = []
    for placement in ("all on the GPU", "experts on the host"):
        with loaded(placement).new_context(SMALL) as context:
            held.append(context.memory_breakdown())
    experts = moebind.experts(loaded("all on the GPU").path)
    moved = held[0].devices[0].model - held[1].devices[0].model
    assert abs(moved - experts.nbytes) <= 4 * 2**20
    assert held[1].reduction_vs(held[0]) > 0.6


def test_a_fit_keeps_to_its_budget_when_loaded(gpu: Device, demo_path: Path) -> None:
    moved, experts = (
        moebind.plan(demo_path, ModelParams(devices=(gpu,)).with_cpu_moe_all(), SMALL),
        moebind.experts(demo_path),
    )
    for share in (0.3, 0.7):
        budget = moved.device_bytes + int(share * experts.nbytes)
        fit = moebind.fit(demo_path, memory=budget, n_ctx=1024, context_params=SMALL, devices=[gpu])
        with Model.load_from_file(demo_path, fit.model_params) as model:
            with model.new_context(fit.context_params) as context:
                held = context.memory_breakdown().devices[0]
        assert held.name == gpu.name
        assert held.total <= budget
        assert held.total > 0.8 * budget


@pytest.mark.cuda  # drivers of Vulkan's may not take such large tensors: Mesa's software driver takes 128 MiB
@pytest.mark.parametrize(
    ("file", "everything", "moved", "without_copies"),
    [("q4_k_m", 24.14, 1.73, 1.43), ("q2_k", 14.78, 1.34, 1.20), ("q8_0", 41.92, 2.47, 2.07)],
)
def test_the_published_figures_are_planned(
    gpu: Device, shape_path: Callable[..., Path], file: str, everything: float, moved: float, without_copies: float
) -> None:
    """With op_offload there is room for copies of experts on the device, which long prompts are computed with."""
    path, context = shape_path(f"phi-3.5-moe-{file}"), ContextParams(n_ctx=4096)
    params = ModelParams(devices=(gpu,), load_mode=LoadMode.NONE)
    for change, op_offload, expected in [
        (params, True, everything),
        (params.with_cpu_moe_all(), True, moved),
        (params.with_cpu_moe_all(), False, without_copies),
    ]:
        plan = moebind.plan(path, change, context.with_op_offload(op_offload))
        assert abs(plan.device_bytes / 2**30 - expected) < 0.02


@pytest.mark.card
def test_scratch_memory_on_the_host_is_pinned(gpu: Device, loaded: Callable[[str], Model]) -> None:
    with loaded("experts on the host").new_context(SMALL) as context:
        buffers = {buffer.name: buffer for buffer in context.memory_breakdown().host.buffers}
    pinned = f"{gpu.backend}_Host"
    assert buffers[pinned].compute > 0
    plan = moebind.plan(loaded("experts on the host").path, ModelParams(devices=(gpu,)).with_cpu_moe_all(), SMALL)
    planned = {buffer.name: buffer for buffer in plan.host.buffers}
    assert close(planned[pinned].compute, buffers[pinned].compute)


@pytest.mark.card
def test_experts_that_are_read_are_pinned_and_those_without_a_host_buffer_are_not(gpu: Device, demo_path: Path) -> None:
    names = []
    for no_host in (False, True):
        params = ModelParams(devices=(gpu,), load_mode=LoadMode.NONE, no_host=no_host).with_cpu_moe_all()
        with Model.load_from_file(demo_path, params) as model:
            names.append(set(model.placement[0].buffer_types))
    assert names[0] == {f"{gpu.backend}_Host"}
    assert f"{gpu.backend}_Host" not in names[1]
