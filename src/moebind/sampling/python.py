"""Samplers written in Python: what native/sampling/python_sampler.cpp calls."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from moebind._core.native import CData, ffi, handle_of
from moebind._core.shown import shown
from moebind.sampling.candidates import TOKEN_DATA, TokenDataArray

__all__ = ["PythonSampler", "applying"]


class _Current(threading.local):
    """The candidates that this thread's samplers are working on, the innermost last."""

    def __init__(self) -> None:
        self.arrays: list[TokenDataArray] = []


_current = _Current()


@contextmanager
def applying(array: TokenDataArray) -> Iterator[None]:
    """Have samplers in Python get this very object, while samplers are applied to ``array``."""
    _current.arrays.append(array)
    try:
        yield
    finally:
        _current.arrays.pop()


class PythonSampler:
    """A Python function, or an object with more methods, as a sampler.

    Parameters
    ----------
    fn
        Called with the candidates. Its ``accept(token)`` and ``reset()`` are called where it has them; an object that
        has either is copied with ``clone()``, or else ``copy.deepcopy``.
    """

    def __init__(self, fn: Callable[[TokenDataArray], object]) -> None:
        self._fn = fn
        self._accept = _method(fn, "accept")
        self._reset = _method(fn, "reset")
        self._clone = _method(fn, "clone")
        #: The pointer that C++ gives back to the callbacks.
        self.handle = handle_of(self)

    def apply(self, native: CData) -> None:
        """Let the function edit candidates in place."""
        array = _current.arrays[-1] if _current.arrays else None
        if array is not None and array._struct() == native:
            array._take_back()
            self._call(array)
            return
        # Memory of somebody else's, of which a view could outlive it: lib.llama_sampler_sample, or an exotic chain.
        theirs = np.frombuffer(ffi.buffer(native.data, native.size * TOKEN_DATA.itemsize), TOKEN_DATA)
        array = TokenDataArray(theirs.copy(), bool(native.sorted))
        array.selected = int(native.selected) if 0 <= native.selected < native.size else None
        self._call(array)
        theirs[: len(array)] = array.data
        native.size, native.sorted = len(array), array.sorted
        native.selected = -1 if array.selected is None else array.selected

    def _call(self, array: TokenDataArray) -> None:
        result: object = self._fn(array)
        if result is not None:
            raise TypeError(
                f"{shown(self._fn)} returned {shown(result)}; a sampler edits the candidates in place, returns None"
            )
        array._check_sorted()

    def accept(self, token: int) -> None:
        """Tell the object that a token was chosen."""
        if self._accept is not None:
            self._accept(token)

    def reset(self) -> None:
        """Tell the object to begin again."""
        if self._reset is not None:
            self._reset()

    def clone(self) -> PythonSampler:
        """One with a state of its own; functions are shared."""
        if self._clone is not None:
            fn = self._clone()
            if not callable(fn):
                raise TypeError(f"{shown(self._fn)}.clone() returned {shown(fn)}; it takes a callable")
            return PythonSampler(fn)
        stateful = self._accept is not None or self._reset is not None
        return PythonSampler(copy.deepcopy(self._fn) if stateful else self._fn)


def _method(fn: object, name: str) -> Callable[..., object] | None:
    method = getattr(fn, name, None)
    return method if callable(method) else None
