"""What experts are and weigh: every kind of layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
from edited import Edited

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


def test_each_layer_uses_a_number_of_its_own(architecture_path: Callable[[str], Path], tmp_path: Path) -> None:
    # As in models that were made smaller layer by layer. Here the last layer has experts: 4, of which 2 work.
    path = architecture_path("nemotron_h_moe")
    edited = Edited(path, tmp_path / "own.gguf").set("nemotron_h_moe.expert_used_count", [4, 4, 1]).write()
    one, two = moebind.experts(edited), moebind.experts(path)
    assert [layer.n_expert_used for layer in one] == [0, 0, 1]
    assert (one.n_expert_used, two.n_expert_used) == (1, 2)
    assert one.active_nbytes == one.nbytes // 4 == two.active_nbytes // 2
    reads = [moebind.plan(each, devices=["1GiB"]).weights_per_token["GPU0"] for each in (edited, path)]
    assert reads[1] - reads[0] == one.active_nbytes


def test_experts_of_attention_have_numbers_of_their_own(architecture_path: Callable[[str], Path]) -> None:
    path = architecture_path("k2-horizon")  # of 6 for the values it uses 3, of 4 for the rest 2
    layer = moebind.experts(path)[0]
    assert (layer.n_expert, layer.n_expert_used) == (4, 2)
    assert "blk.0.attn_v_exps.weight" in layer.tensors
    values, others = 64 * 64 * 6 * 4, 3 * 64 * 32 * 4 * 4
    assert (layer.nbytes, layer.active_nbytes) == (values + others, values // 2 + others // 2)


def test_layers_that_predict_ahead_count_where_they_are_loaded(tiny_path: MakeTiny, tmp_path: Path) -> None:
    path = tiny_path(arch="glm4moe", n_expert=4, n_layer=3, n_mtp=1)
    assert [len(moebind.experts(path, load_mtp=mtp)) for mtp in (False, True)] == [2, 3]
    never = Edited(path, tmp_path / "never.gguf").set("general.architecture", "bailingmoe2")
    never.set("bailingmoe2.block_count", 3).set("bailingmoe2.expert_used_count", 2)
    assert [len(moebind.experts(never.write(), load_mtp=mtp)) for mtp in (False, True)] == [2, 2]


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
