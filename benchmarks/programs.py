"""llama.cpp's own benchmarks, built in the developers' build folder with the libraries that moebind uses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def program(target: str) -> Path:
    """Build one, such as ``llama-bench``, and say where it is."""
    folders = [path.parent for path in ROOT.glob("build/cp3*/CMakeCache.txt")]
    if not folders:
        raise SystemExit("there is no build folder: run make environment first")
    subprocess.run(["cmake", "--build", folders[0], "--target", target], check=True, stdout=subprocess.DEVNULL)
    return next(path for path in folders[0].rglob(target) if path.is_file())


def demo_model(dense: bool = False) -> str:
    """The path of the demo model, or of the one without experts that it is made from."""
    sys.path.insert(0, str(ROOT / "examples"))
    import demo_model as example

    return str(example.dense_model() if dense else example.demo_model())
