"""Recordings of routers in files."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import SMALL
from moebind import Model, RoutingRecorder

Arrays = dict[str, Any]


@pytest.fixture(scope="module")
def recorder(moe: Model) -> RoutingRecorder:
    found = RoutingRecorder(order=True)
    with moe.new_context(SMALL.with_eval_callback(found)) as context:
        for _ in context.generate([1, 2, 3], max_tokens=20):
            pass
    return found


@pytest.fixture(scope="module")
def arrays(recorder: RoutingRecorder, tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    path = tmp_path_factory.mktemp("saved") / "routing.npz"
    recorder.save(path)
    with np.load(path) as found:
        return dict(found)


def saved(folder: Path, arrays: Arrays) -> Path:
    path = folder / "routing.npz"
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    path.write_bytes(buffer.getvalue())
    return path


def test_what_is_saved_is_read(recorder: RoutingRecorder, tmp_path: Path, moe: Model) -> None:
    path = tmp_path / "routing.npz"
    recorder.save(path)
    again = RoutingRecorder.load(path)
    np.testing.assert_array_equal(again.counts, recorder.counts)
    np.testing.assert_array_equal(again.n_tokens, recorder.n_tokens)
    assert again.cache_curve().points == recorder.cache_curve().points
    both = recorder + again
    np.testing.assert_array_equal(both.counts, 2 * recorder.counts)
    assert both.cache_curve().n_tokens == 2 * recorder.cache_curve().n_tokens
    before = again.counts.sum()
    with moe.new_context(SMALL.with_eval_callback(again)) as context:  # it goes on
        for _ in context.generate([1, 2, 3], max_tokens=2):
            pass
    assert again.counts.sum() > before


def test_without_an_order(recorder: RoutingRecorder, tmp_path: Path, moe: Model) -> None:
    plain = RoutingRecorder()
    with moe.new_context(SMALL.with_eval_callback(plain)) as context:
        for _ in context.generate([1, 2, 3], max_tokens=4):
            pass
    plain.save(tmp_path / "plain.npz")
    again = RoutingRecorder.load(tmp_path / "plain.npz")
    np.testing.assert_array_equal(again.counts, plain.counts)
    with pytest.raises(ValueError, match="keeps no order"):
        again.cache_curve()


def test_nothing_to_save(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing was counted"):
        RoutingRecorder().save(tmp_path / "none.npz")
    assert not (tmp_path / "none.npz").exists()


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        RoutingRecorder.load(tmp_path / "nowhere.npz")
    for name, content in (("text", b"these are words"), ("empty", b""), ("zip", b"PK\3\4" + bytes(40))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="no recording of routers"):
            RoutingRecorder.load(tmp_path / name)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(ValueError, match="no recording of routers"):
        RoutingRecorder.load(tmp_path / "one.npy")
    np.savez(tmp_path / "pickled.npz", format=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="no recording of routers"):
        RoutingRecorder.load(tmp_path / "pickled.npz")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "no.npz"
    told = f"{re.escape(str(path))} does not exist: RoutingRecorder.save and moebind routing --save write such files"
    with pytest.raises(FileNotFoundError, match=f"^{told}$"):
        RoutingRecorder.load(path)
    with pytest.raises(OSError, match="folder|directory|regular"):
        RoutingRecorder.load(tmp_path)


def test_nobody_is_told_to_unpickle(tmp_path: Path) -> None:
    fit = tmp_path / "fit.json"
    fit.write_text("{}")
    with pytest.raises(ValueError, match="fit.json is no recording of routers: write one with RoutingRecorder.save"):
        RoutingRecorder.load(fit)
    objects = saved(tmp_path, {"format": np.array("moebind routing"), "version": np.array({}, object)})
    for path in (fit, objects):
        with pytest.raises(ValueError, match="is no recording") as raised:
            RoutingRecorder.load(path)
        assert "pickle" not in str(raised.value)


def test_a_cut_file(recorder: RoutingRecorder, tmp_path: Path) -> None:
    path = tmp_path / "routing.npz"
    recorder.save(path)
    content = path.read_bytes()
    for length in range(0, len(content), 97):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="no recording of routers"):
            RoutingRecorder.load(path)


BAD: list[tuple[str, Any]] = [
    ("version", np.array(99)),
    ("format", np.array("moebind fit")),
    ("size", np.array([-1, 4])),
    ("size", np.array([2**40, 4])),
    ("size", np.array([3, 2**40])),
    ("size", np.array([3])),
    ("counts", np.zeros((3, 99), np.int64)),
    ("counts", np.zeros(3, np.int64)),
    ("n_tokens", np.zeros(99, np.int64)),
    ("alignment", np.array(0)),
    ("n_expert", np.array([0, 0, 0])),
    ("layers", np.array([5000, 1, 2])),
    ("matrices", np.zeros((3, 7), np.int64)),
    ("matrices", np.zeros((3, 5), np.int64)),
    ("steps", np.array([7])),
    ("experts", np.array([1, 2, 3], np.uint16)),
    ("step_ids", np.array([-5])),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_arrays_that_do_not_belong_together(arrays: Arrays, tmp_path: Path, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=r"routing\.npz is"):
        RoutingRecorder.load(saved(tmp_path, {**arrays, name: value}))
    with pytest.raises(ValueError, match="no recording of routers"):
        RoutingRecorder.load(saved(tmp_path, {key: each for key, each in arrays.items() if key != name}))


def test_experts_beyond_the_last(arrays: Arrays, tmp_path: Path) -> None:
    for name, wrong in (("experts", 60000), ("steps", 1000), ("steps", -1), ("step_tokens", 0)):
        changed = arrays[name].copy()
        changed[len(changed) // 2] = wrong
        with pytest.raises(ValueError, match="no recording of routers"):
            RoutingRecorder.load(saved(tmp_path, {**arrays, name: changed}))


@pytest.mark.parametrize("size", [2**58 + 1, 2**60 + 1, 2**62, 2**63 - 1])
def test_experts_that_are_too_large_to_be_counted(arrays: Arrays, tmp_path: Path, size: int) -> None:
    changed = arrays["matrices"].copy()
    changed.flat[1] = size
    with pytest.raises(ValueError, match=r"experts of \d{19,} bytes"):
        RoutingRecorder.load(saved(tmp_path, {**arrays, "matrices": changed}))
    changed.flat[1] = 2**57
    assert RoutingRecorder.load(saved(tmp_path, {**arrays, "matrices": changed})).cache_curve().points


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_read_can_be_replayed(arrays: Arrays, tmp_path: Path, data: st.DataObject) -> None:
    """Any number anywhere: an error, or a recording of which a curve can be made."""
    name = data.draw(st.sampled_from([key for key in arrays if arrays[key].dtype.kind in "iu" and arrays[key].size]))
    changed = arrays[name].copy()
    limits = np.iinfo(changed.dtype)
    number = st.integers(int(limits.min), int(limits.max)) | st.integers(0, 9)
    changed.flat[data.draw(st.integers(0, changed.size - 1))] = data.draw(number)
    try:
        found = RoutingRecorder.load(saved(tmp_path, {**arrays, name: changed}))
        found.cache_curve()
    except ValueError:
        pass
