"""The forecast of a cache of experts: from what a real model chose."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import moebind
from conftest import CPU, SMALL
from moebind import Batch, CacheCurve, Context, Device, Ftype, GgmlType, Model, ModelParams, RoutingRecorder, quantize

MakeTiny = Callable[..., Path]


@pytest.fixture
def recorder() -> RoutingRecorder:
    return RoutingRecorder(order=True)


def write(context: Context, n_tokens: int = 40) -> None:
    for _ in context.generate([1, 2, 3], max_tokens=n_tokens):
        pass


@pytest.fixture
def curve(moe: Model, recorder: RoutingRecorder) -> CacheCurve:
    with moe.new_context(SMALL.with_eval_callback(recorder)) as context:
        write(context)
    return recorder.cache_curve()


def test_a_larger_cache_hits_more_often(curve: CacheCurve) -> None:
    assert list(curve.sizes) == sorted(set(curve.sizes.tolist()))
    assert curve.sizes[-1] == curve.full_bytes
    assert curve.token_bytes in curve.sizes
    full = curve.at(curve.full_bytes)
    # All fit: only the first use of each misses.
    assert full.misses <= full.n_slots
    assert full.static_hit_rate == 1
    assert full.hit_rate == curve.hit_rate[-1] == curve.hit_rate.max()
    below = curve.at(curve.sizes[0])
    assert below.hit_rate < full.hit_rate
    assert (curve.static_hit_rate[np.isfinite(curve.static_hit_rate)] <= 1).all()


def test_what_is_counted(curve: CacheCurve, recorder: RoutingRecorder) -> None:
    # Single tokens: each choice is looked up, but for the prompt, whose tokens share some.
    full = curve.at(curve.full_bytes)
    assert full.hits + full.misses <= recorder.counts.sum()
    used = np.count_nonzero(recorder.counts)
    assert full.misses == used
    layout = recorder._layouts[next(iter(recorder._layouts))]
    assert full.bytes_uploaded == used * layout.expert_bytes
    assert full.bytes_per_token == full.bytes_uploaded / curve.n_tokens
    assert curve.n_tokens == recorder.n_tokens.max()


def mixed(tiny_path: MakeTiny, folder: Path, n_layer: int = 4) -> Path:
    """A model of which every other layer has experts of another type."""
    path = folder / "mixed.gguf"
    odd = {r"blk\.[135]\.ffn_.*_exps": GgmlType.F16}
    quantize(tiny_path(n_layer=n_layer, n_expert=8), path, Ftype.Q8_0, tensor_types=odd)
    return path


@pytest.mark.parametrize("slots", ["one layer's", "one token's", "one more", "two tokens'", "all but one", "all"])
@pytest.mark.parametrize("kind", ["demo", "tiny", "mixed", "some layers", "dense layers"])
def test_llama_cpp_counts_what_was_forecast(
    demo_path: Path, tiny_path: MakeTiny, tmp_path: Path, device: Device, kind: str, slots: str
) -> None:
    path = {
        "demo": lambda: demo_path,
        "tiny": lambda: tiny_path(n_expert=8, n_layer=3, n_expert_used=3),
        "mixed": lambda: mixed(tiny_path, tmp_path),
        "some layers": lambda: tiny_path(n_expert=8, n_layer=4),
        "dense layers": lambda: tiny_path(arch="deepseek", n_layer=4, n_dense_layers=1, n_expert=8),
    }[kind]()
    params = ModelParams(n_gpu_layers=-1, devices=(device,), use_extra_bufts=False)
    params = params.with_n_cpu_moe(2) if kind == "some layers" else params.with_cpu_moe_all()
    recorder = RoutingRecorder(order=True)
    with Model.load_from_file(path, params) as model:

        def compute(context: Context) -> None:
            write(context, 12)  # whose prompt has three tokens
            batch = Batch(64)
            for seq in range(2):
                batch.add_sequence(np.arange(9) * 7 % 50 + 3, seq, logits_all=True)
            context.kv_cache_clear()
            context.decode(batch)  # 18 tokens at once
            context.decode(one_after(9, 40))  # more than 32, which pass

        many = SMALL.with_n_seq_max(2).with_kv_unified(True)
        with model.new_context(many.with_eval_callback(recorder)) as context:
            compute(context)
            assert context.moe_cache_stats() is None
        layers = [0, 1] if kind == "some layers" else None
        curve = recorder.cache_curve([2**40], layers=layers)
        used, n_layers = model.n_expert_used, len(curve._groups.layouts)
        n_slots = {
            "one layer's": used,
            "one token's": used * n_layers,
            "one more": used * n_layers + 1,
            "two tokens'": 2 * used * n_layers,
            "all but one": model.n_expert * n_layers - 1,
            "all": model.n_expert * n_layers,
        }[slots]
        # The smallest size with so many slots, and a byte that llama.cpp may round away.
        size = (
            curve._groups._least([max(used, -(-n_slots * len(each) // n_layers)) for each in curve._groups.members]) + 1
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if slots == "one layer's" else "default")
            context = model.new_context(many.with_moe_cache_size(size))
        with context:
            compute(context)
            counted = context.moe_cache_stats()
        assert counted is not None
        point = curve.at(size)
        assert (counted.n_slots, counted.hits, counted.misses, counted.bytes_uploaded) == (
            point.n_slots,
            point.hits,
            point.misses,
            point.bytes_uploaded,
        )
        assert counted.hit_rate == point.hit_rate
        assert point.hits + point.misses > 0


def of_two(devices: tuple[Device, Device], shares: tuple[float, float]) -> ModelParams:
    params = ModelParams(n_gpu_layers=-1, devices=devices, use_extra_bufts=False)
    return params.with_tensor_split(shares).with_cpu_moe_all()


@pytest.mark.parametrize("slots", [3, 6, 11])
@pytest.mark.parametrize("shares", [(1.0, 1.0), (2.0, 1.0)], ids=["even", "uneven"])
def test_two_devices_count_what_was_forecast(
    tiny_path: MakeTiny, tmp_path: Path, device: Device, slots: int, shares: tuple[float, float]
) -> None:
    path = mixed(tiny_path, tmp_path, 6)
    recorder = RoutingRecorder(order=True)
    with moebind.loopback_device() as other:
        params = of_two((device, other), shares)
        plan = moebind.plan(path, params, SMALL)
        with Model.load_from_file(path, params) as model:
            with model.new_context(SMALL.with_eval_callback(recorder)) as context:
                write(context, 12)
            curve = recorder.cache_curve([2**40], plan=plan)
            size = curve._groups._least([slots] * len(curve._groups.members)) + 1
            planned = moebind.plan(path, params, SMALL.with_moe_cache_size(size))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                context = model.new_context(SMALL.with_moe_cache_size(size))
            with context:
                write(context, 12)
                counted, held = context.moe_cache_stats(), context.memory_breakdown()
    assert [each.moe_cache for each in planned.devices] == [each.moe_cache for each in held.devices]
    assert all(each.moe_cache for each in held.devices[:-1])
    point = curve.at(size)
    assert counted is not None
    assert (counted.n_slots, counted.hits, counted.misses, counted.bytes_uploaded) == (
        point.n_slots,
        point.hits,
        point.misses,
        point.bytes_uploaded,
    )
    # One device would have two caches, one for each type.
    assert len(curve._groups.members) > 2


def test_a_plan_with_nothing_to_cache(moe: Model, recorder: RoutingRecorder, tiny_path: MakeTiny) -> None:
    with moe.new_context(SMALL.with_eval_callback(recorder)) as context:
        write(context, 3)
    everything = moebind.plan(moe.path, ModelParams(n_gpu_layers=-1), SMALL, devices=["1GiB"])
    with pytest.raises(ValueError, match="leaves nothing to cache"):
        recorder.cache_curve(plan=everything)
    params = ModelParams(n_gpu_layers=-1, use_extra_bufts=False).with_cpu_moe_all()
    larger = moebind.plan(tiny_path(n_layer=9, n_expert=4), params, SMALL, devices=["1GiB"])
    with pytest.raises(ValueError, match="another model's"):
        recorder.cache_curve(plan=larger)
    with pytest.raises(ValueError, match="both given"):
        recorder.cache_curve(plan=larger, layers=[0])


def one_after(pos: int, n_tokens: int) -> Batch:
    batch = Batch(n_tokens)
    batch.extend(np.arange(n_tokens) % 50 + 3, pos, 0, False)
    batch.logits[-1] = True
    return batch


def test_large_batches_pass(moe: Model, recorder: RoutingRecorder) -> None:
    with moe.new_context(SMALL.with_eval_callback(recorder)) as context:
        batch = Batch(64)
        batch.add_sequence(np.arange(33) % 60 + 3, 0, logits_all=True)
        context.decode(batch)
        curve = recorder.cache_curve()
        point = curve.at(curve.full_bytes)
        assert (point.hits, point.misses, curve.n_tokens, point.bytes_per_token) == (0, 0, 0, 0)
        assert np.isnan(point.hit_rate)
        assert "nan" in str(curve)
        context.decode(Batch.get_one([3]))
        assert recorder.cache_curve().at(curve.full_bytes).misses == moe.n_layer * moe.n_expert_used


def test_layers_of_two_layouts_have_caches_of_their_own(
    tiny_path: MakeTiny, tmp_path: Path, recorder: RoutingRecorder
) -> None:
    path = mixed(tiny_path, tmp_path)
    with Model.load_from_file(path, CPU) as model, model.new_context(SMALL.with_eval_callback(recorder)) as context:
        write(context)
        curve = recorder.cache_curve()
        groups = curve._groups
        assert groups.members == [[0, 2], [1, 3]]
        assert groups.kinds[0].expert_bytes < groups.kinds[1].expert_bytes
        halves = [recorder.cache_curve(layers=members) for members in groups.members]
        # Each group has the share of the bytes that its experts have.
        size = curve.token_bytes
        shares = [size * own // sum(groups.host_bytes) for own in groups.host_bytes]
        points = [half.at(share) for half, share in zip(halves, shares, strict=True)]
        both = curve.at(size)
        assert (both.hits, both.misses) == (sum(p.hits for p in points), sum(p.misses for p in points))


def test_some_layers(curve: CacheCurve, recorder: RoutingRecorder) -> None:
    one = recorder.cache_curve(layers=[1])
    assert one.full_bytes < curve.full_bytes
    assert one.at(one.full_bytes).misses == np.count_nonzero(recorder.counts[1])


def test_given_sizes(curve: CacheCurve, recorder: RoutingRecorder) -> None:
    given = recorder.cache_curve([curve.full_bytes, "1GiB", f"{curve.token_bytes}B"])
    assert given.sizes.tolist() == [curve.token_bytes, curve.full_bytes, 2**30]
    assert given.hit_rate[1] == given.hit_rate[2]


def test_what_is_recorded_later_does_not_change_a_curve(moe: Model, recorder: RoutingRecorder) -> None:
    with moe.new_context(SMALL.with_eval_callback(recorder)) as context:
        write(context, 5)
        curve = recorder.cache_curve()
        before = curve.at(curve.full_bytes)
        write(context, 20)
        assert curve.at(curve.full_bytes) == before
        assert recorder.cache_curve().at(curve.full_bytes) != before
        recorder.reset()
        with pytest.raises(ValueError, match="nothing was recorded yet"):
            recorder.cache_curve()


def test_recorders_are_joined(moe: Model, recorder: RoutingRecorder) -> None:
    other, plain = RoutingRecorder(order=True), RoutingRecorder()
    for each in (recorder, other, plain):
        with moe.new_context(SMALL.with_eval_callback(each)) as context:
            write(context, 10)
    first = recorder.cache_curve()
    alone = first.at(first.full_bytes)
    both = (recorder + other).cache_curve().at(first.full_bytes)
    # The second time all that is needed is there.
    assert (both.misses, both.hits) == (alone.misses, 2 * alone.hits + alone.misses)
    for left, right in ((recorder, plain), (plain, recorder)):
        with pytest.raises(ValueError, match="keeps the order of experts"):
            left.merge(right)


def test_the_table(curve: CacheCurve) -> None:
    lines = str(curve).splitlines()
    assert lines[0] == f"{curve.n_tokens} tokens, 8 experts in 2 layers"
    assert lines[1].split()[:3] == ["cache", "experts", "hit"]
    assert len(lines) <= 16
    assert lines[-1].startswith("The experts of one token take ")
    assert repr(curve) == f"<CacheCurve, {len(curve.points)} sizes, {curve.n_tokens} tokens>"


def test_as_values(curve: CacheCurve) -> None:
    told = json.loads(json.dumps(curve.to_dict(), allow_nan=False))
    assert [told["n_tokens"], told["token_bytes"], told["full_bytes"]] == [
        curve.n_tokens,
        curve.token_bytes,
        curve.full_bytes,
    ]
    assert [point["hits"] for point in told["points"]] == [point.hits for point in curve.points]
    assert told["points"][-1]["hit_rate"] == curve.hit_rate[-1]


def test_the_picture(curve: CacheCurve, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figure = curve.plot(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000
    cached, static, token = figure.axes[0].lines
    np.testing.assert_array_equal(cached.get_ydata(), curve.hit_rate)
    np.testing.assert_array_equal(static.get_ydata(), curve.static_hit_rate)
    assert token.get_xdata()[0] == pytest.approx(curve.token_bytes / 2**20)
    with pytest.raises(ValueError, match="ends in one of"):
        curve.plot(tmp_path / "curve.xyz")


def test_what_is_not_recorded_cannot_be_forecast(moe: Model, dense: Model, recorder: RoutingRecorder) -> None:
    with pytest.raises(ValueError, match="nothing was recorded yet"):
        recorder.cache_curve()
    with pytest.raises(ValueError, match=r"make it with RoutingRecorder\(order=True\)"):
        RoutingRecorder().cache_curve()
    with dense.new_context(SMALL.with_eval_callback(recorder)) as context:
        write(context, 3)
    with pytest.raises(ValueError, match="nothing was recorded yet"):
        recorder.cache_curve()
    with pytest.raises(TypeError, match=r"order is 1 \(int\); it takes"):
        RoutingRecorder(order=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="made by RoutingRecorder"):
        CacheCurve()


def test_arguments_that_are_wrong(curve: CacheCurve, recorder: RoutingRecorder) -> None:
    with pytest.raises(TypeError, match=r"plan is \['a.gguf'\]; it takes a Plan"):
        recorder.cache_curve(plan=["a.gguf"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="layers has 2, which has no experts; those of 0-1 do"):
        recorder.cache_curve(layers=[1, 2])
    with pytest.raises(ValueError, match="no layers"):
        recorder.cache_curve(layers=[])
    with pytest.raises(ValueError, match="sizes is '4 bananas'"):
        recorder.cache_curve(["4 bananas"])
    for size in (0, -1):
        with pytest.raises(ValueError, match="size is"):
            curve.at(size)
    with pytest.raises(ValueError, match=r"size is 0\.0 MiB; the experts of one token in one layer take"):
        curve.at("10B")
    with pytest.raises(ValueError, match="^size is 4, which is so many bytes: give a unit, as in '4GiB'$"):
        curve.at(4)
    with pytest.raises(ValueError, match="^sizes is 4, which is so many bytes: give a unit, as in '4GiB'$"):
        recorder.cache_curve([curve.full_bytes, 4])
    with pytest.raises(ValueError, match="^sizes is '4', which is so many bytes"):
        recorder.cache_curve(["4"])
