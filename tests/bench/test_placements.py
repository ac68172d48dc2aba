"""Placements as texts."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moebind import ModelParams
from moebind.bench import Placement

EXPECTED = {
    "all": ModelParams(),
    "none": ModelParams(n_gpu_layers=0),
    "cpu-moe": ModelParams().with_cpu_moe_all(),
    "n-cpu-moe=15": ModelParams().with_n_cpu_moe(15),
    "n-gpu-layers=3": ModelParams(n_gpu_layers=3),
    "ot=ffn_up=CPU": ModelParams().with_cpu_override("ffn_up"),
    "ot=a{1,2}=CPU,b=RPC0": ModelParams().with_cpu_override("a{1,2}").with_tensor_override("b", "RPC0"),
    "ot=experts:0-11=CPU": ModelParams().with_n_cpu_moe(12),
    "ot=a=b=RPC0": ModelParams().with_tensor_override("a=b", "RPC0"),
}


@pytest.mark.parametrize("text", EXPECTED)
def test_texts(text: str) -> None:
    assert Placement.parse(text).model_params == EXPECTED[text]
    mapped = ModelParams().with_use_mmap(False)
    assert not Placement.parse(text, mapped).model_params.use_mmap


def test_fit() -> None:
    placement = Placement.parse("fit=8GiB")
    assert (placement.memory, placement.name) == (8 * 2**30, "fit(8.00 GiB)")
    assert Placement("mine", memory="1MiB").memory == 2**20


def test_a_cache() -> None:
    placement = Placement.parse("moe-cache=4GiB")
    assert (placement.moe_cache, placement.name) == (2**32, "experts in host memory, cache of 4.00 GiB")
    assert placement.model_params == ModelParams(use_extra_bufts=False).with_cpu_moe_all()
    assert Placement("mine", moe_cache="1MiB").moe_cache == 2**20
    assert Placement("mine").moe_cache is None


@pytest.mark.parametrize(
    "text",
    [
        "", "ALL", "all=1", "n-cpu-moe", "n-cpu-moe=", "n-cpu-moe=-1", "n-cpu-moe=x", "n-cpu-moe=99999999999",
        "n-gpu-layers=1.5", "ot", "ot=", "ot=x", "ot=x=", "ot=(=CPU", "ot=(a|b)*=CPU", "fit", "fit=", "fit=0",
        "fit=big", "moe-cache", "moe-cache=", "moe-cache=0", "moe-cache=much", "cpu-moe\0", "\ud800", "n-cpu-moe=٣",
    ],
)  # fmt: skip
def test_other_texts(text: str) -> None:
    with pytest.raises(ValueError):
        Placement.parse(text)


@given(st.text())
def test_any_text_is_a_placement_or_an_error(text: str) -> None:
    with suppress(ValueError):
        assert Placement.parse(text).name


def test_bad_placements() -> None:
    for name in ("", " ", "a\nb", "a\0"):
        with pytest.raises(ValueError):
            Placement(name)
    with pytest.raises(TypeError, match="name"):
        Placement(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model_params"):
        Placement("x", {})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot compute"):
        Placement("x", ModelParams(vocab_only=True))
    with pytest.raises(ValueError, match="memory"):
        Placement("x", memory=0)
    with pytest.raises(TypeError):
        Placement.parse(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model_params"):
        Placement.parse("all", 3)  # type: ignore[arg-type]
