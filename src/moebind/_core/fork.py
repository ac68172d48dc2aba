"""Locks in the child of a fork, which would wait for ever for threads that only its parent has.

A fork copies the memory of the process, with its locks as they are, but of its threads only the one that forks. What
another thread has locked at that moment stays locked in the child, unless somebody sees to it:

- The locks of single objects are made new in the child. Objects that own native memory are closed there
  (``src/moebind/_core/owner.py``).
- Those that guard something of the process's, which must be whole in the child, are taken for the fork: the list of
  devices, the log, a few of llama.cpp's and of ``native/`` (``native/core/fork.cpp``).

What Python has locked stays so, such as a module that another thread is importing.
"""

from __future__ import annotations

import os
import threading
from typing import Any, TypeVar
from weakref import WeakSet

from moebind._core.native import lib

__all__ = ["new_in_child", "held_during_fork"]

Lock = TypeVar("Lock")

#: Locks that the child has to make new. They know ``_is_owned`` and ``_at_fork_reinit``, as those of ``threading`` do.
_locks: WeakSet[Any] = WeakSet()


def new_in_child(lock: Lock) -> Lock:
    """Have a lock free in the child of a fork, unless the thread that forks holds it: then it does so in both."""
    _locks.add(lock)
    return lock


def held_during_fork(lock: threading.RLock, at_most: float = -1) -> threading.RLock:
    """Have a fork wait until nobody else holds a lock, but not for more than so many seconds (-1: for ever)."""
    forking = threading.local()  # several threads may fork at once, and not all of them get it in time

    def acquire() -> None:
        forking.holds = lock.acquire(timeout=at_most)

    def release() -> None:
        if forking.holds:
            lock.release()

    os.register_at_fork(before=acquire, after_in_parent=release, after_in_child=release)
    return new_in_child(lock)


def _renew_locks() -> None:
    for lock in list(_locks):
        if not lock._is_owned():
            lock._at_fork_reinit()


def _in_child() -> None:
    lib.moebind_after_fork(True)
    _renew_locks()


os.register_at_fork(
    before=lib.moebind_before_fork,
    after_in_parent=lambda: lib.moebind_after_fork(False),
    after_in_child=_in_child,
)
