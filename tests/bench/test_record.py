"""Records of measurements: kept at once, not made again, and never taken for those of something else."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from moebind.bench.record import FailedError, Record

KEY = {"files": ["00ff"], "build": {"commit": "abc"}, "machine": ["P", "CUDA0"]}


def failing(error: BaseException) -> Any:
    def measure() -> object:
        raise error

    return measure


def test_a_measurement_is_found_again(tmp_path: Path) -> None:
    made = Record(tmp_path / "new" / "folder", KEY).measure("a/b, 4 GiB", lambda: {"speeds": (1.5, 2)}, {"n": 3})
    assert made.result == {"speeds": [1.5, 2]}
    assert made.failure is None
    again = Record(tmp_path / "new" / "folder", KEY)
    assert again.find("a/b, 4 GiB", {"n": 3}) == made
    assert again.result("a/b, 4 GiB", {"n": 3}) == made.result
    assert list(again) == [made]
    [file] = (tmp_path / "new" / "folder").iterdir()
    assert file.name.startswith("a-b-4-gib-")


def test_it_says_when_it_was_made(tmp_path: Path) -> None:
    record = Record(tmp_path, KEY)
    made = record.put("x", 1, seconds=1.234, date="2020-02-02T02:02:02+00:00")
    found = Record(tmp_path, KEY).find("x")
    assert found == made
    assert (found.date, found.seconds) == ("2020-02-02T02:02:02+00:00", 1.23)
    assert record.measure("y", lambda: 1).date > found.date


def test_the_order_is_that_of_their_dates(tmp_path: Path) -> None:
    record = Record(tmp_path, KEY)
    for at, name in enumerate(["z", "y", "x", "b", "a"]):
        record.put(name, at, date=f"2020-01-01T00:00:0{at // 2}+00:00")
    assert [each.name for each in record] == ["y", "z", "b", "x", "a"]


@pytest.mark.parametrize(
    "other", [{"files": ["00fe"]}, {"build": {"commit": "abd"}}, {"machine": ["P", "CUDA1"]}, {"more": None}]
)
def test_other_models_builds_and_machines_are_measured_again_and_both_are_kept(
    tmp_path: Path, other: dict[str, object]
) -> None:
    first = Record(tmp_path, KEY)
    first.put("x", 1)
    second = Record(tmp_path, {**KEY, **other})
    assert second.find("x") is None
    assert list(second) == []
    second.put("x", 2)
    assert (first.result("x"), second.result("x")) == (1, 2)
    assert ([each.result for each in first], [each.result for each in second]) == ([1], [2])


def test_other_names_and_requests_are_other_measurements(tmp_path: Path) -> None:
    record = Record(tmp_path, KEY)
    record.put("x y", 1, {"n": 1})
    assert record.find("x-y", {"n": 1}) is None
    assert record.find("x y", {"n": 2}) is record.find("x y") is None
    record.put("x-y", 2, {"n": 1})
    assert record.result("x y", {"n": 1}) == 1


def test_a_file_under_another_name_is_not_taken_for_it(tmp_path: Path) -> None:
    record, other = Record(tmp_path, KEY), Record(tmp_path, {"commit": "def"})
    record.put("x", 1)
    os.rename(record.path("x"), other.path("x"))
    assert record.find("x") is other.find("x") is None
    assert list(record) == list(other) == []


DAMAGES: list[Any] = [
    b"", b"{", b"\xff\xfe", b"[]", b"null", b"3", b"{}", {"form": 2}, {"name": 7}, {"date": None}, {"seconds": "long"},
    {"failure": 3}, {"key": []}, {"request": None}, "result", "date", "form",
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_measured_again(tmp_path: Path, damage: bytes | dict[str, object] | str) -> None:
    record = Record(tmp_path, KEY)
    record.put("x", 1)
    record.put("whole", 2)
    path = Path(record.path("x"))
    fields = json.loads(path.read_bytes())
    if isinstance(damage, str):
        del fields[damage]
    elif isinstance(damage, dict):
        fields.update(damage)
    path.write_bytes(damage if isinstance(damage, bytes) else json.dumps(fields).encode())
    assert record.find("x") is None
    assert [each.name for each in record] == ["whole"]
    record.put("x", 3)
    assert record.result("x") == 3


def test_a_file_that_is_cut_anywhere_is_measured_again(tmp_path: Path) -> None:
    record = Record(tmp_path, KEY)
    record.put("x", {"values": [1, 2]})
    path = Path(record.path("x"))
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        assert record.find("x") is None


def test_failures_are_kept_with_their_reasons(tmp_path: Path) -> None:
    record = Record(tmp_path, KEY)
    made = record.measure("x", failing(FailedError("no luck")))
    assert (made.failure, made.result) == ("no luck", None)
    assert record.find("x") == made
    assert record.result("x") is None
    assert record.measure("x", lambda: 5).failure is None
    assert record.result("x") == 5


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a bug"), OSError(28, "the disk is full")])
def test_other_exceptions_are_no_measurements(tmp_path: Path, error: BaseException) -> None:
    record = Record(tmp_path, KEY)
    with pytest.raises(type(error)):
        record.measure("x", failing(error))
    assert record.find("x") is None
    assert list(record) == []


@pytest.mark.parametrize("result", [float("nan"), {"a": float("inf")}, object(), {1, 2}])
def test_results_that_json_does_not_have(tmp_path: Path, result: object) -> None:
    record = Record(tmp_path, KEY)
    record.put("x", 1)
    with pytest.raises((TypeError, ValueError)):
        record.put("x", result)
    assert record.result("x") == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    record = Record(tmp_path / "file" / "folder", KEY)
    assert record.find("x") is None
    assert list(record) == []
    with pytest.raises(OSError, match="file"):
        record.put("x", 1)
