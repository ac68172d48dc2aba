"""Files that libllama would not survive as models of one architecture."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from edited import BOOL, Edited, of_architecture, without

from conftest import CPU
from moebind import Model, ModelLoadError


@pytest.mark.parametrize(
    ("architecture", "key", "value"),
    [
        ("phimoe", "attention.head_count", 0),
        ("phimoe", "attention.head_count", None),
        ("olmo2", "attention.head_count", 0),
        ("modern-bert", "attention.head_count_kv", [2, 0]),
        ("afmoe", "attention.sliding_window", 0),
        ("afmoe", "attention.sliding_window", None),
        ("qwen3next", "full_attention_interval", 0),
        ("qwen35moe", "ssm.group_count", 0),
        ("falcon-h1", "ssm.time_step_rank", 0),
        ("plamo2", "ssm.time_step_rank", 0),
        ("deepseek4", "attention.output_group_count", 0),
        ("grovemoe", "experts_per_group", 0),
        ("rwkv7", "wkv.head_size", 0),
        ("rwkv7", "wkv.head_size", 16),
        ("arwkv7", "wkv.head_size", 96),
        ("qwen2vl", "rope.dimension_sections", [0, 0, 0, 0]),
        ("paddleocr", "rope.dimension_sections", None),
        ("qwen3vlmoe", "rope.dimension_sections", [2**31, 0, 0, 0]),
    ],
)
def test_what_one_architecture_divides_by(
    edit: Callable[..., Edited], architecture: str, key: str, value: object
) -> None:
    edited = of_architecture(edit(n_expert=4), architecture).set(f"{architecture}.{key}", value)
    with pytest.raises(ModelLoadError, match=rf"the metadata {architecture}\.{key} is "):
        Model.load_from_file(edited.write(), CPU)
    # To another architecture it means that there is none.
    if not key.startswith("attention.head_count"):
        with Model.load_from_file(edit(n_expert=4).set(f"llama.{key}", value).write(), CPU) as model:
            assert model.n_layer == 2


def test_caches_without_layers_that_divide_by_their_width(edit: Callable[..., Edited]) -> None:
    edited = of_architecture(edit(n_expert=4), "deepseek4")
    for name in ("key_length", "indexer.key_length"):
        edited.set(f"deepseek4.attention.{name}", 16)
    with pytest.raises(ModelLoadError, match=r"attention\.indexer\.key_length is 16, as attention\.key_length"):
        Model.load_from_file(edited.write(), CPU)


@pytest.mark.parametrize("rotates", [None, True, False])
def test_an_architecture_in_which_some_models_rotate_nothing(edit: Callable[..., Edited], rotates: bool | None) -> None:
    edited = of_architecture(edit(), "granitehybrid").set("granitehybrid.rope.dimension_count", 0)
    if rotates is not None:
        edited.set("granitehybrid.rope.scaling.finetuned", int(rotates), BOOL)
    # What remains is that it has no recurrent state, which libllama tells.
    expected = "missing|ssm" if rotates is False else "takes an even number from 2"
    with pytest.raises(ModelLoadError, match=expected):
        Model.load_from_file(edited.write(), CPU)


def test_tensors_that_are_called_optional_and_used(edit: Callable[..., Edited]) -> None:
    """libllama would follow a null pointer, in making the context."""
    edited = without(of_architecture(edit(), "phi3"), "blk.1.attn_k.weight")
    with pytest.raises(ModelLoadError, match=r"blk\.1\.attn_output\.weight does without blk\.1\.attn_qkv\.weight or"):
        Model.load_from_file(edited.write(), CPU)
    renamed = of_architecture(edit(), "t5")
    for tensor in renamed.file.tensors:
        if tensor.name == b"output_norm.weight":
            tensor.name = b"dec.output_norm.weight"
    with pytest.raises(ModelLoadError, match=r"does without dec\.blk\.0\.attn_rel_b\.weight"):
        Model.load_from_file(renamed.write(), CPU)
