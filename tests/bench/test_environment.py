"""Conditions of a measurement."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from datetime import datetime, timezone
from pathlib import Path

import pytest

import moebind
from moebind import Device
from moebind.backend.devices import local_gpus
from moebind.bench import environment


def test_a_date_is_utc_to_the_second() -> None:
    said = environment.now()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", said)
    assert abs((datetime.now(timezone.utc) - datetime.fromisoformat(said)).total_seconds()) < 60


def test_the_build() -> None:
    found = environment.build()
    assert (found["moebind"], found["llama_cpp"]) == (moebind.__version__, moebind.llama_cpp_version)
    assert re.fullmatch(r"[0-9a-f]{7,}|b\d+", found["commit"])
    assert re.match("(in|out): ", found["cuda"])
    assert "CPU" in found["system_info"]


def test_the_machine(device: Device) -> None:
    record = environment.machine_record()
    assert json.loads(json.dumps(record)) == record
    assert 0 < record["cores_allowed"] <= record["cores"]
    assert 0 < record["memory_capacity"] <= record["memory_total"]
    assert record["processor"] == environment.processor()
    assert device.name in {each["name"] for each in record["devices"]}
    # Workers come and go: they are not the machine's.
    assert not any(each.startswith(f"{device.name}:") for each in environment.installed())
    assert len(environment.installed()) == len(local_gpus())


def test_a_machine_that_does_not_tell_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr("builtins.open", refuse)
    assert environment.processor() == platform.machine()
    assert environment.driver() is None


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    contents = [b"abc" * 1000, b"", b"x" * 70]
    for at, content in enumerate(contents):
        (tmp_path / f"{at}.gguf").write_bytes(content)
    return [str(tmp_path / f"{at}.gguf") for at in range(len(contents))]


def test_checksums(files: list[str]) -> None:
    told: list[float] = []
    expected = [
        {
            "name": os.path.basename(path),
            "size": os.path.getsize(path),
            "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(),
        }
        for path in files
    ]
    assert environment.checksums(files, None, told.append) == expected
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert environment.checksums([], None) == []


def test_checksums_are_remembered_until_a_file_changes(files: list[str], tmp_path: Path) -> None:
    cache = str(tmp_path / "checksums.json")
    first = environment.checksums(files, cache)
    told: list[float] = []
    assert environment.checksums(files, cache, told.append) == first
    assert told == []  # nothing was read
    Path(files[0]).write_bytes(b"another")
    os.utime(files[0], ns=(5, 5))
    second = environment.checksums(files, cache, told.append)
    assert second[1:] == first[1:]
    assert second[0]["sha256"] == hashlib.sha256(b"another").hexdigest()
    assert len(told) == 1


@pytest.mark.parametrize("content", ["", "[]", "null", "{", '{"x": 3}'])
def test_a_damaged_cache_is_made_again(files: list[str], tmp_path: Path, content: str) -> None:
    cache = tmp_path / "checksums.json"
    cache.write_text(content, encoding="utf-8")
    assert environment.checksums(files, str(cache)) == environment.checksums(files, None)
    assert len(json.loads(cache.read_text(encoding="utf-8"))) >= len(files)


def test_an_entry_that_is_damaged_is_made_again(files: list[str], tmp_path: Path) -> None:
    cache = tmp_path / "checksums.json"
    expected = environment.checksums(files, str(cache))
    known = json.loads(cache.read_text(encoding="utf-8"))
    for wrong in (3, None, [], {}, {"signature": [1, 2, 3, 4], "sha256": "f" * 64}):
        cache.write_text(json.dumps({**known, os.path.realpath(files[0]): wrong}), encoding="utf-8")
        assert environment.checksums(files, str(cache)) == expected


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        environment.checksums([str(tmp_path / "none")], None)
