"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Signature", "read_whole", "same_file", "signature", "signature_of", "staged", "write_whole"]

#: Numbers of a file that differ from those of other files, and change when it is changed.
Signature = tuple[int, int, int, int]


def signature(path: str) -> Signature:
    """Device, number, size and time of change of a file."""
    return signature_of(os.stat(path))


def signature_of(found: os.stat_result) -> Signature:
    """The same, from what the system tells."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def write_whole(path: str, parts: Sequence[Buffer]) -> None:
    """Write a file, or leave the one that is there as it is.

    The parts go to a temporary file in the same folder, to the disk, and only then under the name: whatever ends
    the process, the name has the old content or the new one. A temporary file is named ``.NAME.xxxxxxxx.tmp``; it stays
    behind when the process is killed.

    Raises
    ------
    OSError
        If the disk is full, the folder is missing or may not be written to, or the path is no regular file.
    """
    target = os.path.realpath(path)  # a link stays one
    if os.path.lexists(target) and not os.path.isfile(target):
        raise OSError(f"{path} is not a regular file")
    folder, name = os.path.split(target)
    # Names have at most 255 bytes, and this one may have them all.
    short = os.fsdecode(os.fsencode(name)[:200])
    temporary = os.path.join(folder, f".{short}.{os.urandom(4).hex()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with open(descriptor, "wb", buffering=0) as file:
            for part in parts:
                rest = memoryview(part)
                while rest.nbytes:  # one call writes 2 GiB at most
                    rest = rest[file.write(rest) :]
            if os.path.exists(target):
                os.fchmod(descriptor, stat.S_IMODE(os.stat(target).st_mode))
            os.fsync(descriptor)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(folder)


@contextlib.contextmanager
def staged(target: str) -> Iterator[str]:
    """A folder beside ``target``, in which somebody else writes what takes its place.

    What lies in the folder when the block ends goes to the disk and is moved beside ``target``, each file over the one
    of its name; after an exception nothing is. The folder, named ``.NAME.xxxxxxxx``, goes in either case; it stays
    behind when the process is killed.

    Raises
    ------
    OSError
        If the folder of ``target`` is missing or may not be written to, or ``target`` is a folder.
    """
    folder, name = os.path.split(target)
    if os.path.isdir(target):
        raise IsADirectoryError(f"{target} is a folder; it takes the path of a file")
    if not os.path.isdir(folder or "."):
        raise FileNotFoundError(f"the folder of {target} does not exist")
    import shutil  # slow to import

    stage = os.path.join(folder or ".", f".{os.fsdecode(os.fsencode(name)[:200])}.{os.urandom(4).hex()}")
    os.mkdir(stage, 0o700)
    try:
        yield stage
        # The first of several files last: who finds it finds the others.
        for written in sorted(os.listdir(stage), reverse=True):
            with open(os.path.join(stage, written), "rb+") as file:
                os.fsync(file.fileno())
            os.replace(os.path.join(stage, written), os.path.join(folder, written))
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    _sync_folder(folder or ".")


def same_file(path: str, others: Iterable[str]) -> str | None:
    """Which of ``others`` is the same file as ``path``, through links of either kind; None when it is none of them."""
    for other in others:
        try:
            if os.path.samefile(path, other):
                return other
        except FileNotFoundError:
            continue
    return None


def _sync_folder(folder: str) -> None:
    """Have the new name on the disk as well, where the system lets us: the file is there already."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_whole(path: str) -> bytearray:
    """Read all of a regular file.

    Raises
    ------
    OSError
        If it is missing, may not be read, or is something that one would wait for, such as a pipe.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb", buffering=0) as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(f"{path} is not a regular file")
        data = bytearray(found.st_size)
        rest = memoryview(data)
        while rest.nbytes:
            got = file.readinto(rest)
            if not got:  # it became shorter meanwhile
                break
            rest = rest[got:]
        left = rest.nbytes
        del rest
    if left:
        del data[len(data) - left :]
    return data
