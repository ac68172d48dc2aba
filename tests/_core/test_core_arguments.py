"""Keyword arguments that public functions do not have: each answer says what to write."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

import moebind
from moebind import bench
from moebind._core.arguments import explained, written_field
from moebind.params.params import ModelParams
from moebind.server import Server


@pytest.mark.parametrize(
    ("call", "given", "said"),
    [
        (lambda **given: moebind.plan("x", **given), {"device": ["1GiB"]}, "plan() has no argument 'device'; did you "),
        (lambda **given: moebind.plan("x", **given), {"n_ctx": 9}, "Write plan(path, context_params=ContextParams(n"),
        (
            lambda **given: moebind.fit("x", **given),
            {"n_ctx_mni": 9},
            "fit() has no argument 'n_ctx_mni'; did you mean ",
        ),
        (lambda **given: moebind.fit("x", **given), {"n_cpu_moe": 9}, "model_params=ModelParams().with_n_cpu_moe(9))"),
        (lambda **given: moebind.fit("x", **given), {"type_k": 1}, "context_params=ContextParams(type_k=1))"),
        (lambda **given: moebind.fit("x", **given), {"wooden": 1}, "'wooden': it takes path, memory, margin, n_ctx, "),
        (
            lambda **given: moebind.fit("x", **given),
            {"ctx_size": 3},
            "fit() has no argument 'ctx_size'; it is 'n_ctx' here",
        ),
        (
            lambda **given: moebind.plan("x", **given),
            {"ctx_size": 3},
            "Write plan(path, context_params=ContextParams(n_ctx=3)",
        ),
        (
            lambda **given: moebind.fit("x", **given),
            {"cpu_moe": True},
            "model_params=ModelParams().with_cpu_moe_all())",
        ),
        (
            lambda **given: moebind.plan("x", **given),
            {"flash_attn": True},
            "context_params=ContextParams(flash_attn_type=FlashAttnType.ENABLED))",
        ),
        (
            lambda **given: moebind.plan("x", **given),
            {"logits_all": True},
            "'logits_all'. Here it is batch.add_sequence(",
        ),
        (lambda **given: moebind.quantize("x", "y", 2, **given), {"imatrx": "z"}, "did you mean 'imatrix'?"),
        (lambda **given: moebind.quantize("x", "y", 2, **given), {"nthread": 2}, "it is 'n_threads' here"),
        (lambda **given: moebind.experts("x", **given), {"load_mpt": True}, "did you mean 'load_mtp'?"),
        (lambda **given: Server("x", **given), {"api_keys": "x"}, "argument 'api_keys'; did you mean 'api_key'?"),
        (
            lambda **given: Server("x", **given),
            {"n_batch": 9},
            "Write Server(model, context_params=ContextParams(n_batch=9)",
        ),
        (lambda **given: bench.offload("x", **given), {"repetitions": 5}, "it is 'repeats' here"),
        (lambda **given: bench.decode("x", **given), {"n_gen": 4}, "decode() has no argument 'n_gen'; it is 'n_gen"),
        (lambda **given: bench.batch("x", **given), {"reps": 4}, "batch() has no argument 'reps'; it is 'repeats' h"),
        (lambda **given: moebind.tune("x", **given), {"n_gen": 4}, "tune() has no argument 'n_gen'; it is 'n_generate"),
        (lambda **given: moebind.tune("x", **given), {"only": []}, "tune() has no argument 'only'; it is 'dimensions'"),
        (
            lambda **given: Server("x", **given),
            {"temperature": 0},
            """no argument 'temperature': it is an option of llama-server's: extra=["--temp", "0"]""",
        ),
        (lambda **given: Server("x", **given), {"draft_model": "y"}, "it is 'draft' here"),
        (
            lambda **given: bench.prompt("x", **given),
            {"n_gpu_layers": 0},
            "Write prompt(model_path, ModelParams(n_gpu_layers=0))",
        ),
        (lambda **given: bench.offload("x", **given), {"placement": ["all"]}, "did you mean 'placements'?"),
        (lambda **given: bench.default_placements("x", **given), {"n_cpu_mo": 5}, "did you mean 'n_cpu_moe'?"),
        (lambda **given: moebind.loopback_device(**given), {"n_thread": 5}, "did you mean 'n_threads'?"),
        (lambda **given: moebind.host_bandwidth(**given), {"threads": 5}, "it is 'n_threads' here"),
        (lambda **given: moebind.json_schema_to_grammar({}, **given), {"Strict": False}, "did you mean 'strict'?"),
        (
            lambda **given: moebind.doctor("x", **given),
            {"n_threads": 2},
            "doctor(path, context_params=ContextParams(n_",
        ),
        (lambda **given: moebind.add_rpc_server("x:1", **given), {"time_out": 2}, "did you mean 'timeout'?"),
    ],
)
def test_what_to_write_instead(call: Any, given: dict[str, object], said: str) -> None:
    with pytest.raises(TypeError, match=re.escape(said)):
        call(**given)


NAMES = {"normalise": "normalize", "normalize_embeddings": "normalize", "pooling": "pooling_type"}


def test_names_of_embeddings(dense: moebind.Model) -> None:
    for name, meant in {
        "normalise": "normalize",
        "normalize_embeddings": "normalize",
        "pooling": "pooling_type",
    }.items():
        with pytest.raises(TypeError, match=f"'{meant}'"):
            dense.embed("a", **{name: True})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="rerank.. has no argument 'documents'; it is 'texts' here"):
        dense.rerank("a", documents=["b"])  # type: ignore[call-arg]


def test_everything_else_stays() -> None:
    @explained({ModelParams: "f({})"}, {"other": "wide", "tall": "other calls are"})
    def call(narrow: int, *, wide: int = 0) -> int:
        """What it does."""
        return narrow + wide

    assert call(1, wide=2) == call(narrow=1, wide=2) == 3
    assert call.__doc__ == "What it does."
    assert list(inspect.signature(call).parameters) == ["narrow", "wide"]
    with pytest.raises(TypeError, match="missing 1 required"):
        call()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="it is 'wide' here"):
        call(1, other=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"call\(\) has no argument 'tall': other calls are$"):
        call(1, tall=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"'n_gpu_layers': ModelParams has\. Write f\(ModelParams\(n_gpu_layers=3\)\)$"):
        call(1, n_gpu_layers=3)  # type: ignore[call-arg]


def test_fields_that_are_alike() -> None:
    assert written_field(ModelParams, "zzz", 1, 0.5) is None
    for name in ("cpu_moe_all", "cpu_moe"):
        assert written_field(ModelParams, name, True, 0.9) == ("ModelParams().with_cpu_moe_all()", "")
    assert written_field(ModelParams, "n_gpu_layer", 1, 1.0) is None
    assert written_field(ModelParams, "n_gpu_layer", 1, 0.9) == ("ModelParams(n_gpu_layers=1)", "")
