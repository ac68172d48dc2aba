"""GGUF files by their names: which are one model, and which lie beside models. Needs nothing of moebind."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

__all__ = ["ModelFiles", "Split", "gathered", "gguf_files", "sidecar_kind"]

_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
#: GGUF files that are no model by themselves: what sees, what was measured, and what drafts for a model. The last in
#: small letters, as llama.cpp has it: a model with layers that predict further ahead may have MTP in its name.
_SIDECAR = re.compile(r"(?i:(mmproj|imatrix))|(mtp|eagle3|dflash|dspark)-")


def sidecar_kind(name: str) -> str | None:
    """The kind of a file that lies beside a model, by its name, such as ``"mmproj"``; None: it is a model."""
    match = _SIDECAR.search(name)
    return None if match is None else (match[1] or match[2]).lower()


class Split(NamedTuple):
    """A file of a split model: the name without its number, the number, and how many files there are."""

    stem: str
    number: int
    n_files: int

    @classmethod
    def of(cls, path: str) -> Split | None:
        """Read a file's name; None for a file that is no part of a split model."""
        match = _SPLIT.search(path)
        return None if match is None else cls(path[: match.start()], int(match[1]), int(match[2]))

    def path(self, number: int) -> str:
        """The file with another number."""
        return f"{self.stem}-{number:05d}-of-{self.n_files:05d}.gguf"


class ModelFiles(NamedTuple):
    """The files of one model, or a file that lies beside models.

    Attributes
    ----------
    name : str
        What it is called: its file, or what the names of its files have in common, from the folder that was searched.
    paths : tuple[str, ...]
        The files that are there, in order.
    nbytes : int
        Their bytes.
    missing : int
        How many files of a split model are not there.
    sidecar : str or None
        What it is beside a model, such as ``"mmproj"``; None for a model.
    """

    name: str
    paths: tuple[str, ...]
    nbytes: int
    missing: int = 0
    sidecar: str | None = None


def gguf_files(top: str) -> dict[str, str]:
    """The GGUF files of a folder and of all folders in it, from names to paths; hidden folders are left out."""
    found: dict[str, str] = {}
    for parent, folders, names in os.walk(top):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            path = os.path.join(parent, name)
            if name.endswith(".gguf") and os.path.isfile(path):
                found[os.path.relpath(path, top)] = path
    return found


def gathered(files: Mapping[str, str]) -> list[ModelFiles]:
    """Files, from names to paths, with those of a split model together."""
    models: dict[tuple[str, int], list[str]] = {}
    for name in sorted(files):
        split = Split.of(name)
        models.setdefault((name, 0) if split is None else (f"{split.stem}.gguf", split.n_files), []).append(name)
    return [
        ModelFiles(
            name,
            tuple(files[each] for each in names),
            _nbytes(files[each] for each in names),
            max(count - len(names), 0),
            sidecar_kind(os.path.basename(name)),
        )
        for (name, count), names in models.items()
    ]


def _nbytes(paths: Iterable[str]) -> int:
    return sum(map(os.path.getsize, paths))
