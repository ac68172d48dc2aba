"""Importance matrices: how much each column of a weight matters, measured by ``llama-imatrix`` on a text."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from moebind._core import checks
from moebind._core.shown import shown
from moebind.errors import QuantizeError
from moebind.files.download import local_file
from moebind.files.gguf import Gguf

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["importances"]

#: Larger ones overflow in the quantisers, some of which then fail an assertion.
_VALUE_MAX = 1e20

_SUMS, _COUNTS = ".in_sum2", ".counts"


def importances(imatrix: str | os.PathLike[str] | Mapping[str, ArrayLike]) -> dict[str, NDArray[np.float32]]:
    """Tensor names and the importance of their columns, for each of their matrices in turn.

    Parameters
    ----------
    imatrix
        A file that ``llama-imatrix`` wrote, as GGUF or in its older format, its address on the Hugging Face Hub, or the
        numbers themselves.

    Raises
    ------
    QuantizeError
        If the file is not an importance matrix.
    ValueError
        If the numbers are not finite, negative, or none.
    """
    if isinstance(imatrix, Mapping):
        return {name: _checked(name, values) for name, values in imatrix.items()}
    path = local_file(checks.path("imatrix", imatrix))
    if not os.path.isfile(path):
        raise FileNotFoundError(f"imatrix is {path!r}, which is not a file")
    with open(path, "rb") as file:
        is_gguf = file.read(4) == b"GGUF"
    found = _of_gguf(path) if is_gguf else _of_legacy(path)
    if not found:
        raise QuantizeError(f"{path} holds no importance matrix")
    return {name: _checked(name, values) for name, values in found.items()}


def _checked(name: str, values: ArrayLike) -> NDArray[np.float32]:
    checks.text("a name in imatrix", name)
    try:
        array = np.ascontiguousarray(values, np.float32).ravel()
    except (TypeError, ValueError) as error:
        raise ValueError(f"imatrix[{shown(name)}] is not an array of numbers: {str(error)[:200]}") from None
    if array.size == 0:
        raise ValueError(f"imatrix[{shown(name)}] is empty; it takes a number for each column")
    if not (array.min() >= 0 and array.max() <= _VALUE_MAX):
        raise ValueError(f"imatrix[{shown(name)}] has numbers that are not within 0 to {_VALUE_MAX:g}")
    return array


def _means(sums: NDArray[np.float32], counts: NDArray[np.float32]) -> NDArray[np.float32]:
    """Means, by matrix; 1 for a matrix that the text never reached, as llama-quantize has it."""
    rows = sums.reshape(counts.size, -1)
    seen = counts.reshape(-1, 1) > 0
    with np.errstate(all="ignore"):  # what is not finite is refused later
        means: NDArray[np.float32] = np.where(seen, rows / np.where(seen, counts.reshape(-1, 1), 1), np.float32(1))
    return means


def _of_gguf(path: str) -> dict[str, NDArray[np.float32]]:
    tensors = Gguf._from_local(path).tensors
    found = {}
    for name, tensor in tensors.items():
        if not name.endswith(_SUMS):
            continue
        weight = name[: -len(_SUMS)]
        counts = tensors.get(weight + _COUNTS)
        if counts is None or not counts.n_elements or tensor.n_elements % counts.n_elements:
            raise QuantizeError(f"{path} is damaged: the sums and counts of {weight} do not go together")
        found[weight] = _means(tensor.data().ravel().astype(np.float32), counts.data().ravel().astype(np.float32))
    return found


def _of_legacy(path: str) -> dict[str, NDArray[np.float32]]:
    """Entries of name, number of calls and values; whatever follows them tells of the text."""
    found: dict[str, NDArray[np.float32]] = {}
    with open(path, "rb") as file:
        left = os.fstat(file.fileno()).st_size
        try:
            for _ in range(_int(file)):
                name = _bytes(file, _int(file), left).decode("utf-8", "replace")
                calls = _int(file)
                values = np.frombuffer(_bytes(file, 4 * _int(file), left), np.float32)
                found[name] = _means(values, np.array([calls], np.float32))
        except (struct.error, ValueError) as error:
            raise QuantizeError(f"{path} is not an importance matrix, or a damaged one") from error
    return found


def _int(file: BinaryIO) -> int:
    return int(struct.unpack("<i", file.read(4))[0])


def _bytes(file: BinaryIO, size: int, most: int) -> bytes:
    if not 0 < size <= most:
        raise ValueError(size)
    content = file.read(size)
    if len(content) != size:
        raise ValueError(size)
    return content
