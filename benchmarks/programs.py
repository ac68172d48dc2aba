"""llama.cpp's own benchmarks, built in the developers' build folder with the libraries that moebind uses."""

from __future__ import annotations

import argparse
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


def arguments(description: str | None, model: str, tokens: int) -> argparse.ArgumentParser:
    """Options of benchmarks of speed: a model, threads, how many rounds, how many tokens in each."""
    from moebind import ContextParams

    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help=f"a GGUF file; without one, {model}")
    parser.add_argument("--threads", type=int, default=ContextParams().n_threads)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=tokens)
    return parser


def demo_model(dense: bool = False) -> str:
    """The path of the demo model, or of the one without experts that it is made from."""
    sys.path.append(str(ROOT / "examples"))
    import demo_model as example

    return str(example.dense_model() if dense else example.demo_model())
