"""What planning needs of a model file: the metadata without the vocabulary, and the table of tensors.

Reading a vocabulary takes most of the time of a load without weights, and a plan needs only its size. So llama.cpp is
given a copy of the header in which the vocabulary is but a number: a sparse file in memory, which claims the size of
the model. All plans of a file share it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from moebind._native import CData, decoded, ffi, lib, own
from moebind.errors import ModelLoadError
from moebind.gguf import split_paths

__all__ = ["Header", "TensorInfo", "read_header"]

#: What belongs to a vocabulary and changes no size.
_VOCABULARY = re.compile(rb"tokenizer\.(?!ggml\.token_type_count$)")


class TensorInfo(NamedTuple):
    """A tensor of the file: its type's number in ggml, its dimensions, and where its bytes are."""

    name: str
    type: int
    ne: tuple[int, ...]
    nbytes: int
    file: int
    offset: int


@dataclass(frozen=True, eq=False)
class Header:
    """A model file as plans see it."""

    paths: tuple[str, ...]
    tensors: dict[str, TensorInfo]
    architecture: str
    n_vocab: int
    metadata: CData
    stand_in: int

    @property
    def path(self) -> str:
        """The file that llama.cpp is given instead."""
        return f"/proc/self/fd/{self.stand_in}"

    def integer(self, name: str, default: int = 0) -> int:
        """A number of the architecture's metadata; the largest one of an array, which has one for each layer."""
        key = lib.gguf_find_key(self.metadata, f"{self.architecture}.{name}".encode())
        if key < 0:
            return default
        kind = lib.gguf_get_kv_type(self.metadata, key)
        if kind == lib.GGUF_TYPE_ARRAY:
            kind = lib.gguf_get_arr_type(self.metadata, key)
            ctype, count = _INTEGERS.get(kind), lib.gguf_get_arr_n(self.metadata, key)
            if ctype is None or count == 0:
                return default
            return int(max(ffi.unpack(ffi.cast(f"{ctype} *", lib.gguf_get_arr_data(self.metadata, key)), count)))
        ctype = _INTEGERS.get(kind)
        return default if ctype is None else int(ffi.cast(f"{ctype} *", lib.gguf_get_val_data(self.metadata, key))[0])

    def __del__(self) -> None:
        os.close(self.stand_in)


_INTEGERS = {
    lib.GGUF_TYPE_UINT8: "uint8_t",
    lib.GGUF_TYPE_INT8: "int8_t",
    lib.GGUF_TYPE_UINT16: "uint16_t",
    lib.GGUF_TYPE_INT16: "int16_t",
    lib.GGUF_TYPE_UINT32: "uint32_t",
    lib.GGUF_TYPE_INT32: "int32_t",
    lib.GGUF_TYPE_UINT64: "uint64_t",
    lib.GGUF_TYPE_INT64: "int64_t",
}


def read_header(path: str) -> Header:
    """The header of a model, of one file or several; the last few are kept, as long as the files stay the same."""
    paths = tuple(os.path.abspath(each) for each in split_paths(path))
    stamps = tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in map(os.stat, paths))
    return _read(paths, stamps)


@lru_cache(maxsize=8)
def _read(paths: tuple[str, ...], stamps: tuple[tuple[int, int, int], ...]) -> Header:
    tensors: dict[str, TensorInfo] = {}
    copy = own(lib.gguf_init_empty(), lib.gguf_free)
    architecture, n_vocab = "", 0
    keep: list[CData] = []
    for number, path in enumerate(paths):
        described = ffi.new("struct ggml_context **")
        found = lib.gguf_init_from_file(os.fsencode(path), {"no_alloc": True, "ctx": described})
        if not found:
            raise ModelLoadError(f"{path} is not a GGUF file that this llama.cpp can read")
        header = own(found, lib.gguf_free)
        context = own(described[0], lib.ggml_free)
        keep += [header, context]
        if number == 0:
            architecture, n_vocab = _copy_metadata(header, copy, path)
        start = lib.gguf_get_data_offset(header)
        tensor = lib.ggml_get_first_tensor(context)
        for at in range(lib.gguf_get_n_tensors(header)):
            name = decoded(lib.gguf_get_tensor_name(header, at))
            size = int(lib.gguf_get_tensor_size(header, at))
            offset = start + lib.gguf_get_tensor_offset(header, at)
            if name in tensors:
                raise ModelLoadError(f"{path} has the tensor {name}, which another file of the model has too")
            if offset + size > stamps[number][1]:
                raise ModelLoadError(f"{path} is cut off: its tensor {name} ends behind the end of the file")
            lib.gguf_add_tensor(copy, tensor)
            tensors[name] = TensorInfo(name, tensor.type, tuple(tensor.ne), size, number, offset)
            tensor = lib.ggml_get_next_tensor(context, tensor)
    return Header(paths, tensors, architecture, n_vocab, copy, _write(copy))


def _copy_metadata(header: CData, copy: CData, path: str) -> tuple[str, int]:
    """Copy all but the vocabulary; returns the architecture and the size of the vocabulary."""
    key = lib.gguf_find_key(header, b"general.architecture")
    if key < 0 or lib.gguf_get_kv_type(header, key) != lib.GGUF_TYPE_STRING:
        raise ModelLoadError(f"{path} does not say which architecture it is: it is no model")
    architecture = decoded(lib.gguf_get_val_str(header, key))
    tokens = lib.gguf_find_key(header, b"tokenizer.ggml.tokens")
    lib.gguf_set_kv(copy, header)
    names = [ffi.string(lib.gguf_get_key(header, at)) for at in range(lib.gguf_get_n_kv(header))]
    for name in names:
        if name.startswith(b"split.") or (tokens >= 0 and _VOCABULARY.match(name)):
            lib.gguf_remove_key(copy, name)
    if tokens < 0:
        return architecture, 0
    n_vocab = int(lib.gguf_get_arr_n(header, tokens))
    lib.gguf_set_val_str(copy, b"tokenizer.ggml.model", b"none")
    lib.gguf_set_val_u32(copy, f"{architecture}.vocab_size".encode(), n_vocab)
    return architecture, n_vocab


def _write(copy: CData) -> int:
    """A file in memory with the header, as long as one with the tensors would be."""
    file = os.memfd_create("moebind-plan")
    try:
        if not lib.gguf_write_to_file(copy, f"/proc/self/fd/{file}".encode(), True):
            raise ModelLoadError("the header could not be copied into a file in memory")
        count = lib.gguf_get_n_tensors(copy)
        end = sum(lib.gguf_get_tensor_size(copy, at) + lib.gguf_get_alignment(copy) for at in range(count))
        os.truncate(file, os.fstat(file).st_size + end)
    except BaseException:
        os.close(file)
        raise
    return file
