"""What is done to GGUF files: well-formed ones with other contents, and damaged bytes."""

from __future__ import annotations

import random
import struct
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import gguf
import gguf_files
import tiny
from gguf_files import ARRAY, SCALARS, STRING, File, Tensor, Value

NUMBERS = [0, 1, 2, 3, 5, 7, 31, 33, 64, 127, 255, 256, 511, 513, 1023, 1025, 4096, 65535, 2**24 + 1, 2**26, 2**31 - 1]
NUMBERS += [2**31, 2**32 - 1, 2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
FLOATS = [0.0, -0.0, -1.0, 1e-30, 1e30, float("inf"), float("-inf"), float("nan")]
TEXTS = [b"", b"none", b"no_vocab", b"llama", b"gpt2", b"bert", b"t5", b"rwkv", b"plamo2", b"yarn", b"longrope", b"\0"]
TEXTS += [b"\xff\xfe", b"<0x00>", b"default", b"qwen2", b"tekken", b"a" * 300, b"mamba", b"qwen3moe", b"\xed\xa0\x80"]


@dataclass(frozen=True)
class Base:
    """A file to start from: its header, and its data (None: as many zeros, which take no room)."""

    name: str
    file: File
    data: bytes | None


def bases(folder: Path, demo: Path | None = None) -> list[Base]:
    """Tiny models of several kinds, and the header of a real one."""
    found = []
    for name, shape in {
        "dense": tiny.Shape(),
        "moe": tiny.Shape(n_expert=4),
        "deepseek": tiny.Shape(arch="deepseek", n_expert=4, n_dense_layers=1),
        "granite": tiny.Shape(arch="granite_swa", n_expert=4),
        "grovemoe": tiny.Shape(arch="grovemoe", n_expert=4),
    }.items():
        path = tiny.write(folder / f"{name}.gguf", shape)
        file, start = gguf_files.parse(path)
        found.append(Base(name, file, path.read_bytes()[start:]))
    byte_pairs = deepcopy(found[0])
    for value in byte_pairs.file.values:
        if value.key == b"tokenizer.ggml.model":
            value.items = [b"gpt2"]
    merges = Value(b"tokenizer.ggml.merges", ARRAY, STRING, [b"t h", b"h e", b"th e"])
    pre = Value(b"tokenizer.ggml.pre", STRING, STRING, [b"llama-bpe"])
    byte_pairs.file.values += [merges, pre]
    found.append(Base("bpe", byte_pairs.file, byte_pairs.data))
    if demo is not None:
        found.append(Base("demo", gguf_files.parse(demo)[0], None))
    return found


def mutant(found: list[Base], seed: int, number: int) -> tuple[Base, str, bytes, int]:
    """The base, what was done to it, the header, and the size of what follows."""
    rng = random.Random(f"{seed}/{number}")
    # The real header is large: its metadata is enough.
    base = rng.choices(found, [1 if each.name == "demo" else 6 for each in found])[0]
    file = deepcopy(base.file)
    if rng.random() < 0.6:
        done = [rng.choice(CHANGES)(rng, file) for _ in range(rng.choice([1, 1, 1, 2, 3]))]
        return base, "; ".join(done), file.header(), file.data_size()
    content = bytearray(file.header())
    return base, _damage(rng, content), bytes(content), base.file.data_size()


def _damage(rng: random.Random, content: bytearray) -> str:
    kind = rng.choice(["bits", "bytes", "block", "number", "cut", "insert", "counts"])
    if kind == "bits":
        for _ in range(rng.choice([1, 1, 4, 16])):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif kind == "bytes":
        for _ in range(rng.choice([1, 4])):
            content[rng.randrange(len(content))] = rng.choice([0, 1, 127, 128, 255])
    elif kind == "block":
        at, size = rng.randrange(len(content)), rng.choice([8, 64, 512])
        content[at : at + size] = rng.randbytes(min(size, len(content) - at))
    elif kind == "number":
        at = rng.randrange(len(content) - 8)
        content[at : at + 8] = struct.pack("<Q", rng.choice(NUMBERS))
    elif kind == "cut":
        del content[rng.randrange(len(content)) :]
    elif kind == "insert":
        at = rng.randrange(len(content))
        content[at:at] = rng.randbytes(rng.choice([1, 4, 8]))
    else:
        at = rng.choice([4, 8, 16])
        size = 4 if at == 4 else 8
        content[at : at + size] = struct.pack("<Q", rng.choice(NUMBERS))[:size]
    return kind


def _item(rng: random.Random, kind: int) -> bytes:
    if kind == STRING:
        return rng.choice(TEXTS)
    form = SCALARS[kind]
    if form[1] in "fd":
        return struct.pack(form, rng.choice(FLOATS))
    size = struct.calcsize(form)
    return (rng.choice(NUMBERS) % 2 ** (8 * size)).to_bytes(size, "little")


def _change_value(rng: random.Random, file: File) -> str:
    value = rng.choice(file.values)
    before = value.items[:1]
    at = rng.randrange(len(value.items)) if value.items else None
    if at is not None:
        value.items[at] = _item(rng, value.item_kind)
        return f"{value.key!r}[{at}] {before} -> {value.items[at]!r}"
    return "nothing"


def _change_architecture_value(rng: random.Random, file: File) -> str:
    chosen = [value for value in file.values if not value.key.startswith((b"general.", b"tokenizer."))]
    value = rng.choice(chosen or file.values)
    value.items = [_item(rng, value.item_kind) for _ in value.items]
    return f"{value.key!r} = {value.items[:4]}"


def _change_type(rng: random.Random, file: File) -> str:
    value = rng.choice(file.values)
    value.kind = value.item_kind = rng.choice(list(SCALARS))
    value.items = [_item(rng, value.kind)]
    return f"{value.key!r} of type {value.kind}"


def _make_array(rng: random.Random, file: File) -> str:
    value = rng.choice(file.values)
    value.kind, value.item_kind = ARRAY, rng.choice([*SCALARS, STRING])
    count = rng.choice([0, 1, 2, 3, 512, 513, 2000])
    each = _item(rng, value.item_kind)
    value.items = [each] * count
    return f"{value.key!r} an array of {count} of type {value.item_kind}: {each!r}"


def _resize_array(rng: random.Random, file: File) -> str:
    arrays = [value for value in file.values if value.kind == ARRAY and value.items]
    value = rng.choice(arrays or file.values)
    count = rng.choice([0, 1, len(value.items) - 1, len(value.items) + 1, 2 * len(value.items)])
    value.items = (value.items * 2)[:count] if value.kind == ARRAY else value.items
    return f"{value.key!r} with {count} items"


def _drop(rng: random.Random, file: File) -> str:
    value = file.values.pop(rng.randrange(len(file.values)))
    return f"without {value.key!r}"


def _rename(rng: random.Random, file: File) -> str:
    value = rng.choice(file.values)
    before, value.key = value.key, rng.choice([b"", b"general.alignment", b"split.count", b"x" * 70000, value.key[:-1]])
    return f"{before!r} called {value.key[:40]!r}"


def _prefix(file: File) -> bytes:
    """What the keys of its architecture begin with."""
    told = [value.items[0] for value in file.values if value.key == b"general.architecture" and value.items]
    return (told[0] if told else b"llama") + b"."


def _other_architecture(rng: random.Random, file: File) -> str:
    name = rng.choice(list(gguf.MODEL_ARCH_NAMES.values())).encode()
    prefix = _prefix(file)
    for value in file.values:
        if value.key == b"general.architecture":
            value.items = [name]
        elif value.key.startswith(prefix):
            value.key = name + b"." + value.key[len(prefix) :]
    return f"architecture {name!r}"


def _add(rng: random.Random, file: File) -> str:
    prefix = _prefix(file)
    key = rng.choice(EXTRA_KEYS)
    key = prefix + key[2:] if key.startswith(b"%.") else key
    file.values = [value for value in file.values if value.key != key]
    kind = rng.choice([4, 4, 4, 6, 5, 7, STRING])
    content = _item(rng, kind)
    file.values.append(Value(key, kind, kind, [content]))
    return f"with {key!r} = {content!r}"


_OF_ARCHITECTURE = """rope.scaling.type rope.dimension_sections nextn_predict_layers vocab_size attention.key_length
attention.value_length attention.sliding_window expert_count expert_used_count expert_group_count
expert_group_used_count expert_gating_func pooling_type attention.causal
ssm.group_count rope.freq_base rope.scaling.factor ssm.inner_size
rope.scaling.original_context_length full_attention_interval wkv.head_size ssm.time_step_rank attention.head_count_kv"""
EXTRA_KEYS = [
    *(b"%." + name.encode() for name in _OF_ARCHITECTURE.split()),
    *(
        b"%." + name
        for name in [b"rope.scaling.type", b"rope.dimension_sections", b"nextn_predict_layers", b"vocab_size"]
    ),
    *(
        b"%." + name
        for name in [b"expert_count", b"expert_used_count", b"expert_group_count", b"expert_group_used_count"]
    ),
    *(
        b"%." + name
        for name in [b"full_attention_interval", b"wkv.head_size", b"ssm.inner_size", b"ssm.time_step_rank"]
    ),
    b"general.alignment",
    b"split.count",
    b"split.no",
    b"tokenizer.ggml.pre",
    b"tokenizer.ggml.add_bos_token",
    b"tokenizer.ggml.precompiled_charsmap",
    b"tokenizer.ggml.eot_token_id",
    b"tokenizer.chat_template",
]


def _tensor_type(rng: random.Random, file: File) -> str:
    tensor = rng.choice(file.tensors)
    tensor.kind = rng.choice([*gguf.GGMLQuantizationType, 4, 5, 31, 36, 99])
    return f"{tensor.name!r} of type {tensor.kind}"


def _tensor_shape(rng: random.Random, file: File) -> str:
    tensor = rng.choice(file.tensors)
    # An earlier change may have left it no dimension.
    kind = rng.choice(["number", "swap", "more", "less"]) if tensor.shape else "more"
    if kind == "number":
        tensor.shape[rng.randrange(len(tensor.shape))] = rng.choice([0, 1, 2, 32, 63, 64, 65, 256, 2**20])
    elif kind == "swap":
        tensor.shape.reverse()
    elif kind == "more":
        tensor.shape = [*tensor.shape, rng.choice([1, 2])][:5]
    else:
        tensor.shape.pop()
    return f"{tensor.name!r} of shape {tensor.shape}"


def _tensor_name(rng: random.Random, file: File) -> str:
    tensor = rng.choice(file.tensors)
    names = [b"", b"blk.99.attn_q.weight", b"\xff", b"x" * 63, b"x" * 64, rng.choice(file.tensors).name, b"a - [b]"]
    before, tensor.name = tensor.name, rng.choice(names)
    return f"{before!r} called {tensor.name!r}"


def _tensor_count(rng: random.Random, file: File) -> str:
    if rng.random() < 0.5:
        return f"without {file.tensors.pop(rng.randrange(len(file.tensors))).name!r}"
    file.tensors.append(Tensor(rng.choice([b"output.bias", b"extra.weight", b"rope_freqs.weight"]), [64], 0, 0))
    return f"with {file.tensors[-1].name!r}"


CHANGES = [
    *[_change_value, _change_architecture_value, _change_architecture_value, _change_type, _make_array, _resize_array],
    *[_drop, _rename, _other_architecture, _add, _add, _tensor_type, _tensor_type, _tensor_shape, _tensor_name],
    _tensor_count,
]
