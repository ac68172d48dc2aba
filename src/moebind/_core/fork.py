"""Locks in the child of a fork, which would wait for ever for threads that only its parent has.

A fork copies the memory of the process, with its locks as they are, but of its threads only the one that forks. What
another thread has locked at that moment stays locked in the child, unless somebody sees to it:

- The locks of single objects are made new in the child. Objects that own native memory are closed there
  (``src/moebind/_core/owner.py``).
- Those that guard something of the process's, which must be whole in the child, are taken for the fork: the list of
  devices, the log, a few of llama.cpp's and of ``native/`` (``native/core/fork.cpp``).

- A module that another thread is importing is locked by Python, and half made in the child. moebind imports some when
  they are first needed, in any thread; so a fork waits a while for all imports to end.

What else Python or the program has locked stays so.
"""

from __future__ import annotations

import importlib._bootstrap as imports
import os
import threading
import time
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


def _wait_for_imports(at_most: float = 1.0) -> None:
    """Wait until no other thread imports a module; not for long: it may wait for what the forking one imports."""
    mine = threading.get_ident()
    until = time.monotonic() + at_most
    while (
        any(_imported_by(lock) not in (None, mine) for lock in list(_import_locks.values()))
        and time.monotonic() < until
    ):
        time.sleep(0.001)


def _imported_by(reference: Any) -> int | None:
    lock = reference()
    return None if lock is None else getattr(lock, "owner", None)


#: Python's own: a weak reference to a lock for each module that is being imported.
_import_locks: dict[str, Any] = getattr(imports, "_module_locks", {})

# The first that is registered is called last: while other functions wait, threads may begin another import.
os.register_at_fork(before=_wait_for_imports)
os.register_at_fork(
    before=lib.moebind_before_fork,
    after_in_parent=lambda: lib.moebind_after_fork(False),
    after_in_child=_in_child,
)
