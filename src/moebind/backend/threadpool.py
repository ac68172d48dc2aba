"""Pools of threads that contexts compute with."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import SupportsIndex

from moebind._core import checks
from moebind._core.native import ffi, lib, own
from moebind._core.owner import CallLock, Owner
from moebind.enums import SchedPriority
from moebind.errors import MoebindError

__all__ = ["ThreadPool"]


class ThreadPool(Owner):
    """Threads with a priority and a place, for contexts to compute with.

    Without one, each context makes its own with llama.cpp's defaults. Contexts that share a pool take turns.

    Parameters
    ----------
    n_threads
        How many threads.
    priority
        How the operating system schedules them; more than normal needs privileges.
    cpus
        The processors that they may run on; None: all those that the process may use.
    strict
        Give each thread one of ``cpus`` to itself.
    poll
        How eagerly waiting threads check for work, from 0 (they sleep) to 100.

    Notes
    -----
    Uses ``ggml_threadpool_new``; :meth:`moebind.Context.attach_threadpool` makes a context use it. If llama.cpp is
    built with OpenMP, OpenMP starts the threads, and the pool only sets where they run. The thread that calls
    ``decode`` is one of them, and keeps its place.

    Examples
    --------
    >>> with ThreadPool(4, cpus=range(4), strict=True) as pool:
    ...     context.attach_threadpool(pool)
    """

    def __init__(
        self,
        n_threads: SupportsIndex,
        *,
        priority: SchedPriority | int = SchedPriority.NORMAL,
        cpus: Iterable[int] | None = None,
        strict: bool = False,
        poll: SupportsIndex = 50,
    ) -> None:
        count = checks.integer("n_threads", n_threads, 1, checks.THREADS_MAX)
        native = ffi.new("struct ggml_threadpool_params *")
        lib.ggml_threadpool_params_init(native, count)
        native.prio = checks.member("priority", priority, SchedPriority)
        native.strict_cpu = checks.boolean("strict", strict)
        native.poll = checks.integer("poll", poll, 0, 100)
        usable = os.sched_getaffinity(0)
        for cpu in () if cpus is None else cpus:
            number = checks.integer("a processor of cpus", cpu, 0, len(native.cpumask) - 1)
            if number not in usable:
                raise ValueError(f"cpus has {number}; this process may use {', '.join(map(str, sorted(usable)))}")
            native.cpumask[number] = True
        pointer = own(lib.own_ggml_threadpool_new, native)
        if not pointer:
            raise MoebindError(f"a pool of {count} threads could not be started")
        self._n_threads = count
        self._lock = CallLock()
        self._pointer = pointer

    @property
    def n_threads(self) -> int:
        """How many threads it has."""
        self._open()
        return self._n_threads

    def pause(self) -> None:
        """Let the threads sleep until they are needed (``ggml_threadpool_pause``)."""
        with self._lock.held():
            lib.ggml_threadpool_pause(self._open())

    def resume(self) -> None:
        """Let the threads wait for work again (``ggml_threadpool_resume``); so does computing."""
        with self._lock.held():
            lib.ggml_threadpool_resume(self._open())

    def __repr__(self) -> str:
        return "<ThreadPool, closed>" if self.closed else f"<ThreadPool of {self._n_threads} threads>"
