"""llama-server as a process: started, listened to, ended with this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from moebind._core.endings import ended_by
from moebind.errors import ServerError
from moebind.server import keeper

__all__ = ["Process", "has_page", "program"]

#: Seconds that llama-server has to end by itself.
GRACE = 5.0


def program() -> str:
    """The llama-server that was installed with moebind.

    Raises
    ------
    ServerError
        If it is missing.
    """
    import importlib.resources

    path = str(importlib.resources.files("moebind") / "bin" / "llama-server")
    if not os.path.exists(path):
        raise ServerError(f"{path} is missing: install moebind again, with the server")
    return path


def has_page() -> bool:
    """Whether that llama-server has its web page: the build had npm, which makes it."""
    import importlib.resources

    return (importlib.resources.files("moebind") / "ui" / "files.tsv").is_file()


class Process:
    """A running command with its keeper (:mod:`moebind.server.keeper`), whose lines are read as they come.

    Parameters
    ----------
    command
        The program and its arguments.
    environment
        Its environment, whole.
    on_line
        Called with each line that it writes, in a thread.
    on_end
        Called in another thread once it ended; ``ending`` then says how.
    folder
        A folder that is removed if this process ends without ending it.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        on_line: Callable[[str], None],
        on_end: Callable[[], None],
        folder: str = "",
    ) -> None:
        self._starter = os.getpid()
        read, report = os.pipe()
        try:
            self._keeper = subprocess.Popen(
                [sys.executable, "-I", "-S", keeper.__file__, str(os.getpid()), str(report), folder, *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                pass_fds=[report],
                start_new_session=True,  # Ctrl-C is for us
            )
        except BaseException:
            os.close(read)
            raise
        finally:
            os.close(report)
        with open(read, "rb") as pids:
            written = pids.readline()
        #: The process id of llama-server itself; 0 if it was not even started.
        self.pid = int(written) if written else 0
        #: How it ended, for people; None while it runs.
        self.ending: str | None = None
        self._reader = _thread(self._read, on_line)
        self._waiter = _thread(self._wait, on_end)

    def _read(self, on_line: Callable[[str], None]) -> None:
        lines = self._keeper.stdout
        assert lines is not None  # noqa: S101  # it is a pipe
        with lines:
            for line in lines:
                on_line(line.decode("utf-8", "replace").rstrip("\n"))

    def _wait(self, on_end: Callable[[], None]) -> None:
        status = self._keeper.wait()
        if status < 0:  # the keeper was killed, which otherwise leaves nothing behind
            self._kill_rest()
        self._reader.join(GRACE)  # nobody is left to write, but what left the process group
        self.ending = _ending(status)
        on_end()

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._keeper.poll() is None

    def end(self, grace: float = GRACE) -> None:
        """Ask it to end, kill it if it does not, and wait until it is gone.

        In the child of a fork it does nothing: the process is its parent's.
        """
        if os.getpid() != self._starter:
            return
        self._keeper.terminate()  # which does nothing once it was waited for
        try:
            self._keeper.wait(grace)
        except subprocess.TimeoutExpired:
            self._kill_rest()
            self._keeper.wait()
        self._waiter.join()

    def kill(self) -> None:
        """Kill it, without waiting: for the end of the interpreter, when threads are gone."""
        if os.getpid() == self._starter and self.alive:
            self._kill_rest()
            self._keeper.kill()

    def _kill_rest(self) -> None:
        """Kill the process group: llama-server, and the models that it runs as processes of their own."""
        with suppress(ProcessLookupError, PermissionError):
            if self.pid:
                os.killpg(self.pid, signal.SIGKILL)


def _thread(target: Callable[..., None], argument: object) -> threading.Thread:
    thread = threading.Thread(target=target, args=(argument,), name="llama-server", daemon=True)
    thread.start()
    return thread


def _ending(status: int) -> str:
    told = ended_by(-status if status < 0 else status - 128)
    return told or f"ended with status {status}"
