"""GGUF files in folders: which are one model, which are complete, and which lie beside models."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from itertools import takewhile

from moebind._core import checks
from moebind.errors import ModelNotFoundError
from moebind_launcher.model_names import ModelFiles, Split, gathered, gguf_files, sidecar_kind

__all__ = ["ModelFiles", "Split", "gathered", "in_folder", "nearest", "sidecar_kind"]


def in_folder(folder: str | os.PathLike[str]) -> list[ModelFiles]:
    """The GGUF files of a folder and of all folders in it, by name; hidden folders are left out.

    Raises
    ------
    ModelNotFoundError
        If there is no such folder.
    ValueError
        If it is an address on the Hub.
    """
    top = os.path.abspath(checks.local_path("folder", folder, "a folder of this machine"))
    if not os.path.isdir(top):
        what = "is a file; give its folder" if os.path.exists(top) else "does not exist"
        raise ModelNotFoundError(f"the folder {top} {what}")
    return gathered(gguf_files(top))


def nearest(model: str, names: Iterable[str], kind: str) -> str | None:
    """Of the names of a kind the one that has most of the words that the model's begins with; else the first."""

    def words(name: str) -> list[str]:
        stem = os.path.basename(name).removesuffix(".gguf").lower()
        return [word for word in re.split(r"[^a-z0-9]+", stem) if word not in {"", kind}]

    wanted = words(model)
    of_kind = sorted(name for name in names if sidecar_kind(os.path.basename(name)) == kind)

    def alike(name: str) -> int:
        """How many words at the beginning are the same."""
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(wanted, words(name), strict=False)))

    return max(of_kind, key=alike, default=None)
