"""Results that are kept: found for the same model, machine and build, and refused for others."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from results import made_up

from moebind import ModelNotFoundError
from moebind.tuning import saved
from moebind.tuning.configuration import Process
from moebind.tuning.machine import conditions
from moebind.tuning.result import KEY

MakeTiny = Callable[..., Path]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOEBIND_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def path(tiny_path: MakeTiny) -> Path:
    return tiny_path(n_expert=4, n_layer=3)


def keep(path: Path, about: dict[str, Any] | None = None, **changes: Any) -> Path:
    found = made_up(path, **changes)
    assert found._identity is not None
    target = Path(saved.place(found._identity, saved.here() if about is None else about))
    target.parent.mkdir(parents=True, exist_ok=True)
    found.save(target)
    return target


def test_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert saved.folder() == str(tmp_path / "cache" / "tuned")
    monkeypatch.delenv("MOEBIND_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert saved.folder() == "/somewhere/moebind/tuned"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert saved.folder() == os.path.expanduser("~/.cache/moebind/tuned")


def test_it_is_found_again(path: Path, tmp_path: Path) -> None:
    target = keep(path)
    assert saved.find(path) == (str(target), f"tuned for chat on 2026-11-29: {target}")
    # By what is in it, wherever the file lies.
    moved = tmp_path / "another name.gguf"
    shutil.copy(path, moved)
    assert saved.find(moved).path == str(target)


def test_nothing_is_there(path: Path) -> None:
    found = saved.find(path)
    assert found.path is None
    assert found.sentence == (
        f"{path.name} was not tuned, and the defaults are used: moebind tune {path} finds what is fastest here"
    )


def test_another_model_has_none(path: Path, tiny_path: MakeTiny) -> None:
    keep(path)
    other = tiny_path(n_expert=4, n_layer=2)
    assert "was not tuned" in saved.find(other).sentence


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"processor": "another"}, "was tuned with another processor, and the defaults are used"),
        ({"build": {"commit": "another"}}, "was tuned with another build, and the defaults are used"),
        ({"processors": 1000, "cards": ["CUDA0: a"]}, "with another number of processors and cards"),
        ({"devices": ["a worker process of any size"]}, "was tuned for a worker process of any size, and the defaults"),
    ],
)
def test_other_machines_and_builds_are_refused(path: Path, change: dict[str, Any], said: str) -> None:
    about = {**saved.here(), **change}
    keep(path, about, conditions={**about, "date": "2026-11-29T04:00:00+00:00"})
    found = saved.find(path)
    assert found.path is None
    assert said in found.sentence


def test_each_machine_has_its_own(path: Path) -> None:
    mine = keep(path)
    about = {**saved.here(), "processor": "another"}
    theirs = keep(path, about)
    assert mine != theirs
    assert saved.find(path).path == str(mine)
    assert saved.find(path, about).path == str(theirs)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", json.dumps({KEY: 3}), json.dumps({KEY: {}})])
def test_damaged_files_are_taken_for_absent(path: Path, content: str) -> None:
    keep(path).write_text(content, encoding="utf-8")
    assert "was not tuned" in saved.find(path).sentence


def test_a_missing_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        saved.find(tmp_path / "none.gguf")


def test_what_is_set_for_a_process(path: Path, tmp_path: Path) -> None:
    process = Process({"A": "1"}, (0,))
    assert saved.settings_of(str(keep(path, process=process))).process == process
    plain = tmp_path / "plain.json"
    plain.write_text('{"model_params": {}}', encoding="utf-8")
    assert saved.settings_of(str(plain)).process == Process()
    for content in ("", "{", "[" * 100_000, "[]"):  # what reads parameters says what is wrong
        plain.write_text(content, encoding="utf-8")
        assert saved.settings_of(str(plain)).process == Process()
    assert saved.settings_of(str(tmp_path / "none")).process == Process()
    with open(plain, "wb") as file:
        file.truncate(2**36)  # a model, such as people give by mistake; its bytes are not read
    assert saved.settings_of(str(plain)).process == Process()
    plain.write_text(json.dumps({KEY: {"process": {"cpus": [0]}}}), encoding="utf-8")
    with pytest.raises(ValueError, match="is damaged"):
        saved.settings_of(str(plain))


def test_the_conditions_of_a_search_of_all_cards_are_those_of_programs() -> None:
    assert saved.here() == conditions([{"kind": "local", "name": name.split(":")[0]} for name in saved.here()["cards"]])
