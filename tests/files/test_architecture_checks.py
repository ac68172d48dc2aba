"""Files that libllama would not survive as models of one architecture."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from edited import Edited, of_architecture, without

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
        ("grovemoe", "experts_per_group", 0),
        ("rwkv7", "wkv.head_size", 0),
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
