"""GGUF files: what a load has to know before it reads any weights."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from moebind._native import CData, decoded, ffi, lib, own
from moebind.errors import ModelLoadError, ModelNotFoundError

__all__ = ["split_paths", "tensor_sizes"]


def open_header(path: str) -> CData:
    """Read metadata and tensor table of one file into a ``gguf_context``; no tensor data is read."""
    if not os.path.exists(path):
        raise ModelNotFoundError(f"{path} does not exist")
    if not os.path.isfile(path):
        # A directory is nothing to read, and a pipe would be waited for.
        raise ModelLoadError(f"{path} is not a regular file")
    header = lib.gguf_init_from_file(os.fsencode(path), {"no_alloc": True, "ctx": ffi.NULL})
    if not header:
        raise ModelLoadError(f"{path} is not a GGUF file that this llama.cpp can read")
    return own(header, lib.gguf_free)


def split_paths(path: str) -> list[str]:
    """All files of the model that ``path`` is the first file of.

    Raises
    ------
    ModelNotFoundError
        If a file is missing.
    ModelLoadError
        If a file cannot be read, or its name is not that of a first split while its metadata says it has others.
    """
    header = open_header(path)
    key = lib.gguf_find_key(header, b"split.count")
    if key < 0:
        return [path]
    if lib.gguf_get_kv_type(header, key) != lib.GGUF_TYPE_UINT16:
        raise ModelLoadError(f"{path}: the metadata split.count is not a 16-bit number; the file is damaged")
    count = lib.gguf_get_val_u16(header, key)
    if count <= 1:
        return [path]
    match = re.search(r"-(\d{5})-of-(\d{5})\.gguf$", path)
    if match is None or int(match[1]) != 1 or int(match[2]) != count:
        raise ModelLoadError(
            f"{path} is one of {count} files; give the first one, named like NAME-00001-of-{count:05d}.gguf, or all "
            "of them to Model.load_from_splits"
        )
    paths = [f"{path[: match.start()]}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]
    for each in paths:
        if not os.path.exists(each):
            raise ModelNotFoundError(f"{each} does not exist; {path} says that the model has {count} files")
    return paths


def tensor_sizes(paths: Sequence[str]) -> dict[str, int]:
    """Names and sizes in bytes of all tensors, in the files' order."""
    sizes: dict[str, int] = {}
    for path in paths:
        header = open_header(path)
        for index in range(lib.gguf_get_n_tensors(header)):
            sizes[decoded(lib.gguf_get_tensor_name(header, index))] = lib.gguf_get_tensor_size(header, index)
    return sizes
