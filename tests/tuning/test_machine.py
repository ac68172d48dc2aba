"""The machine: its processors, and what tells it from others."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from moebind.tuning import machine
from moebind.tuning.machine import Processors, conditions, differences, processors


def described(folder: Path, siblings: dict[int, str], nodes: list[str]) -> str:
    for cpu, text in siblings.items():
        topology = folder / f"cpu/cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(text + "\n", encoding="utf-8")
    for at, text in enumerate(nodes):
        (folder / f"node/node{at}").mkdir(parents=True)
        (folder / f"node/node{at}/cpulist").write_text(text + "\n", encoding="utf-8")
    (folder / "node").mkdir(exist_ok=True)
    (folder / "node/has_cpu").write_text("0-1\n", encoding="utf-8")
    return str(folder)


def test_this_machine() -> None:
    found = processors()
    assert found.all == tuple(sorted(os.sched_getaffinity(0)))
    assert set(found.one_each) <= set(found.all)
    assert Processors.from_dict(found.to_dict()) == found


def test_cores_and_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    siblings = {0: "0,4", 1: "1,5", 2: "2,6", 3: "3,7", 4: "0,4", 5: "1,5", 6: "2,6", 7: "3,7"}
    monkeypatch.setattr(machine, "SYSTEM", described(tmp_path, siblings, ["0-1,4-5", "2-3,6-7"]))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    found = processors()
    assert found.cores == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert found.one_each == (0, 1, 2, 3)
    assert found.nodes == ((0, 1, 4, 5), (2, 3, 6, 7))


def test_only_what_is_allowed_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "SYSTEM", described(tmp_path, {0: "0,4", 4: "0,4", 5: "1,5"}, ["0-3", "4-7"]))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {4, 5})
    found = processors()
    assert found.cores == ((4,), (5,))
    assert found.nodes == ((4, 5),)


def test_what_the_system_does_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "SYSTEM", str(tmp_path / "nothing"))
    found = processors()
    assert found.cores == tuple((each,) for each in sorted(os.sched_getaffinity(0)))


def test_conditions_tell_machines_apart() -> None:
    here = conditions([{"kind": "loopback", "memory": 2**30, "n_threads": 1}])
    assert here["devices"] == ["a worker process of 1073741824"]
    assert differences(here, conditions([])) == []
    changes: list[tuple[dict[str, Any], list[str]]] = [
        ({"processor": "another"}, ["processor"]),
        ({"processors": 99}, ["number of processors"]),
        ({"cards": ["CUDA0: a card"]}, ["cards"]),
        ({"build": {**here["build"], "commit": "another"}}, ["build"]),
        ({"build": None, "processor": None}, ["processor", "build"]),
    ]
    for change, words in changes:
        assert differences({**here, **change}, here) == words
