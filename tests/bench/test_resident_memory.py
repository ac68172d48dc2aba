"""Memory of a process, as the system sees it."""

from __future__ import annotations

import os

from moebind.bench import resident


def test_resident_memory() -> None:
    found = resident(os.getpid())
    assert found is not None
    assert found.total == found.anonymous + found.file + found.shared
    assert found.total <= found.peak
    assert resident(2**30) is None
