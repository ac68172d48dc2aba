"""When a process hangs, on a machine that may have much else to do: seconds of a clock alone do not tell."""

from __future__ import annotations

import os
import time
from multiprocessing.connection import Connection
from pathlib import Path


def seconds_of(process: int) -> float:
    """Processor time that it took."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def answers(pipe: Connection, process: int, seconds: float) -> bool:
    """Wait for what a process sends, or its end. Not, once it took so many seconds, or did nothing for as long."""
    began = worked = seconds_of(process)
    since = time.monotonic()
    while not pipe.poll(min(seconds, 1)):
        now = seconds_of(process)
        if now > worked:
            worked, since = now, time.monotonic()
        if worked - began > seconds or time.monotonic() - since > seconds:
            return False
    return True
