"""Tiny models whose headers a test changes."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))
import gguf_files
from gguf_files import ARRAY, STRING, Value

UINT32, FLOAT32, BOOL = 4, 6, 7


class Edited:
    """A tiny model whose header a test changes."""

    def __init__(self, path: Path, target: Path) -> None:
        self.file, start = gguf_files.parse(path)
        self._data = path.read_bytes()[start:]
        self._target = target

    def set(self, key: str, value: object, kind: int | None = None) -> Edited:
        """Set a value; None removes it."""
        self.file.values = [each for each in self.file.values if each.key != key.encode()]
        if value is not None:
            self.file.values.append(encoded(key, value, kind))
        return self

    def write(self) -> Path:
        header, size = self.file.header(), self.file.data_size()
        self._target.write_bytes(header + (self._data * 2)[:size])
        return self._target


def encoded(key: str, value: object, kind: int | None = None) -> Value:
    items = value if isinstance(value, list) else [value]
    if isinstance(items[0], str):
        item_kind, content = STRING, [str(each).encode() for each in items]
    else:
        item_kind = kind if kind is not None else FLOAT32 if isinstance(items[0], float) else UINT32
        content = [struct.pack(gguf_files.SCALARS[item_kind], each) for each in items]
    return Value(key.encode(), ARRAY if isinstance(value, list) else item_kind, item_kind, content)


def of_architecture(edited: Edited, name: str) -> Edited:
    """The same numbers and tensors, called another architecture's."""
    for value in edited.file.values:
        value.key = value.key.replace(b"llama.", name.encode() + b".", 1)
        if value.key == b"general.architecture":
            value.items = [name.encode()]
    return edited


def without(edited: Edited, *names: str) -> Edited:
    edited.file.tensors = [each for each in edited.file.tensors if each.name.decode() not in names]
    return edited
