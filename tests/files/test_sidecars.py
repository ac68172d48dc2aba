"""What lies beside models: in folders, and in repositories of the Hub."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub_server import REPO, Hub

from moebind import ModelLoadError, ModelNotFoundError
from moebind.files.sidecars import beside


def test_of_several_files_in_a_folder(tmp_path: Path) -> None:
    for name in ("b.gguf", "mmproj-a.gguf", "mmproj-b.gguf", "mmproj-b.txt", "mtp-b.gguf", "c/dflash-b.gguf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    model = str(tmp_path / "b.gguf")
    assert beside(model, "mmproj") == str(tmp_path / "mmproj-b.gguf")
    assert beside(model, "mtp") == str(tmp_path / "mtp-b.gguf")
    assert beside(model, "dflash") is None


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert beside(str(tmp_path / "nowhere" / "b.gguf"), "mtp") is None


def test_in_a_repository(hub: Hub) -> None:
    hub.repos[REPO] |= dict.fromkeys(("mtp-a.gguf", "sub/mtp-tiny.gguf", "mmproj-a-F16.gguf"), b"GGUF")
    # Nearest to the name of the file that the quantisation means.
    assert beside(f"hf://{REPO}/Q4_K", "mtp") == f"hf://{REPO}/sub/mtp-tiny.gguf"
    assert beside(f"hf://{REPO}@main/Q4_K", "mmproj") == f"hf://{REPO}@main/mmproj-tiny-F16.gguf"
    assert beside(f"hf://{REPO}/Q4_K", "eagle3") is None


def test_repositories_that_cannot_be_asked(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelNotFoundError, match="no repository of models someone/else"):
        beside("hf://someone/else", "mtp")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelLoadError, match="cannot be reached"):
        beside(f"hf://{REPO}/Q4_K", "mtp")
