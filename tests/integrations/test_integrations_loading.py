"""Settings of other programs, as parameters."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from moebind import ContextParams, ModelParams, fit
from moebind.diagnosis.facts import no_gpu_is_meant
from moebind.integrations.loading import LOADING, parameters

#: Where there is no GPU, nothing is offloaded, without a warning.
PLAIN = ModelParams().with_n_gpu_layers(0) if no_gpu_is_meant() else ModelParams()


@pytest.fixture
def path(tiny_path: Callable[..., Path]) -> Path:
    return tiny_path(n_expert=4)


@pytest.mark.parametrize(
    ("settings", "model", "context"),
    [
        ({"n_gpu_layers": 1}, ModelParams(n_gpu_layers=1), ContextParams(n_ctx=4096)),
        ({"cpu_moe": True}, PLAIN.with_cpu_moe_all(), ContextParams(n_ctx=4096)),
        ({"n_cpu_moe": 1}, PLAIN.with_n_cpu_moe(1), ContextParams(n_ctx=4096)),
        ({"cpu_moe": True, "n_cpu_moe": 1}, PLAIN.with_n_cpu_moe(1), ContextParams(n_ctx=4096)),
        (
            {"n_gpu_layers": 0, "n_ctx": 512, "n_threads": 2},
            ModelParams(n_gpu_layers=0),
            ContextParams(n_ctx=512, n_threads=2, n_threads_batch=2),
        ),
        ({"n_gpu_layers": 0, "cpu_moe": False, "params": None}, ModelParams(n_gpu_layers=0), ContextParams(n_ctx=4096)),
    ],
)
def test_what_settings_mean(
    path: Path, settings: dict[str, object], model: ModelParams, context: ContextParams
) -> None:
    assert parameters(path, settings) == (model, context)


def test_a_file_of_parameters_with_settings_in_the_place_of_its_own(path: Path, tmp_path: Path) -> None:
    found = fit(path, n_ctx=512, devices=["1GiB"])
    found.save(tmp_path / "fit.json")
    model, context = parameters(path, {"params": os.fspath(tmp_path / "fit.json")})
    assert (model, context) == (found.model_params, found.context_params)
    _, context = parameters(path, {"params": os.fspath(tmp_path / "fit.json"), "n_ctx": 1024})
    assert context == found.context_params.with_n_ctx(1024)


def test_a_file_for_another_model(path: Path, tiny_path: Callable[..., Path], tmp_path: Path) -> None:
    fit(tiny_path(), n_ctx=512, devices=["1GiB"]).save(tmp_path / "fit.json")
    with pytest.raises(ValueError, match="another model|is for"):
        parameters(path, {"params": os.fspath(tmp_path / "fit.json")})


def test_a_file_that_is_none(path: Path, tmp_path: Path) -> None:
    (tmp_path / "fit.json").write_text(json.dumps([]), encoding="utf-8")
    with pytest.raises(ValueError, match="is no saved fit"):
        parameters(path, {"params": os.fspath(tmp_path / "fit.json")})
    with pytest.raises(FileNotFoundError, match=r"moebind fit --save"):
        parameters(path, {"params": os.fspath(tmp_path / "none.json")})


@pytest.mark.parametrize(
    ("settings", "kind", "told"),
    [
        ({"n_ctx": -5}, ValueError, "n_ctx is -5; it takes 0 to"),
        ({"n_ctx": "many"}, TypeError, "n_ctx is 'many'"),
        ({"n_cpu_moe": -1}, ValueError, "-1"),
        ({"experts": 1}, ValueError, f"there is no setting 'experts'; there are {', '.join(LOADING)}"),
    ],
)
def test_settings_that_are_wrong(path: Path, settings: dict[str, object], kind: type[Exception], told: str) -> None:
    with pytest.raises(kind, match=told):
        parameters(path, settings)
