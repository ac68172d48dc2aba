"""What processes hold, noted after each round, and whether it is more in the end."""

from __future__ import annotations

import ctypes
import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from types import MappingProxyType

import psutil

MIB = 2**20
SHARED = "/dev/shm/"  # noqa: S108
#: How much more resident memory at the end is none: the allocator's pages come and go by some.
ALLOWED = MIB
MEMORY = frozenset({"allocated", "resident"})


class _Mallinfo2(ctypes.Structure):
    _names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = tuple((name, ctypes.c_size_t) for name in _names)


_libc = ctypes.CDLL(None)
_libc.mallinfo2.restype = _Mallinfo2


def allocated() -> int:
    """Bytes that glibc's allocator has given out, in all its arenas, once what is garbage is collected."""
    gc.collect()
    found = _libc.mallinfo2()
    return int(found.uordblks + found.hblkhd)


def descriptors() -> set[tuple[str, str]]:
    """What this process has open: the numbers, and what is there. What others left may be closed at any time."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the folder itself
            found.add((name, os.readlink(f"/proc/self/fd/{name}")))
    return found


def make_room_for_names() -> None:
    """Have Python's table of interned strings be so large that it is not made anew for hundreds of thousands of them.

    Some come and go, and each takes a place until that is done: once in thousands of rounds, by a MiB.
    """
    names = [sys.intern(f"no such name {number}") for number in range(200_000)]
    names.clear()


@dataclass(frozen=True)
class Held:
    """What a process, and its children, hold."""

    #: Of this process; another's allocator cannot be asked.
    allocated: int
    resident: int
    files: int
    threads: int
    processes: int
    shared_memory: int
    temporary_files: int

    @classmethod
    def by(cls, process: psutil.Process) -> Held:
        """What it holds now."""
        given_out = 0
        if process.pid == os.getpid():
            given_out = allocated()
            _libc.malloc_trim(0)
        return cls(
            given_out,
            process.memory_info().rss,
            process.num_fds(),
            process.num_threads(),
            len(process.children(recursive=True)),
            sum(f" {SHARED}" in line for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines()),
            sum(len(names) for _, _, names in os.walk(tempfile.gettempdir())),
        )

    def least(self, other: Held) -> Held:
        """Of each, the less that two looks have found."""
        return Held(*map(min, astuple(self), astuple(other)))

    def __str__(self) -> str:
        memory = f"{self.allocated / MIB:.2f} MiB allocated, " if self.allocated else ""
        counts = ", ".join(f"{getattr(self, each.name)} {_words(each.name)}" for each in fields(Held)[2:])
        return f"{memory}{self.resident / MIB:.1f} MiB resident, {counts}"


def _words(name: str) -> str:
    return name.replace("_", " ")


class Record:
    """What was held after each round, by each of some processes, which are told apart by what they do."""

    #: Seconds that what is about to end has for it, when all rounds are over.
    patience = 60.0

    def __init__(
        self, warm_up: int, ignored: Iterable[str] = (), varies: Mapping[str, int] = MappingProxyType({})
    ) -> None:
        self.warm_up = warm_up
        self.ignored = frozenset(ignored)
        #: By how much what is counted goes up and down by itself.
        self.varies = varies
        self.rounds: list[Mapping[str, Held]] = []

    def add(self, held: Mapping[str, Held]) -> None:
        """Note a round, and tell every now and then."""
        self.rounds.append(held)
        n = len(self.rounds)
        if n in (1, self.warm_up) or n % max(100, self.warm_up) == 0:
            print(f"{n:6} rounds: {self}", flush=True)

    def settle(self, look: Callable[[], Mapping[str, Held]]) -> None:
        """Look again, for a while, where more is counted at the end.

        A connection whose other end is closed is still open for a moment, in many rounds or in none, as a machine is
        fast. What is kept stays.
        """
        until = time.monotonic() + self.patience
        while self.enough and self._leaks(counted=True) and time.monotonic() < until:
            time.sleep(0.1)
            now = look()
            self.rounds[-1] = {role: held.least(now.get(role, held)) for role, held in self.rounds[-1].items()}

    @property
    def enough(self) -> bool:
        """Whether there are rounds enough to compare."""
        return len(self.rounds) >= 3 * self.warm_up

    def leaks(self) -> list[str]:
        """What there is more of at the end than after the first rounds, and by how much."""
        if not self.enough:
            return [f"{len(self.rounds)} rounds are too few to tell: {3 * self.warm_up} at least"]
        return self._leaks(counted=False) + self._leaks(counted=True)

    def _leaks(self, *, counted: bool) -> list[str]:
        found = []
        compare = self._counted if counted else self._memory
        for role in self.rounds[-1]:
            for name in [each.name for each in fields(Held) if each.name not in self.ignored]:
                if (name in MEMORY) == counted:
                    continue
                before, after = compare([getattr(held[role], name) for held in self.rounds])
                if after - before >= (1 + self.varies.get(name, 0) if counted else ALLOWED):
                    whose = f"{role}: " if role else ""
                    found.append(f"{whose}{_words(name)}: {before:g}, then {after:g}")
        return found

    def _memory(self, bytes_: list[int]) -> tuple[float, float]:
        """Of memory: what there is around the end of the warm-up, and at the end."""
        window = max(1, self.warm_up // 5)
        first, last = bytes_[self.warm_up - window : self.warm_up + window], bytes_[-2 * window :]
        return statistics.median(first), statistics.median(last)

    def _counted(self, counts: list[int]) -> tuple[int, int]:
        """Of what is counted: the least there was in the second third, and in the last.

        So what is open for a moment in some rounds hides nothing; in the first third, it may not all be there yet.
        """
        part = len(counts) // 3
        return min(counts[part : 2 * part]), min(counts[-part:])

    def __str__(self) -> str:
        return "; ".join(f"{role}: {held}" if role else str(held) for role, held in self.rounds[-1].items())
