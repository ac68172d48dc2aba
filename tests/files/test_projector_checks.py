"""Projector files whose tensors or numbers libmtmd would not survive."""

from __future__ import annotations

from pathlib import Path

import projectors
import pytest

from moebind import Gguf
from moebind.errors import MtmdError, MtmdNotFoundError
from moebind.files import projector_checks


@pytest.mark.parametrize("kind", sorted(projectors.MODELS))
def test_projectors_are_told_from_models(tmp_path: Path, kind: str) -> None:
    path = projectors.write(tmp_path / "mmproj.gguf", kind)
    projector_checks.check(str(path))
    assert projector_checks.is_projector(Gguf.from_file(path))
    model = projectors.text_model(tmp_path / "model.gguf", kind)
    assert not projector_checks.is_projector(Gguf.from_file(model))
    with pytest.raises(MtmdError, match="is no projector, but of the architecture"):
        projector_checks.check(str(model))


@pytest.mark.parametrize(
    ("kind", "changed", "told"),
    [
        ("gemma3", {"block_count": 0}, "clip.vision.block_count of 0; it takes 1 to 1024"),
        ("ultravox", {"block_count": 2**30}, "clip.audio.block_count of 1073741824"),
        ("gemma3", {"head_count": 0}, "clip.vision.attention.head_count of 0"),
        ("idefics3", {"vision.image_size": 0}, "image_size of 0, which projectors of the kind idefics3 divide by"),
        ("gemma3", {"projector_type": "mlp"}, "lacks the tensor mm.2.weight"),
        ("ultravox", {"without": "a.position_embd.weight"}, "lacks the tensor a.position_embd.weight"),
    ],
)
def test_what_would_end_the_process(tmp_path: Path, kind: str, changed: dict[str, object], told: str) -> None:
    path = projectors.write(tmp_path / "mmproj.gguf", kind, **changed)  # type: ignore[arg-type]
    with pytest.raises(MtmdError, match=told):
        projector_checks.check(str(path))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(MtmdNotFoundError, match="often begins with mmproj"):
        projector_checks.check(str(tmp_path / "nothing"))
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(MtmdError, match="could not be loaded"):
        projector_checks.check(str(tmp_path / "empty"))
