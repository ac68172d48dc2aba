"""Checks of arguments, before a native call could see them.

Each returns the value as the C side takes it, or raises with what was given, what is allowed and what to do.
"""

from __future__ import annotations

import math
import operator
import os
import re
from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, SupportsIndex, TypeVar

import numpy as np

from moebind._core.shown import shown

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Buffer

INT32_MAX = 2**31 - 1
#: libllama takes thread counts as they come and ends the process when the system cannot start as many.
THREADS_MAX = 512
#: No system takes longer paths.
PATH_MAX = 4096
#: So many members of an enumeration are listed.
_FEW = 12
#: The beginning of addresses of files on the Hugging Face Hub, as for fsspec.
HUB = "hf://"

_BRACKETS = re.compile(r"[\[\]{}]")

EnumT = TypeVar("EnumT", bound=IntEnum)


def integer(name: str, value: SupportsIndex, low: int, high: int = INT32_MAX) -> int:
    """An integer (numpy's included, bool not) between ``low`` and ``high``, both allowed."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} is {shown(value)}; it takes an integer")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {shown(value)} ({type(value).__name__}); it takes an integer") from None
    if not low <= number <= high:
        raise ValueError(f"{name} is {shown(number)}; it takes {low} to {high}")
    return number


def number(name: str, value: float, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite real number between ``low`` and ``high``, both allowed."""
    if isinstance(value, (bool, np.bool_, str, bytes)):
        raise TypeError(f"{name} is {shown(value)}; it takes a number")
    try:
        result = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {shown(value)} ({type(value).__name__}); it takes a number") from None
    except OverflowError:
        raise ValueError(f"{name} is too large for a float; it takes a finite number") from None
    if not math.isfinite(result):
        raise ValueError(f"{name} is {result}; it takes a finite number")
    if not low <= result <= high:
        # A limit that only keeps numbers finite is nothing to tell who is below the other one.
        allowed = f"{low:g} or more" if high >= INT32_MAX and result < low else f"{low:g} to {high:g}"
        raise ValueError(f"{name} is {result:g}; it takes {allowed}")
    return result


def boolean(name: str, value: bool) -> bool:
    """True or False (numpy's included), nothing that is merely truthy."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} is {shown(value)} ({type(value).__name__}); it takes True or False")
    return bool(value)


def member(name: str, value: EnumT | int, kind: type[EnumT], allowed: Sequence[EnumT] | None = None) -> EnumT:
    """A member of ``kind``, or its number; ``allowed`` narrows it."""
    if isinstance(value, (bool, float, str)) or (isinstance(value, IntEnum) and not isinstance(value, kind)):
        raise TypeError(f"{name} is {shown(value)}; it takes a member of {kind.__name__}{_meant(value, kind, allowed)}")
    members = list(kind.__members__.values()) if allowed is None else list(allowed)
    try:
        chosen = kind(operator.index(value))
    except TypeError:
        meant = _meant(value, kind, allowed)
        raise TypeError(f"{name} is {shown(value)}; it takes a member of {kind.__name__}{meant}") from None
    if chosen not in members:
        names = ", ".join(each.name for each in members)
        raise ValueError(f"{name} is {shown(value)}; it takes one of {kind.__name__}: {names}")
    return chosen


def _meant(value: object, kind: type[EnumT], allowed: Sequence[EnumT] | None) -> str:
    """The members that a name, or the member of another enumeration, may stand for."""
    names = [each.name for each in (kind if allowed is None else allowed)]
    name = value.name if isinstance(value, IntEnum) else value
    wanted = name.upper().replace("-", "_") if isinstance(name, str) else ""
    same = [each for each in names if each.upper() == wanted]
    # A file's type, such as Q4_K_M, is a mixture of tensors of a type, such as Q4_K, and others.
    near = same or [
        each for each in names if wanted and (each.startswith(f"{wanted}_") or wanted.startswith(f"{each}_"))
    ]
    if near:
        return f": {' or '.join(f'{kind.__name__}.{each}' for each in near)}"
    return f": {', '.join(names)}" if len(names) <= _FEW else ""


def text(name: str, value: str) -> bytes:
    """A str as UTF-8, for a C string: no NUL, no lone surrogate."""
    if not isinstance(value, str):
        raise TypeError(f"{name} is {shown(value)} ({type(value).__name__}); it takes a str")
    if "\0" in value:
        raise ValueError(f"{name} contains a NUL character at {value.index(chr(0))}, which a C string cannot hold")
    return utf8(name, value)


def utf8(name: str, value: str) -> bytes:
    """A str as UTF-8, NUL allowed: for functions that take a length."""
    if not isinstance(value, str):
        raise TypeError(f"{name} is {shown(value)} ({type(value).__name__}); it takes a str")
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} contains the lone surrogate {shown(value[error.start])} at {error.start}, which UTF-8 cannot "
            "hold: decode the text with the right encoding, or with errors='replace'"
        ) from None


def nesting(text: str) -> int:
    """How deeply brackets are nested, at most, in text that may be JSON; those in strings may count."""
    depth = deepest = 0
    for bracket in _BRACKETS.finditer(text):
        depth = depth + 1 if bracket[0] in "[{" else max(depth - 1, 0)
        deepest = max(deepest, depth)
    return deepest


def path(name: str, value: str | os.PathLike[str]) -> str:
    """A path as str, without NUL. A ``~`` at its beginning is the home folder, unless there is a file of that name."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} is {shown(value)} ({type(value).__name__}); it takes a str or a path object")
    result = os.fspath(value)
    if isinstance(result, bytes):
        raise TypeError(f"{name} is a path of bytes; it takes one of str")
    if "\0" in result:
        raise ValueError(f"{name} contains a NUL character")
    if not result:
        raise ValueError(f"{name} is empty; it takes the path of a file")
    if len(result) > PATH_MAX:
        raise ValueError(f"{name} is {shown(result)}, {len(result)} characters; a path has at most {PATH_MAX}")
    if result.startswith("~") and not os.path.lexists(result.partition(os.sep)[0]):
        return os.path.expanduser(result)
    return result


def on_hub(path: str) -> bool:
    """Whether a path is the address of a file on the Hugging Face Hub.

    Path objects make one slash of two: so is ``hf:/OWNER/REPO``, unless there is a file of that name.
    """
    return path.startswith(HUB) or (path.startswith(HUB[:-1]) and not os.path.lexists(path))


def local_path(name: str, value: str | os.PathLike[str], takes: str) -> str:
    """A path as :func:`path` has it, and no address on the Hugging Face Hub; ``takes`` says what it takes instead."""
    given = path(name, value)
    if on_hub(given):
        raise ValueError(f"{name} is {shown(given)}, an address on the Hugging Face Hub; it takes {takes}")
    return given


def absolute(path: str) -> str:
    """A path from the root; the address of a file on the Hugging Face Hub is one."""
    return path if on_hub(path) else os.path.abspath(path)


def int32_array(name: str, value: object, low: int, high: int = INT32_MAX) -> NDArray[np.int32]:
    """A one-dimensional, contiguous int32 array of numbers from ``low`` to ``high``, from integers of any width."""
    if isinstance(value, (str, bytes)):
        raise TypeError(f"{name} is a {type(value).__name__}; it takes a sequence or array of integers")
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{name} cannot be made into an array: {str(error)[:200]}") from None
    if array.ndim == 0:
        raise TypeError(f"{name} is {shown(value)} ({type(value).__name__}); it takes a sequence or array of integers")
    if array.ndim != 1:
        raise ValueError(f"{name} has {array.ndim} dimensions; it takes one")
    if array.size == 0:
        return np.empty(0, np.int32)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} has dtype {array.dtype}; it takes integers")
    least, most = int(array.min()), int(array.max())
    if least < low or most > high:
        at = int(np.argmax((array < low) | (array > high)))
        raise ValueError(f"{name}[{at}] is {int(array[at])}; it takes {low} to {high}")
    return np.ascontiguousarray(array, np.int32)


def float32_array(name: str, value: object) -> NDArray[np.float32]:
    """A contiguous float32 array of any shape, of whatever numpy makes one of."""
    try:
        return np.asarray(value, np.float32, order="C")
    except (TypeError, ValueError, OverflowError) as error:
        # numpy quotes the value, whole.
        raise type(error)(f"{name} cannot be made into an array of numbers: {str(error)[:200]}") from None


def octets(name: str, value: Buffer) -> memoryview:
    """A flat view of bytes, bytearray, memoryview or an array of bytes; of a copy if they are not contiguous."""
    try:
        view = memoryview(value)
    except TypeError:
        raise TypeError(f"{name} is {shown(value)} ({type(value).__name__}); it takes bytes") from None
    if view.itemsize != 1 or view.format not in {"B", "b", "c"}:
        raise TypeError(f"{name} has elements of format {shown(view.format)}; it takes bytes")
    return view.cast("B") if view.c_contiguous and view.nbytes else memoryview(view.tobytes())
