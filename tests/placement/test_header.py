"""Headers of models: read once, and what they are refused for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import moebind
from conftest import SMALL
from moebind import Device, LoadMode, Model, ModelLoadError, ModelNotFoundError, ModelParams

MakeTiny = Callable[..., Path]


def test_the_vocabulary_changes_nothing(tiny_path: MakeTiny, device: Device) -> None:
    # A plan gives llama.cpp a header without the vocabulary; the whole file, with no_alloc, says the same.
    for arch in ("llama", "deepseek", "granite_swa", "grovemoe"):
        path = tiny_path(arch=arch, n_expert=4)
        params = ModelParams(devices=(device,), load_mode=LoadMode.NONE)
        plan = moebind.plan(path, params, SMALL)
        with Model.load_from_file(path, params.with_no_alloc(True)) as model, model.new_context(SMALL) as context:
            assert plan.devices == context.memory_breakdown().devices


def test_a_split_model(tiny_path: MakeTiny) -> None:
    one = moebind.plan(tiny_path(n_expert=4), ModelParams(), SMALL, devices=["1GiB"])
    three = moebind.plan(tiny_path(3, n_expert=4), ModelParams(), SMALL, devices=["1GiB"])
    assert one.devices[0] == three.devices[0]
    assert one.places == three.places


def test_a_file_that_changed_is_read_again(tmp_path: Path, tiny_path: MakeTiny) -> None:
    path = tmp_path / "model.gguf"
    sizes = []
    for n_expert in (2, 6):
        path.write_bytes(tiny_path(n_expert=n_expert).read_bytes())
        sizes.append(moebind.plan(path, ModelParams(), SMALL, devices=["1GiB"]).expert_bytes)
    assert sizes[1] == 3 * sizes[0]


def test_a_truncated_file_is_refused(tmp_path: Path, tiny_path: MakeTiny) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_path(n_expert=4).read_bytes()[:-64])
    with pytest.raises(ModelLoadError, match="cut off"):
        moebind.plan(path)


def test_files_that_are_no_models(tmp_path: Path) -> None:
    empty = tmp_path / "empty.gguf"
    empty.touch()
    for path, error in [(tmp_path / "gone", ModelNotFoundError), (tmp_path, ModelLoadError), (empty, ModelLoadError)]:
        for function in (moebind.plan, moebind.experts, moebind.fit):
            with pytest.raises(error):
                function(path)
