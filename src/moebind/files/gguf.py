"""GGUF files: their metadata and their tensors' table, read without their tensors' data."""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from moebind._core import atomic_files, checks, log
from moebind._core.native import CData, decoded, ffi, lib, own
from moebind._core.owner import OfThisProcess
from moebind.enums import GgmlType, GgufType
from moebind.errors import ModelLoadError, ModelNotFoundError, NativeError
from moebind.files.model_files import Split

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moebind.files.hub import HubFiles

__all__ = ["Gguf", "GgufTensor", "GgufValue"]

#: The Python types of metadata values.
GgufValue: TypeAlias = "bool | int | float | str | list[str] | NDArray[np.generic]"

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
#: numpy's type of a number, and what reads and sets one.
_NUMBERS: dict[GgufType, tuple[np.dtype[Any], Any, Any]] = {
    GgufType.UINT8: (np.dtype("u1"), lib.gguf_get_val_u8, lib.gguf_set_val_u8),
    GgufType.INT8: (np.dtype("i1"), lib.gguf_get_val_i8, lib.gguf_set_val_i8),
    GgufType.UINT16: (np.dtype("u2"), lib.gguf_get_val_u16, lib.gguf_set_val_u16),
    GgufType.INT16: (np.dtype("i2"), lib.gguf_get_val_i16, lib.gguf_set_val_i16),
    GgufType.UINT32: (np.dtype("u4"), lib.gguf_get_val_u32, lib.gguf_set_val_u32),
    GgufType.INT32: (np.dtype("i4"), lib.gguf_get_val_i32, lib.gguf_set_val_i32),
    GgufType.FLOAT32: (np.dtype("f4"), lib.gguf_get_val_f32, lib.gguf_set_val_f32),
    GgufType.BOOL: (np.dtype("?"), lib.gguf_get_val_bool, lib.gguf_set_val_bool),
    GgufType.UINT64: (np.dtype("u8"), lib.gguf_get_val_u64, lib.gguf_set_val_u64),
    GgufType.INT64: (np.dtype("i8"), lib.gguf_get_val_i64, lib.gguf_set_val_i64),
    GgufType.FLOAT64: (np.dtype("f8"), lib.gguf_get_val_f64, lib.gguf_set_val_f64),
}
#: Tensors of these types are arrays of numbers that numpy knows; others are rows of bytes.
_PLAIN = {
    GgmlType.F32: "f4",
    GgmlType.F16: "f2",
    GgmlType.F64: "f8",
    GgmlType.I8: "i1",
    GgmlType.I16: "i2",
    GgmlType.I32: "i4",
    GgmlType.I64: "i8",
}


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of a GGUF file, without its data.

    Attributes
    ----------
    name : str
        Its name.
    shape : tuple[int, ...]
        Its dimensions as llama.cpp orders them: the first is the length of a row. numpy's order is the reverse.
    type : GgmlType
        How its numbers are stored.
    offset : int
        Bytes from the beginning of its file to its data.
    nbytes : int
        Bytes of its data.
    path : str
        The file that it is in, which matters for a model of several files.
    """

    name: str
    shape: tuple[int, ...]
    type: GgmlType
    offset: int
    nbytes: int
    path: str

    @property
    def n_elements(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    def data(self) -> NDArray[np.generic]:
        """Its data, mapped from the file; only what you look at is read.

        Returns
        -------
        NDArray
            Read-only, in numpy's order, which is ``shape`` reversed. F32, F16, F64 and integers are numbers; quantised
            types and BF16 are bytes, ``uint8``, with the bytes of a row as the last dimension. It stays valid as long
            as you hold it; the file must not be shortened while you do.

        Raises
        ------
        ModelLoadError
            If the file is shorter than its header says, gone, or on the Hub.
        """
        if checks.on_hub(self.path):
            raise ModelLoadError(f"{self.path}: only the header was read; Model.from_pretrained downloads the file")
        columns = self.shape[0] if self.shape else 1
        rows = self.shape[:0:-1]
        plain = _PLAIN.get(self.type)
        if plain is None:
            dtype, columns = np.dtype("u1"), int(lib.ggml_row_size(self.type, columns))
        else:
            dtype = np.dtype(plain)
        if self.nbytes == 0:
            return np.empty((*rows, columns), dtype)
        try:
            if os.path.getsize(self.path) < self.offset + self.nbytes:
                raise ModelLoadError(
                    f"{self.path} is truncated: the data of {self.name} would end at {self.offset + self.nbytes} bytes"
                )
            return np.memmap(self.path, dtype, "r", self.offset, (*rows, columns))
        except OSError as error:
            raise ModelLoadError(f"the data of {self.name} cannot be read: {error}") from error


class Gguf(OfThisProcess, Mapping[str, GgufValue]):
    """The metadata of a GGUF file, as a mapping, and the table of its tensors. Made by :meth:`from_file`.

    Values are bool, int, float or str; an array of texts is a list of str, an array of numbers a read-only numpy array.
    It is immutable, reads no tensor data, and reads a value only when you ask for it. As everywhere in llama.cpp, texts
    end at a NUL character; bytes that are not UTF-8 are replaced.

    Examples
    --------
    >>> file = Gguf.from_file("moe.gguf")
    >>> file["general.architecture"], len(file.tensors)
    """

    _headers: tuple[CData, ...]
    #: Of each local file, as it was before its header was read.
    _signatures: Mapping[str, atomic_files.Signature]
    _paths: tuple[str, ...]
    _keys: dict[str, int]
    _tensors: Mapping[str, GgufTensor] | None
    #: The sizes of files on the Hub, and how many bytes of them were read; None for files that are here.
    _remote: tuple[tuple[int, ...], int] | None

    _elsewhere = "read the file there again, with Gguf.from_file(path)"

    def __init__(self, *_arguments: object, **_keywords: object) -> None:
        raise TypeError("they are made by Gguf.from_file(path)")

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Gguf:
        """Read the header of a GGUF file.

        Parameters
        ----------
        path
            The file, or any file of a split model (``NAME-00003-of-00004.gguf``) with the others in the same folder.
            ``hf://OWNER/REPO/FILE.gguf``, or ``hf://OWNER/REPO@REVISION/FILE.gguf``, is a file on the Hugging Face Hub:
            only its header is read. FILE can be anything that :meth:`Model.from_pretrained` takes as ``filename``.

        Raises
        ------
        ModelNotFoundError
            If a file does not exist.
        ModelLoadError
            If it is not a GGUF file, is damaged, or claims more than any model has: memory is never allocated for what
            a file merely claims. If the Hub cannot be reached, or refuses.
        ImportError
            For a file on the Hub, if huggingface_hub is missing; it comes with the extra ``hub``.

        Notes
        -----
        Uses ``gguf_init_from_callback``.
        """
        given = checks.path("path", path)
        return cls._from_hub(given) if checks.on_hub(given) else cls._from_local(given)

    @classmethod
    def _from_local(cls, path: str) -> Gguf:
        header, signature = _open(path, path)
        return cls._from_files(_files_of(path, header), {path: (header, signature)})

    @classmethod
    def _from_hub(cls, address: str) -> Gguf:
        from moebind.files import hub

        found = hub.find(hub.Address.parse(address))
        return cls._from_files(found.paths) if found.paths else _read_on_hub(found)

    @classmethod
    def _from_files(
        cls, paths: Sequence[str], opened: Mapping[str, tuple[CData, atomic_files.Signature]] | None = None
    ) -> Gguf:
        file = cls.__new__(cls)
        file._paths = tuple(paths)
        found = {path: (opened or {}).get(path) or _open(path, path) for path in paths}
        file._headers = tuple(found[path][0] for path in paths)
        file._signatures = {path: signature for path, (_, signature) in found.items()}
        first = file._headers[0]
        file._keys = {decoded(lib.gguf_get_key(first, at)): at for at in range(lib.gguf_get_n_kv(first))}
        file._tensors = file._remote = None
        return file

    def _given_headers(self) -> list[CData]:
        """The headers of all files, for a load that takes them over: nothing more can be read from here.

        Raises a ModelLoadError if a file changed since its header was read: other data do not go with it.
        """
        for path, signature in self._signatures.items():
            try:
                # Its size and time: some network file systems give a file another number now and then.
                changed = atomic_files.signature(path)[2:] != signature[2:]
            except OSError as error:
                raise ModelLoadError(f"{path} can no longer be read: {error.strerror}") from error
            if changed:
                raise ModelLoadError(f"{path} changed while it was being loaded: load it again, once it is whole")
        given, self._headers = list(self._headers), ()
        return given

    # --- metadata ---

    def __getitem__(self, key: str) -> GgufValue:
        at, header = self._keys[key], self._headers[0]
        kind = GgufType(lib.gguf_get_kv_type(header, at))
        if kind == GgufType.STRING:
            return decoded(lib.gguf_get_val_str(header, at))
        if kind != GgufType.ARRAY:
            value: bool | int | float = _NUMBERS[kind][1](header, at)
            return value
        if lib.gguf_get_arr_type(header, at) == GgufType.STRING:
            return self._texts(key).decode("utf-8", "replace").split("\0")[:-1]
        dtype, *_ = _NUMBERS[GgufType(lib.gguf_get_arr_type(header, at))]
        count = lib.gguf_get_arr_n(header, at)
        content = bytes(ffi.buffer(lib.gguf_get_arr_data(header, at), count * dtype.itemsize)) if count else b""
        # A bool is any byte in a file.
        items: NDArray[np.generic] = np.frombuffer(content, "u1" if dtype == np.bool_ else dtype)
        if dtype == np.bool_:
            items = items != 0
            items.flags.writeable = False
        return items

    def _copy_metadata(self, target: CData, leave: Callable[[str], object]) -> None:
        """Set the metadata of another header, without the keys that ``leave`` says."""
        header = self._headers[0]
        for key, at in self._keys.items():
            if leave(key):
                continue
            name, kind = lib.gguf_get_key(header, at), lib.gguf_get_kv_type(header, at)
            if kind == GgufType.STRING:
                lib.gguf_set_val_str(target, name, lib.gguf_get_val_str(header, at))
            elif kind != GgufType.ARRAY:
                _, get, put = _NUMBERS[GgufType(kind)]
                put(target, name, get(header, at))
            elif (items := lib.gguf_get_arr_type(header, at)) == GgufType.STRING:
                texts = [lib.gguf_get_arr_str(header, at, i) for i in range(lib.gguf_get_arr_n(header, at))]
                lib.gguf_set_arr_str(target, name, ffi.new("char *[]", texts), len(texts))
            else:
                count = lib.gguf_get_arr_n(header, at)
                data = lib.gguf_get_arr_data(header, at) if count else ffi.NULL
                lib.gguf_set_arr_data(target, name, items, data, count)

    def _length(self, key: str) -> int:
        """How many items an array has, none of which is read; 0 for what is none, or is not there."""
        at, header = self._keys.get(key, -1), self._headers[0]
        is_array = at >= 0 and lib.gguf_get_kv_type(header, at) == GgufType.ARRAY
        return int(lib.gguf_get_arr_n(header, at)) if is_array else 0

    def _texts(self, key: str) -> bytes:
        """All texts of an array, each with a NUL behind it."""
        at, header = self._keys[key], self._headers[0]
        buffer = ffi.new("char[]", max(lib.moebind_gguf_strings(header, at, ffi.NULL, 0), 1))
        used = lib.moebind_gguf_strings(header, at, buffer, len(buffer))
        return bytes(ffi.buffer(buffer, used))

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    # A mapping's comparison would compare arrays.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def type_of(self, key: str) -> GgufType:
        """The type of a value in the file; for the items of an array, see :meth:`item_type_of`.

        Raises
        ------
        KeyError
            If there is no such key.
        """
        return GgufType(lib.gguf_get_kv_type(self._headers[0], self._keys[key]))

    def item_type_of(self, key: str) -> GgufType:
        """The type of an array's items.

        Raises
        ------
        KeyError
            If there is no such key.
        TypeError
            If it is not an array.
        """
        if self.type_of(key) != GgufType.ARRAY:
            raise TypeError(f"{key} is not an array, but {self.type_of(key).name}")
        return GgufType(lib.gguf_get_arr_type(self._headers[0], self._keys[key]))

    # --- tensors ---

    @property
    def tensors(self) -> Mapping[str, GgufTensor]:
        """All tensors by name, in the files' order."""
        if self._tensors is None:
            table: dict[str, GgufTensor] = {}
            types: dict[int, GgmlType] = {}  # an enum's own look-up takes as long as everything else here
            for path, header in zip(self._paths, self._headers, strict=True):
                start = lib.gguf_get_data_offset(header)
                for at in range(lib.gguf_get_n_tensors(header)):
                    name = decoded(lib.gguf_get_tensor_name(header, at))
                    kind = lib.gguf_get_tensor_type(header, at)
                    if kind not in types:
                        types[kind] = GgmlType(kind)
                    table[name] = GgufTensor(
                        name,
                        _shape(ffi.unpack(lib.gguf_get_tensor_ne(header, at), lib.GGML_MAX_DIMS)),
                        types[kind],
                        start + lib.gguf_get_tensor_offset(header, at),
                        lib.gguf_get_tensor_size(header, at),
                        path,
                    )
            self._tensors = MappingProxyType(table)
        return self._tensors

    # --- the file ---

    @property
    def path(self) -> str:
        """The file, or the first one of a split model."""
        return self._paths[0]

    @property
    def paths(self) -> tuple[str, ...]:
        """All files of the model."""
        return self._paths

    @property
    def bytes_read(self) -> int | None:
        """How many bytes of the files were read from the Hugging Face Hub; None for files that are here."""
        return None if self._remote is None else self._remote[1]

    def _sizes(self) -> tuple[int, ...]:
        """Bytes of each file."""
        return tuple(map(os.path.getsize, self._paths)) if self._remote is None else self._remote[0]

    @property
    def version(self) -> int:
        """The version of the format."""
        return int(lib.gguf_get_version(self._headers[0]))

    @property
    def alignment(self) -> int:
        """The number of bytes that tensors' offsets are multiples of."""
        return int(lib.gguf_get_alignment(self._headers[0]))

    @property
    def data_offset(self) -> int:
        """Bytes from the beginning of the (first) file to its tensors' data."""
        return int(lib.gguf_get_data_offset(self._headers[0]))

    def __repr__(self) -> str:
        files = f", {len(self._paths)} files" if len(self._paths) > 1 else ""
        return f"<Gguf {self.path}: {len(self)} keys, {len(self.tensors)} tensors{files}>"

    def __str__(self) -> str:
        width = max(map(len, self), default=0)
        lines = [f"{key:{width}}  {self._type_name(key):<9} {_shortened(self[key])}" for key in self]
        kinds: dict[str, list[int]] = {}
        for tensor in self.tensors.values():
            kinds.setdefault(tensor.type.name, []).append(tensor.nbytes)
        lines += [f"{len(sizes):6} tensors {name:<8} {sum(sizes) / 2**20:10.1f} MiB" for name, sizes in kinds.items()]
        return "\n".join([repr(self)[1:-1], *lines])

    def _type_name(self, key: str) -> str:
        kind = self.type_of(key)
        return f"{self.item_type_of(key).name}[]" if kind == GgufType.ARRAY else kind.name


def _shape(dimensions: list[int]) -> tuple[int, ...]:
    """Without the ones that llama.cpp pads it with; the file's own number of dimensions is not kept."""
    while len(dimensions) > 1 and dimensions[-1] == 1:
        dimensions.pop()
    return tuple(dimensions)


def _shortened(value: GgufValue) -> str:
    if isinstance(value, (list, np.ndarray)):
        first = list(value[:4]) if isinstance(value, list) else value[:4].tolist()
        return f"{len(value)}: {', '.join(map(repr, first))}{', ...' * (len(value) > 4)}"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 80 else text[:79] + "…"


@lru_cache(maxsize=4)
def _read_on_hub(found: HubFiles) -> Gguf:
    """The headers of files on the Hub. What a commit has stays as it is, so the last few are kept."""
    from moebind.files import hub

    sizes: list[int] = []
    opened: dict[str, tuple[CData, atomic_files.Signature]] = {}
    read = 0
    with closing(hub.fetched_headers(found)) as files:
        for file in files:
            header, _ = opened[file.name] = _open(file.path, file.name)
            count = max(_split_count(header, file.name), 1)
            if count != len(found.files):
                raise ModelLoadError(
                    f"{file.name} is one of {count} files; its name says that it is one of {len(found.files)}"
                )
            sizes.append(file.size)
            read += file.nbytes
    made = Gguf._from_files(list(opened), opened)
    made._remote = tuple(sizes), read
    return made


def open_header(path: str) -> CData:
    """Read metadata and tensor table of one file into a ``gguf_context``; no tensor data is read."""
    return _open(path, path)[0]


def _open(path: str, name: str) -> tuple[CData, atomic_files.Signature]:
    """The same, of a file with this name in messages; and what the file was before."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        from moebind.files.hub_address import meant  # here, since most files are there

        address = meant(name)
        hint = "" if address is None else f"; if it is on the Hugging Face Hub, write {address}"
        if _REPOSITORY.fullmatch(name) and not name.endswith(".gguf"):
            hint = (
                f"; if it is a repository of the Hugging Face Hub, Model.from_pretrained({name!r}, filename) loads "
                f"from it, and plans read {checks.HUB}{name}/FILE.gguf"
            )
        raise ModelNotFoundError(f"{name} does not exist{hint}") from None
    except OSError as error:
        raise ModelLoadError(f"{name} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode):
        # A directory is nothing to read, a pipe would be waited for, and some devices never end.
        raise ModelLoadError(f"{name} is not a regular file")
    encoded = os.fsencode(path)
    with log.quoted():
        try:
            header = own(lib.own_moebind_gguf_open, encoded)
        except NativeError as error:
            raise ModelLoadError(f"{name} cannot be read: {error.message}") from error
        if not header:
            raise ModelLoadError(f"{name} is not a GGUF file that this llama.cpp can read{log.recent_lines()}")
    return header, atomic_files.signature_of(found)


def _split_count(header: CData, name: str) -> int:
    """How many files the model has, as one of them tells; 0 if it does not."""
    key = lib.gguf_find_key(header, b"split.count")
    if key < 0:
        return 0
    if lib.gguf_get_kv_type(header, key) != GgufType.UINT16:
        raise ModelLoadError(f"{name}: the metadata split.count is not a 16-bit number; the file is damaged")
    return int(lib.gguf_get_val_u16(header, key))


def _files_of(path: str, header: CData) -> list[str]:
    """All files of the model that ``path`` is one of, in their order."""
    count = _split_count(header, path)
    if count <= 1:
        return [path]
    split = Split.of(path)
    if split is None or not 1 <= split.number <= count == split.n_files:
        raise ModelLoadError(
            f"{path} is one of {count} files; give one that is named like NAME-00001-of-{count:05d}.gguf, with the "
            "others beside it, or all of them to Model.load_from_splits"
        )
    paths = [split.path(number) for number in range(1, count + 1)]
    for each in paths:
        if not os.path.exists(each):
            raise ModelNotFoundError(f"{each} does not exist; {path} says that the model has {count} files")
    return paths
