"""Gguf: metadata of every type, tensors, splits, and files that are not what they say."""

from __future__ import annotations

import os
import resource
import struct
from collections.abc import Callable
from pathlib import Path

import gguf as reference
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import CPU
from moebind import GgmlType, Gguf, GgufTensor, GgufType, Model, ModelLoadError, ModelNotFoundError, lib
from moebind._core.native import own

MakeTiny = Callable[..., Path]

SCALARS = {
    "uint8": 255,
    "int8": -128,
    "uint16": 65535,
    "int16": -32768,
    "uint32": 2**32 - 1,
    "int32": -(2**31),
    "uint64": 2**64 - 1,
    "int64": -(2**63),
    "float32": 0.5,
    "float64": 1e-300,
    "bool": True,
    "string": "ein Löwe 🦁",
}


def write(path: Path, **arrays: np.ndarray) -> Path:
    """A file with a value of every type, and arrays as tensors."""
    writer = reference.GGUFWriter(path, "none")
    for name, value in SCALARS.items():
        getattr(writer, f"add_{name}")(f"one.{name}", value)
    writer.add_array("many.string", ["a", "", "öß", "z"])
    writer.add_array("many.int", [1, -2, 3])
    writer.add_array("many.float", [0.5, -1.5])
    writer.add_array("many.bool", [True, False])
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def every_type(tmp_path_factory: pytest.TempPathFactory) -> Gguf:
    return Gguf.from_file(write(tmp_path_factory.mktemp("gguf") / "every.gguf", t=np.ones((2, 3), np.float32)))


@pytest.mark.parametrize(("name", "value"), SCALARS.items())
def test_scalars_of_every_type(every_type: Gguf, name: str, value: object) -> None:
    found = every_type[f"one.{name}"]
    assert found == value
    assert type(found) is type(value)
    assert every_type.type_of(f"one.{name}") is GgufType[name.upper()]
    with pytest.raises(TypeError, match="not an array"):
        every_type.item_type_of(f"one.{name}")


def test_arrays(every_type: Gguf) -> None:
    assert every_type["many.string"] == ["a", "", "öß", "z"]
    for key, values, dtype in [
        ("many.int", [1, -2, 3], np.int32),
        ("many.float", [0.5, -1.5], np.float32),
        ("many.bool", [True, False], np.bool_),
    ]:
        array = every_type[key]
        assert isinstance(array, np.ndarray)
        assert array.dtype == dtype
        assert array.tolist() == values
        assert not array.flags.writeable
        assert every_type.type_of(key) is GgufType.ARRAY
    assert every_type.item_type_of("many.string") is GgufType.STRING


def test_it_is_an_immutable_mapping(every_type: Gguf) -> None:
    assert len(every_type) == len(list(every_type)) == len(every_type.keys())
    assert "one.bool" in every_type
    assert 3 not in every_type
    assert every_type.get("nothing") is None
    for broken in (lambda: every_type["nothing"], lambda: every_type.type_of("nothing")):
        with pytest.raises(KeyError):
            broken()
    with pytest.raises(TypeError):
        every_type["a"] = 1  # type: ignore[index]
    with pytest.raises(TypeError):
        every_type.tensors["a"] = 1  # type: ignore[index]
    assert every_type == every_type
    assert every_type != Gguf.from_file(every_type.path)
    assert {every_type: 1}[every_type] == 1
    with pytest.raises(TypeError, match="from_file"):
        Gguf()


def test_metadata_are_copied_but_for_some(tmp_path: Path, every_type: Gguf) -> None:
    copy = own(lib.own_gguf_init_empty)
    every_type._copy_metadata(copy, lambda key: key == "one.int8")
    path = tmp_path / "copy.gguf"
    assert lib.gguf_write_to_file(copy, str(path).encode(), True)
    read = Gguf.from_file(path)
    assert [*read] == [key for key in every_type if key != "one.int8"]
    for key in read:
        assert read.type_of(key) == every_type.type_of(key)
        np.testing.assert_array_equal(read[key], every_type[key])
        if read.type_of(key) == GgufType.ARRAY:
            assert read.item_type_of(key) == every_type.item_type_of(key)


def test_it_prints(every_type: Gguf, tiny_path: MakeTiny) -> None:
    assert "17 keys, 1 tensors" in repr(every_type)
    for part in ("one.uint64", "UINT64", "STRING[]", "4: 'a', '', 'öß', 'z'", "F32"):
        assert part in str(every_type)
    assert "296: '<unk>', '<s>'" in str(Gguf.from_file(tiny_path()))


def test_it_reads_what_the_reference_reads(tiny_path: MakeTiny) -> None:
    path = tiny_path(n_expert=4)
    ours, theirs = Gguf.from_file(path), reference.GGUFReader(path)
    names = [name for name in theirs.fields if not name.startswith("GGUF.")]
    assert list(ours) == names
    for name in names:
        expected = theirs.fields[name].contents()
        value = ours[name]
        assert (value.tolist() if isinstance(value, np.ndarray) else value) == expected
    assert (ours.version, ours.alignment) == (3, theirs.alignment)
    assert ours.data_offset == theirs.data_offset
    assert len(ours.tensors) == len(theirs.tensors)
    for tensor, expected in zip(ours.tensors.values(), theirs.tensors, strict=True):
        assert tensor.name == expected.name
        assert tensor.type == expected.tensor_type
        assert (tensor.offset, tensor.nbytes) == (expected.data_offset, expected.n_bytes)
        assert tensor.n_elements == expected.n_elements
        padded = [*tensor.shape, 1, 1, 1]
        assert padded[: len(expected.shape)] == expected.shape.tolist()
    picked = theirs.tensors[5]
    assert np.array_equal(ours.tensors[picked.name].data(), picked.data)


@settings(max_examples=20)
@given(
    dtype=st.sampled_from(["f4", "f2", "f8", "i1", "i2", "i4", "i8"]),
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
)
def test_data_is_that_of_the_file(tmp_path_factory: pytest.TempPathFactory, dtype: str, shape: list[int]) -> None:
    array = np.random.default_rng(1).integers(0, 100, shape).astype(dtype)
    path = write(tmp_path_factory.mktemp("data") / "t.gguf", first=np.zeros(7, np.float32), t=array)
    tensor = Gguf.from_file(path).tensors["t"]
    assert tensor.data().dtype == array.dtype
    assert np.array_equal(tensor.data().ravel(), array.ravel())
    assert not tensor.data().flags.writeable
    assert tensor.n_elements == array.size
    assert tensor.nbytes == array.nbytes


def test_quantised_data_is_rows_of_bytes(demo_path: Path) -> None:
    tensor = Gguf.from_file(demo_path).tensors["blk.0.ffn_up_exps.weight"]
    assert isinstance(tensor, GgufTensor)
    assert (tensor.type, tensor.shape) == (GgmlType.Q4_1, (576, 1536, 8))
    assert tensor.data().shape == (8, 1536, 576 // 32 * 20)
    assert tensor.data().nbytes == tensor.nbytes


def test_data_of_a_truncated_file(tmp_path: Path) -> None:
    path = write(tmp_path / "t.gguf", t=np.ones(1000, np.float32))
    file = Gguf.from_file(path)
    os.truncate(path, file.data_offset + 3)
    with pytest.raises(ModelLoadError, match="truncated"):
        file.tensors["t"].data()
    path.unlink()
    with pytest.raises(ModelLoadError, match="cannot be read"):
        file.tensors["t"].data()


# --- splits ---


def test_any_file_of_a_split_model_gives_all_of_it(tiny_path: MakeTiny) -> None:
    first, whole = tiny_path(split=3, n_expert=4), Gguf.from_file(tiny_path(n_expert=4))
    parts = sorted(first.parent.glob(f"{first.name[:-19]}*-of-00003.gguf"))
    for part in parts:
        file = Gguf.from_file(part)
        assert file.paths == tuple(map(str, parts))
        assert file.path == str(parts[0])
        assert file["llama.expert_count"] == 4
        assert set(file.tensors) == set(whole.tensors)
        assert "3 files" in repr(file)
        for name, tensor in file.tensors.items():
            assert np.array_equal(tensor.data(), whole.tensors[name].data())
    assert {tensor.path for tensor in file.tensors.values()} == set(file.paths)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    first = tiny.write(tmp_path / "m.gguf", tiny.Shape(), split=2)
    last = tmp_path / "m-00002-of-00002.gguf"
    first.rename(tmp_path / "other.gguf")
    with pytest.raises(ModelNotFoundError, match="m-00001-of-00002.gguf does not exist"):
        Gguf.from_file(last)
    with pytest.raises(ModelLoadError, match="one of 2 files"):
        Gguf.from_file(tmp_path / "other.gguf")


# --- what is no GGUF file ---


@pytest.mark.parametrize("path", [3, None, b"x.gguf", ["x.gguf"]])
def test_paths_of_the_wrong_type(path: object) -> None:
    with pytest.raises(TypeError, match="path"):
        Gguf.from_file(path)  # type: ignore[arg-type]


def test_a_repository_is_no_file() -> None:
    told = r"^TheBloke/x-GGUF does not exist; if .*from_pretrained\('TheBloke/x-GGUF', filename\).* hf://TheBloke/x-GGUF/FILE"
    with pytest.raises(ModelNotFoundError, match=told):
        Gguf.from_file("TheBloke/x-GGUF")
    for path in ("models/x.gguf", "/TheBloke/x-GGUF", "a/b/c", "x-GGUF", "../x-GGUF"):
        with pytest.raises(ModelNotFoundError, match="does not exist$"):
            Gguf.from_file(path)


def test_what_is_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ModelLoadError, match="not a regular file"):
            Gguf.from_file(path)
    for missing in (tmp_path / "none.gguf", tmp_path / "none" / "none.gguf"):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            Gguf.from_file(missing)
    for broken in ("a\0b", ""):
        with pytest.raises(ValueError, match="path"):
            Gguf.from_file(broken)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ModelLoadError, match="cannot be read"):
        Gguf.from_file(tmp_path / "file" / "below")


@pytest.mark.parametrize(
    "content", [b"", b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 64, b"not a model" * 100, b"\0" * 4096]
)
def test_what_is_not_a_gguf_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match="not a GGUF file"):
        Gguf.from_file(path)


@pytest.mark.parametrize("kind", [-(2**31), -2, -1, 13, 14, 255, 2**31 - 1])
@pytest.mark.parametrize("in_array", [False, True])
def test_types_of_metadata_that_there_are_not(tmp_path: Path, kind: int, in_array: bool) -> None:
    """They are refused before they are looked up: UBSan ends a process that takes one for an enumerator.

    ``python tools/sanitize.py address -m pytest -n 0 tests/files/test_gguf.py``
    """
    path = tmp_path / "kind.gguf"
    value = struct.pack("<iiQ", 9, kind, 2) if in_array else struct.pack("<i", kind)
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 4) + b"what" + value
    path.write_bytes(head + bytes(64))
    with pytest.raises(ModelLoadError, match="not a GGUF file"):
        Gguf.from_file(path)
    with pytest.raises(ModelLoadError, match="not a GGUF file"):
        Model.load_from_file(path, CPU)


def test_a_header_cut_at_any_byte_is_refused(tmp_path: Path, every_type: Gguf) -> None:
    content = Path(every_type.path).read_bytes()
    path = tmp_path / "cut.gguf"
    for size in range(0, every_type.data_offset - 32, 7):
        path.write_bytes(content[:size])
        with pytest.raises(ModelLoadError, match="not a GGUF file"):
            Gguf.from_file(path)


@pytest.mark.parametrize(
    ("kind", "count"), [(8, 2**23), (8, 2**29), (4, 2**28), (10, 2**29), (0, 2**30)], ids=lambda value: str(value)
)
def test_no_memory_for_what_a_sparse_file_claims(tmp_path: Path, kind: int, count: int) -> None:
    """Sixteen gigabytes of nothing, in which every count comes true."""
    path = tmp_path / "sparse.gguf"
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 4) + b"many" + struct.pack("<iiQ", 9, kind, count)
    path.write_bytes(head)
    os.truncate(path, 2**34)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelLoadError, match="'many' is an array of"):
        Gguf.from_file(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16  # in KiB


def test_no_memory_for_a_text_that_a_sparse_file_claims(tmp_path: Path) -> None:
    path = tmp_path / "sparse.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 4) + b"text" + struct.pack("<iQ", 8, 2**29))
    os.truncate(path, 2**34)
    with pytest.raises(ModelLoadError, match="'text' is a text of 536870912"):
        Gguf.from_file(path)


def kv(key: bytes, kind: int, value: bytes = b"") -> bytes:
    """A metadata."""
    return struct.pack("<Q", len(key)) + key + struct.pack("<i", kind) + value


def array(kind: int, count: int) -> bytes:
    """The beginning of an array."""
    return struct.pack("<iQ", kind, count)


def sparse(path: Path, count: int, *parts: bytes | int) -> Path:
    """A header in which there are holes of so many bytes, and a file of sixteen gigabytes."""
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, count))
        for part in parts:
            if isinstance(part, int):
                file.seek(part, os.SEEK_CUR)
            else:
                file.write(part)
        file.truncate(2**34)
    return path


BYTES = kv(b"bytes", 9, array(0, 3 * 2**26)), 3 * 2**26
TEXTS = kv(b"texts", 9, array(8, 3 * 2**20)), 3 * 2**20 * 8


@pytest.mark.parametrize(
    ("count", "parts", "message"),
    [
        (2**32, (), "key 0 is empty"),
        (2, (*BYTES, *BYTES), r"the metadata up to 'bytes' have 402653184 bytes; at most 268435456 are taken"),
        (2, (*TEXTS, *TEXTS), r"the metadata up to 'texts' have 6291456 texts; at most 4194304 are taken"),
        (
            2**17,
            (b"".join(kv(b"%d" % at, 0, b"1") for at in range(2**17)),),
            "are 131072 metadata; at most 65536",
        ),
    ],
)
def test_no_memory_for_what_all_metadata_claim_together(
    tmp_path: Path, count: int, parts: tuple[bytes | int, ...], message: str
) -> None:
    path = sparse(tmp_path / "sparse.gguf", count, *parts)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelLoadError, match=message):
        Gguf.from_file(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16  # in KiB


@pytest.mark.parametrize("nbytes", [2**20 - 99, 2**25 - 99, 2**25 - 55, 2**25, 2**26])
def test_metadata_behind_a_large_array(tmp_path: Path, nbytes: int) -> None:
    """What follows is read, whether what comes before is kept for that or not."""
    path = tmp_path / "large.gguf"
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 3) + kv(b"bytes", 9, array(0, nbytes)))
        file.seek(nbytes, os.SEEK_CUR)
        file.write(kv(b"text", 8, struct.pack("<Q", 5) + b"words") + kv(b"number", 4, struct.pack("<I", 7)))
    found = Gguf.from_file(path)
    assert (found["text"], found["number"], found._length("bytes")) == ("words", 7, nbytes)


def test_no_memory_for_tensors_that_a_sparse_file_claims(tmp_path: Path) -> None:
    path = tmp_path / "sparse.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2**31, 0))
    os.truncate(path, 2**40)
    with pytest.raises(ModelLoadError, match=r"sparse\.gguf"):
        Gguf.from_file(path)


def test_bytes_that_are_not_text(tmp_path: Path) -> None:
    path = tmp_path / "t.gguf"
    key = struct.pack("<Q", 1) + b"k"
    texts = [b"\xff\xfe", b"a\0b", b"\xe2\x82", b"c"]
    items = b"".join(struct.pack("<Q", len(each)) + each for each in texts)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key + struct.pack("<iiQ", 9, 8, 4) + items)
    assert Gguf.from_file(path)["k"] == ["\ufffd\ufffd", "a", "\ufffd", "c"]


@pytest.mark.parametrize(("kind", "empty"), [(8, []), (4, np.empty(0, np.uint32)), (7, np.empty(0, np.bool_))])
def test_empty_arrays(tmp_path: Path, kind: int, empty: object) -> None:
    path = tmp_path / "t.gguf"
    key = struct.pack("<Q", 1) + b"k"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key + struct.pack("<iiQ", 9, kind, 0))
    file = Gguf.from_file(path)
    found = file["k"]
    assert len(found) == 0  # type: ignore[arg-type]
    assert getattr(found, "dtype", None) == getattr(empty, "dtype", None)
    copy = own(lib.own_gguf_init_empty)
    file._copy_metadata(copy, lambda key: False)
    assert lib.gguf_get_arr_n(copy, 0) == 0
    assert lib.gguf_get_arr_type(copy, 0) == kind
