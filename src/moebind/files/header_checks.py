"""Checks of a model's file before libllama sees it, for what libllama only asserts or does not look at.

The parser of GGUF is solid; what crashes are values that it has no reason to doubt: a count of experts, a division by
a number that is 0, a norm's weights of a type that no kernel takes. A failed assertion in a thread that computes, a
division by zero and a read out of bounds end the process, so each of them is a check here. Everything else is left to
libllama, whose own complaint is better than ours.

Overrides of the metadata are part of what is checked: libllama takes one where its type is the one that the key has.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NoReturn

import numpy as np

from moebind._core.native import lib
from moebind.enums import GgmlType, GgufType, PoolingType
from moebind.errors import ModelLoadError
from moebind.files.architecture_checks import architecture_problems
from moebind.files.architecture_facts import ANY_EMBEDDINGS, EXPERTS_MAX, LAYERS_MAX, ONE_EXPERT_IS_NONE, WITHOUT_ROPE
from moebind.files.gguf import Gguf

__all__ = ["check_experts_together", "check_model", "check_tokens_differ", "check_whole"]

#: libllama multiplies heads and their widths as 32-bit numbers.
WIDTH_MAX = 2**31 - 1
#: A model without a vocabulary says how many dummy tokens to make.
DUMMY_TOKENS_MAX = 2**24
#: libllama takes the width of a sliding window for an int32_t.
WINDOW_MAX = 2**31 - 1
#: ggml's mapped buffers start at multiples of this.
MAPPED_ALIGNMENT = 32

#: No kernel multiplies by weights of these.
_NO_MATRIX = {
    GgmlType.I8,
    GgmlType.I16,
    GgmlType.I32,
    GgmlType.I64,
    GgmlType.F64,
    GgmlType.Q8_1,
    GgmlType.Q8_K,
}
#: Tables of token and expert ids.
_INTEGER_TENSORS = re.compile(r"tid2eid|d2t|t2d|codebook")
#: A matrix of one expert.
_SINGLE_EXPERT = re.compile(r"blk\.\d+\.ffn_(?:gate|down|up)\.\d+\.")
#: Weights that are added or multiplied element by element, whatever their shape: kernels take F32.
_ELEMENTWISE = re.compile(r"(_norm\.weight|\.bias)$")
_EPSILONS = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "attention.group_norm_epsilon")
_ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
_NO_VOCABULARY = ("none", "no_vocab")


class _Fields:
    """Metadata as libllama will read it."""

    def __init__(self, file: Gguf, overrides: Mapping[str, bool | int | float | str]) -> None:
        self.file = file
        self._overrides = overrides
        self._taken: set[str] = set()
        self.architecture = self.text("general.architecture") or ""

    def of(self, key: str) -> str:
        """The key of this architecture."""
        return f"{self.architecture}.{key}"

    def refuse(self, key: str, what: str) -> NoReturn:
        overridden = " (a kv override)" if key in self._taken else ""
        raise ModelLoadError(f"{self.file.path}: the metadata {key}{overridden} {what}")

    def text(self, key: str) -> str | None:
        override = self._overrides.get(key)
        if isinstance(override, str):
            self._taken.add(key)
            return override
        value = self.file.get(key)
        return value if isinstance(value, str) else None

    def integer(self, key: str) -> int | None:
        """An unsigned 32-bit number; of any other type, libllama refuses or ignores it."""
        override = self._overrides.get(key)
        if isinstance(override, int) and not isinstance(override, bool):
            self._taken.add(key)
            return override % 2**32
        if key in self.file and self.file.type_of(key) == GgufType.UINT32:
            value = self.file[key]
            return value if isinstance(value, int) else None
        return None

    def number(self, key: str) -> float | None:
        override = self._overrides.get(key)
        if isinstance(override, float):
            self._taken.add(key)
            return override
        value = self.file.get(key)
        return value if isinstance(value, float) else None

    def flag(self, key: str) -> bool | None:
        value = self._overrides.get(key, self.file.get(key))
        return value if isinstance(value, bool) else None

    def integers(self, key: str) -> list[int]:
        """One number for all layers, or one for each; an override counts only where the file has a single one."""
        if key not in self.file:
            return []
        if self.file.type_of(key) == GgufType.ARRAY:
            value = self.file[key]
            if not isinstance(value, np.ndarray) or value.dtype.kind not in "iub" or value.size > LAYERS_MAX:
                return []  # refused by libllama
            return [int(each) % 2**32 for each in value]
        single = self.integer(key)
        return [] if single is None else [single]


def check_model(
    file: Gguf,
    overrides: Mapping[str, bool | int | float | str],
    *,
    vocab_only: bool = False,
    mapped: bool = True,
    tokens_differ: bool = False,
) -> None:
    """Refuse a file that libllama would not survive, or only by an assertion.

    Parameters
    ----------
    file
        Its header; for a split model, those of all files.
    overrides
        The metadata overrides that it is loaded with.
    vocab_only
        Whether only the vocabulary is loaded, which takes fewer checks.
    mapped
        Whether the file is mapped into memory.
    tokens_differ
        Whether to take it that they do: :func:`check_tokens_differ` is for later.

    Raises
    ------
    ModelLoadError
        Which field is wrong, and what would be right.
    """
    fields = _Fields(file, overrides)
    _check_splits(file)
    check_whole(file)
    if not tokens_differ:
        check_tokens_differ(file, overrides)
    _check_vocabulary(fields)
    _check_embeddings(fields)
    if vocab_only or fields.architecture == "clip":
        return
    if not file.tensors:
        raise ModelLoadError(
            f"{file.path} has no weights, only a vocabulary: vocab_only=True loads that; to compute, take the model's "
            "own file"
        )
    if mapped and file.alignment % MAPPED_ALIGNMENT:
        fields.refuse(
            "general.alignment",
            f"is {file.alignment}; a mapped file takes a multiple of {MAPPED_ALIGNMENT}: load it with use_mmap off",
        )
    _check_layers(fields)
    check_experts_together(file)
    _check_experts(fields)
    _check_heads(fields)
    _check_numbers(fields)
    _check_tensors(file)
    _check_architecture(fields)


def check_whole(file: Gguf) -> None:
    """Refuse a file that ends before its tensors do, such as one whose download was broken off.

    Raises
    ------
    ModelLoadError
        Which tensor is cut off.
    """
    sizes = dict(zip(file.paths, file._sizes(), strict=True))
    for tensor in file.tensors.values():
        if tensor.offset + tensor.nbytes > sizes[tensor.path]:
            raise ModelLoadError(f"{tensor.path} is cut off: its tensor {tensor.name} ends beyond the end of the file")


def check_tokens_differ(file: Gguf, overrides: Mapping[str, bool | int | float | str]) -> None:
    """Refuse a vocabulary that has a token twice.

    Raises
    ------
    ModelLoadError
        Which one it is, and where.
    """
    fields, key = _Fields(file, overrides), "tokenizer.ggml.tokens"
    if fields.text("tokenizer.ggml.model") in _NO_VOCABULARY or not _is_texts(file, key):
        return
    repeated = lib.moebind_gguf_repeated(file._headers[0], file._keys[key])
    if repeated >= 0:
        text = file._texts(key).split(b"\0")[repeated].decode("utf-8", "replace")
        fields.refuse(key, f"has {text!r} twice, the second time at {repeated}; they have to differ")


def _is_texts(file: Gguf, key: str) -> bool:
    return key in file and file.type_of(key) == GgufType.ARRAY and file.item_type_of(key) == GgufType.STRING


def check_experts_together(file: Gguf) -> None:
    """Refuse a mixture with a tensor for each expert, as they were written until April 2024: it is no dense model.

    Raises
    ------
    ModelLoadError
        What is there, and what to do.
    """
    for name in file.tensors:
        if _SINGLE_EXPERT.match(name):
            raise ModelLoadError(
                f"{file.path} has a tensor for each expert, such as {name}. llama.cpp no longer loads such files, made "
                "until April 2024: it takes all experts of a layer in one tensor (ffn_down_exps). Convert the model "
                "again, or take a newer file"
            )


def _check_splits(file: Gguf) -> None:
    for number, header in enumerate(file._headers if len(file.paths) > 1 else ()):
        at = lib.gguf_find_key(header, b"split.no")
        if at < 0 or lib.gguf_get_kv_type(header, at) != GgufType.UINT16:
            raise ModelLoadError(f"{file.paths[number]}: the metadata split.no is missing or not a 16-bit number")
        split_number = lib.gguf_get_val_u16(header, at)
        if split_number != number:
            raise ModelLoadError(
                f"{file.paths[number]}: the metadata split.no is {split_number}, but it is file {number} of the model, "
                "counted from 0: the files are not those of one model, or not in their order"
            )


def _check_vocabulary(fields: _Fields) -> None:
    kind, key = fields.text("tokenizer.ggml.model"), "tokenizer.ggml.tokens"
    if kind in _NO_VOCABULARY:
        size = fields.integer(fields.of("vocab_size"))
        if size is not None and size > DUMMY_TOKENS_MAX:
            fields.refuse(fields.of("vocab_size"), f"is {size}; at most {DUMMY_TOKENS_MAX} are taken")
        return
    file = fields.file
    if not _is_texts(file, key):
        return  # libllama says so
    if kind == "llama" and not re.search(rb"(^|\0)(<0x[0-9A-F]{2}>|[\x01-\x1f])\0", file._texts(key)):
        fields.refuse(key, "has no byte tokens (<0x00> to <0xFF>), which a SentencePiece vocabulary takes")


def _check_embeddings(fields: _Fields) -> None:
    """Each token needs a row: a lookup beyond the last ends the process."""
    file, key = fields.file, "tokenizer.ggml.tokens"
    embeddings = file.tensors.get("token_embd.weight")
    if fields.architecture not in ANY_EMBEDDINGS or embeddings is None or key not in file:
        return
    rows, tokens = embeddings.shape[1] if len(embeddings.shape) > 1 else 1, file._length(key)
    if rows < tokens:
        raise ModelLoadError(
            f"{file.path}: the tensor {embeddings.name} has {rows} rows for a vocabulary of {tokens} tokens"
        )


def _check_layers(fields: _Fields) -> None:
    key = fields.of("block_count")
    layers = fields.integer(key)
    if layers is not None and not 1 <= layers <= LAYERS_MAX:
        fields.refuse(key, f"is {layers}; 1 to {LAYERS_MAX} are taken")
    for name in ("nextn_predict_layers", "posnet.block_count", "convnext.block_count"):
        extra = fields.integer(fields.of(name))
        if layers is not None and extra is not None and extra > layers:
            fields.refuse(fields.of(name), f"is {extra}; it takes at most block_count, {layers}")


def _check_experts(fields: _Fields) -> None:
    count_key, used_key, group_key = (fields.of(f"expert_{name}") for name in ("count", "used_count", "group_count"))
    count = fields.integer(count_key) or 0
    used = fields.integers(used_key)
    groups = fields.integer(group_key) or 0
    if fields.architecture in ONE_EXPERT_IS_NONE and count <= 1:
        count, used = 0, []
    if count > EXPERTS_MAX:
        fields.refuse(count_key, f"is {count}; at most {EXPERTS_MAX} are taken")
    routed = [name for name in fields.file.tensors if "_exps." in name]
    if count == 0:
        if routed:
            fields.refuse(count_key, f"is 0 or missing, but there are experts, such as {routed[0]}")
        if any(used):
            fields.refuse(used_key, f"is {max(used)}, but {count_key} is 0")
        if groups:
            fields.refuse(group_key, f"is {groups}, but {count_key} is 0")
        return
    if not any(used) or max(used) > count:
        fields.refuse(used_key, f"is {max(used, default=0)}; it takes 1 to {count_key}, {count}")
    if len(used) > 1:
        for name in routed:
            layer = re.match(r"blk\.(\d+)\.", name)
            if layer and int(layer[1]) < len(used) and used[int(layer[1])] == 0:
                fields.refuse(used_key, f"is 0 for layer {layer[1]}, which has experts, such as {name}")
    if groups >= count:
        fields.refuse(group_key, f"is {groups}; it takes fewer than {count_key}, {count}")
    if groups > 1:
        if count % groups:
            fields.refuse(group_key, f"is {groups}, which does not divide {count_key}, {count}")
        chosen_key = fields.of("expert_group_used_count")
        chosen = fields.integer(chosen_key) or 0
        if not 1 <= chosen < groups:
            fields.refuse(chosen_key, f"is {chosen}; it takes 1 to {groups - 1}, below {group_key}")


def _check_heads(fields: _Fields) -> None:
    heads_key, kv_key = fields.of("attention.head_count"), fields.of("attention.head_count_kv")
    heads, kv_heads = fields.integers(heads_key), fields.integers(kv_key)
    if not heads or not any(heads):
        return  # recurrent, or encoders of another kind
    if kv_heads and not any(kv_heads):
        fields.refuse(kv_key, f"is 0; it takes 1 to {heads_key}, {max(heads)}")
    for layer in range(max(len(heads), len(kv_heads))):
        n = heads[min(layer, len(heads) - 1)]
        n_kv = kv_heads[min(layer, len(kv_heads) - 1)] if kv_heads else n
        where = f" in layer {layer}" if max(len(heads), len(kv_heads)) > 1 else ""
        # Layers without attention, or without keys of their own, have 0 of them.
        if n and n_kv and (n_kv > n or n % n_kv):
            fields.refuse(kv_key, f"is {n_kv}{where}; it takes a divisor of {heads_key}, {n}")
    width = fields.integer(fields.of("embedding_length")) or 0
    first = heads[0]
    default = width // first if first else 0
    for name in ("key_length", "value_length"):
        given = fields.integer(fields.of(f"attention.{name}"))
        if max(heads) * (default if given is None else given) > WIDTH_MAX:
            fields.refuse(heads_key, f"is {max(heads)}, which makes attention wider than {WIDTH_MAX}")
    length = fields.integer(fields.of("attention.key_length"))
    length = default if length is None else length
    if first and width and not length:
        fields.refuse(heads_key, f"is {first}, more than embedding_length, {width}")
    if first:
        _check_rotated(fields, "", length, heads_key)
        windowed = fields.integer(fields.of("attention.key_length_swa"))
        _check_rotated(fields, "_swa", length if windowed is None else windowed, heads_key)
        indexer_key, rotated = (
            fields.of("attention.indexer.key_length"),
            fields.integer(fields.of("rope.dimension_count")),
        )
        indexer = fields.integer(indexer_key) or 0  # saved files have a 0
        if 0 < indexer < (rotated or 0):
            fields.refuse(indexer_key, f"is {indexer}; it takes at least rope.dimension_count, {rotated}")


def _check_rotated(fields: _Fields, suffix: str, length: int, heads_key: str) -> None:
    """Numbers of a head are rotated in pairs, at least one."""
    key = fields.of(f"rope.dimension_count{suffix}")
    rotated = fields.integer(key)
    if rotated is None:
        if length % 2:
            fields.refuse(heads_key, f"makes heads of {length} numbers; they take an even number")
    elif rotated % 2 or rotated > length or (not rotated and _rotates(fields)):
        fields.refuse(key, f"is {rotated}; it takes an even number from 2 to {length}, the width of a head")


def _rotates(fields: _Fields) -> bool:
    """Whether a head would rotate no numbers, for ever; of these architectures, one is told by another key."""
    if fields.architecture == "granitehybrid":
        return fields.flag(fields.of("rope.scaling.finetuned")) is not False
    return fields.architecture not in WITHOUT_ROPE


def _check_numbers(fields: _Fields) -> None:
    for name in _EPSILONS:
        epsilon = fields.number(fields.of(name))
        if epsilon is not None and not 0 <= epsilon < math.inf:
            fields.refuse(fields.of(name), f"is {epsilon}; it takes a number that is not negative")
    window_key = fields.of("attention.sliding_window")
    window = fields.integer(window_key) or 0
    if window > WINDOW_MAX:
        fields.refuse(window_key, f"is {window}; it takes 0 to {WINDOW_MAX}. Without a window, it is 0 or missing")
    for name in ("pooling_type", "classifier.pooling_type"):  # it becomes an enum before it is looked at
        pooling = fields.integer(fields.of(name))
        if pooling is not None and pooling not in {each % 2**32 for each in PoolingType}:
            kinds = ", ".join(f"{each.value} ({each.name})" for each in PoolingType if each >= 0)
            fields.refuse(fields.of(name), f"is {pooling}; it takes {kinds}")
    scaling = fields.text(fields.of("rope.scaling.type"))
    if scaling is not None and scaling not in _ROPE_SCALINGS:
        fields.refuse(fields.of("rope.scaling.type"), f"is {scaling!r}; it takes {', '.join(_ROPE_SCALINGS)}")


def _check_architecture(fields: _Fields) -> None:
    heads = fields.integers(fields.of("attention.head_count"))
    width = fields.integer(fields.of("embedding_length")) or 0
    length = fields.integer(fields.of("attention.key_length"))
    head = length if length is not None else width // heads[0] if heads and heads[0] else 0
    file = fields.file
    for name, what in architecture_problems(
        fields.architecture, lambda key: fields.integers(fields.of(key)), head, file.tensors
    ):
        if name in file.tensors:
            raise ModelLoadError(f"{file.path}: the tensor {name} {what}")
        fields.refuse(fields.of(name), what)


def _check_tensors(file: Gguf) -> None:
    for tensor in file.tensors.values():
        if tensor.type == GgmlType.F32 or _INTEGER_TENSORS.search(tensor.name):
            continue
        if len(tensor.shape) < 2 or _ELEMENTWISE.search(tensor.name):
            raise ModelLoadError(
                f"{file.path}: the tensor {tensor.name} is {tensor.type.name}; llama.cpp computes with F32 there"
            )
        if tensor.type in _NO_MATRIX:
            raise ModelLoadError(
                f"{file.path}: the tensor {tensor.name} is {tensor.type.name}, which llama.cpp cannot compute with"
            )
