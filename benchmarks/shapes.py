"""Model files with the headers of large models and without their weights: sparse files that claim tens of gigabytes and
take a few megabytes. A plan, a fit and a table of experts need no more.

    python benchmarks/shapes.py                       # what there is
    python benchmarks/shapes.py FOLDER                # writes them all
    python benchmarks/shapes.py FOLDER phi-3.5-moe-q4_k_m mixtral-8x7b-q4_k_m

Sizes are those of the models' published configurations; the types of the tensors are what llama.cpp's quantiser would
choose without an importance matrix (asked through llama-ext.h); vocabularies have their true sizes and made-up words.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

from shape_tensors import tensors_of  # beside this file

from moebind import Ftype, GgmlType, ffi, lib
from moebind._core.tables import Column, text_table

Value = int | float | str | bool | list[bool] | list[int]


@dataclass(frozen=True)
class Shape:
    """A model's configuration, as its GGUF file has it.

    ``extra`` has further keys; lists have an item for each layer, of whose kinds there are several then. ``tied``: the
    output is the token embeddings. Layers that predict further ahead are left out.
    """

    arch: str
    ftype: Ftype
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    n_vocab: int
    n_ctx_train: int
    n_expert: int
    n_expert_used: int
    head: int = 128
    n_ff_exp: int = 0
    n_dense_layers: int = 0
    tokenizer: str = "gpt2"
    pre: str = "default"
    n_merges: int = 0
    source: GgmlType = GgmlType.BF16
    tied: bool = False
    qk_norm: bool = False
    extra: dict[str, Value] = field(default_factory=dict)

    @property
    def is_uniform(self) -> bool:
        """Whether all layers, but for dense ones at the beginning, are of one kind."""
        return not any(isinstance(value, list) for value in self.extra.values())


def _phi(ftype: Ftype) -> Shape:
    extra: dict[str, Value] = {"rope.scaling.original_context_length": 4096, "rope.scaling.attn_factor": 1.19024}
    extra["attention.sliding_window"] = 131072
    return Shape("phimoe", ftype, 32, 4096, 6400, 32, 8, 32064, 131072, 16, 2, tokenizer="llama", extra=extra)


def _qwen3(n_layer: int, n_embd: int, n_ff: int, n_head: int, n_ff_exp: int) -> Shape:
    return Shape(
        "qwen3moe", Ftype.Q4_K_M, n_layer, n_embd, n_ff, n_head, 4, 151936, 40960, 128, 8,
        n_ff_exp=n_ff_exp, pre="qwen2", n_merges=151387, extra={"rope.freq_base": 1e6},
    )  # fmt: skip


def _glm(n_layer: int, n_embd: int, n_ff: int, n_expert: int, n_ff_exp: int, dense: int, **fields: Any) -> Shape:
    extra: dict[str, Value] = {"expert_shared_count": 1, "expert_gating_func": 2, "expert_weights_norm": True}
    extra["rope.dimension_count"] = 64
    return Shape(
        "glm4moe", Ftype.Q4_K_M, n_layer, n_embd, n_ff, 96, 8, 151552, n_expert=n_expert, n_expert_used=8,
        n_ff_exp=n_ff_exp, n_dense_layers=dense, pre="glm4", extra=extra, **fields,
    )  # fmt: skip


def _gpt_oss(n_layer: int, n_expert: int) -> Shape:
    extra: dict[str, Value] = {
        "rope.freq_base": 150000.0, "rope.scaling.type": "yarn", "rope.scaling.factor": 32.0,
        "rope.scaling.original_context_length": 4096, "attention.sliding_window": 128,
    }  # fmt: skip
    return Shape(
        "gpt-oss", Ftype.MXFP4_MOE, n_layer, 2880, 2880, 64, 8, 201088, 131072, n_expert, 4,
        head=64, n_ff_exp=2880, pre="gpt-4o", n_merges=446189, extra=extra,
    )  # fmt: skip


def _deepseek(
    n_head: int, n_vocab: int, n_ctx_train: int, n_expert: int, dense: int, extra: dict[str, Value], **fields: Any
) -> Shape:
    """Multi-head latent attention, dense layers first, one shared expert, a sigmoid router."""
    values: dict[str, Value] = {
        "attention.q_lora_rank": 1536, "attention.kv_lora_rank": 512, "attention.key_length_mla": 192,
        "attention.value_length_mla": 128, "attention.value_length": 512, "expert_shared_count": 1,
        "expert_weights_norm": True, "expert_gating_func": 2, "rope.scaling.type": "yarn",
        "rope.scaling.original_context_length": 4096, "rope.scaling.yarn_log_multiplier": 0.1, **extra,
    }  # fmt: skip
    return Shape(
        "deepseek2", Ftype.Q4_K_M, 61, 7168, 18432, n_head, 1, n_vocab, n_ctx_train, n_expert, 8,
        head=576, n_ff_exp=2048, n_dense_layers=dense, extra=values, **fields,
    )  # fmt: skip


#: Nemotron 3 Nano's layers: Mamba, experts, attention.
_NEMOTRON = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"

SHAPES = {
    "phi-3.5-moe-q4_k_m": _phi(Ftype.Q4_K_M),
    "phi-3.5-moe-q2_k": _phi(Ftype.Q2_K),
    "phi-3.5-moe-q8_0": _phi(Ftype.Q8_0),
    "mixtral-8x7b-q4_k_m": Shape(
        "llama", Ftype.Q4_K_M, 32, 4096, 14336, 32, 8, 32000, 32768, 8, 2,
        tokenizer="llama", extra={"rope.freq_base": 1e6},
    ),
    "qwen3-30b-a3b-q4_k_m": _qwen3(48, 2048, 6144, 32, 768),
    "qwen3-235b-a22b-q4_k_m": _qwen3(94, 4096, 12288, 64, 1536),
    # Published with its experts in MXFP4, and with the rest in Q8_0 in ggml-org's files.
    "gpt-oss-120b-mxfp4": _gpt_oss(36, 128),
    "deepseek-v3-q4_k_m": _deepseek(
        128, 129280, 163840, 256, 3, pre="deepseek-v3", n_merges=127741,
        extra={
            "expert_weights_scale": 2.5, "expert_group_count": 8, "expert_group_used_count": 4,
            "rope.scaling.factor": 40.0,
        },
    ),
    "gpt-oss-20b-mxfp4": _gpt_oss(24, 32),
    # Qwen3.6-35B-A3B has the same. Three of four layers have a gated delta net in place of attention.
    "qwen3.5-35b-a3b-q4_k_m": Shape(
        "qwen35moe", Ftype.Q4_K_M, 40, 2048, 512, 16, 2, 248320, 262144, 256, 8,
        head=256, n_ff_exp=512, pre="qwen35", qk_norm=True,
        extra={
            "ssm.conv_kernel": 4, "ssm.inner_size": 4096, "ssm.state_size": 128, "ssm.time_step_rank": 32,
            "ssm.group_count": 16, "full_attention_interval": 4, "rope.dimension_count": 64, "rope.freq_base": 1e7,
            "rope.dimension_sections": [11, 11, 10, 0], "expert_shared_feed_forward_length": 512,
        },
    ),
    "glm-4.5-air-q4_k_m": _glm(46, 4096, 10944, 128, 1408, 1, n_ctx_train=131072),
    "glm-4.6-q4_k_m": _glm(92, 5120, 12288, 160, 1536, 3, n_ctx_train=202752, qk_norm=True),
    "kimi-k2-q4_k_m": _deepseek(
        64, 163840, 131072, 384, 1, pre="kimi-k2", extra={"expert_weights_scale": 2.827, "rope.scaling.factor": 32.0}
    ),
    "minimax-m2-q4_k_m": Shape(
        "minimax-m2", Ftype.Q4_K_M, 62, 3072, 1536, 48, 8, 200064, 196608, 256, 8,
        n_ff_exp=1536, pre="minimax-m2",
        extra={"expert_gating_func": 2, "rope.dimension_count": 64, "rope.freq_base": 5e6},
    ),
    # The text model; images have a file of their own. Windows of 8192 tokens in three of four layers.
    "llama-4-scout-q4_k_m": Shape(
        "llama4", Ftype.Q4_K_M, 48, 5120, 16384, 40, 8, 202048, 10485760, 16, 1,
        n_ff_exp=8192, pre="llama4", extra={"interleave_moe_layer_step": 1, "rope.freq_base": 5e5},
    ),
    # Windows of 1024 tokens in five of six layers; in the sixth keys are values, too.
    "gemma-4-26b-a4b-q4_k_m": Shape(
        "gemma4", Ftype.Q4_K_M, 30, 2816, 2112, 16, 8, 262144, 262144, 128, 8,
        head=512, n_ff_exp=704, tokenizer="llama", tied=True,
        extra={
            "attention.key_length_swa": 256, "attention.value_length_swa": 256, "attention.sliding_window": 1024,
            "attention.sliding_window_pattern": [layer % 6 != 5 for layer in range(30)],
            "attention.head_count_kv": [2 if layer % 6 == 5 else 8 for layer in range(30)],
            "embedding_length_per_layer_input": 0, "rope.dimension_count_swa": 256, "final_logit_softcapping": 30.0,
            "rope.freq_base": 1e6,
        },
    ),
    # Mamba 2 in nine of ten layers.
    "granite-4-h-small-q4_k_m": Shape(
        "granitehybrid", Ftype.Q4_K_M, 40, 4096, 768, 32, 8, 100352, 131072, 72, 10, tied=True,
        extra={
            "ssm.conv_kernel": 4, "ssm.inner_size": 8192, "ssm.state_size": 128, "ssm.time_step_rank": 128,
            "ssm.group_count": 1, "expert_shared_feed_forward_length": 1536, "rope.scaling.finetuned": False,
            "attention.head_count_kv": [8 if layer % 10 == 5 else 0 for layer in range(40)],
        },
    ),
    "nemotron-3-nano-q4_k_m": Shape(
        "nemotron_h_moe", Ftype.Q4_K_M, 52, 2688, 1856, 32, 2, 131072, 1048576, 128, 6, n_ff_exp=1856,
        extra={
            "ssm.conv_kernel": 4, "ssm.inner_size": 4096, "ssm.state_size": 128, "ssm.time_step_rank": 64,
            "ssm.group_count": 8, "expert_shared_feed_forward_length": 3712, "expert_shared_count": 1,
            "expert_weights_norm": True, "expert_weights_scale": 2.5, "attention.layer_norm_epsilon": 1e-5,
            "attention.head_count_kv": [2 * (kind == "*") for kind in _NEMOTRON],
            "feed_forward_length": [1856 * (kind == "E") for kind in _NEMOTRON],
        },
    ),
}  # fmt: skip


def small(shape: Shape, n_layer: int = 4, n_embd: int = 512, n_ff: int = 768) -> Shape:
    """A small copy of a model, which computes in seconds: the same kinds of tensors, a vocabulary of the same kind.

    There is none of a model whose layers are of several kinds. Multi-head latent attention keeps its size, which is the
    same in all such models.
    """
    if not shape.is_uniform:
        raise ValueError(f"a model of architecture {shape.arch} has layers of several kinds: there is no small one")
    head = shape.head if shape.arch == "deepseek2" else 64
    return replace(
        shape, n_layer=n_layer, n_embd=n_embd, n_ff=n_ff, n_head=n_embd // 64, n_head_kv=min(2, shape.n_head_kv),
        head=head, n_ff_exp=n_ff if shape.n_ff_exp else 0, n_vocab=1024, n_merges=min(64, shape.n_merges),
    )  # fmt: skip


def types(shape: Shape) -> dict[str, tuple[tuple[int, ...], GgmlType]]:
    """Dimensions and types of all tensors, as llama.cpp's quantiser would choose them."""
    listed = list(tensors_of(shape))
    names = [ffi.new("char[]", name.encode()) for name, _ in listed]
    tensors = ffi.new("struct moebind_quant_tensor[]", len(listed))
    for each, text, (name, ne) in zip(tensors, names, listed, strict=True):
        each.name, each.ne = text, [*ne, 1, 1, 1][:4]
        small_one = len(ne) == 1 or ne[0] == 1 or name.endswith(".bias")
        vector = small_one or any(part in name for part in ("ffn_gate_inp", "ssm_conv1d", "_norm"))
        each.type = GgmlType.F32 if vector else shape.source
    arch = ffi.new("char[]", shape.arch.encode())
    sizes = (shape.n_embd, shape.n_ff, shape.n_layer, shape.n_head, shape.n_head_kv, shape.n_expert)
    described = ffi.new("struct moebind_quant_shape *", [arch, *sizes, shape.head, shape.head])
    lib.moebind_log_quiet(True)  # it tells of every tensor whose rows do not fit a type
    lib.moebind_quant_types(described, shape.ftype, tensors, len(listed))
    lib.moebind_log_quiet(False)
    return {name: (ne, GgmlType(each.type)) for (name, ne), each in zip(listed, tensors, strict=True)}


def metadata(shape: Shape) -> dict[str, Value]:
    """The model's own keys, without those of the tokenizer."""
    a = shape.arch
    values: dict[str, Value] = {
        "block_count": shape.n_layer,
        "context_length": shape.n_ctx_train,
        "embedding_length": shape.n_embd,
        "feed_forward_length": shape.n_ff,
        "attention.head_count": shape.n_head,
        "attention.head_count_kv": shape.n_head_kv,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.key_length": shape.head,
        "attention.value_length": shape.head,
        "rope.dimension_count": 64 if a == "deepseek2" else shape.head,
        "expert_count": shape.n_expert,
        "expert_used_count": shape.n_expert_used,
        "vocab_size": shape.n_vocab,
        **shape.extra,
    }
    if shape.n_ff_exp:
        values["expert_feed_forward_length"] = shape.n_ff_exp
    if shape.n_dense_layers:
        values["leading_dense_block_count"] = shape.n_dense_layers
    return {"general.architecture": a, **{f"{a}.{key}": value for key, value in values.items()}}


def write(path: Path, shape: Shape, n_files: int = 1) -> Path:
    """Write the header, and leave a hole for the tensors; in several files, the path of the first is returned."""
    path.parent.mkdir(parents=True, exist_ok=True)
    listed = list(types(shape).items())
    if n_files == 1:
        _write_file(path, shape, listed)
        return path
    each = -(-len(listed) // n_files)
    files = [path.with_name(f"{path.stem}-{at + 1:05d}-of-{n_files:05d}.gguf") for at in range(n_files)]
    for at, file in enumerate(files):
        _write_file(file, shape, listed[at * each : (at + 1) * each], (at, n_files, len(listed)))
    return files[0]


def _write_file(
    path: Path,
    shape: Shape,
    listed: Sequence[tuple[str, tuple[tuple[int, ...], GgmlType]]],
    split: tuple[int, int, int] = (0, 1, 0),
) -> None:
    """Write one file; ``split``: which of how many, and how many tensors there are in all."""
    file = ffi.gc(lib.gguf_init_empty(), lib.gguf_free)
    number, count, total = split
    if number == 0:
        for key, value in metadata(shape).items():
            _set(file, key, value)
        _set(file, "general.name", path.stem)
        _set(file, "general.file_type", int(shape.ftype))
        _set_vocabulary(file, shape)
    if count > 1:
        lib.gguf_set_val_u16(file, b"split.no", number)
        lib.gguf_set_val_u16(file, b"split.count", count)
        lib.gguf_set_val_i32(file, b"split.tensors.count", total)
    size = lib.ggml_tensor_overhead() * (len(listed) + 1)
    context = ffi.gc(lib.ggml_init({"mem_size": size, "mem_buffer": ffi.NULL, "no_alloc": True}), lib.ggml_free)
    for name, (ne, kind) in listed:
        tensor = lib.ggml_new_tensor(context, kind, len(ne), ffi.new("int64_t[]", ne))
        lib.ggml_set_name(tensor, name.encode())
        lib.gguf_add_tensor(file, tensor)
    if not lib.gguf_write_to_file(file, str(path).encode(), True):
        raise OSError(f"{path} cannot be written")
    last = lib.gguf_get_n_tensors(file) - 1
    end = lib.gguf_get_tensor_offset(file, last) + lib.gguf_get_tensor_size(file, last)
    with path.open("r+b") as hole:
        hole.truncate(path.stat().st_size + -(-end // 32) * 32)


def _set(file: object, key: str, value: Value) -> None:
    name = key.encode()
    if isinstance(value, bool):
        lib.gguf_set_val_bool(file, name, value)
    elif isinstance(value, int):
        lib.gguf_set_val_u32(file, name, value)
    elif isinstance(value, float):
        lib.gguf_set_val_f32(file, name, value)
    elif isinstance(value, str):
        lib.gguf_set_val_str(file, name, value.encode())
    else:
        kind, item = ("bool[]", "BOOL") if isinstance(value[0], bool) else ("int32_t[]", "INT32")
        lib.gguf_set_arr_data(file, name, getattr(lib, f"GGUF_TYPE_{item}"), ffi.new(kind, value), len(value))


def _set_texts(file: object, key: str, texts: Sequence[str]) -> None:
    kept = [ffi.new("char[]", text.encode()) for text in texts]
    lib.gguf_set_arr_str(file, key.encode(), kept, len(kept))


def _set_vocabulary(file: object, shape: Shape) -> None:
    words = [f"w{at}" for at in range(shape.n_vocab)]
    kinds = [1] * shape.n_vocab  # normal
    if shape.tokenizer == "llama":
        words[:259] = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
        kinds[:259] = [2, 3, 3, *[6] * 256]
        scores = ffi.new("float[]", [-float(at) for at in range(shape.n_vocab)])
        lib.gguf_set_arr_data(file, b"tokenizer.ggml.scores", lib.GGUF_TYPE_FLOAT32, scores, shape.n_vocab)
        if shape.arch == "phimoe":  # llama.cpp insists on this one where the model's name has "phi-3" in it
            words[-64], kinds[-64] = "<|endoftext|>", 3
    else:
        words[:256] = _byte_words()
        _set_texts(file, "tokenizer.ggml.merges", [f"w{at % 9973} w{at}" for at in range(256, 256 + shape.n_merges)])
        _set(file, "tokenizer.ggml.pre", shape.pre)
    _set(file, "tokenizer.ggml.model", shape.tokenizer)
    _set_texts(file, "tokenizer.ggml.tokens", words)
    types_ = ffi.new("int32_t[]", kinds)
    lib.gguf_set_arr_data(file, b"tokenizer.ggml.token_type", lib.GGUF_TYPE_INT32, types_, shape.n_vocab)
    _set(file, "tokenizer.ggml.bos_token_id", 1)
    _set(file, "tokenizer.ggml.eos_token_id", 2)


def _byte_words() -> list[str]:
    """GPT-2's letters for the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    letters = {**{byte: chr(byte) for byte in plain}, **{byte: chr(256 + at) for at, byte in enumerate(others)}}
    return [letters[byte] for byte in range(256)]


def main() -> None:
    """List the shapes, or write them."""
    parser = argparse.ArgumentParser(description="Headers of large models, without their weights.")
    parser.add_argument("folder", nargs="?", type=Path, help="where they are written; without it, they are listed")
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help="which ones; all of them by default")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.shapes) - set(SHAPES))
    if unknown:
        parser.error(f"there is no shape {' or '.join(unknown)}; there are {', '.join(SHAPES)}")
    if arguments.folder is None:
        columns = [Column("shape", left=True), Column("parameters", ".1f"), Column("active", ".1f")]
        columns.append(Column("tensors, GiB", ".2f"))
        print("\n".join(text_table(columns, map(_row, SHAPES))))
        return
    for name in arguments.shapes or SHAPES:
        print(write(arguments.folder / f"{name}.gguf", SHAPES[name]))


def _row(name: str) -> tuple[str, float, float, float]:
    """Of a shape: the parameters, those that work on a token with the embeddings, both in 10^9, and its size."""
    kinds = types(SHAPES[name])
    size = sum(lib.ggml_row_size(kind, ne[0]) * prod(ne[1:]) for ne, kind in kinds.values())
    total, active = parameters(SHAPES[name])
    return name, total / 1e9, active / 1e9, size / 2**30


def parameters(shape: Shape) -> tuple[int, int]:
    """How many there are, and how many of them work on a token, all embeddings among them."""
    total = active = 0
    for name, ne in tensors_of(shape):
        total += prod(ne)
        active += prod(ne) * shape.n_expert_used // shape.n_expert if "_exps." in name else prod(ne)
    return total, active


if __name__ == "__main__":
    main()
