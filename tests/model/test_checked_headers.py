"""The header that is checked is the one that is loaded, whatever becomes of the file in between."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny

from conftest import CPU, EXACT
from moebind import Batch, Gguf, LoadMode, Model, ModelLoadError, lib
from moebind.model import model as loading

InBetween = Callable[[Callable[[], object]], None]


def logits(model: Model) -> np.ndarray:
    """What it computes."""
    with model.new_context(EXACT) as context:
        context.decode(Batch.get_one([1, 2, 3]))
        return context.get_logits().copy()


def damage(path: Path) -> None:
    """Make it no GGUF file any more, and hide that; the data of its tensors stay."""
    before = path.stat()
    with path.open("r+b") as file:
        file.write(bytes(4))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture
def in_between(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Have something done after a model was checked, and before it is loaded."""

    def arrange(work: Callable[[], object]) -> None:
        check = loading.check_room

        def checked(*arguments: object) -> None:
            check(*arguments)  # type: ignore[arg-type]
            work()

        monkeypatch.setattr(loading, "check_room", checked)

    return arrange


@pytest.mark.parametrize("mode", [LoadMode.MMAP, LoadMode.NONE])
@pytest.mark.parametrize("split", [1, 3])
@pytest.mark.parametrize("by_names", [False, True])
def test_what_was_checked_is_loaded(
    mode: LoadMode, split: int, by_names: bool, tmp_path: Path, in_between: InBetween
) -> None:
    path, params = tiny.write(tmp_path / "model.gguf", tiny.Shape(n_expert=4), split), CPU.with_load_mode(mode)
    paths = sorted(tmp_path.iterdir())
    with Model.load_from_file(path, params) as model:
        expected = logits(model)
    in_between(lambda: [damage(each) for each in paths])
    with Model.load_from_splits(paths, params) if by_names else Model.load_from_file(path, params) as model:
        np.testing.assert_array_equal(logits(model), expected)
    with pytest.raises(ModelLoadError, match="is not a GGUF file"):  # they were damaged indeed
        Model.load_from_file(path, params)


@pytest.mark.parametrize("split", [1, 3])
def test_a_file_that_changed_is_refused(split: int, tmp_path: Path, in_between: InBetween) -> None:
    """Neither the header of one file with the data of another one, nor what nobody has checked."""
    path = tiny.write(tmp_path / "model.gguf", tiny.Shape(), split)
    last = sorted(tmp_path.iterdir())[-1]
    other = tiny.write(tmp_path / "other.gguf", tiny.Shape(seed=2), split)
    in_between(lambda: os.replace(sorted(other.parent.glob("other*"))[-1], last))
    with pytest.raises(ModelLoadError, match=f"{last.name} changed while it was being loaded: load it again"):
        Model.load_from_file(path, CPU)


def test_a_file_that_became_shorter_is_refused(tmp_path: Path, in_between: InBetween) -> None:
    path = tiny.write(tmp_path / "model.gguf", tiny.Shape())
    half = path.read_bytes()[: path.stat().st_size // 2]
    in_between(lambda: path.write_bytes(half))
    with pytest.raises(ModelLoadError, match="changed while"):
        Model.load_from_file(path, CPU)


def test_a_file_that_is_gone_is_refused(tmp_path: Path, in_between: InBetween) -> None:
    path = tiny.write(tmp_path / "model.gguf", tiny.Shape())
    in_between(path.unlink)
    with pytest.raises(ModelLoadError, match=r"model\.gguf can no longer be read: No such file"):
        Model.load_from_file(path, CPU)


def test_a_file_that_cannot_be_opened_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even after the last look at it: llama.cpp says what is wrong, and nothing is left of the header."""
    path = tiny.write(tmp_path / "model.gguf", tiny.Shape())
    given = Gguf._given_headers

    def late(file: Gguf) -> object:
        headers = given(file)
        path.unlink()
        return headers

    monkeypatch.setattr(Gguf, "_given_headers", late)
    with pytest.raises(ModelLoadError, match="failed to load model"):
        Model.load_from_file(path, CPU)
    assert lib.moebind_headers_left() == 0


def stopped(path: Path) -> None:
    with pytest.raises(ModelLoadError, match="stopped the load"):
        Model.load_from_file(path, CPU.with_progress_callback(lambda _: False))


def refused(path: Path) -> None:
    """The loader takes one header, and then lacks the tensors of the other files."""
    with pytest.raises(ModelLoadError, match="tensor .* not found"):
        Model.load_from_file(path, CPU.with_kv_override("split.count", 1))


@pytest.mark.parametrize("fails", [stopped, refused])
def test_a_load_that_fails_leaves_nothing(fails: Callable[[Path], None], tmp_path: Path) -> None:
    path = tiny.write(tmp_path / "model.gguf", tiny.Shape(), 3)
    gc.collect()  # what other tests left would be freed meanwhile
    before = lib.moebind_owned_alive()
    for _ in range(3):
        fails(path)
    assert lib.moebind_owned_alive() == before
    assert lib.moebind_headers_left() == 0
    with Model.load_from_file(path, CPU) as model:
        assert model.n_layer == tiny.Shape().n_layer


def whole_with_another(folder: Path, shape: tiny.Shape) -> Path:
    """A model of two files, of which the second has nothing that is needed."""
    tensors = tiny._tensors(shape, np.random.default_rng(shape.seed))
    paths = [folder / f"whole-0000{number}-of-00002.gguf" for number in (1, 2)]
    for number, (path, part) in enumerate(zip(paths, [tensors, {"more": np.zeros(32, np.float32)}], strict=True)):
        split = {"split.no": np.uint16(number), "split.count": np.uint16(2), "split.tensors.count": len(tensors) + 1}
        tiny._write_file(path, shape.arch, {**(tiny._metadata(shape) if number == 0 else {}), **split}, part)
    return paths[0]


def test_a_load_in_the_middle_of_another(tmp_path: Path) -> None:
    """It leaves the outer one its headers, also one that the outer one does not take at all."""
    outer = whole_with_another(tmp_path, tiny.Shape(n_layer=3))
    inner = tiny.write(tmp_path / "inner.gguf", tiny.Shape(n_layer=1), 2)
    waiting: list[int] = []

    def load(_: float) -> bool:
        if not waiting:
            waiting.append(lib.moebind_headers_left())
            with Model.load_from_file(inner, CPU) as model:
                assert model.n_layer == 1
            waiting.append(lib.moebind_headers_left())
        return True

    params = CPU.with_kv_override("split.count", 1).with_progress_callback(load)
    with Model.load_from_file(outer, params) as model:
        assert model.n_layer == 3
    assert waiting == [1, 1]
    assert lib.moebind_headers_left() == 0


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
