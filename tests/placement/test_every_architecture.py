"""Experts of every architecture are where plans and ``experts`` say, and all that with_cpu_moe_all moves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import every_architecture
import pytest

from moebind import Device, ModelParams
from moebind._core.native import decoded, lib

FORMS = ["as it is", "with all that may be there", "gate and up in one", "with a layer that predicts ahead"]


def test_which_have_experts() -> None:
    found = every_architecture.with_experts()
    assert found > {"llama", "refact", "gpt-oss", "qwen35moe", "k2-horizon", "dflash", "lfm2moe", "nomic-bert-moe"}
    assert not found & {"qwen3", "clef", "gemma3", "mamba", "eagle3", *every_architecture.NO_EXPERTS}
    made = every_architecture.made()
    assert found <= {*made}
    page = (Path(__file__).resolve().parents[2] / "docs/offload.md").read_text(encoding="utf-8")
    assert f"a tiny model of {len(made)} architectures of this llama.cpp, {len(found)} with experts" in page


def test_some_architectures() -> None:
    expected = {
        "k2-horizon": FORMS[:2],
        "qwen35moe": FORMS,
        "nemotron_h_moe": [*FORMS[:2], FORMS[3]],
        "bailingmoe2": [*FORMS[:2], FORMS[3]],
    }
    checked, wrong = every_architecture.examine([*expected])
    assert wrong == {}
    assert checked == expected


@pytest.mark.thorough
@pytest.mark.timeout(1200)
def test_every_architecture() -> None:
    checked, wrong = every_architecture.examine(every_architecture.made())
    assert wrong == {}
    assert [*checked] == every_architecture.made()
    assert sum(FORMS[2] in found for found in checked.values()) >= 10
    assert sum(FORMS[3] in found for found in checked.values()) >= 15


def test_experts_that_are_missed_are_found(
    architecture_path: Callable[[str], Path], device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    # llama.cpp's own --cpu-moe leaves those of attention on the device.
    def as_llama_cpp(params: ModelParams) -> ModelParams:
        return params.with_cpu_override(decoded(lib.moebind_ffn_exps_regex()))

    path = architecture_path("k2-horizon")
    assert every_architecture.check(path, device) == 8
    monkeypatch.setitem(every_architecture.PLACEMENTS, "experts on the host", as_llama_cpp)
    with pytest.raises(AssertionError, match=r"experts that moved: \{'blk\.\d\.attn_v_exps\.weight'"):
        every_architecture.check(path, device)


def test_an_architecture_that_is_not_made_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(every_architecture, "with_experts", lambda: {"qwen3"})
    checked, wrong = every_architecture.examine(["gptj", "qwen3"])
    assert checked == {}
    assert "unsupported model architecture" in wrong["gptj"]
    assert wrong["qwen3, as it is"] == "0 tensors of experts"
