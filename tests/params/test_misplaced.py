"""Keywords that are fields of parameters: the sentence writes the call that was meant."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from moebind import Model
from moebind.params.misplaced import explained_with_fields


@pytest.mark.parametrize(
    ("unknown", "written"),
    [
        ({"n_gpu_layers": 0}, "ModelParams has. Write Model.load_from_file(path, ModelParams(n_gpu_layers=0))"),
        ({"n_gpu_layer": 0}, "Write Model.load_from_file(path, ModelParams(n_gpu_layers=0))"),
        ({"use_mmap": True}, "Write Model.load_from_file(path, ModelParams().with_use_mmap(True))"),
        ({"cpu_moe_all": True}, "Write Model.load_from_file(path, ModelParams().with_cpu_moe_all())"),
        ({"n_ctx": 512}, "ContextParams has. Write model.new_context(ContextParams(n_ctx=512))"),
    ],
)
def test_a_load_with_keywords(tmp_path: Path, unknown: dict[str, Any], written: str) -> None:
    with pytest.raises(TypeError, match=re.escape(written) + "$"):
        Model.load_from_file(tmp_path / "no.gguf", **unknown)


def test_every_call_that_takes_parameters(dense: Model) -> None:
    calls: dict[str, Any] = {
        "Model.load_from_splits(paths, ModelParams(n_gpu_layers=0))": lambda: Model.load_from_splits(
            ["no.gguf"],
            n_gpu_layers=0,  # type: ignore[call-arg]
        ),
        "Model.from_pretrained(repo_id, filename, ModelParams(n_gpu_layers=0))": lambda: Model.from_pretrained(
            "a/b",
            n_gpu_layers=0,  # type: ignore[call-arg]
        ),
        "model.new_context(ContextParams(n_ctx=512))": lambda: dense.new_context(n_ctx=512),  # type: ignore[call-arg]
        "model.embed(texts, context_params=ContextParams(n_threads=1))": lambda: dense.embed(
            "a",
            n_threads=1,  # type: ignore[call-arg]
        ),
        "model.rerank(query, texts, context_params=ContextParams(n_threads=1))": lambda: dense.rerank(
            "a",
            ["b"],
            n_threads=1,  # type: ignore[call-arg]
        ),
    }
    for written, call in calls.items():
        with pytest.raises(TypeError, match=re.escape(f"Write {written}") + "$"):
            call()


def test_a_call_that_takes_none() -> None:
    @explained_with_fields()
    def call(path: str) -> str:
        return path

    assert call("a") == call(path="a") == "a"
    with pytest.raises(TypeError, match=re.escape("call() has no argument 'nonsense': it takes path") + "$"):
        call("a", nonsense=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=re.escape("Write Model.load_from_file(path, ModelParams(n_gpu_layers=1))")):
        call("a", n_gpu_layers=1)  # type: ignore[call-arg]
