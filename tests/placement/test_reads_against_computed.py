"""What a plan says that a token reads is what the graph of a token then does read, byte by byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from weights_read import computed

import moebind
from conftest import CPU, SMALL
from moebind import Device, LazyMode, ModelParams

MakeTiny = Callable[..., Path]

MODELS: dict[str, dict[str, object]] = {
    "dense": {},
    "tied": {"tied": True},
    "experts": {"n_expert": 4, "n_layer": 3},
    "dense first, shared experts": {"arch": "deepseek", "n_expert": 4, "n_dense_layers": 1, "n_layer": 3},
    "groups of experts": {"arch": "dots1", "n_expert": 8, "n_head_kv": 4, "n_expert_groups": 4},
    "fused": {"arch": "granite_swa", "n_expert": 4},
    "chexps": {"arch": "grovemoe", "n_expert": 4},
    "looked up": {"arch": "gemma4"},
    "recurrent": {"arch": "mamba"},
    "hybrid": {"arch": "lfm2"},
    "ahead": {"arch": "glm4moe", "n_expert": 4, "n_layer": 3, "n_mtp": 1},
}
PLACEMENTS: dict[str, Callable[[ModelParams], ModelParams]] = {
    "all on the device": lambda params: params,
    "experts on the host": lambda params: params.with_cpu_moe_all(strict=False),
    "one matrix": lambda params: params.with_cpu_override("ffn_down", strict=False),
    "two layers": lambda params: params.with_n_gpu_layers(2),
    "nothing": lambda params: params.with_n_gpu_layers(0),
}


@pytest.mark.parametrize("model", MODELS)
def test_tiny_models(tiny_path: MakeTiny, device: Device, model: str) -> None:
    path = tiny_path(**MODELS[model])
    for change in PLACEMENTS.values():
        params = change(ModelParams(devices=(device,)))
        plan = moebind.plan(path, params, SMALL)
        found = computed(path, params, SMALL)
        assert {name: nbytes for name, nbytes in plan.weights_per_token.items() if nbytes} == found
        described = moebind.plan(path, change(ModelParams()), SMALL, devices=["1GiB"])
        assert sorted(described.weights_per_token.values()) == sorted(plan.weights_per_token.values())


def test_the_demo_model(demo_path: Path, device: Device) -> None:
    for change in (PLACEMENTS["experts on the host"], PLACEMENTS["two layers"]):
        params = change(ModelParams(devices=(device,)))
        assert dict(moebind.plan(demo_path, params, SMALL).weights_per_token) == computed(demo_path, params, SMALL)


def test_several_sequences_and_other_contexts(tiny_path: MakeTiny) -> None:
    path = tiny_path(n_expert=4)
    one = computed(path, CPU, SMALL)
    for context in (SMALL.with_n_seq_max(40).with_n_ctx(40 * 256), SMALL.with_n_seq_max(40).with_kv_unified(True)):
        plan = moebind.plan(path, CPU, context)
        assert {name: nbytes for name, nbytes in plan.weights_per_token.items() if nbytes} == one
        # So many that a GPU takes over experts of the host's.
        described = moebind.plan(path, ModelParams().with_cpu_moe_all(), context, devices=["1GiB"])
        assert sum(described.weights_per_token.values()) == sum(one.values())
        assert described.weights_per_token["Host"] > moebind.experts(path).active_nbytes


def test_layers_ahead_are_read_by_their_own_contexts_only(tiny_path: MakeTiny) -> None:
    path = tiny_path(arch="glm4moe", n_expert=4, n_layer=3, n_mtp=1)
    plans = [moebind.plan(path, ModelParams(load_mtp=mtp), SMALL, devices=["1GiB"]) for mtp in (False, True)]
    assert plans[0].weights_per_token == plans[1].weights_per_token
    assert plans[0].devices[0].model < plans[1].devices[0].model


@pytest.mark.parametrize("lazy", [LazyMode.OFF, LazyMode.ON])
def test_rows_are_looked_up_wherever_they_are(tiny_path: MakeTiny, lazy: LazyMode) -> None:
    path = tiny_path(arch="gemma4")
    params = CPU.with_lazy_mode(lazy)
    assert dict(moebind.plan(path, params, SMALL).weights_per_token) == computed(path, params, SMALL)


@pytest.mark.parametrize(
    "architecture", ["qwen3next", "deepseek2", "gpt-oss", "minimax-01", "llama4", "kimi-linear", "phi3", "deepseek4"]
)
def test_other_architectures(architecture_path: Callable[[str], Path], device: Device, architecture: str) -> None:
    path = architecture_path(architecture)
    for change in (PLACEMENTS["experts on the host"], PLACEMENTS["two layers"]):
        params = change(ModelParams(devices=(device,)))
        plan = moebind.plan(path, params, SMALL)
        found = computed(path, params, SMALL)
        assert {name: nbytes for name, nbytes in plan.weights_per_token.items() if nbytes} == found
