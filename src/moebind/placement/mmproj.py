"""Projectors in plans: what one takes of the first device, or of the host, beside its model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import NamedTuple

from moebind._core import checks, log
from moebind._core.native import ffi, lib
from moebind.backend.breakdown import BufferMemory, DeviceMemory
from moebind.backend.devices import init
from moebind.errors import MtmdError
from moebind.files import projector_checks
from moebind.files.gguf import Gguf
from moebind.files.sidecars import beside

__all__ = ["Projector", "find_projector"]


class Projector(NamedTuple):
    """A projector's file, and its bytes: weights, and scratch memory for a picture as large as that of its warm-up."""

    path: str
    model: int
    compute: int

    @classmethod
    @log.quietly()
    def of(cls, path: str) -> Projector:
        """Find out, without loading it: libmtmd lays out its graph, and counts.

        Raises
        ------
        MtmdError
            If it is no projector.
        """
        projector_checks.check(path)
        init()
        params = lib.mtmd_context_params_default()
        params.use_gpu = False  # a device to plan for need not be here; weights are as large on any
        parts, tokens = ffi.new("struct moebind_mtmd_memory[]", 8), ffi.new("int32_t *")
        with _openable(path) as file:
            count = lib.moebind_mtmd_memory_of(os.fsencode(file), params, parts, len(parts), tokens)
        if not count:
            raise MtmdError(f"{path} cannot be planned{log.recent_lines(3)}")
        model = sum(tensor.nbytes for tensor in Gguf.from_file(path).tensors.values())
        total = sum(int(parts[at].size) for at in range(min(count, len(parts))))
        return cls(path, model, max(total - model, 0))

    def added_to(self, devices: Sequence[DeviceMemory]) -> tuple[DeviceMemory, ...]:
        """The memory of devices, the host's being the last, with the projector's on the first."""
        first = devices[0]
        return (
            replace(
                first,
                model=first.model + self.model,
                compute=first.compute + self.compute,
                buffers=(*first.buffers, BufferMemory("mmproj", self.model, 0, self.compute)),
            ),
            *devices[1:],
        )


@contextmanager
def _openable(path: str) -> Iterator[str]:
    """A file that libmtmd can open; of one on the Hub that is not in the cache, with its header and nothing else."""
    if not checks.on_hub(path):
        yield path
        return
    from moebind.files import hub

    found = hub.find(hub.Address.parse(path))
    if found.paths:
        yield found.paths[0]
        return
    with closing(hub.fetched_headers(found)) as files:
        yield next(files).path


def find_projector(mmproj: str | os.PathLike[str] | bool | None, model: str) -> Projector | None:
    """The projector that is meant: a file, or with True the one that lies beside the model.

    Raises
    ------
    MtmdError
        If there is none, or it is something else.
    """
    if mmproj is None or mmproj is False:
        return None
    if mmproj is not True:
        return Projector.of(checks.path("mmproj", mmproj))
    near = beside(model, "mmproj")
    if near is None:
        raise MtmdError(f"no projector (mmproj*.gguf) lies beside {model}: give its file")
    return Projector.of(near)
