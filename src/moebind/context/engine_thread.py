"""The thread of an engine: it alone computes, and decides; all others send it messages.

What comes from other threads, requests and what readers want, waits in one queue that takes no lock of Python's
(``queue.SimpleQueue``), between two batches. A batch is stopped in its middle only if nobody wants any of it: then it
would be computed for nothing. Stopping it aborts this thread's computation and no other (``moebind_hooks_of_thread``).
"""

from __future__ import annotations

import atexit
import copy
import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from queue import SimpleQueue
from typing import TYPE_CHECKING
from weakref import WeakSet

from moebind._core.fork import new_in_child
from moebind._core.native import Hooks, ffi, lib
from moebind.context.deliveries import Asked, ToTask
from moebind.errors import AbortedError, ClosedError, EngineFullError, LoraError

if TYPE_CHECKING:
    from moebind.context.context import Context
    from moebind.context.schedule import Run
    from moebind.context.stepping import Progress, Steps

__all__ = ["EngineThread"]


class EngineThread:
    """The thread that computes the texts of an engine.

    Parameters
    ----------
    context
        Belongs to the thread, which closes it at its end.
    steps
        What it does.
    n_ahead
        How many pieces it computes for a reader who does not read.
    n_open_max
        How many texts there may be at a time; None: any number.
    opened
        What it closes at last.
    """

    def __init__(self, context: Context, steps: Steps, n_ahead: int, n_open_max: int | None, opened: ExitStack) -> None:
        self._context, self._steps, self._opened = context, steps, opened
        self.n_ahead, self._n_open_max = n_ahead, n_open_max
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._lock = new_in_child(threading.RLock())
        #: The texts that have not ended, by index.
        self._open: dict[int, Asked] = {}
        #: Those that are computed just now.
        self._computing: list[Run] = []
        #: Coroutines to be woken.
        self._woken: list[ToTask] = []
        self._hooks = Hooks()
        self._stopping = False
        #: Why it computes nothing any more.
        self.over: str | None = None
        self._thread = threading.Thread(target=self._run, name="moebind engine", daemon=True)
        self._thread.start()
        _running.add(self)

    # --- for other threads ---

    @property
    def n_open(self) -> int:
        """How many texts have not ended."""
        return len(self._open)

    @property
    def n_running(self) -> int:
        """How many texts have a sequence."""
        return len(self._steps.schedule.running)

    def submit(self, run: Asked) -> None:
        """Have a text computed, which has a delivery. Whoever is interrupted here has to leave that.

        Raises
        ------
        ClosedError
        EngineFullError
        """
        assert run.delivery is not None  # noqa: S101
        with self._lock:
            if self.over is not None:
                raise ClosedError(self.over)
            if self._n_open_max is not None and len(self._open) >= self._n_open_max:
                n_sequences = self._steps.schedule.n_seq_max
                raise EngineFullError(
                    f"the engine has {len(self._open)} requests that have not ended: {n_sequences} for its sequences "
                    f"(n_seq_max), and {self._n_open_max - n_sequences} that wait (max_waiting). It takes no more: "
                    "wait until one ends, or make the engine with a larger max_waiting"
                )
            if run.request.limit == 0:
                run.delivery.end(None)
                return
            self._open[run.index] = run
        self._inbox.put(lambda: self._add(run))

    def resume(self, run: Asked) -> None:
        """Have a text go on that was paused."""
        self._inbox.put(lambda: self._resume(run))

    def cancel(self, run: Asked) -> None:
        """Have a text forgotten, at once if nothing else is computed with it."""
        if run.index not in self._open:  # it has ended, or was refused
            return
        self._inbox.put(lambda: self._cancel(run, None))
        # The thread notes what it will compute, then looks for messages, then computes: it misses none of both.
        computing = self._computing
        if computing and all(isinstance(each, Asked) and each.cancelled for each in computing):
            lib.moebind_hooks_abort(self._hooks.pointer)

    def abort(self) -> None:
        """Have all texts end with :class:`AbortedError`."""
        self._inbox.put(self._abort)
        lib.moebind_hooks_abort(self._hooks.pointer)

    def stop(self) -> None:
        """Have the thread end, and with it all texts, and the context."""
        self._stopping = True
        self._inbox.put(lambda: None)
        lib.moebind_hooks_abort(self._hooks.pointer)

    def join(self) -> None:
        """Wait until it has ended, unless it is this one."""
        if self._thread is not threading.current_thread() and self._thread.is_alive():
            self._thread.join()

    def must_be_elsewhere(self) -> None:
        """Raise if this is the engine's thread, which cannot wait for itself.

        Raises
        ------
        RuntimeError
        """
        if self._thread is threading.current_thread():
            raise RuntimeError("a callback of an engine's own cannot wait for what the engine is to compute")

    def leave_to_parent(self) -> None:
        """Note, in the child of a fork, that there is no thread."""
        if self.over is None:
            self.over = "this Engine belongs to the process that this one was forked from; make one here"

    # --- in its own thread ---

    def _run(self) -> None:
        lib.moebind_hooks_of_thread(self._hooks.pointer)
        failure: BaseException | None = None
        try:
            self._work()
        except BaseException as error:
            failure = error
        finally:
            lib.moebind_hooks_of_thread(ffi.NULL)
            with self._lock:
                was_closed = isinstance(failure, ClosedError) and self._context.closed
                why = self._context._why_closed if was_closed else _why_over(failure)
                self.over = f"this Engine cannot be used: {why}"
            self._context.close()
            n_told = len(self._open)
            for run in list(self._open.values()):
                self._end(run, ClosedError(self.over) if failure is None or was_closed else _another(failure))
            self._wake_all()
            self._opened.close()
        if failure is not None and not isinstance(failure, ClosedError) and not n_told:
            raise failure

    def _work(self) -> None:
        steps, inbox = self._steps, self._inbox
        while not self._stopping:
            while not inbox.empty():
                inbox.get()()
            try:
                steps.fill()
            except LoraError as error:
                self._lose(list(steps.schedule.running), error)
                continue
            self._wake_all()
            self._computing = steps.able()
            if not self._computing:
                if not self._stopping:  # or the message that woke it for that is read already
                    inbox.get()()
                continue
            lib.moebind_hooks_forget(self._hooks.pointer)
            if inbox.empty() and not self._stopping:
                self._deliver(self._advance())
                self._wake_all()
            self._computing = []

    def _advance(self) -> list[Progress]:
        """Compute one batch. What fails ends those who are in it, and nobody else."""
        steps = self._steps
        try:
            return steps.advance()
        except AbortedError as error:
            if lib.moebind_hooks_aborted(self._hooks.pointer):  # it was not the user
                steps.rewind()
            else:
                self._lose(steps.computed, error)
        except BaseException as error:
            if self._context.closed:
                raise
            self._lose(steps.computed, error)
        return []

    def _deliver(self, batch: list[Progress]) -> None:
        """Give what was computed to those who asked."""
        for progress in batch:
            run = progress.run
            assert isinstance(run, Asked)  # noqa: S101
            assert run.delivery is not None  # noqa: S101
            run.delivery.put(progress.pieces)
            if progress.ended:
                self._end(run, progress.taken_error())
            else:
                run.paused = run.delivery.pauses()

    def _lose(self, runs: list[Run], error: BaseException) -> None:
        """End these, for whom a computation failed."""
        for run in runs:
            self._steps.drop(run)
            if isinstance(run, Asked):
                self._end(run, _another(error))

    def wake(self, task: ToTask) -> None:
        """Have a coroutine woken with all others, once the batch is delivered."""
        self._woken.append(task)

    def _wake_all(self) -> None:
        if self._woken:
            ToTask.wake_all(self._woken)
            self._woken = []

    def _end(self, run: Asked, error: BaseException | None) -> None:
        if self._open.pop(run.index, None) is not None and run.delivery is not None:
            run.delivery.end(error)

    # --- messages ---

    def _add(self, run: Asked) -> None:
        if run.index in self._open:  # it may have been cancelled before
            self._steps.schedule.add(run)

    def _cancel(self, run: Asked, error: BaseException | None) -> None:
        if run.index in self._open:
            self._steps.cancel(run)
            self._end(run, error)

    def _resume(self, run: Asked) -> None:
        if run.paused and run.index in self._open:
            run.paused = False
            if run.seq < 0:
                self._steps.schedule.add(run)

    def _abort(self) -> None:
        for run in list(self._open.values()):
            self._cancel(run, AbortedError("the engine was told to abort", 2))


def _why_over(failure: BaseException | None) -> str:
    """What ended the thread."""
    if failure is None or isinstance(failure, ClosedError):
        return "it was closed"
    return f"it was ended by {type(failure).__name__}: {failure}"


def _another(error: BaseException) -> BaseException:
    """A copy for each who raises it, since raising it in several threads would mix up their tracebacks."""
    try:
        made = copy.copy(error)
    except Exception:  # whatever its class needs to be made
        return error
    return made if type(made) is type(error) else error


#: At the end of the interpreter, they must not be in the middle of something.
_running: WeakSet[EngineThread] = WeakSet()


def _end_all() -> None:
    threads = list(_running)
    for each in threads:
        each.stop()
    for each in threads:
        each.join()


def _in_child() -> None:
    for each in list(_running):
        each.leave_to_parent()


atexit.register(_end_all)
os.register_at_fork(after_in_child=_in_child)
