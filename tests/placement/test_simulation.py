"""Loads without memory: which buffers there would be, and what of a mapped file would be read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import moebind
from conftest import SMALL
from moebind import LoadMode, ModelParams

MakeTiny = Callable[..., Path]


def test_a_described_gpu_has_pinned_memory(demo_path: Path) -> None:
    """As CUDA has: weights in host memory are in it when the file is read, and scratch memory always."""
    experts = ModelParams().with_cpu_moe_all()
    for mode, weights in [(LoadMode.NONE, {"GPU_Host"}), (LoadMode.MMAP, {"CPU_Mapped"})]:
        host = moebind.plan(demo_path, experts.with_load_mode(mode), SMALL, devices=["1GiB", "1GiB"]).host
        assert {buffer.name for buffer in host.buffers if buffer.model} == weights
        assert {buffer.name for buffer in host.buffers if buffer.compute} == {"GPU_Host"}


def test_from_which_batch_on_a_described_gpu_takes_over(demo_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experts, context = ModelParams().with_cpu_moe_all(), SMALL.with_n_ctx(512).with_n_ubatch(64)

    def scratch_on_the_host(op_offload: bool = True) -> int:
        return moebind.plan(demo_path, experts, context.with_op_offload(op_offload), devices=["1GiB"]).host.compute

    usual, without = scratch_on_the_host(), scratch_on_the_host(False)
    assert usual < without
    monkeypatch.setenv("GGML_OP_OFFLOAD_MIN_BATCH", "64")
    assert scratch_on_the_host() == usual
    monkeypatch.setenv("GGML_OP_OFFLOAD_MIN_BATCH", "65")
    assert scratch_on_the_host() == without


def test_gaps_of_a_mapping_need_no_memory(tiny_path: MakeTiny) -> None:
    # The host has the first tensor and the last: one range from the one to the other.
    path = tiny_path(n_expert=4, n_layer=3)
    params = ModelParams().with_cpu_override("blk.2.ffn_down_exps")
    plan = moebind.plan(path, params, SMALL, devices=["1GiB"])
    sizes = moebind.experts(path)
    assert plan.gaps > sizes.nbytes // 2
    assert plan.host.model - plan.gaps < sizes.nbytes
    assert "of tensors that are kept elsewhere" in str(plan)
    needed = plan.host.total - plan.gaps
    assert f"Without these, the host needs {needed / 2**20:.1f} MiB of its memory." in str(plan)
    read = moebind.plan(path, params.with_load_mode(LoadMode.NONE), SMALL, devices=["1GiB"])
    assert (read.gaps, read.mapped) == (0, False)
    assert "Without these, the host needs" not in str(read)
    assert read.host.model == pytest.approx(plan.host.model - plan.gaps, abs=4096)
