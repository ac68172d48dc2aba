"""What a model's file says of it: sizes, kinds, and how they are told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny

import moebind
from conftest import CPU, SMALL
from moebind import FlashAttnType, GgmlType, Model
from moebind.model.hyperparameters import _in_short

MakeTiny = Callable[..., Path]


def test_sizes_that_llama_cpp_has_no_name_for(dense: Model) -> None:
    assert " ?B " in dense.desc
    assert repr(dense) == f"<Model {dense.desc.replace('?B', f'{dense.n_params / 1000:.0f}K')}>"


@pytest.mark.parametrize(
    ("count", "text"), [(7, "7"), (1234, "1.2K"), (691_500_000, "692M"), (1_000_000, "1.0M"), (235_000_000_000, "235B")]
)
def test_counts_in_short(count: int, text: str) -> None:
    assert _in_short(count) == text


def test_overrides_count_where_a_model_tells_its_numbers(tiny_path: MakeTiny) -> None:
    path = tiny_path(n_expert=4)
    for used in (1, 3):
        with Model.load_from_file(path, CPU.with_kv_override("llama.expert_used_count", used)) as model:
            assert model.n_expert_used == used
    with Model.load_from_file(path, CPU.with_vocab_only(True)) as model:
        assert model.n_expert_used == 2
    # Four heads of 16 numbers, or two of 32: a block of Q8_0 is 32.
    context = SMALL.with_type_k(GgmlType.Q8_0).with_flash_attn_type(FlashAttnType.DISABLED)
    wider = CPU.with_kv_override("llama.attention.head_count", 2).with_kv_override("llama.attention.head_count_kv", 1)
    wider = wider.with_kv_override("llama.rope.dimension_count", 32)
    with Model.load_from_file(path, wider) as model:
        model.new_context(context).close()
    moebind.plan(path, wider, context)
    with (
        Model.load_from_file(path, CPU) as model,
        pytest.raises(moebind.ContextCreationError, match="keys have 16 numbers"),
    ):
        model.new_context(context)
    with pytest.raises(moebind.ContextCreationError, match="keys have 16 numbers"):
        moebind.plan(path, CPU, context)


SIZES = "size n_params n_ctx_train n_embd n_layer n_layer_nextn n_head n_head_kv n_expert n_expert_used rope_type"


@pytest.mark.parametrize(
    "shape",
    [
        {"n_expert": 4},
        {"n_head_kv": 4},
        {"arch": "deepseek", "n_expert": 4},
        {"arch": "mamba"},
        {"arch": "bert", "n_head_kv": 4},
    ],
)
def test_vocab_only_tells_the_same_as_a_whole_model(tiny_path: MakeTiny, shape: dict[str, object]) -> None:
    path = tiny_path(**shape)
    names = [*SIZES.split(), "is_recurrent", "is_hybrid", "has_encoder", "has_decoder", "n_vocab", "meta"]
    with Model.load_from_file(path, CPU) as whole, Model.load_from_file(path, CPU.with_vocab_only(True)) as words:
        for name in names:
            assert getattr(words, name) == getattr(whole, name), name
        assert "vocabulary" in words.desc
        assert words.desc in repr(words)


def test_vocab_only_with_overrides(tiny_path: MakeTiny) -> None:
    params = CPU.with_vocab_only(True).with_kv_override("llama.context_length", 77)
    with Model.load_from_file(tiny_path(), params.with_kv_override("general.file_type", 7)) as model:
        assert model.n_ctx_train == 77
        assert model.ftype == moebind.Ftype.Q8_0


@pytest.mark.parametrize(
    "name",
    ["n_embd_inp", "n_embd_out", "n_swa", "n_cls_out", "cls_labels", "rope_freq_scale_train", "decode_start_token"],
)
def test_vocab_only_does_not_guess(tiny_path: MakeTiny, name: str) -> None:
    with Model.load_from_file(tiny_path(), CPU.with_vocab_only(True)) as model:
        with pytest.raises(moebind.MoebindError, match="vocab_only"):
            getattr(model, name)
    with pytest.raises(moebind.ClosedError):
        getattr(model, name)


def test_dense_models_have_no_experts(dense: Model) -> None:
    assert (dense.n_expert, dense.n_expert_used) == (0, 0)


def test_what_else_a_file_says(tmp_path: Path, moe: Model) -> None:
    assert moe.n_cls_out == 1
    assert moe.cls_labels == ()
    assert moe.decode_start_token is None
    assert moe.n_layer_nextn == 0
    assert moe.rope_freq_scale_train == 1.0
    assert moe.sampling_meta == {}
    shape = tiny.Shape()
    metadata = {
        **tiny._metadata(shape),
        "general.sampling.temp": 0.5,
        "general.sampling.top_k": 20,
        "llama.classifier.output_labels": ["bad", "gut ü"],
    }
    path = tmp_path / "a.gguf"
    tiny._write_file(path, "llama", metadata, tiny._tensors(shape, np.random.default_rng(1)))
    with Model.load_from_file(path, CPU) as model:
        assert model.cls_labels == ("bad", "gut ü")
        assert model.n_cls_out == 2
        assert model.sampling_meta["top_k"] == "20"
        assert float(model.sampling_meta["temp"]) == 0.5
        with pytest.raises(TypeError):
            model.sampling_meta["temp"] = "1"  # type: ignore[index]
