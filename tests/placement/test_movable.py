"""Which matrices of experts stay on a device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

import moebind
from conftest import SMALL
from moebind import ContextParams, ModelParams
from moebind.files import tensor_patterns
from moebind.placement.movable import ExpertMatrix, levels, movable_matrices, to_host

MakeShape = Callable[..., Path]
MIB = 2**20
CONTEXT = ContextParams(n_ctx=4096)


def test_some_experts_and_single_matrices(shape_path: MakeShape) -> None:
    path = shape_path("phi-3.5-moe-q4_k_m", 8)
    seen = set()
    for budget in range(1200, 6600, 300):
        fit = moebind.fit(path, memory=budget * MIB, context_params=CONTEXT, devices=["24GiB"])
        patterns = [rule.pattern for rule in fit.model_params.tensor_overrides]
        assert all(rule.target == "CPU" for rule in fit.model_params.tensor_overrides)
        seen.add(len(patterns))
        assert fit.model_params.n_gpu_layers == -1
    assert seen == {0, 1, 2} or seen == {1, 2}


SIZES = st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=3), min_size=1, max_size=5)


def matrices_of(sizes: list[list[int]]) -> list[ExpertMatrix]:
    kinds = ("ffn_up", "ffn_down", "ffn_gate")
    return [
        ExpertMatrix(layer, kind, size, "GPU0")
        for layer, own in enumerate(sizes)
        for kind, size in zip(kinds, own, strict=False)
    ]


@given(SIZES)
def test_levels_go_from_nothing_to_everything(sizes: list[list[int]]) -> None:
    matrices = matrices_of(sizes)
    choices = levels(matrices)
    assert choices[0].kept == frozenset()
    assert choices[-1].kept == frozenset(matrices)
    assert [level.nbytes for level in choices] == sorted(level.nbytes for level in choices)
    for level in choices:
        assert level.nbytes == sum(matrix.nbytes for matrix in level.kept)
        # Whole layers at one end, and matrices of one more at most.
        partly = [
            layer for layer, own in enumerate(sizes) if 0 < sum(each.layer == layer for each in level.kept) < len(own)
        ]
        whole = [
            layer for layer, own in enumerate(sizes) if sum(each.layer == layer for each in level.kept) == len(own)
        ]
        assert len(partly) <= 1
        assert whole in (list(range(len(whole))), list(range(len(sizes) - len(whole), len(sizes))))
    assert len({level.kept for level in choices}) == len(choices)


@given(SIZES, st.data())
def test_rules_move_exactly_what_is_not_kept(sizes: list[list[int]], data: st.DataObject) -> None:
    matrices = matrices_of(sizes)
    kept = data.draw(st.sampled_from(levels(matrices))).kept
    params = to_host(ModelParams(), matrices, kept)
    names = {matrix: f"blk.{matrix.layer}.{matrix.kind}_exps.weight" for matrix in matrices}
    moved = {
        name for rule in params.tensor_overrides for name in tensor_patterns.matching(rule.pattern, [*names.values()])
    }
    assert moved == {name for matrix, name in names.items() if matrix not in kept}
    assert all(rule.target == "CPU" for rule in params.tensor_overrides)
    assert len(params.tensor_overrides) <= 2


def test_all_and_nothing_have_the_rules_that_users_know() -> None:
    matrices = matrices_of([[1, 2, 3]] * 4)
    assert to_host(ModelParams(), matrices, matrices) == ModelParams()
    assert to_host(ModelParams(), matrices, ()) == ModelParams().with_cpu_moe_all()
    last = [matrix for matrix in matrices if matrix.layer > 1]
    assert to_host(ModelParams(), matrices, last) == ModelParams().with_n_cpu_moe(2)


def test_a_pattern_names_one_matrix_and_its_biases() -> None:
    pattern = ExpertMatrix(1, "ffn_gate", 1, "GPU0").pattern
    names = [f"blk.{layer}.ffn_{kind}_exps.weight" for layer in (1, 11) for kind in ("gate", "gate_up", "up")]
    names += ["blk.1.ffn_gate_exps.bias", "blk.1.ffn_gate_chexps.weight", "blk.1.ffn_gate.weight"]
    assert tensor_patterns.matching(pattern, names) == [names[0], *names[6:8]]


def test_what_the_user_placed_is_not_moved(tiny_path: Callable[..., Path]) -> None:
    path = tiny_path(n_expert=4, n_layer=2)
    params = (
        ModelParams().with_tensor_override(r"blk\.0\.ffn_up_exps", "GPU0").with_cpu_override(r"blk\.1\.ffn_down_exps")
    )
    plan = moebind.plan(path, params, SMALL, devices=["1GiB"])
    found = {(each.layer, each.kind): each for each in movable_matrices(plan, params)}
    assert set(found) == {(0, "ffn_down"), (0, "ffn_gate"), (1, "ffn_up"), (1, "ffn_gate")}
    experts = moebind.experts(path)
    assert sum(each.nbytes for each in found.values()) == experts.nbytes * 4 // 6
    assert {each.device for each in found.values()} == {"GPU0"}
    assert (
        movable_matrices(moebind.plan(path, ModelParams(n_gpu_layers=0), SMALL, devices=["1GiB"]), ModelParams()) == []
    )
