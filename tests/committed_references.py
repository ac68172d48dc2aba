"""Files that other programs computed and that are committed: written anew, or compared with what is made anew."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

__all__ = ["write_or_check"]


def write_or_check(make: Callable[[Path], None], data: Path, *, check: bool) -> int:
    """Have the files written into their folder, or say how they differ: the exit status."""
    if not check:
        data.mkdir(exist_ok=True)
        make(data)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        make(Path(temporary))
        wrong = _differences(Path(temporary), data)
    print(*(wrong or ["the committed files are what this script makes"]), sep="\n")
    return bool(wrong)


def _differences(fresh: Path, data: Path) -> list[str]:
    """How what is committed differs from what was made."""
    wrong = []
    for path in sorted(fresh.iterdir()):
        committed = data / path.name
        if not committed.exists():
            wrong.append(f"{path.name} is missing")
        elif path.suffix == ".gguf" and path.read_bytes() != committed.read_bytes():
            wrong.append(f"{path.name} has other bytes")
        elif path.suffix == ".npz":
            with np.load(path) as made, np.load(committed) as kept:
                if set(made) != set(kept):
                    wrong.append(f"{path.name} has other arrays")
                # Another torch, or another processor, sums in another order.
                elif any(np.abs(made[key] - kept[key]).max() > 3e-5 for key in made):
                    wrong.append(f"{path.name} has other values")
    return wrong
