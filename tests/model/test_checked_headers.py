"""The header that is checked is the one that is loaded, whatever becomes of the file in between."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny

from conftest import CPU, EXACT
from moebind import Batch, LoadMode, Model, ModelLoadError, lib
from moebind.model import model as loading


def logits(model: Model) -> np.ndarray:
    """What it computes."""
    with model.new_context(EXACT) as context:
        context.decode(Batch.get_one([1, 2, 3]))
        return context.get_logits().copy()


def damage(path: Path) -> None:
    """Make it no GGUF file any more; the data of its tensors stay."""
    with path.open("r+b") as file:
        file.write(bytes(4))


@pytest.fixture
def damaged_in_between(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Path]], None]:
    """Have these files damaged after the next check of a model, before it is loaded."""

    def arrange(paths: list[Path]) -> None:
        check = loading.check_room

        def checked(*arguments: object) -> None:
            check(*arguments)  # type: ignore[arg-type]
            for path in paths:
                damage(path)

        monkeypatch.setattr(loading, "check_room", checked)

    return arrange


@pytest.mark.parametrize("mode", [LoadMode.MMAP, LoadMode.NONE])
@pytest.mark.parametrize("split", [1, 3])
@pytest.mark.parametrize("by_names", [False, True])
def test_what_was_checked_is_loaded(
    mode: LoadMode, split: int, by_names: bool, tmp_path: Path, damaged_in_between: Callable[[list[Path]], None]
) -> None:
    path, params = tiny.write(tmp_path / "model.gguf", tiny.Shape(n_expert=4), split), CPU.with_load_mode(mode)
    paths = sorted(tmp_path.iterdir())
    with Model.load_from_file(path, params) as model:
        expected = logits(model)
    damaged_in_between(paths)
    with Model.load_from_splits(paths, params) if by_names else Model.load_from_file(path, params) as model:
        np.testing.assert_array_equal(logits(model), expected)
    with pytest.raises(ModelLoadError, match="is not a GGUF file"):  # they were damaged indeed
        Model.load_from_file(path, params)


def test_a_file_that_became_shorter_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny.write(tmp_path / "model.gguf", tiny.Shape())
    half = path.read_bytes()[: path.stat().st_size // 2]
    monkeypatch.setattr(loading, "check_room", lambda *_: path.write_bytes(half))
    with pytest.raises(ModelLoadError, match="not within the file bounds"):
        Model.load_from_file(path, CPU)


def test_a_file_that_is_gone_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny.write(tmp_path / "model.gguf", tiny.Shape())
    monkeypatch.setattr(loading, "check_room", lambda *_: path.unlink())
    with pytest.raises(ModelLoadError, match="No such file"):
        Model.load_from_file(path, CPU)


def stopped(path: Path) -> None:
    with pytest.raises(ModelLoadError, match="stopped the load"):
        Model.load_from_file(path, CPU.with_progress_callback(lambda _: False))


def refused(path: Path) -> None:
    with pytest.raises(ModelLoadError, match="key not found in model: split.no"):
        Model.load_from_file(path, CPU.with_kv_override("split.count", 2))


@pytest.mark.parametrize("fails", [stopped, refused])
def test_a_load_that_fails_leaves_nothing(fails: Callable[[Path], None], tmp_path: Path) -> None:
    path = tiny.write(tmp_path / "model.gguf", tiny.Shape())
    before = lib.moebind_owned_alive()
    for _ in range(3):
        fails(path)
    assert lib.moebind_owned_alive() == before
    with Model.load_from_file(path, CPU) as model:
        assert model.n_layer == tiny.Shape().n_layer


def test_a_load_in_the_middle_of_another(tmp_path: Path) -> None:
    outer = tiny.write(tmp_path / "outer.gguf", tiny.Shape(n_layer=3), 2)
    inner = tiny.write(tmp_path / "inner.gguf", tiny.Shape(n_layer=1), 2)
    loaded: list[int] = []

    def load(_: float) -> bool:
        if not loaded:
            with Model.load_from_file(inner, CPU) as model:
                loaded.append(model.n_layer)
        return True

    with Model.load_from_file(outer, CPU.with_progress_callback(load)) as model:
        assert (model.n_layer, loaded) == (3, [1])


def test_loads_in_several_threads(tmp_path: Path) -> None:
    path = tiny.write(tmp_path / "model.gguf", tiny.Shape(n_expert=4), 2)
    found: list[np.ndarray] = []

    def load() -> None:
        for _ in range(5):
            with Model.load_from_file(path, CPU) as model:
                found.append(logits(model))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20
    for each in found:
        np.testing.assert_array_equal(each, found[0])
