"""How fast memory is read."""

from __future__ import annotations

import math

import numpy as np
import pytest

import moebind
from moebind.backend import bandwidth
from moebind.backend.host_memory import HostMemory


def test_all_of_the_memory_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    class Counting:
        @staticmethod
        def reduce(part: np.ndarray) -> float:
            assert (part == 1.0).all()
            read.append(part.nbytes)
            return 1.0

    monkeypatch.setattr(bandwidth, "SIZE", 2**20)
    monkeypatch.setattr(np, "maximum", Counting)
    found = moebind.host_bandwidth(n_threads=3)
    assert 0 < found < math.inf
    assert len(read) == 3 * bandwidth.PASSES
    assert sum(read) == bandwidth.PASSES * 2**20


def test_it_takes_no_more_than_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    empty = np.empty

    def counted(size: int, kind: type) -> np.ndarray:
        made.append(size * 4)
        return empty(size, kind)

    monkeypatch.setattr(bandwidth, "host_memory", lambda: HostMemory(2**22, 2**22))
    monkeypatch.setattr(np, "empty", counted)
    assert moebind.host_bandwidth() > 0
    monkeypatch.setattr(bandwidth, "host_memory", lambda: HostMemory(0, 0))
    assert moebind.host_bandwidth(2) > 0
    assert made == [2**20, 8]


@pytest.mark.parametrize(
    ("n_threads", "error"), [(0, ValueError), (-1, ValueError), (2**20, ValueError), (1.5, TypeError), ("2", TypeError)]
)
def test_what_is_no_number_of_threads(n_threads: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="n_threads"):
        moebind.host_bandwidth(n_threads)  # type: ignore[arg-type]
