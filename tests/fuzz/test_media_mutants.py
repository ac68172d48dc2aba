"""Damaged pictures and sound end in an exception or a bitmap, in the memory that they may take."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import media

COUNT = 500


@pytest.mark.timeout(600)
def test_no_mutant_crashes_hangs_or_grows() -> None:
    report = media.run(COUNT, seed=3)
    assert report.findings == []
    assert report.mutants == COUNT * len(media.FORMATS)
    for kind in media.FORMATS:
        assert report.outcomes[f"{kind}: refused"] > COUNT / 20
        assert report.outcomes[f"{kind}: works"] > COUNT / 50
        assert report.outcomes[f"{kind}: odd"] < COUNT / 20


def test_what_is_whole_is_decoded(tmp_path: Path) -> None:
    import projectors

    from moebind.mtmd import Bitmap

    see = projectors.load(tmp_path, "ultravox")
    for kind in media.FORMATS:
        for seed in range(4):
            assert Bitmap.from_buffer(media.whole(kind, seed), see.mtmd).data.size > 1
    see.model.close()


@pytest.mark.parametrize(
    ("broken", "told"),
    [("os.kill(os.getpid(), 11)", "ended with -11"), ("signal.raise_signal(14)", "hangs"), ("1 / 0", "ended with 1")],
)
def test_what_is_to_be_found_is_found(broken: str, told: str) -> None:
    """The runner itself, with a child that misbehaves at the third mutant and goes on after it."""
    code = "import os, signal, sys\nfor at in range(int(sys.argv[1]), int(sys.argv[2])):\n"
    code += f"    print(at, end=' ', flush=True)\n    if at % 1000000 == 2: {broken}\n    print('works', flush=True)\n"

    def child(kind: str, first: int, last: int) -> list[str]:
        return [sys.executable, "-c", code, str(first), str(last)]

    report = media.run(5, 1, ("PNG",), child)
    assert report.mutants == 5
    assert report.outcomes == {"PNG: works": 4, "PNG: ended": 1}
    (finding,) = report.findings
    assert finding.startswith("PNG 1000002: the process")
    assert told in finding
