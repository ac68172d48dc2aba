"""The base classes of objects that own native memory.

A fork copies the memory of the process, but neither its threads nor what devices hold. So in the child of a fork every
object is closed, and nothing that it had is freed: that is the parent's. What the child makes itself works.
The rest is in ``src/moebind/_core/fork.py``.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, SupportsIndex
from weakref import WeakSet

from moebind._core.fork import new_in_child
from moebind._core.native import CData
from moebind.errors import ClosedError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["CallLock", "OfThisProcess", "Owner", "warn_unclosed"]


class CallLock:
    """Lets one thread at a time into an object that libllama does not protect, and nobody in from its own callbacks."""

    def __init__(self) -> None:
        self._lock = new_in_child(threading.RLock())

    def held(self) -> AbstractContextManager[bool]:
        """The context manager for a native call: ``with lock.held():``.

        It is the lock itself: written in C, it is left whenever a signal handler raises.

        Raises
        ------
        RuntimeError
            If this thread holds it already: a callback of the object's own calls it again.
        """
        if self._lock._is_owned():  # type: ignore[attr-defined]  # as threading.Condition asks it
            raise RuntimeError("this object is in the middle of a call, whose callback must not call it again")
        return self._lock


class OfThisProcess:
    """An object with native memory, which cannot be pickled: another process makes one of its own."""

    __slots__ = ()
    #: The advice of the error message: what to do in the other process.
    _elsewhere = "make another one there"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """Refuse to be pickled or copied."""
        name = type(self).__name__
        raise TypeError(
            f"{'an' if name[0] in 'AEIOU' else 'a'} {name} cannot be pickled or copied: it holds native memory of this "
            f"process. To use one in another process, {self._elsewhere}"
        )


class Owner(OfThisProcess):
    """An object that owns one native thing: closed until it has it, and again after ``close()``.

    The pointer is a cffi object; what it points to is freed when nobody holds it any more. ``close()`` lets go of it;
    numpy views hold it too, and children do so natively, so that memory is never freed under somebody's hands.
    """

    def __new__(cls, *_arguments: object, **_keywords: object) -> Self:
        """Make it known to the child of a fork."""
        made = super().__new__(cls)
        _everything.add(made)
        return made

    _pointer: CData | None = None
    _why_closed = "it was closed"
    #: Whether to warn when it is collected without having been closed: only where that memory is large.
    _warn_unclosed = False

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._pointer is None

    def close(self) -> None:
        """Free the native memory, once no view of it is left. Closing twice does nothing."""
        self._pointer = None

    @property
    def native(self) -> CData:
        """The pointer for functions of ``moebind.lib``. It keeps the memory, but no callbacks, while you hold it.

        Calls with it are guarded, but unlike this object's own calls they are neither checked nor serialised.
        """
        return self._open()

    def _open(self) -> CData:
        """The native pointer.

        Raises
        ------
        ClosedError
            If there is none any more.
        """
        pointer = self._pointer
        if pointer is None:
            raise ClosedError(f"this {type(self).__name__} cannot be used: {self._why_closed}")
        return pointer

    def _leave_to_parent(self) -> None:
        """Close, in the child of a fork, which frees nothing of its parent's (``native/core/owned.cpp``)."""
        if self._pointer is not None:
            self._pointer = None
            self._why_closed = "it belongs to the process that this one was forked from; make one here"

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self, _ending: Callable[[], bool] = sys.is_finalizing) -> None:
        if self._warn_unclosed and self._pointer is not None and not _ending():
            warn_unclosed(self)


def warn_unclosed(owner: object) -> None:
    """Warn of an object that is collected; from its finalizer, which the interpreter calls."""
    warnings.warn(f"{owner!r} was never closed", ResourceWarning, source=owner, stacklevel=3)


#: Every object there is.
_everything: WeakSet[Owner] = WeakSet()


def _after_fork() -> None:
    for owner in list(_everything):
        owner._leave_to_parent()


os.register_at_fork(after_in_child=_after_fork)


def close_all(children: WeakSet[Owner], why: str) -> None:
    """Close those that are still open; ``why`` is what they say when they are used."""
    for child in list(children):
        if not child.closed:
            child._why_closed = why  # before others can meet it closed
            child.close()
