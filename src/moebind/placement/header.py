"""The parts of a model file that planning needs: the metadata without the vocabulary, and the table of tensors.

Reading a vocabulary takes most of the time of a load without weights, and a plan needs only its size. So llama.cpp is
given a copy of the header in which the vocabulary is but a number: a sparse file in memory, which claims the size of
the model. All plans of a file share it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from moebind._core import checks
from moebind._core.native import ffi, lib, own
from moebind.errors import ModelLoadError
from moebind.files.gguf import Gguf
from moebind.files.header_checks import check_experts_together, check_model, check_whole
from moebind.files.model_files import Split
from moebind.files.tensor_patterns import experts_pattern
from moebind.params.params import ModelParams

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Header", "TensorInfo", "read_header"]

#: Keys that belong to a vocabulary and change no size.
_VOCABULARY = re.compile(r"tokenizer\.(?!ggml\.token_type_count$)")
#: The largest models have some thousands; to list many more would take llama.cpp minutes.
TENSORS_MAX = 2**15
_AHEAD = re.compile(r"blk\.(\d+)\.nextn\.")
_LAYER = re.compile(r"blk\.(\d+)\.")
_EXPERTS = re.compile(experts_pattern())


class TensorInfo(NamedTuple):
    """A tensor of the file: its type's number in ggml, its dimensions, and where its bytes are."""

    name: str
    type: int
    ne: tuple[int, ...]
    nbytes: int
    file: int
    offset: int

    @property
    def layer(self) -> int | None:
        """The layer that it belongs to, if it does to one."""
        match = _LAYER.match(self.name)
        return int(match[1]) if match else None

    @property
    def is_expert(self) -> bool:
        """Whether it is one of those that ``with_cpu_moe_all`` moves."""
        return _EXPERTS.search(self.name) is not None


@dataclass(frozen=True, eq=False)
class Header:
    """A model file as plans see it."""

    paths: tuple[str, ...]
    gguf: Gguf
    tensors: dict[str, TensorInfo]
    architecture: str
    stand_in: int
    _checked: set[object] = field(default_factory=set)
    _experts: list[Mapping[int, Mapping[str, int]]] = field(default_factory=list)

    @property
    def path(self) -> str:
        """The file that llama.cpp is given instead."""
        return f"/proc/self/fd/{self.stand_in}"

    @property
    def experts(self) -> Mapping[int, Mapping[str, int]]:
        """Names and bytes of the experts' tensors, by layer; dense layers are left out."""
        if not self._experts:  # no cached_property: until Python 3.12 it has a lock, which a fork would leave locked
            found: dict[int, dict[str, int]] = {}
            for info in self.tensors.values():
                if info.layer is not None and info.is_expert:
                    found.setdefault(info.layer, {})[info.name] = info.nbytes
            self._experts.append(MappingProxyType(dict(sorted(found.items()))))
        return self._experts[0]

    @property
    def layers_ahead(self) -> set[int]:
        """The layers that predict further ahead (MTP), which have tensors of their own names."""
        return {int(match[1]) for name in self.tensors if (match := _AHEAD.match(name))}

    def integer(self, name: str, default: int = 0) -> int:
        """A number of the architecture's metadata; the largest one of an array, which has one for each layer."""
        value = self.gguf.get(f"{self.architecture}.{name}")
        if isinstance(value, np.ndarray) and value.dtype.kind in "iub" and value.size:
            return int(value.max())
        return value if isinstance(value, int) else default

    def of_layer(self, name: str, layer: int) -> int:
        """A layer's number in the architecture's metadata, which has one for all, or for each; 0 without any."""
        value = self.gguf.get(f"{self.architecture}.{name}")
        if isinstance(value, np.ndarray) and layer < value.size:
            return int(value[layer])
        return self.integer(name)

    def check(self, params: ModelParams) -> None:
        """Refuse what a load with these parameters would refuse in the file; once for each kind of parameters."""
        key = (params.kv_overrides, params.use_mmap)
        if key not in self._checked:
            check_model(self.gguf, params.kv_overrides, mapped=params.use_mmap)
            self._checked.add(key)

    def __del__(self) -> None:
        os.close(self.stand_in)


def read_header(path: str) -> Header:
    """The header of a model, of one file or several; the last few are kept, as long as the files stay the same."""
    if checks.on_hub(path):
        file = Gguf.from_file(path)
        if file.bytes_read is not None:
            return _hub_header(file)
        path = file.path  # it is in the cache
    paths = tuple(os.path.abspath(each) for each in _known_paths(path))
    return _local_header(path, tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in map(os.stat, paths)))


def _known_paths(path: str) -> list[str]:
    """The files to look at for a change; those of a split model beside the one that was given."""
    split = Split.of(path)
    if split is None or split.n_files > 9999:
        return [path] if os.path.exists(path) else []
    names = [split.path(number) for number in range(1, split.n_files + 1)]
    return [name for name in names if os.path.exists(name)]


@lru_cache(maxsize=8)
def _local_header(path: str, stamps: tuple[tuple[int, int, int], ...]) -> Header:
    return _header_of(Gguf._from_local(path))


@lru_cache(maxsize=4)
def _hub_header(file: Gguf) -> Header:
    """The header of a file on the Hub. Gguf keeps what it read there, so the same file is the same object."""
    return _header_of(file)


def _header_of(file: Gguf) -> Header:
    architecture = file.get("general.architecture")
    if not isinstance(architecture, str):
        raise ModelLoadError(f"{file.path} does not say which architecture it is: it is no model")
    if len(file.tensors) > TENSORS_MAX:
        raise ModelLoadError(f"{file.path} has {len(file.tensors)} tensors; at most {TENSORS_MAX} are planned for")
    check_whole(file)
    check_experts_together(file)
    numbers = {each: number for number, each in enumerate(file.paths)}
    tensors: dict[str, TensorInfo] = {}
    for tensor in file.tensors.values():
        number = numbers[tensor.path]
        ne = (*tensor.shape, 1, 1, 1)[:4]
        tensors[tensor.name] = TensorInfo(tensor.name, tensor.type, ne, tensor.nbytes, number, tensor.offset)
    return Header(file.paths, file, tensors, architecture, _stand_in_for(file, tensors, architecture))


def _stand_in_for(file: Gguf, tensors: dict[str, TensorInfo], architecture: str) -> int:
    """A file in memory with the header and without the vocabulary, as long as one with the tensors would be."""
    copy = own(lib.own_gguf_init_empty)
    header = file._headers[0]
    tokens = lib.gguf_find_key(header, b"tokenizer.ggml.tokens")
    file._copy_metadata(copy, lambda key: key.startswith("split.") or (tokens >= 0 and _VOCABULARY.match(key)))
    if tokens >= 0:
        lib.gguf_set_val_str(copy, b"tokenizer.ggml.model", b"none")
        lib.gguf_set_val_u32(copy, f"{architecture}.vocab_size".encode(), lib.gguf_get_arr_n(header, tokens))
    size = lib.ggml_tensor_overhead() * (len(tensors) + 1)
    context = own(lib.own_ggml_init, {"mem_size": size, "mem_buffer": ffi.NULL, "no_alloc": True})
    end, alignment = 0, file.alignment
    for info in tensors.values():
        tensor = lib.ggml_new_tensor(context, info.type, 4, ffi.new("int64_t[4]", info.ne))
        lib.ggml_set_name(tensor, info.name.encode())
        lib.gguf_add_tensor(copy, tensor)
        end += info.nbytes + alignment
    stand_in = os.memfd_create("moebind-plan")
    try:
        if not lib.gguf_write_to_file(copy, f"/proc/self/fd/{stand_in}".encode(), True):
            raise ModelLoadError("the header could not be copied into a file in memory")
        os.truncate(stand_in, os.fstat(stand_in).st_size + end)
    except BaseException:
        os.close(stand_in)
        raise
    return stand_in
