"""What the commands that write text work with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from moebind.cli.drafts import DRAFTS
from moebind.cli.given import Given
from moebind.cli.writing import writing

MakeTiny = Callable[..., Path]


def given(**values: object) -> Given:
    left_open = dict.fromkeys(option.name for option in DRAFTS)
    return Given({**left_open, "n_gpu_layers": "0", "threads": 1, "n_ctx": "256", **values})


def test_all_is_closed_at_the_end(tiny_path: MakeTiny) -> None:
    path = str(tiny_path(n_expert=4))
    asked = given(spec_type="ngram-simple")
    with writing(path, asked, ["none"], fitted=False, mmproj=None, media=()) as (context, mtmd, speculative):
        model = context.model
        assert model.path == path
        assert mtmd is None
        assert speculative is not None
        assert context.generate("a", max_tokens=3, speculative=speculative).complete().usage is not None
    assert (model.closed, context.closed, speculative.closed) == (True, True, True)


def test_a_picture_without_a_projector_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    missing = str(tmp_path / "model.gguf")
    with pytest.raises(ValueError, match="needs the model's projector"):
        with writing(missing, given(), ["none"], fitted=False, mmproj=None, media=[Path("cat.png")]):
            raise AssertionError("it works")
