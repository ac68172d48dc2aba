"""Files that libllama would not survive are refused, by the name of the field; real ones are not."""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import tiny

from conftest import CPU, SMALL
from moebind import Batch, Gguf, Model, ModelLoadError, TokenizeError

sys.path.insert(0, str(Path(__file__).parents[1] / "fuzz"))
import gguf_files
from gguf_files import ARRAY, STRING, File, Value

MakeTiny = Callable[..., Path]
UINT32, FLOAT32, BOOL = 4, 6, 7


class Edited:
    """A tiny model whose header a test changes."""

    def __init__(self, path: Path, target: Path) -> None:
        self.file, start = gguf_files.parse(path)
        self._data = path.read_bytes()[start:]
        self._target = target

    def set(self, key: str, value: object, kind: int | None = None) -> Edited:
        """Set a value; None removes it."""
        self.file.values = [each for each in self.file.values if each.key != key.encode()]
        if value is not None:
            self.file.values.append(encoded(key, value, kind))
        return self

    def write(self) -> Path:
        header, size = self.file.header(), self.file.data_size()
        self._target.write_bytes(header + (self._data * 2)[:size])
        return self._target


def encoded(key: str, value: object, kind: int | None = None) -> Value:
    items = value if isinstance(value, list) else [value]
    if isinstance(items[0], str):
        item_kind, content = STRING, [str(each).encode() for each in items]
    else:
        item_kind = kind if kind is not None else FLOAT32 if isinstance(items[0], float) else UINT32
        content = [struct.pack(gguf_files.SCALARS[item_kind], each) for each in items]
    return Value(key.encode(), ARRAY if isinstance(value, list) else item_kind, item_kind, content)


@pytest.fixture
def edit(tiny_path: MakeTiny, tmp_path: Path) -> Callable[..., Edited]:
    def make(**fields: object) -> Edited:
        return Edited(tiny_path(**fields), tmp_path / "edited.gguf")

    return make


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


def of_architecture(edited: Edited, name: str) -> Edited:
    """The same numbers and tensors, called another architecture's."""
    for value in edited.file.values:
        value.key = value.key.replace(b"llama.", name.encode() + b".", 1)
        if value.key == b"general.architecture":
            value.items = [name.encode()]
    return edited


def without(edited: Edited, *names: str) -> Edited:
    edited.file.tensors = [each for each in edited.file.tensors if each.name.decode() not in names]
    return edited


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


def test_parsing_and_writing_again_changes_nothing(tiny_path: MakeTiny) -> None:
    """The tool of these tests, on which they rest."""
    path = tiny_path(n_expert=4)
    file, start = gguf_files.parse(path)
    assert deepcopy(file).header() == path.read_bytes()[:start]
    assert isinstance(file, File)
