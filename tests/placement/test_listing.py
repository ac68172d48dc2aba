"""The models that are here, and whether they fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_server import Hub

import moebind
from moebind import ListedModel, ModelNotFoundError
from moebind.files import hub as files_of_hub
from moebind.placement.listing import listing_text

MakeTiny = Callable[..., Path]


@pytest.fixture
def folder(tiny_path: MakeTiny, tmp_path: Path) -> Path:
    """A model of experts, a dense one, a split one of which a part is missing, what lies beside, and junk."""
    top = tmp_path / "models"
    top.mkdir()
    (top / "moe.gguf").symlink_to(tiny_path(n_expert=4))
    (top / "dense.gguf").symlink_to(tiny_path())
    split = tiny_path(3, n_expert=4)
    for number in (1, 2, 3):
        name = split.name.replace("00001", f"0000{number}")
        (top / f"big{name[-20:]}").symlink_to(split.with_name(name))
        if number > 1:
            (top / f"part{name[-20:]}").symlink_to(split.with_name(name))
    (top / "mmproj-moe.gguf").write_bytes(b"GGUF, but not looked at")
    (top / "junk.gguf").write_bytes(b"junk, not a model")
    return top


def rows_of(*arguments: object, **keywords: object) -> dict[str, ListedModel]:
    return {row.name: row for row in moebind.list_models(*arguments, **keywords)}  # type: ignore[arg-type]


def test_a_folder(folder: Path) -> None:
    found = rows_of([folder], devices=["1GiB"], host="8GiB", n_ctx=256)
    assert list(found) == ["big.gguf", "dense.gguf", "junk.gguf", "mmproj-moe.gguf", "moe.gguf", "part.gguf"]
    moe, big = found["moe.gguf"], found["big.gguf"]
    assert (moe.kind, moe.architecture, moe.n_expert, moe.n_expert_used) == ("model", "llama", 4, 2)
    assert (moe.fits, moe.fit, moe.n_ctx, moe.problem) == (True, "all on GPU0", 256, None)
    assert (big.n_files, big.n_params, big.fit) == (3, moe.n_params, "all on GPU0")
    assert big.nbytes > moe.n_params * 4
    assert found["mmproj-moe.gguf"].kind == "mmproj"
    for name, why in (("junk.gguf", "is not a GGUF file"), ("part.gguf", "1 of 3 files are missing")):
        problem = found[name].problem
        assert problem is not None
        assert why in problem
        assert str(folder) not in problem
        assert found[name].fits is None


def test_what_does_not_fit(folder: Path) -> None:
    found = rows_of([folder], devices=[], memory={"Host": "1MiB"}, host="8GiB", n_ctx=256)["moe.gguf"]
    assert found.fits is False
    assert found.fit is not None
    assert found.fit.startswith("does not fit: Host lacks ")
    assert found.n_ctx is None


def test_without_a_fit(folder: Path) -> None:
    names: list[str] = []
    found = rows_of([folder], fits=False, progress=names.append)
    assert {row.fit for row in found.values()} == {None}
    assert found["moe.gguf"].n_expert == 4
    assert names == list(found)


def test_the_cache_of_the_hub(hub: Hub, folder: Path) -> None:
    assert moebind.list_models() == []
    files_of_hub.download(files_of_hub.find(files_of_hub.Address("someone/tiny", "F32")))
    files_of_hub.download(files_of_hub.find(files_of_hub.Address("someone/tiny", "Q4_K", hub.commit("someone/tiny"))))
    files_of_hub.download(files_of_hub.find(files_of_hub.Address("someone/tiny", "mmproj-tiny-F16.gguf")))
    found = rows_of(devices=["1GiB"], host="8GiB", n_ctx=256)
    prefix = "hf://someone/tiny"
    assert list(found) == [f"{prefix}/F32/tiny-F32.gguf", f"{prefix}/mmproj-tiny-F16.gguf", f"{prefix}/tiny-Q4_K.gguf"]
    assert found[f"{prefix}/F32/tiny-F32.gguf"].n_files == 3
    assert found[f"{prefix}/F32/tiny-F32.gguf"].fit == "all on GPU0"
    assert found[f"{prefix}/mmproj-tiny-F16.gguf"].kind == "mmproj"
    # Names are addresses, which others take.
    assert moebind.inspect(f"{prefix}/F32/tiny-F32.gguf").n_params == found[f"{prefix}/F32/tiny-F32.gguf"].n_params
    assert "moe.gguf" not in found
    both = rows_of([folder], hub=True, fits=False)
    assert {"moe.gguf", f"{prefix}/tiny-Q4_K.gguf"} <= both.keys()
    assert rows_of([], hub=False) == {}


def test_other_revisions_are_told_apart(hub: Hub) -> None:
    old = hub.commit("someone/tiny")
    files_of_hub.download(files_of_hub.find(files_of_hub.Address("someone/tiny", "Q4_K", old)))
    (found,) = moebind.list_models(fits=False)
    assert found.name == f"hf://someone/tiny@{old}/tiny-Q4_K.gguf"
    assert moebind.inspect(found.name).bytes_read is None


def test_arguments(folder: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        moebind.list_models([folder / "none"])
    with pytest.raises(TypeError, match="it takes a list"):
        moebind.list_models(str(folder))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="memory is 'much'"):
        moebind.list_models([folder], memory="much")
    with pytest.raises(TypeError, match="fits is 1"):
        moebind.list_models([folder], fits=1)  # type: ignore[arg-type]


def test_tables_and_plain_values(folder: Path) -> None:
    rows = moebind.list_models([folder], devices=["1GiB"], host="8GiB", n_ctx=256)
    lines = listing_text(rows).splitlines()
    assert lines[0].split() == ["model", "size", "type", "parameters", "experts", "fits"]
    assert lines[5].endswith("all on GPU0, context 256")
    assert lines[4].endswith("mmproj")
    assert "is not a GGUF file" in lines[3]
    assert "fits" not in listing_text(moebind.list_models([folder], fits=False)).splitlines()[0]
    assert json.loads(json.dumps(rows[0].to_dict()))["n_files"] == 3


def test_names_do_not_move_the_cursor(folder: Path, tiny_path: MakeTiny) -> None:
    (folder / "bad\x1b[2J.gguf").symlink_to(tiny_path())
    (folder / "bad\x1b[2J-2.gguf").write_bytes(b"junk")
    assert "\x1b" not in listing_text(moebind.list_models([folder], fits=False))


def test_other_names_of_arguments() -> None:
    with pytest.raises(TypeError, match="did you mean 'devices'"):
        moebind.list_models(device=["1GiB"])  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"Write list_models\(folders, context_params=ContextParams\(n_ubatch=64\)\)"):
        moebind.list_models(n_ubatch=64)  # type: ignore[call-arg]
