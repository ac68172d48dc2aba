"""Files that libllama would not survive are refused, by the name of the field; real ones are not."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import gguf_files  # put on the path by tests/edited.py
import pytest
import tiny
from edited import UINT32, Edited
from gguf_files import STRING, File

import moebind
from conftest import CPU, SMALL
from moebind import Batch, Gguf, Model, ModelLoadError, TokenizeError

MakeTiny = Callable[..., Path]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_count", 0),
        ("block_count", 513),
        ("block_count", 2**32 - 1),
        ("nextn_predict_layers", 3),
        ("posnet.block_count", 3),
        ("expert_count", 1025),
        ("expert_count", 0),
        ("expert_count", None),
        ("expert_used_count", 0),
        ("expert_used_count", 5),
        ("expert_used_count", None),
        ("expert_used_count", [2, 0]),
        ("expert_group_count", 4),
        ("expert_group_count", 3),
        ("expert_group_count", 2),
        ("pooling_type", 5),
        ("pooling_type", 65535),
        ("classifier.pooling_type", 2**26),
        ("rope.scaling.type", "su"),
        ("rope.scaling.type", ""),
        ("attention.layer_norm_rms_epsilon", -1e-5),
        ("attention.layer_norm_rms_epsilon", math.nan),
        ("attention.layer_norm_rms_epsilon", math.inf),
        ("attention.layer_norm_epsilon", -1.0),
        ("attention.head_count_kv", 0x04000003),
        ("attention.head_count_kv", 0),
        ("attention.head_count_kv", 3),
        ("attention.head_count_kv", [2, 3]),
        ("attention.head_count", 2**31),
        ("rope.dimension_count", 15),
        ("rope.dimension_count", 32),
        ("rope.dimension_count", 0),
        ("rope.dimension_count_swa", 0),
        ("attention.indexer.key_length", 2),
        ("attention.sliding_window", 2**31),
        ("attention.sliding_window", 2**32 - 1),
    ],
)
def test_metadata_that_would_crash(edit: Callable[..., Edited], key: str, value: object) -> None:
    path = edit(n_expert=4).set(f"llama.{key}", value).write()
    named = "expert_group_used_count" if (key, value) == ("expert_group_count", 2) else key
    named = "attention.head_count" if key.startswith("attention.head_count") else named
    with pytest.raises(ModelLoadError, match=rf"edited\.gguf: the metadata llama\.{named}"):
        Model.load_from_file(path, CPU)
    # The vocabulary alone is sound.
    with Model.load_from_file(path, CPU.with_vocab_only(True)) as model:
        assert model.str_to_token("the").size


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.block_count", 0),
        ("llama.block_count", -1),
        ("llama.block_count", 2**32),
        ("llama.expert_used_count", 5),
        ("llama.expert_count", 0),
        ("llama.rope.scaling.type", "su"),
        ("llama.attention.layer_norm_rms_epsilon", -1.0),
        ("llama.nextn_predict_layers", 99),
        ("llama.attention.head_count_kv", 3),
    ],
)
def test_overrides_that_would_crash(tiny_path: MakeTiny, key: str, value: object) -> None:
    with pytest.raises(ModelLoadError, match=rf"the metadata {key}"):
        Model.load_from_file(tiny_path(n_expert=4), CPU.with_kv_override(key, value))  # type: ignore[arg-type]


def test_an_override_can_repair_a_file(edit: Callable[..., Edited]) -> None:
    path = edit(n_expert=4).set("llama.expert_used_count", 9).set("llama.rope.scaling.type", "su").write()
    params = CPU.with_kv_override("llama.rope.scaling.type", "none")
    with Model.load_from_file(path, params.with_kv_override("llama.expert_used_count", 2)) as model:
        assert model.n_expert == 4
    # One of another type is ignored by libllama, and so by the checks.
    with pytest.raises(ModelLoadError, match="expert_used_count is 9"):
        Model.load_from_file(path, params.with_kv_override("llama.expert_used_count", 2.0))


@pytest.mark.parametrize("kind", ["I8", "I32", "F64", "Q8_1", "Q8_K"])
def test_matrices_of_types_without_kernels(edit: Callable[..., Edited], kind: str) -> None:
    import gguf

    edited = edit(n_embd=256)
    for tensor in edited.file.tensors:
        if tensor.name == b"blk.0.attn_q.weight":
            tensor.kind = gguf.GGMLQuantizationType[kind]
    with pytest.raises(ModelLoadError, match=rf"blk\.0\.attn_q\.weight is {kind}"):
        Model.load_from_file(edited.write(), CPU)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "I32"])
def test_norms_that_are_not_f32(edit: Callable[..., Edited], kind: str) -> None:
    import gguf

    edited = edit()
    for tensor in edited.file.tensors:
        if tensor.name == b"blk.1.ffn_norm.weight":
            tensor.kind = gguf.GGMLQuantizationType[kind]
    with pytest.raises(ModelLoadError, match=rf"blk\.1\.ffn_norm\.weight is {kind}; .*F32"):
        Model.load_from_file(edited.write(), CPU)


def test_alignment_of_a_mapped_file(tmp_path: Path) -> None:
    narrow = tiny.realigned(tiny.write(tmp_path / "t.gguf", tiny.Shape()), 8)
    with pytest.raises(ModelLoadError, match=r"general\.alignment is 8; .*use_mmap"):
        Model.load_from_file(narrow, CPU)
    with Model.load_from_file(narrow, CPU.with_use_mmap(False)) as model:
        assert model.n_layer == 2


@pytest.mark.parametrize("vocab_only", [False, True])
def test_vocabularies(edit: Callable[..., Edited], vocab_only: bool) -> None:
    params = CPU.with_vocab_only(vocab_only)
    tokens = list(tiny.TOKENS)
    for broken, message in [
        ([*tokens[:-1], tokens[5]], rf"tokenizer\.ggml\.tokens has '{tokens[5]}' twice, the second time at 295"),
        ([*tokens[:-1], tokens[5] + "\0x"], "twice"),  # libllama's texts end at a NUL
        ([f"token{at}" for at in range(296)], "has no byte tokens"),
    ]:
        with pytest.raises(ModelLoadError, match=message):
            Model.load_from_file(edit().set("tokenizer.ggml.tokens", broken).write(), params)
    # Empty ones get a text of their own.
    with Model.load_from_file(edit().set("tokenizer.ggml.tokens", [*tokens[:-2], "", ""]).write(), params) as model:
        assert model.str_to_token("the").size


def test_without_a_vocabulary(edit: Callable[..., Edited]) -> None:
    edited = edit().set("tokenizer.ggml.model", "none").set("llama.vocab_size", 296)
    with Model.load_from_file(edited.write(), CPU) as model:
        with pytest.raises(TokenizeError, match="no vocabulary"):
            model.str_to_token("a")
        with model.new_context(SMALL) as context:
            context.decode(Batch.get_one([1, 2]))
    with pytest.raises(ModelLoadError, match=r"llama\.vocab_size is 4294967295"):
        Model.load_from_file(edited.set("llama.vocab_size", 2**32 - 1).write(), CPU)


@pytest.mark.parametrize(("key", "kind"), [("split.no", UINT32), ("split.no", STRING), ("split.no", None)])
def test_every_part_of_a_split_model_is_checked(tmp_path: Path, key: str, kind: int | None) -> None:
    first = tiny.write(tmp_path / "m.gguf", tiny.Shape(), split=2)
    second = tmp_path / "m-00002-of-00002.gguf"
    edited = Edited(second, tmp_path / "edited.gguf")
    edited.set(key, None if kind is None else "1" if kind == STRING else 1, kind).write().rename(second)
    for load in (
        lambda: Model.load_from_file(first, CPU),
        lambda: Model.load_from_splits([first, second], CPU.with_vocab_only(True)),
    ):
        with pytest.raises(ModelLoadError, match=r"00002-of-00002\.gguf: the metadata split\.no"):
            load()


def test_parts_in_the_wrong_order(tmp_path: Path) -> None:
    first = tiny.write(tmp_path / "m.gguf", tiny.Shape(), split=2)
    with pytest.raises(ModelLoadError, match=r"split\.no is 1, but it is file 0"):
        Model.load_from_splits([tmp_path / "m-00002-of-00002.gguf", first], CPU)


def test_split_count_of_another_type(edit: Callable[..., Edited]) -> None:
    path = edit().set("split.count", 2, UINT32).write()
    for load in (Gguf.from_file, Model.load_from_file):
        with pytest.raises(ModelLoadError, match=r"split\.count is not a 16-bit number"):
            load(path)


@pytest.mark.parametrize("counted", [True, False])
def test_a_tensor_for_each_expert(edit: Callable[..., Edited], counted: bool) -> None:
    """As Mixtral was written until April 2024; it would seem to be a dense model."""
    edited = edit(n_expert=4)
    apart = []
    for tensor in edited.file.tensors:
        name, dot, _ = tensor.name.partition(b"_exps")
        if dot:
            apart += [
                gguf_files.Tensor(name + b".%d.weight" % expert, tensor.shape[:2], tensor.kind, 0)
                for expert in range(4)
            ]
        else:
            apart.append(tensor)
    edited.file.tensors = apart
    if not counted:
        for key in ("llama.expert_count", "llama.expert_used_count"):
            edited.set(key, None)
    path = edited.write()
    for look in (
        moebind.experts,
        moebind.plan,
        moebind.fit,
        lambda path: Model.load_from_file(path, CPU),
        lambda path: Model.load_from_file(path, CPU.with_cpu_moe_all()),
    ):
        with pytest.raises(
            ModelLoadError, match=r"has a tensor for each expert, such as blk\.0\.ffn_[a-z]+\.0\.weight"
        ):
            look(path)
    assert len(Gguf.from_file(path).tensors) == len(apart)
    with Model.load_from_file(path, CPU.with_vocab_only(True)) as vocabulary:
        assert vocabulary.n_vocab > 0


def test_parsing_and_writing_again_changes_nothing(tiny_path: MakeTiny) -> None:
    """The tool of these tests, on which they rest."""
    path = tiny_path(n_expert=4)
    file, start = gguf_files.parse(path)
    assert deepcopy(file).header() == path.read_bytes()[:start]
    assert isinstance(file, File)
