"""What a token reads, and how fast it can be at most."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import moebind
from conftest import SMALL
from moebind import ContextParams, GgmlType, ModelParams
from moebind.placement.speed import reads_text, tokens_per_second

MakeTiny = Callable[..., Path]
READS = {"GPU0": 2 * 10**9, "GPU1": 0, "Host": 10**9}


def test_one_memory_after_the_other() -> None:
    assert tokens_per_second(READS, {"GPU0": "1000GB/s", "Host": "100GB/s"}) == pytest.approx(1 / (0.002 + 0.01))
    assert tokens_per_second(READS, {"GPU0": 1e12, "GPU1": 2**20, "Host": np.float32(2**40)}) == pytest.approx(
        1 / (0.002 + 10**9 / 2**40)
    )
    assert tokens_per_second(READS, {"GPU0": "1 GiB / s", "Host": "1gibps"}) == pytest.approx(2**30 / 3e9)
    assert tokens_per_second({"Host": 0}, {}) == math.inf


@pytest.mark.parametrize(
    ("bandwidths", "error", "match"),
    [
        ({"GPU0": 1e12}, ValueError, r"has no 'Host', of which a token reads 953\.7 MiB"),
        ({"GPU0": 1e12, "CUDA0": 1}, ValueError, "names 'CUDA0'; there are GPU0, GPU1, Host"),
        ({"GPU0": 0, "Host": 1}, ValueError, r"bandwidths\['GPU0'\] is 0"),
        ({"GPU0": -1.0, "Host": 1}, ValueError, "-1"),
        ({"GPU0": 1000, "Host": 50}, ValueError, r"GPU0'\] is 1000, which is so many bytes in a .* as in '1000GB/s'"),
        ({"GPU0": 1e12, "Host": 50.5}, ValueError, r"Host'\] is 50\.5, which is .*, as in '50\.5GB/s'"),
        ({"GPU0": 1e12, "Host": 50_000}, ValueError, "as in '50000MB/s'"),
        ({"GPU0": 1e12, "GPU1": 7, "Host": "50GB/s"}, ValueError, "as in '7GB/s'"),
        ({"GPU0": math.inf, "Host": 1}, ValueError, "inf"),
        ({"GPU0": math.nan, "Host": 1}, ValueError, "nan"),
        ({"GPU0": "1000GB", "Host": 1}, ValueError, "such as '1000GB/s'"),
        ({"GPU0": "fast/s", "Host": 1}, ValueError, "such as '1000GB/s'"),
        ({"GPU0": "0GB/s", "Host": 1}, ValueError, "above 0"),
        ({"GPU0": "", "Host": 1}, ValueError, "such as '1000GB/s'"),
        ({"GPU0": None, "Host": 1}, TypeError, "takes a number"),
        ({"GPU0": True, "Host": 1}, TypeError, "takes a number"),
        (1e12, TypeError, "takes a mapping"),
        ("1000GB/s", TypeError, "takes a mapping"),
        (None, TypeError, "takes a mapping"),
    ],
)
def test_what_is_no_bandwidth(bandwidths: object, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        tokens_per_second(READS, bandwidths)  # type: ignore[arg-type]


def test_what_is_next_to_nothing_needs_no_bandwidth() -> None:
    row = 8192
    assert tokens_per_second({"GPU0": 2 * 10**9, "Host": row}, {"GPU0": "1000GB/s"}) == 500
    for much in ({"GPU0": 100 * row, "Host": row}, {"GPU0": 2**40, "Host": 2**20}):
        with pytest.raises(ValueError, match="bandwidths has no 'Host'"):
            tokens_per_second(much, {"GPU0": "1000GB/s"})
    assert tokens_per_second({"Host": 1000}, {"Host": "1KB/s"}) == 1  # with a unit, it is meant


def test_reads_in_words() -> None:
    text = "With a full cache, a token reads 1.86 GiB from GPU0 and 953.7 MiB from Host."
    assert reads_text(READS, 200) == [text]
    assert reads_text({**READS, "GPU1": 2**31}, 200) == [text.replace(" and", ", 2.00 GiB from GPU1 and")]
    assert reads_text({"Host": 256}, 200) == ["With a full cache, a token reads next to nothing."]
    assert reads_text(READS) == [text]
    for width in range(20, 90):
        first, *others = reads_text(READS, width)
        assert all(line.startswith("  ") for line in others)
        lines = [first, *map(str.strip, others)]
        assert " ".join(lines) == text
        assert len(first) <= width
        assert all(len(line) <= width for line in others)
        assert not any(line.startswith(("GiB", "MiB")) for line in lines)  # numbers stay with their units


def test_experts_count_by_their_use(tiny_path: MakeTiny) -> None:
    path = tiny_path(n_expert=8)
    experts = moebind.experts(path)
    everything = moebind.plan(path, ModelParams(), SMALL, devices=["1GiB"])
    moved = moebind.plan(path, ModelParams().with_cpu_moe_all(), SMALL, devices=["1GiB"])
    row = 64 * 4  # of the token embeddings
    assert everything.weights_per_token["Host"] == row
    assert moved.weights_per_token["Host"] == row + experts.active_nbytes == row + experts.nbytes // 4
    assert sum(everything.weights_per_token.values()) == sum(moved.weights_per_token.values())
    assert everything.bytes_per_token["GPU0"] == everything.weights_per_token["GPU0"] + everything.devices[0].context
    three = ModelParams().with_kv_override("llama.expert_used_count", 3)
    plan = moebind.plan(path, three.with_cpu_moe_all(), SMALL, devices=["1GiB"])
    assert plan.weights_per_token["Host"] == row + experts.nbytes * 3 // 8


def test_a_sequence_reads_its_part_of_the_cache(tiny_path: MakeTiny) -> None:
    path = tiny_path(n_expert=4)
    one = moebind.plan(path, None, SMALL, devices=["1GiB"])
    four = moebind.plan(path, None, SMALL.with_n_seq_max(4).with_n_ctx(4 * 256), devices=["1GiB"])
    shared = moebind.plan(
        path, None, SMALL.with_n_seq_max(4).with_n_ctx(4 * 256).with_kv_unified(True), devices=["1GiB"]
    )
    assert one.bytes_per_token == four.bytes_per_token
    assert one.weights_per_token == shared.weights_per_token
    cache = one.devices[0].context
    assert shared.bytes_per_token["GPU0"] == one.bytes_per_token["GPU0"] + 3 * cache
    halved = moebind.plan(path, None, SMALL.with_type_k(GgmlType.F32).with_type_v(GgmlType.F32), devices=["1GiB"])
    assert halved.bytes_per_token["GPU0"] == one.bytes_per_token["GPU0"] + cache
    on_host = moebind.plan(path, None, SMALL.with_offload_kqv(False), devices=["1GiB"])
    assert on_host.bytes_per_token["Host"] == one.bytes_per_token["Host"] + cache


def test_the_speed_of_a_plan(shape_path: Callable[[str], Path]) -> None:
    path, context = shape_path("qwen3-30b-a3b-q4_k_m", 24), ContextParams(n_ctx=4096)
    plan = moebind.plan(path, ModelParams().with_cpu_moe_all(), context, devices=["24GiB"])
    stated = {"GPU0": "1000GB/s", "Host": "80GB/s"}
    reads = plan.bytes_per_token
    assert plan.speed(stated) == pytest.approx(1 / (reads["GPU0"] / 1e12 + reads["Host"] / 8e10))
    assert plan.speed(stated, filled=0) > plan.speed(stated, filled=0.5) > plan.speed(stated)
    assert plan.speed(stated, filled=0) == pytest.approx(
        1 / (plan.weights_per_token["GPU0"] / 1e12 + plan.weights_per_token["Host"] / 8e10)
    )
    better = moebind.plan(path, ModelParams().with_n_cpu_moe(12), context, devices=["24GiB"])
    assert better.speed(stated) > plan.speed(stated)
    for filled, error in ((-0.1, ValueError), (1.1, ValueError), ("all", TypeError), (None, TypeError)):
        with pytest.raises(error):
            plan.speed(stated, filled=filled)  # type: ignore[arg-type]


@pytest.mark.parametrize("n_devices", [1, 8])
def test_the_last_line_of_the_table(shape_path: Callable[[str], Path], n_devices: int) -> None:
    path = shape_path("qwen3-235b-a22b-q4_k_m", 16)
    plan = moebind.plan(path, ModelParams().with_n_cpu_moe(6), ContextParams(n_ctx=4096), devices=["24GiB"] * n_devices)
    lines = str(plan).splitlines()
    [at] = [at for at, line in enumerate(lines) if line.startswith("With a full cache")]
    table = lines[1:at]
    assert table[0].startswith("memory, MiB")
    assert len(table) == len(plan.devices) + 1 + len(plan.host.buffers)
    expected = reads_text(plan.bytes_per_token)
    assert lines[at : at + len(expected)] == expected
    assert (len(expected) > 1) is (n_devices > 1)
