"""How much of a budget goes to a cache of experts."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import moebind
from conftest import CPU, SMALL
from moebind import Device, Ftype, LoadMode, Model, ModelParams, RoutingRecorder
from moebind.placement.cache_share import GAIN_MIN

MakeTiny = Callable[..., Path]
MIB = 2**20
#: A host whose weights are not repacked.
PLAIN = ModelParams(use_extra_bufts=False)


@pytest.fixture(scope="module")
def recorder(demo_path: Path) -> RoutingRecorder:
    found = RoutingRecorder(order=True)
    with (
        Model.load_from_file(demo_path, CPU) as model,
        model.new_context(SMALL.with_eval_callback(found)) as context,
    ):
        for _ in context.generate("Once upon a time", max_tokens=48):
            pass
    return found


def fitted(path: Path, recorder: RoutingRecorder | None, bus: float, memory: str = "300MiB") -> moebind.Fit:
    return moebind.fit(path, memory=memory, n_ctx=512, devices=["1GiB"], moe_cache="auto", routing=recorder, bus=bus)


def cost(plan: moebind.Plan, recorder: RoutingRecorder, bus: float) -> float:
    """Bytes from host memory, and over the bus as many as would take that long; counted from the parts."""
    size = plan.context_params.moe_cache_size
    read = float(plan.bytes_per_token["Host"])
    if not size:
        return read
    experts = moebind.experts(plan.path)
    whole = [
        each
        for each in experts
        if all(plan.places[name] is None for name in each.tensors) and plan.places[f"blk.{each.layer}.attn_norm.weight"]
    ]
    active = sum(each.nbytes * each.n_expert_used / each.n_expert for each in whole)
    point = recorder.cache_curve([size], layers=[each.layer for each in whole]).points[0]
    return read - active + point.bytes_uploaded / recorder.cache_curve([size]).n_tokens / bus


@pytest.mark.parametrize("bus", [0.25, 1.0, 3.0])
@pytest.mark.parametrize("memory", ["200MiB", "300MiB", "420MiB"])
def test_nothing_that_was_tried_costs_less(demo_path: Path, recorder: RoutingRecorder, bus: float, memory: str) -> None:
    fit = fitted(demo_path, recorder, bus, memory)
    assert fit.plan.devices[0].total <= fit.budgets["GPU0"]
    found = cost(fit.plan, recorder, bus)
    for size in np.linspace(0, 250 * MIB, 9).astype(int).tolist():
        try:
            other = moebind.fit(
                demo_path, memory=memory, n_ctx=512, devices=["1GiB"], moe_cache=size, model_params=PLAIN
            )
        except moebind.MoebindError:
            continue  # no room
        # Sizes between those that were tried may be a little better.
        assert found <= 1.1 * max(cost(other.plan, recorder, bus), MIB) / (1 - GAIN_MIN), size


def test_a_fast_bus_makes_it_worth_its_place(demo_path: Path, recorder: RoutingRecorder) -> None:
    fit = fitted(demo_path, recorder, 2.0)
    size = fit.context_params.moe_cache_size
    assert 0 < fit.plan.devices[0].moe_cache <= size
    assert "A cache of experts is worth its place" in fit.explanation
    again = moebind.plan(demo_path, fit.model_params, fit.context_params, devices=["1GiB"])
    assert again.devices == fit.plan.devices


def test_a_slow_bus_does_not(demo_path: Path, recorder: RoutingRecorder) -> None:
    fit = fitted(demo_path, recorder, 0.1)
    plain = moebind.fit(demo_path, memory="300MiB", n_ctx=512, devices=["1GiB"])
    assert fit.context_params.moe_cache_size == 0
    assert (fit.model_params, fit.plan.devices) == (plain.model_params, plain.plan.devices)
    assert "No cache of experts: with one of" in fit.explanation


def test_without_a_recording_there_is_none(demo_path: Path) -> None:
    fit = fitted(demo_path, None, 2.0)
    assert fit.context_params.moe_cache_size == 0
    assert "RoutingRecorder(order=True)" in fit.explanation


def test_where_everything_fits_there_is_none(demo_path: Path, recorder: RoutingRecorder) -> None:
    fit = fitted(demo_path, recorder, 4.0, "900MiB")
    assert fit.context_params.moe_cache_size == 0
    assert "No cache of experts is needed." in fit.explanation
    assert fit.model_params == ModelParams()


def test_no_room_for_one_token(demo_path: Path, recorder: RoutingRecorder) -> None:
    fit = fitted(demo_path, recorder, 0.9, "180MiB")
    assert fit.context_params.moe_cache_size == 0
    assert "no room for one that holds the experts of one token" in fit.explanation


@pytest.mark.parametrize("moe_cache", ["auto", "3MiB"])
def test_repacked_experts_are_left_as_they_are(
    tiny_path: MakeTiny, tmp_path: Path, device: Device, moe_cache: str
) -> None:
    """On a device without pinned memory on the host, Q4_0 is repacked for the CPU where it is not mapped."""
    path = tmp_path / "repacked.gguf"
    moebind.quantize(tiny_path(n_expert=8, n_layer=4, n_embd=256, n_ff=512), path, Ftype.Q4_0)
    read = ModelParams(devices=(device,), load_mode=LoadMode.NONE)
    bare = moebind.plan(path, read.with_cpu_moe_all(), SMALL)
    assert not bare._cached
    recorder = RoutingRecorder(order=True)
    with Model.load_from_file(path, CPU) as model, model.new_context(SMALL.with_eval_callback(recorder)) as context:
        for _ in context.generate([1, 2, 3], max_tokens=20):
            pass
    memory = bare.devices[0].total + int(0.7 * moebind.experts(path).nbytes)
    options = {"n_ctx": 256, "context_params": SMALL, "model_params": read, "moe_cache": moe_cache}
    options |= {"routing": recorder, "bus": 4.0} if moe_cache == "auto" else {}
    fit = moebind.fit(path, memory=memory, **options)  # type: ignore[arg-type]
    assert fit.plan.devices[0].moe_cache > 0
    assert fit.model_params.use_extra_bufts is False
    assert "use_extra_bufts is False" in fit.explanation
    everything = moebind.fit(path, **options)  # type: ignore[arg-type]
    assert everything.model_params.use_extra_bufts is True
    assert "No cache of experts is needed." in everything.explanation


@pytest.mark.parametrize("size", ["150MiB", "250MiB", "4GiB"])
def test_a_size_that_drives_layers_away_is_refused(demo_path: Path, size: str) -> None:
    with pytest.raises(moebind.FitError, match=r"moe_cache is .* there are (\S+ MiB): give at most that") as caught:
        moebind.fit(demo_path, memory="300MiB", n_ctx=512, devices=["1GiB"], moe_cache=size)
    assert caught.value.missing["GPU0"] > 0
    room = re.search(r"there are ([\d.]+) MiB", str(caught.value))
    assert room is not None
    most = f"{int(float(room[1]))}MiB"
    fit = moebind.fit(demo_path, memory="300MiB", n_ctx=512, devices=["1GiB"], moe_cache=most)
    assert fit.model_params.n_gpu_layers == ModelParams().n_gpu_layers
    assert fit.plan.devices[0].moe_cache > 0


def test_misuse(demo_path: Path, recorder: RoutingRecorder, moe: Model) -> None:
    def fit(**options: object) -> None:
        moebind.fit(demo_path, memory="300MiB", n_ctx=512, devices=["1GiB"], **options)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match='moe_cache is not "auto"'):
        fit(routing=recorder)
    with pytest.raises(TypeError, match="RoutingRecorder"):
        fit(moe_cache="auto", routing="routing.npz")
    with pytest.raises(ValueError, match="keeps no order"):
        fit(moe_cache="auto", routing=RoutingRecorder())
    with pytest.raises(ValueError, match="nothing was recorded"):
        fit(moe_cache="auto", routing=RoutingRecorder(order=True))
    for bus in (0, -1.0, float("nan"), "fast"):
        with pytest.raises((ValueError, TypeError), match="bus"):
            fit(moe_cache="auto", routing=recorder, bus=bus)
    with pytest.raises(ValueError, match="moe_cache"):
        fit(moe_cache="Auto")
    prompt = RoutingRecorder(order=True)
    with moe.new_context(SMALL.with_eval_callback(prompt)) as context:
        context.decode(moebind.Batch.get_one([3] * 40))
    with pytest.raises(ValueError, match="let the model write"):
        fit(moe_cache="auto", routing=prompt)
    foreign = RoutingRecorder(order=True)
    with moe.new_context(SMALL.with_eval_callback(foreign)) as context:
        for _ in context.generate([1, 2, 3], max_tokens=2):
            pass
    with pytest.raises(ValueError, match="another model's"):
        fit(moe_cache="auto", routing=foreign)
