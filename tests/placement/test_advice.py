"""Advice: what is said to be enough is enough."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import moebind
from conftest import SMALL
from moebind import ContextParams, ModelParams
from moebind._core.sizes import show_size

MakeShape = Callable[..., Path]
CONTEXT = ContextParams(n_ctx=4096)


def followed(plan: moebind.Plan, devices: list[str | int]) -> int:
    """Follow each piece of advice by itself, and see that the device has enough; how many there were."""
    count = 0
    model, context = plan.model_params, plan.context_params
    for line in plan.advice:
        match = re.match(r"(GPU\d+) lacks", line)
        if match is None:
            continue
        changes = [(model.with_n_cpu_moe(int(n)), context) for n in re.findall(r"with_n_cpu_moe\((\d+)\)", line)]
        if "with_cpu_moe_all()" in line and "with_cpu_moe_all() is not enough" not in line:
            changes.append((model.with_cpu_moe_all(), context))
        changes += [(model.with_n_gpu_layers(int(n)), context) for n in re.findall(r"an n_gpu_layers of (\d+)", line)]
        changes += [(model, context.with_n_ctx(int(n))) for n in re.findall(r"an n_ctx of (\d+)", line)]
        for changed, shorter in changes:
            then = moebind.plan(plan.path, changed, shorter, devices=devices)
            assert match[1] not in then.missing, (line, then.missing)
            count += 1
    return count


@given(
    name=st.sampled_from(["phi-3.5-moe-q4_k_m", "gpt-oss-120b-mxfp4", "deepseek-v3-q4_k_m", "qwen3-30b-a3b-q4_k_m"]),
    shares=st.lists(st.floats(0.05, 1.1), min_size=1, max_size=2),
)
@settings(max_examples=20, deadline=None)
def test_what_is_advised_is_enough(shape_path: MakeShape, name: str, shares: list[float]) -> None:
    path = shape_path(name, 6)
    most = moebind.plan(path, ModelParams(), CONTEXT, devices=["1TiB"]).device_bytes
    sizes: list[str | int] = [int(most * share / len(shares)) for share in shares]
    plan = moebind.plan(path, ModelParams(), CONTEXT, devices=sizes)
    lacking = set(plan.missing) - {"Host"}
    assert len([line for line in plan.advice if line.startswith("GPU")]) == len(lacking)
    if not followed(plan, sizes):
        assert all("leave it out of the devices" in line for line in plan.advice if line.startswith("GPU"))


def test_where_scratch_memory_takes_what_experts_leave(shape_path: MakeShape) -> None:
    # Copies of experts that are in host memory need room: as many experts as bytes are lacking are not enough.
    path = shape_path("deepseek-v3-q4_k_m", 6)
    most = moebind.plan(path, ModelParams(), CONTEXT, devices=["1TiB"]).devices[0].total
    plan = moebind.plan(path, ModelParams(), CONTEXT, devices=[most - 2**20])
    first = min(layer.layer for layer in moebind.experts(path) if layer.n_expert) + 1
    naive = moebind.plan(path, ModelParams().with_n_cpu_moe(first), CONTEXT, devices=[most - 2**20])
    assert moebind.experts(path)[first - 1].nbytes > 2**20
    assert followed(plan, [most - 2**20])
    assert naive.fits is (f"with_n_cpu_moe({first})" in plan.advice[0])


@pytest.mark.parametrize("n_expert", [0, 8])
def test_layers_and_contexts(tiny_path: Callable[..., Path], n_expert: int) -> None:
    path = tiny_path(n_layer=6, n_expert=n_expert)
    context = SMALL.with_n_ctx(4096)
    needed = moebind.plan(path, ModelParams(), context, devices=["1GiB"]).devices[0]
    size = needed.total - needed.context // 3
    plan = moebind.plan(path, ModelParams(), context, devices=[size])
    takes = re.escape(show_size(needed.context))
    said = rf"an n_ctx of \d+ shortens the context, which takes {takes} with 4096 tokens(, or |\.$)"
    assert re.search(said, plan.advice[0])
    assert ("an n_gpu_layers of" in plan.advice[0]) is (n_expert == 0)
    assert followed(plan, [size]) == 2
    without_layers = moebind.plan(path, ModelParams(n_gpu_layers=3), context, devices=[100_000])
    assert "leave it out of the devices" in without_layers.advice[0] or followed(without_layers, [100_000])


def test_what_is_not_enough_is_not_told_as_if_it_were(demo_path: Path) -> None:
    plan = moebind.plan(demo_path, context_params=SMALL.with_n_ctx(8192), devices=["100MiB"])
    assert re.search(r"with_cpu_moe_all\(\) is not enough \(it moves [\d.]+ MiB of experts\); ", plan.advice[0])
    assert "with_n_cpu_moe(" not in plan.advice[0]
    assert "not enough" not in moebind.plan(demo_path, context_params=SMALL, devices=["400MiB"]).advice[0]


def test_the_host_lacks_memory(shape_path: MakeShape) -> None:
    plan = moebind.plan(shape_path("deepseek-v3-q4_k_m"), ModelParams().with_cpu_moe_all(), CONTEXT, devices=["80GiB"])
    assert plan.advice[-1].startswith("The host lacks")
    assert "pages of the file, which the system reads again when they do not stay: slow, but it runs" in plan.advice[-1]
    assert plan.advice[-1].endswith("a smaller quantisation, or more on a device, takes less.")


def test_what_is_no_page_of_the_file_has_to_fit(demo_path: Path) -> None:
    context = SMALL.with_n_ctx(8192)
    roomy = moebind.plan(demo_path, context_params=context, devices=[], host="64GiB")
    mapped = sum(buffer.model for buffer in roomy.host.buffers if buffer.name == "CPU_Mapped")
    for lacks, runs in ((0, True), (1, False)):
        plan = moebind.plan(demo_path, context_params=context, devices=[], host=roomy.host.total - mapped - lacks)
        assert ("slow, but it runs" in plan.advice[-1]) is runs
        its = f"have to fit; {show_size(roomy.host.context)} of these are the context, and a shorter n_ctx takes less;"
        assert (its in plan.advice[-1]) is not runs
        assert plan.advice[-1].endswith("; a smaller quantisation takes less.")
