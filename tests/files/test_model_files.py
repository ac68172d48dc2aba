"""GGUF files in folders: which are one model, and which lie beside models."""

from __future__ import annotations

from pathlib import Path

import pytest

from moebind import ModelNotFoundError
from moebind.files.model_files import ModelFiles, Split, in_folder, nearest, sidecar_kind


def write(folder: Path, *names: str) -> None:
    """Files that are as long as their names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name, encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model-Q4_K_M.gguf", None),
        ("model-MTP-Q4_0.gguf", None),
        ("mmproj-model-f16.gguf", "mmproj"),
        ("model.MMPROJ.gguf", "mmproj"),
        ("Imatrix.gguf", "imatrix"),
        ("mtp-model.gguf", "mtp"),
        ("model-eagle3-BF16.gguf", "eagle3"),
        ("dflash-model.gguf", "dflash"),
        ("dspark-model.gguf", "dspark"),
    ],
)
def test_names_tell_what_lies_beside_models(name: str, kind: str | None) -> None:
    assert sidecar_kind(name) == kind


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        ("gemma-3-4b-it-Q4_K_M.gguf", "mmproj-gemma-3-4b-it-f16.gguf"),
        ("gemma-3-12b-it-Q4_K_M.gguf", "gemma-3-12b-it.mmproj.gguf"),
        ("Qwen2-VL-2B-00001-of-00002.gguf", "mmproj-Qwen2-VL-2B-f16.gguf"),
        ("hf://owner/name/sub/qwen2-vl-2b-Q8_0.gguf", "mmproj-Qwen2-VL-2B-f16.gguf"),
        ("another.gguf", "gemma-3-12b-it.mmproj.gguf"),  # the first
        ("mmproj.gguf", "gemma-3-12b-it.mmproj.gguf"),
    ],
)
def test_the_projector_of_several_is_that_of_the_model(model: str, wanted: str) -> None:
    names = ["mmproj-gemma-3-4b-it-f16.gguf", "mmproj-Qwen2-VL-2B-f16.gguf", "gemma-3-12b-it.mmproj.gguf"]
    names += ["gemma-3-4b-it-Q4_K_M.gguf", "mtp-gemma-3-4b-it-Q4_K_M.gguf"]
    assert nearest(model, names, "mmproj") == wanted
    assert nearest(model, reversed(names), "mmproj") == wanted
    assert nearest(model, names, "imatrix") is None


def test_names_of_splits() -> None:
    split = Split.of("a/m-00002-of-00003.gguf")
    assert split == ("a/m", 2, 3)
    assert split is not None
    assert split.path(3) == "a/m-00003-of-00003.gguf"
    for name in ("m.gguf", "m-2-of-3.gguf", "m-00002-of-00003", "m-00002-of-00003.gguf.part"):
        assert Split.of(name) is None


def test_the_files_of_a_model_are_together(tmp_path: Path) -> None:
    write(
        tmp_path,
        "b.gguf",
        "big/m-00001-of-00003.gguf",
        "big/m-00003-of-00003.gguf",
        "big/mmproj-m.gguf",
        "other/m-00001-of-00003.gguf",
        "readme.md",
        ".hidden/c.gguf",
    )
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "gone.gguf").symlink_to(tmp_path / "nowhere")
    (tmp_path / "link.gguf").symlink_to(tmp_path / "b.gguf")
    parts = tuple(str(tmp_path / f"big/m-0000{number}-of-00003.gguf") for number in (1, 3))
    assert in_folder(tmp_path) == [
        ModelFiles("b.gguf", (str(tmp_path / "b.gguf"),), 6),
        ModelFiles("big/m.gguf", parts, 50, missing=1),
        ModelFiles("big/mmproj-m.gguf", (str(tmp_path / "big/mmproj-m.gguf"),), 17, sidecar="mmproj"),
        ModelFiles("link.gguf", (str(tmp_path / "link.gguf"),), 6),
        ModelFiles("other/m.gguf", (str(tmp_path / "other/m-00001-of-00003.gguf"),), 27, missing=2),
    ]


def test_folders_that_are_none(tmp_path: Path) -> None:
    write(tmp_path, "b.gguf")
    with pytest.raises(ModelNotFoundError, match=r"b\.gguf is a file; give its folder"):
        in_folder(tmp_path / "b.gguf")
    with pytest.raises(ModelNotFoundError, match="none does not exist"):
        in_folder(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert in_folder(tmp_path / "empty") == []
