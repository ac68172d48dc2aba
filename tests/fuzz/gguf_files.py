"""GGUF files taken apart and put together again, for the mutants that are still well-formed."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from moebind import lib

ALIGNMENT = 32
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9


@dataclass
class Value:
    """A metadata value: its key and type ids, and what it holds as it is in the file."""

    key: bytes
    kind: int
    item_kind: int
    items: list[bytes]

    def encoded(self) -> bytes:
        head = _text(self.key) + struct.pack("<i", self.kind)
        if self.kind == ARRAY:
            head += struct.pack("<iQ", self.item_kind, len(self.items))
        return head + b"".join(_text(each) if self.item_kind == STRING else each for each in self.items)


@dataclass
class Tensor:
    """A row of the tensor table."""

    name: bytes
    shape: list[int]
    kind: int
    offset: int

    def encoded(self, offset: int) -> bytes:
        shape = struct.pack(f"<I{len(self.shape)}q", len(self.shape), *self.shape)
        return _text(self.name) + shape + struct.pack("<iQ", self.kind, offset % 2**64)

    @property
    def nbytes(self) -> int:
        """As its type and shape have it; 0 when no such type is known."""
        if not 0 <= self.kind < lib.GGML_TYPE_COUNT or not lib.ggml_blck_size(self.kind):
            return 0
        count = math.prod(max(each, 0) for each in self.shape)
        return int(count // lib.ggml_blck_size(self.kind) * lib.ggml_type_size(self.kind))


@dataclass
class File:
    """A whole header."""

    values: list[Value] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)

    def header(self) -> bytes:
        """With offsets that follow from the shapes and types."""
        parts = [b"GGUF", struct.pack("<IQQ", 3, len(self.tensors), len(self.values))]
        parts += [value.encoded() for value in self.values]
        offset = 0
        for tensor in self.tensors:
            parts.append(tensor.encoded(offset))
            offset += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        whole = b"".join(parts)
        return whole + b"\0" * (-len(whole) % ALIGNMENT)

    def data_size(self) -> int:
        return sum(-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in self.tensors)


def _text(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


def parse(path: Path) -> tuple[File, int]:
    """Take a (whole) file's header apart; also tells where its data begins."""
    content = np.memmap(path, np.uint8, "r")
    at = 0

    def take(size: int) -> bytes:
        nonlocal at
        at += size
        return content[at - size : at].tobytes()

    def number(form: str) -> int:
        return int(struct.unpack(form, take(struct.calcsize(form)))[0])

    def item(kind: int) -> bytes:
        return take(number("<Q")) if kind == STRING else take(struct.calcsize(SCALARS[kind]))

    take(8)
    n_tensors, n_values = number("<Q"), number("<Q")
    file = File()
    for _ in range(n_values):
        key, kind = take(number("<Q")), number("<i")
        item_kind, count = (number("<i"), number("<Q")) if kind == ARRAY else (kind, 1)
        file.values.append(Value(key, kind, item_kind, [item(item_kind) for _ in range(count)]))
    for _ in range(n_tensors):
        name = take(number("<Q"))
        shape = [number("<q") for _ in range(number("<I"))]
        file.tensors.append(Tensor(name, shape, number("<i"), number("<Q")))
    return file, -(-at // ALIGNMENT) * ALIGNMENT
