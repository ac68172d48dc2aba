"""What experts are and weigh: every kind of layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import pytest

import moebind
from moebind import GgmlType, Model, ModelParams

MakeTiny = Callable[..., Path]


def test_experts_beside_shared_ones_and_dense_layers(tiny_path: MakeTiny) -> None:
    path = tiny_path(arch="deepseek", n_expert=4, n_dense_layers=1, n_layer=3)
    summary = moebind.experts(path)
    assert (len(summary), summary.n_expert, summary.n_expert_used) == (3, 4, 2)
    dense, first, second = summary
    assert dense.is_dense
    assert (dense.nbytes, dense.tensors, dense.n_expert_used, dense.shared_nbytes) == (0, (), 0, 0)
    assert dense.dense_nbytes == 3 * 64 * 96 * 4
    assert not first.is_dense
    assert first.tensors == tuple(f"blk.1.ffn_{part}_exps.weight" for part in ("gate", "up", "down"))
    assert first.nbytes == 3 * 4 * 64 * 48 * 4
    assert first.shared_tensors == tuple(f"blk.1.ffn_{part}_shexp.weight" for part in ("gate", "up", "down"))
    assert first.shared_nbytes == 3 * 64 * 48 * 4
    assert first.dense_nbytes == 0
    assert first.types == (GgmlType.F32,)
    assert second.layer == 2
    assert summary.nbytes == 2 * first.nbytes
    assert summary.active_nbytes == first.nbytes
    assert summary[1] is first


@pytest.mark.parametrize(
    ("arch", "tensors"),
    [
        ("llama", {"gate_exps", "up_exps", "down_exps"}),
        ("granite_swa", {"gate_up_exps", "down_exps"}),
        ("grovemoe", {"gate_exps", "up_exps", "down_exps", "gate_chexps", "up_chexps", "down_chexps"}),
    ],
)
def test_every_form_of_experts(tiny_path: MakeTiny, arch: str, tensors: set[str]) -> None:
    layer = moebind.experts(tiny_path(arch=arch, n_expert=4))[0]
    assert {name.removeprefix("blk.0.ffn_").removesuffix(".weight") for name in layer.tensors} == tensors
    assert layer.n_expert == 4


def test_they_are_what_cpu_moe_all_moves(tiny_path: MakeTiny) -> None:
    for arch in ("llama", "deepseek", "granite_swa", "grovemoe"):
        path = tiny_path(arch=arch, n_expert=4)
        with Model.load_from_file(path, ModelParams(n_gpu_layers=0, devices=()).with_cpu_moe_all()) as model:
            moved = model.placement[0].tensors
        summary = moebind.experts(path)
        assert sorted(tensor.name for tensor in moved) == sorted(name for layer in summary for name in layer.tensors)
        assert sum(tensor.nbytes for tensor in moved) == summary.nbytes


def test_bytes_are_those_of_the_file(tiny_path: MakeTiny) -> None:
    path = tiny_path(3, n_expert=4)
    summary = moebind.experts(path)
    files = [gguf.GGUFReader(each) for each in sorted(path.parent.glob(path.name.replace("00001-of", "*-of")))]
    assert summary.total_nbytes == sum(int(tensor.n_bytes) for file in files for tensor in file.tensors)


def test_a_dense_model(tiny_path: MakeTiny) -> None:
    summary = moebind.experts(tiny_path())
    assert (summary.n_expert, summary.nbytes, summary.active_nbytes) == (0, 0, 0)
    assert all(layer.is_dense for layer in summary)
    assert "0 experts" in str(summary)


def test_a_large_model(shape_path: Callable[[str], Path]) -> None:
    summary = moebind.experts(shape_path("deepseek-v3-q4_k_m"))
    assert [layer.is_dense for layer in summary][:5] == [True, True, True, False, False]
    assert summary.nbytes > 360 * 2**30
    text = str(summary)
    assert "256 experts, 8 used" in text
    assert "0-2" in text
    assert len(text.splitlines()) == 6
    biased = moebind.experts(shape_path("gpt-oss-120b-mxfp4"))
    assert biased[0].types == (GgmlType.MXFP4,)
    assert len(biased[0].tensors) == 6


@pytest.mark.parametrize("path", [3, None, b"x", "a\0b", ""])
def test_what_it_refuses(path: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        moebind.experts(path)  # type: ignore[arg-type]
