"""Files that benchmarks/speed.py needs besides the demo models: many tokens, many tensors in nine files."""

from __future__ import annotations

import os
from pathlib import Path

import programs
import shapes
import wide_vocabulary
from speed_settings import Settings

N_WIDE = 150_000
LARGE, SPLIT, N_FILES = "phi-3.5-moe-q4_k_m", "deepseek-v3-q4_k_m", 9


def wide_model(dense: Path, folder: Path, n_vocab: int = N_WIDE) -> Path:
    """The dense model with so many tokens (``wide_vocabulary.py``)."""
    path = folder / f"{dense.stem}-{n_vocab}.gguf"
    if not path.exists():
        unfinished = path.with_name(f"{path.name}.{os.getpid()}")
        wide_vocabulary.write(dense, unfinished, n_vocab)
        unfinished.replace(path)
    return path


def settings(folder: Path, **sizes: int) -> Settings:
    """Everything that there is to measure with, made where it is missing."""
    dense = Path(programs.demo_model(dense=True))
    large = shapes.write(folder / f"{LARGE}.gguf", shapes.SHAPES[LARGE])
    split = shapes.write(folder / f"{SPLIT}.gguf", shapes.SHAPES[SPLIT], N_FILES)
    wide = wide_model(dense, dense.parent)
    return Settings(programs.demo_model(), str(dense), str(wide), str(large), str(split), **sizes)
