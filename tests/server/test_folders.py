"""Models in folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from moebind import ModelNotFoundError
from moebind.server.folders import Found, find, in_folder, of_file

MakeTiny = Callable[..., Path]


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_files_and_folders_in_folders(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "b.gguf",
        "a-00001-of-00002.gguf",
        "a-00002-of-00002.gguf",
        "readme.md",
        "imatrix-b.gguf",
        "mtp-b.gguf",
        "mmproj-b.gguf",
        "seeing/v.gguf",
        "seeing/mmproj-v.gguf",
        "deep/deeper/c.gguf",
        "empty/readme.md",
    )
    assert in_folder(tmp_path) == [
        Found("a", str(tmp_path / "a-00001-of-00002.gguf")),
        Found("b", str(tmp_path / "b.gguf")),
        Found("v", str(tmp_path / "seeing/v.gguf"), str(tmp_path / "seeing/mmproj-v.gguf")),
    ]


def test_names_are_of_one_model_each(tmp_path: Path) -> None:
    touch(tmp_path, "one/m.gguf", "two/m.gguf", "two/m-2.gguf")
    found = find([tmp_path / "one/m.gguf"], [tmp_path / "one", tmp_path / "two"])
    assert [(model.name, str(Path(model.path).relative_to(tmp_path))) for model in found] == [
        ("m", "one/m.gguf"),
        ("m-2", "two/m-2.gguf"),
        ("m-3", "two/m.gguf"),
    ]


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("Qwen3.5-8B-Q4_K_M.gguf", "Qwen3.5-8B-Q4_K_M"),
        ("a b,c[d]e:f.gguf", "a-b-c-d-e-f"),
        ("x;y#z.gguf", "x-y-z"),
        ("default.gguf", "default-model"),
        ("*.gguf", "*-model"),
        ("ä.gguf", "ä"),
        (",.gguf", "model"),
    ],
)
def test_names_are_those_that_the_file_of_presets_can_hold(tmp_path: Path, file: str, name: str) -> None:
    touch(tmp_path, file)
    assert of_file(tmp_path / file).name == name


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    for missing in (tmp_path / "none.gguf", tmp_path / "none" / "x.gguf"):
        with pytest.raises(ModelNotFoundError, match=f"^{missing} does not exist$"):
            of_file(missing)
    with pytest.raises(ModelNotFoundError, match="is a folder; give it as models_dir"):
        of_file(tmp_path)
    touch(tmp_path, "a.gguf")
    with pytest.raises(ModelNotFoundError, match=r"projector\.gguf does not exist"):
        of_file(tmp_path / "a.gguf", tmp_path / "projector.gguf")
    with pytest.raises(ModelNotFoundError, match=r"the folder .*none does not exist"):
        in_folder(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelNotFoundError, match="there is no model"):
        in_folder(tmp_path / "empty")


def test_something_has_to_be_given(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no model; give one"):
        find([], [])
    touch(tmp_path, "a.gguf", "b.gguf", "p.gguf")
    for models, folders in (
        ([tmp_path / "a.gguf", tmp_path / "b.gguf"], []),
        ([tmp_path / "a.gguf"], [tmp_path]),
        ([], [tmp_path]),
    ):
        with pytest.raises(ValueError, match="mmproj belongs to one model"):
            find(models, folders, tmp_path / "p.gguf")


def test_paths_do_not_depend_on_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.gguf")
    monkeypatch.chdir(tmp_path)
    assert of_file("a.gguf").path == in_folder(".")[0].path == str(tmp_path / "a.gguf")


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("hf://someone/tiny", "tiny"),
        ("hf://someone/tiny/Q4_K_M", "tiny-Q4_K_M"),
        ("hf://someone/tiny@v1/F32/tiny-F32-00001-of-00003.gguf", "tiny-F32"),
    ],
)
def test_models_of_the_hub_have_the_names_of_their_files(address: str, name: str) -> None:
    assert of_file(address) == Found(name, address)


def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(ValueError, match="is not the address of a file on the Hugging Face Hub"):
        of_file("hf://someone")


def test_projectors_may_have_addresses(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    projector = "hf://someone/tiny/mmproj-tiny-F16.gguf"
    assert of_file(tmp_path / "m.gguf", projector).mmproj == projector
