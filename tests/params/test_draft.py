"""What is to draft: its parameters beside a model's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from moebind import ContextParams, ContextType, Draft, GgmlType, ModelParams

TARGET = ContextParams(
    n_ctx=1024, n_seq_max=2, kv_unified=True, n_batch=256, n_ubatch=64, n_threads=3, type_k=GgmlType.Q8_0
).with_moe_cache_size(2**20)


def test_a_context_as_large_as_the_models() -> None:
    made = Draft("draft.gguf").context_for(TARGET, 1280, ahead=False)
    like = {"n_seq_max": 2, "kv_unified": True, "n_batch": 256, "n_ubatch": 64, "n_threads": 3}
    assert made == ContextParams(n_ctx=1280, **like)  # type: ignore[arg-type]


def test_what_is_given_is_kept() -> None:
    own = ContextParams(n_ctx=32, type_k=GgmlType.Q4_0, n_ubatch=16)
    made = Draft("draft.gguf", context_params=own).context_for(TARGET, 1280, ahead=True)
    assert (made.n_ctx, made.type_k, made.n_ubatch) == (1280, GgmlType.Q4_0, 16)
    assert (made.n_seq_max, made.ctx_type) == (2, ContextType.MTP)


def test_the_models_own_layers_have_a_context_like_the_models() -> None:
    made = Draft().context_for(TARGET.with_embeddings(True), 1280, ahead=True)
    assert made == TARGET.with_n_ctx(1280).with_ctx_type(ContextType.MTP).with_moe_cache_size(0)


def test_where_it_is_loaded() -> None:
    target = ModelParams(devices=(), n_gpu_layers=3).with_cpu_moe_all()
    assert Draft("draft.gguf").loaded_for(target) == ModelParams(devices=(), n_gpu_layers=3, load_mtp=True)
    own = ModelParams(n_gpu_layers=7)
    assert Draft("draft.gguf", own).loaded_for(target) == own.with_devices(())
    assert Draft("draft.gguf", ModelParams(devices=())).loaded_for(ModelParams()) == ModelParams(devices=())


def test_as_json() -> None:
    given = Draft("draft.gguf", ModelParams(n_gpu_layers=7), ContextParams(type_k=GgmlType.Q4_0))
    assert Draft.from_dict(given.to_dict()) == Draft(str(Path("draft.gguf").resolve()), *list_of(given))
    assert Draft.from_dict(Draft().to_dict()) == Draft()
    address = "org/repo:file.gguf"
    assert Draft("hf://org/repo/file.gguf").to_dict()["path"] in {"hf://org/repo/file.gguf", address}


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ("draft.gguf", TypeError, "Draft is read from 'draft.gguf'; it takes a mapping of names to values"),
        ([], TypeError, "Draft is read from"),
        ({"pth": "draft.gguf"}, ValueError, "Draft has no 'pth'; did you mean 'path'?"),
        ({"model_params": "all"}, TypeError, "ModelParams is read from 'all'"),
        ({"path": 5}, TypeError, "path is 5"),
    ],
)
def test_what_is_none_is_refused(given: object, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        Draft.from_dict(given)  # type: ignore[arg-type]


def list_of(draft: Draft) -> tuple[ModelParams | None, ContextParams | None]:
    return draft.model_params, draft.context_params


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"path": 5}, TypeError, "path is 5"),
        ({"path": "a.gguf", "model_params": 5}, TypeError, "model_params is 5; it takes ModelParams"),
        ({"path": "a.gguf", "context_params": 5}, TypeError, "context_params is 5; it takes ContextParams"),
        ({"model_params": ModelParams()}, ValueError, "model_params is given without a path"),
        ({"path": "a.gguf", "model_params": ModelParams(vocab_only=True)}, ValueError, "vocab_only"),
    ],
)
def test_what_is_refused(given: dict[str, object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        Draft(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"n_max": 4}, "Draft() has no argument 'n_max': Speculative(context, draft_context, n_max=...) has it"),
        ({"n_gpu_layers": 0}, "ModelParams has. Write Draft(path, ModelParams(n_gpu_layers=0))"),
        ({"type_k": GgmlType.F16}, "ContextParams has. Write Draft(path, context_params=ContextParams(type_k="),
        ({"params": None}, "Draft() has no argument 'params'"),
    ],
)
def test_what_to_write_instead(given: dict[str, object], said: str) -> None:
    with pytest.raises(TypeError, match=re.escape(said)):
        Draft("draft.gguf", **given)  # type: ignore[arg-type]
