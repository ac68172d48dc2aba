"""When a process hangs, on a machine that may have much else to do: seconds of a clock alone do not tell.

The whole machine may stand still for a while, too: so what counts is how often nothing was seen to have changed.
"""

from __future__ import annotations

import os
from multiprocessing.connection import Connection
from pathlib import Path


def seconds_of(process: int) -> float:
    """Processor time that it took."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def answers(pipe: Connection, process: int, seconds: float) -> bool:
    """Wait for what a process sends, or its end. Not, once it took so many seconds, or did nothing for as long."""
    began = worked = seconds_of(process)
    idle, look = 0.0, min(seconds, 1.0)
    while not pipe.poll(look):
        now = seconds_of(process)
        idle = 0.0 if now > worked else idle + look
        worked = now
        if worked - began > seconds or idle > seconds:
            return False
    return True
