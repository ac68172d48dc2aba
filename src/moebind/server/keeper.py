"""Runs a command, and ends it, and all that it started, with the process that asked for it.

A program of its own, which imports nothing of moebind's: ``keeper.py PARENT REPORT FOLDER COMMAND...``. PARENT is the
process that asked, REPORT a file descriptor for the command's process id, FOLDER one with its files, or empty. It ends
as the command does.

- The parent ends, however it does: the command's process group is killed, and the folder removed.
- The command ends: what is left of its process group is killed.
- The keeper itself is killed: the system kills the command. (That signal comes when the *thread* ends that started the
  command. A keeper has one thread; the parent has others.)
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
from contextlib import suppress

#: ``PR_SET_PDEATHSIG`` of ``linux/prctl.h``.
PARENT_DEATH_SIGNAL = 1
#: Seconds between looks at whether the parent is still there.
LOOK = 0.5
#: Signals that the command gets in the keeper's place.
FORWARDED = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


def keep(parent: int, report: int, folder: str, command: list[str]) -> int:
    """Run the command: the status that it ends with, as ``os.waitpid`` has it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, *FORWARDED})
    keeper = os.getpid()
    child = os.fork()
    if child == 0:
        _become(command, keeper)
    os.write(report, f"{child}\n".encode())
    os.close(report)
    while True:
        came = signal.sigtimedwait({signal.SIGCHLD, *FORWARDED}, LOOK)
        ended, status = os.waitpid(child, os.WNOHANG)
        alone = os.getppid() != parent
        if ended:
            _kill_group(child)
            if alone and folder:
                shutil.rmtree(folder, ignore_errors=True)
            return status
        if alone:
            _kill_group(child)
        elif came is not None and came.si_signo in FORWARDED:
            os.kill(child, came.si_signo)


def _become(command: list[str], keeper: int) -> None:
    try:
        os.setpgid(0, 0)
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        if os.getppid() == keeper:  # or it was killed before the line above
            signal.pthread_sigmask(signal.SIG_SETMASK, set())
            os.execv(command[0], command)  # noqa: S606  # this is the command's process
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def _kill_group(leader: int) -> None:
    with suppress(ProcessLookupError):  # nobody is left
        os.killpg(leader, signal.SIGKILL)


def main(arguments: list[str]) -> None:
    """End as the command ends: with its status, or as shells do with 128 and the signal that ended it."""
    status = os.waitstatus_to_exitcode(keep(int(arguments[0]), int(arguments[1]), arguments[2], arguments[3:]))
    sys.exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    main(sys.argv[1:])
