"""What a recorder of routers knows, and the file that keeps it."""

from __future__ import annotations

import io
import os
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moebind._core.atomic_files import read_whole, write_whole
from moebind.placement.chosen_experts import ChosenExperts, Layout

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Recording", "read", "write"]

#: The form of the file, and its number, which grows when an older moebind could no longer read it.
FORMAT, VERSION = "moebind routing", 1
#: Experts of a layer, and layers, at most: far beyond any model, and far below what could not be held.
EXPERTS_MAX, LAYERS_MAX = 2**16, 2**12
#: Bytes of all experts, which sizes of caches are counted with as 64-bit numbers.
BYTES_MAX = 2**60


@dataclass(frozen=True)
class Recording:
    """What was counted, and in which order, if that was kept."""

    counts: NDArray[np.int64]
    n_tokens: NDArray[np.int64]
    size: tuple[int, int]
    layouts: dict[int, Layout]
    alignment: int
    order: ChosenExperts | None


def write(path: str, found: Recording) -> None:
    """Write the file: arrays as numpy has them in an ``.npz``, compressed."""
    layers = sorted(found.layouts)
    arrays: dict[str, Any] = {
        "format": np.array(FORMAT),
        "version": np.array(VERSION),
        "counts": found.counts,
        "n_tokens": found.n_tokens,
        "size": np.array(found.size, np.int64),
        "alignment": np.array(found.alignment),
        "layers": np.array(layers, np.int64),
        "n_expert": np.array([found.layouts[layer].n_expert for layer in layers], np.int64),
        # Layers may have different numbers of matrices: of each, its layer, its bytes, its type and its shape.
        "matrices": np.array(
            [
                (layer, size, *matrix)
                for layer in layers
                for matrix, size in zip(found.layouts[layer].matrices, found.layouts[layer].sizes, strict=True)
            ],
            np.int64,
        ),
        "ordered": np.array(found.order is not None),
    }
    if found.order is not None:
        arrays.update(zip(("steps", "step_tokens", "step_ids", "experts"), found.order.arrays(), strict=True))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_whole(path, [buffer.getbuffer()])


def read(path: str) -> Recording:
    """Read what :func:`write` wrote.

    Raises
    ------
    ValueError
        If it is no such file, damaged, or a newer moebind's.
    OSError
        If it cannot be read.
    """
    name = os.fspath(path)
    other = f"{name} is no recording of routers"
    try:
        content = io.BytesIO(read_whole(name))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{name} does not exist: RoutingRecorder.save and moebind routing --save write such files"
        ) from None
    if not zipfile.is_zipfile(content):
        raise ValueError(f"{other}: write one with RoutingRecorder.save")
    try:
        with np.load(content, allow_pickle=False) as arrays:
            if str(arrays["format"]) != FORMAT:
                raise ValueError(f"{other}: write one with RoutingRecorder.save")
            if int(arrays["version"]) > VERSION:
                form = int(arrays["version"])
                raise ValueError(f"{name} is of a newer moebind (form {form}; this one reads {VERSION})")
            return _checked({key: arrays[key] for key in arrays.files})
    except (KeyError, IndexError, EOFError, TypeError, zipfile.BadZipFile, AttributeError, OverflowError) as error:
        raise ValueError(f"{other}, or a damaged one ({error})") from error
    except ValueError as error:
        if str(error).startswith(name):
            raise
        # Of objects in an array, numpy says how to have their code run.
        why = "it holds Python objects" if "pickle" in str(error) else error
        raise ValueError(f"{other}, or a damaged one ({why})") from None


def _checked(arrays: dict[str, NDArray[Any]]) -> Recording:
    """The recording, if its parts belong together: natively it is read without further looks."""
    n_layer, n_expert = (int(n) for n in arrays["size"])
    counts, n_tokens = arrays["counts"].astype(np.int64), arrays["n_tokens"].astype(np.int64)
    if not (0 <= n_layer <= LAYERS_MAX and 0 <= n_expert <= EXPERTS_MAX):
        raise ValueError(f"{n_layer} layers of {n_expert} experts")
    if counts.ndim != 2 or n_tokens.shape != counts.shape[:1] or (counts.size and counts.shape[1] != n_expert):
        raise ValueError(f"counts of shape {counts.shape} beside {n_expert} experts")
    if not n_layer <= len(counts) <= LAYERS_MAX or (counts < 0).any() or (n_tokens < 0).any():
        raise ValueError("counts of other layers")
    layouts, total = {}, 0
    matrices = arrays["matrices"].reshape(-1, 7).tolist()
    for layer, experts in zip(arrays["layers"].tolist(), arrays["n_expert"].tolist(), strict=True):
        own = [row for row in matrices if row[0] == layer]
        if not own or min(row[1] for row in own) <= 0 or not 0 < experts <= n_expert or not 0 <= layer < LAYERS_MAX:
            raise ValueError(f"layer {layer} has no experts")
        total += experts * sum(row[1] for row in own)
        layouts[layer] = Layout(tuple(tuple(row[2:]) for row in own), tuple(row[1] for row in own), experts)
    if total > BYTES_MAX:
        raise ValueError(f"experts of {total} bytes")
    alignment = int(arrays["alignment"])
    if not 0 < alignment <= 2**20:
        raise ValueError(f"an alignment of {alignment}")
    order = None
    if bool(arrays["ordered"]):
        order = ChosenExperts.of(*(arrays[key] for key in ("steps", "step_tokens", "step_ids", "experts")))
        order.check(len(counts), n_expert)
    return Recording(counts, n_tokens, (n_layer, n_expert), layouts, alignment, order)
