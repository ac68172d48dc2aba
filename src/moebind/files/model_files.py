"""GGUF files in folders: which are one model, which are complete, and which lie beside models."""

from __future__ import annotations

import os

from moebind._core import checks
from moebind.errors import ModelNotFoundError
from moebind_launcher.model_names import ModelFiles, Split, gathered, gguf_files, sidecar_kind

__all__ = ["ModelFiles", "Split", "gathered", "in_folder", "sidecar_kind"]


def in_folder(folder: str | os.PathLike[str]) -> list[ModelFiles]:
    """The GGUF files of a folder and of all folders in it, by name; hidden folders are left out.

    Raises
    ------
    ModelNotFoundError
        If there is no such folder.
    """
    top = os.path.abspath(checks.path("folder", folder))
    if not os.path.isdir(top):
        what = "is a file; give its folder" if os.path.exists(top) else "does not exist"
        raise ModelNotFoundError(f"the folder {top} {what}")
    return gathered(gguf_files(top))
