"""What quantising would make of each tensor, and what it cannot make."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from quantizing import importance, quantize

from moebind import Ftype, GgmlType, QuantizeError

MakeTiny = Callable[..., Path]


def test_output_and_embeddings(wide: Path, tmp_path: Path) -> None:
    done = quantize(
        wide, None, Ftype.Q4_0, dry_run=True, output_tensor_type=GgmlType.F16, token_embedding_type=GgmlType.Q5_1
    )
    found = {each.name: each.type for each in done.tensors}
    assert (found["output.weight"], found["token_embd.weight"]) == (GgmlType.F16, GgmlType.Q5_1)
    kept = quantize(wide, None, Ftype.Q4_0, dry_run=True, quantize_output_tensor=False)
    assert {each.name: each.type for each in kept.tensors}["output.weight"] is GgmlType.F32
    pure = quantize(wide, None, Ftype.Q4_K_M, dry_run=True, pure=True)
    assert {each.type for each in pure.tensors if len(each.shape) > 1 and "gate_inp" not in each.name} == {
        GgmlType.Q4_K
    }


def test_rows_that_do_not_fit_fall_back(tiny_path: MakeTiny) -> None:
    done = quantize(tiny_path(), None, Ftype.Q4_K_M, dry_run=True)
    assert {each.type for each in done.tensors} <= {GgmlType.F32, GgmlType.Q5_0, GgmlType.Q8_0}


def test_it_prints(wide: Path) -> None:
    text = str(quantize(wide, None, Ftype.Q4_K_S, dry_run=True))
    assert "F32 -> Q4_K" in text
    assert "bits per weight" in text


def test_types_that_need_importance(wide: Path, tmp_path: Path) -> None:
    planned = quantize(wide, None, Ftype.IQ1_S, dry_run=True)
    assert "blk.0.ffn_up_exps.weight" in planned.needs_imatrix
    with pytest.raises(QuantizeError, match="takes an importance matrix"):
        quantize(wide, tmp_path / "small.gguf", Ftype.IQ1_S)
    weights = importance(wide)
    del weights["blk.1.ffn_up_exps.weight"]
    # As of a matrix that llama-imatrix wrote: it never reaches layers that predict further ahead.
    assert quantize(wide, None, Ftype.IQ1_S, imatrix=weights, dry_run=True).needs_imatrix == (
        "blk.1.ffn_up_exps.weight",
    )
    with pytest.raises(
        QuantizeError, match=r"1 tensors lack, such as blk\.1\.ffn_up_exps\.weight: give an imatrix that"
    ):
        quantize(wide, tmp_path / "small.gguf", Ftype.IQ1_S, imatrix=weights)
    # Of the embeddings llama.cpp does not ask, and ggml fails in a thread.
    with pytest.raises(QuantizeError, match="importance matrix"):
        quantize(wide, tmp_path / "small.gguf", Ftype.Q4_0, token_embedding_type=GgmlType.IQ2_XXS, n_threads=2)
    assert os.listdir(tmp_path) == []


def test_importance_of_another_model(wide: Path) -> None:
    with pytest.raises(QuantizeError, match="has 255 numbers; the tensor takes 256"):
        quantize(wide, None, dry_run=True, imatrix={"blk.0.attn_q.weight": np.ones(255)})
    with pytest.raises(QuantizeError, match="has 256 numbers; the tensor takes 512"):
        quantize(wide, None, dry_run=True, imatrix={"blk.0.ffn_up_exps.weight": np.ones(256)})


@pytest.mark.parametrize("kind", [GgmlType.Q4_K, GgmlType.IQ2_XXS, GgmlType.TQ1_0, GgmlType.Q1_0])
def test_types_that_do_not_divide_the_rows(tiny_path: MakeTiny, kind: GgmlType) -> None:
    for name in ("output_tensor_type", "token_embedding_type"):
        with pytest.raises(ValueError, match=rf"{name} is {kind.name}, in blocks of"):
            quantize(tiny_path(), None, dry_run=True, **{name: kind})
