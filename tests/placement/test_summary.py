"""A placement in a few words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import moebind
from moebind import ContextParams, FitError, ModelParams
from moebind.placement.summary import does_not_fit, experts_on_host

CPU = ModelParams()
SHORT = ContextParams(n_ctx=256)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        (CPU, "all on GPU0"),
        (CPU.with_cpu_moe_all(), "experts of all 4 layers in host memory"),
        (CPU.with_n_cpu_moe(1), "experts of 1 layer in host memory"),
        (CPU.with_n_cpu_moe(3), "experts of 3 layers in host memory"),
        (CPU.with_cpu_override(r"blk\.2\.ffn_up_exps"), "experts of 1 layer in host memory"),
        (CPU.with_cpu_override(r"blk\.2\.attn_q"), "parts of 1 layer in host memory"),
        (CPU.with_n_gpu_layers(3), "2 of 4 layers in host memory"),
        (CPU.with_n_gpu_layers(3).with_n_cpu_moe(3), "2 of 4 layers and experts of 1 other layer in host memory"),
        (CPU.with_n_gpu_layers(0), "all in host memory"),
    ],
)
def test_plans(tiny_path: Callable[..., Path], params: ModelParams, words: str) -> None:
    plan = moebind.plan(tiny_path(n_expert=4, n_layer=4), params, SHORT, devices=["1GiB"], host="8GiB")
    assert plan.summary == words


def test_several_devices_and_none(tiny_path: Callable[..., Path]) -> None:
    path = tiny_path(n_expert=4, n_layer=4)
    assert moebind.plan(path, None, SHORT, devices=["1GiB", "1GiB"], host="8GiB").summary == "all on GPU0 and GPU1"
    assert moebind.plan(path, None, SHORT, devices=[], host="8GiB").summary == "all in host memory"


def test_what_does_not_fit(tiny_path: Callable[..., Path]) -> None:
    path = tiny_path(n_expert=4, n_layer=4)
    plan = moebind.plan(path, None, SHORT, devices=["2MiB"], host="8GiB")
    assert plan.summary == does_not_fit(plan.missing)
    assert plan.summary.startswith("does not fit: GPU0 lacks ")
    with pytest.raises(FitError) as caught:
        moebind.fit(path, memory={"GPU0": "1MiB", "Host": "1MiB"}, n_ctx=256, devices=["2MiB"], host="8GiB")
    assert caught.value.missing.keys() <= {"GPU0", "Host"}
    assert all(size > 0 for size in caught.value.missing.values())
    assert caught.value.missing
    assert does_not_fit(caught.value.missing) != "does not fit"
    assert does_not_fit({}) == "does not fit"
    assert FitError("x").missing == {}


def test_experts_on_the_host_by_their_layers() -> None:
    def told(on_host: set[str], layers: tuple[int, ...] = (0, 1, 2, 3, 5)) -> str:
        experts = {at: [f"blk.{at}.ffn_{kind}_exps.weight" for kind in ("up", "down")] for at in layers}
        names = [name for each in experts.values() for name in each]
        places = {
            name: None if name.removeprefix("blk.").partition("_exps")[0] in on_host else "GPU0" for name in names
        }
        return experts_on_host(places, experts)

    def whole(*layers: int) -> set[str]:
        return {f"{at}.ffn_{kind}" for at in layers for kind in ("up", "down")}

    assert told(whole(0, 1, 2)) == "of layers 0 to 2"
    assert told(whole(2)) == "of layer 2"
    assert told(whole(0, 1, 2, 3, 5)) == "of layers 0 to 5"  # layer 4 has none
    assert told(whole(0, 2)) == "of layers 0 and 2"
    assert told(whole(0, 2, 3, 5)) == "of layers 0 and 2 to 5"
    assert told(whole(0, 1) | {"2.ffn_down"}) == "of layers 0 to 1, and ffn_down_exps of layer 2"
    assert told({"3.ffn_up"}) == "ffn_up_exps of layer 3"
    assert told(set()) == ""
