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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from moebind import Ftype, GgmlType, ffi, lib
from moebind._core.tables import Column, text_table

Value = int | float | str | bool | list[bool]


@dataclass(frozen=True)
class Shape:
    """A model's configuration, as its GGUF file has it."""

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
    extra: dict[str, Value] = field(default_factory=dict)


def _phi(ftype: Ftype) -> Shape:
    extra: dict[str, Value] = {"rope.scaling.original_context_length": 4096, "rope.scaling.attn_factor": 1.19024}
    extra["attention.sliding_window"] = 131072
    return Shape("phimoe", ftype, 32, 4096, 6400, 32, 8, 32064, 131072, 16, 2, tokenizer="llama", extra=extra)


def _qwen3(n_layer: int, n_embd: int, n_ff: int, n_head: int, n_ff_exp: int) -> Shape:
    return Shape(
        "qwen3moe", Ftype.Q4_K_M, n_layer, n_embd, n_ff, n_head, 4, 151936, 40960, 128, 8,
        n_ff_exp=n_ff_exp, pre="qwen2", n_merges=151387, extra={"rope.freq_base": 1e6},
    )  # fmt: skip


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
    "gpt-oss-120b-mxfp4": Shape(
        "gpt-oss", Ftype.MXFP4_MOE, 36, 2880, 2880, 64, 8, 201088, 131072, 128, 4,
        head=64, n_ff_exp=2880, pre="gpt-4o", n_merges=446189,
        extra={
            "rope.freq_base": 150000.0, "rope.scaling.type": "yarn", "rope.scaling.factor": 32.0,
            "rope.scaling.original_context_length": 4096, "attention.sliding_window": 128,
        },
    ),
    # Multi-head latent attention, three dense layers, one shared expert, a grouped sigmoid router.
    "deepseek-v3-q4_k_m": Shape(
        "deepseek2", Ftype.Q4_K_M, 61, 7168, 18432, 128, 1, 129280, 163840, 256, 8,
        head=576, n_ff_exp=2048, n_dense_layers=3, pre="deepseek-v3", n_merges=127741,
        extra={
            "attention.q_lora_rank": 1536, "attention.kv_lora_rank": 512, "attention.key_length_mla": 192,
            "attention.value_length_mla": 128, "attention.value_length": 512, "expert_shared_count": 1,
            "expert_weights_scale": 2.5, "expert_weights_norm": True, "expert_gating_func": 2,
            "expert_group_count": 8, "expert_group_used_count": 4, "rope.scaling.type": "yarn",
            "rope.scaling.factor": 40.0, "rope.scaling.original_context_length": 4096,
            "rope.scaling.yarn_log_multiplier": 0.1,
        },
    ),
}  # fmt: skip


def small(shape: Shape, n_layer: int = 4, n_embd: int = 512, n_ff: int = 768) -> Shape:
    """A small copy of a model, which computes in seconds: the same kinds of tensors, a vocabulary of the same kind.

    Multi-head latent attention keeps its size, which is the same in all such models.
    """
    head = shape.head if shape.arch == "deepseek2" else 64
    return replace(
        shape, n_layer=n_layer, n_embd=n_embd, n_ff=n_ff, n_head=n_embd // 64, n_head_kv=min(2, shape.n_head_kv),
        head=head, n_ff_exp=n_ff if shape.n_ff_exp else 0, n_vocab=1024, n_merges=min(64, shape.n_merges),
    )  # fmt: skip


def _tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and dimensions, the length of a row first; vectors stay F32."""
    d, vocab, bias = shape.n_embd, shape.n_vocab, shape.arch in {"phimoe", "gpt-oss"}
    yield "token_embd.weight", (d, vocab)
    if shape.arch == "phimoe":
        yield from [("rope_factors_long.weight", (shape.head // 2,)), ("rope_factors_short.weight", (shape.head // 2,))]
    for layer in range(shape.n_layer):
        b = f"blk.{layer}."
        yield b + "attn_norm.weight", (d,)
        if shape.arch == "phimoe":
            yield from [(b + "attn_norm.bias", (d,)), (b + "ffn_norm.bias", (d,))]
        yield from _attention(shape, b, bias)
        yield b + ("post_attention_norm.weight" if shape.arch == "gpt-oss" else "ffn_norm.weight"), (d,)
        yield from _feed_forward(shape, b, layer)
    yield "output_norm.weight", (d,)
    yield "output.weight", (d, vocab)
    if shape.arch == "phimoe":
        yield from [("output_norm.bias", (d,)), ("output.bias", (vocab,))]


def _attention(shape: Shape, b: str, bias: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    d, q, kv = shape.n_embd, shape.n_head * shape.head, shape.n_head_kv * shape.head
    if shape.arch == "deepseek2":
        rank, key, value, lora = 512, 192, 128, 1536
        yield from [(b + "attn_q_a.weight", (d, lora)), (b + "attn_q_a_norm.weight", (lora,))]
        yield from [(b + "attn_q_b.weight", (lora, shape.n_head * key)), (b + "attn_kv_a_norm.weight", (rank,))]
        yield b + "attn_kv_a_mqa.weight", (d, rank + 64)
        yield b + "attn_k_b.weight", (key - 64, rank, shape.n_head)
        yield b + "attn_v_b.weight", (rank, value, shape.n_head)
        yield b + "attn_output.weight", (shape.n_head * value, d)
        return
    for name, rows in [("q", q), ("k", kv), ("v", kv)]:
        yield b + f"attn_{name}.weight", (d, rows)
        if bias:
            yield b + f"attn_{name}.bias", (rows,)
    yield b + "attn_output.weight", (q, d)
    if bias:
        yield b + "attn_output.bias", (d,)
    if shape.arch == "qwen3moe":
        yield from [(b + "attn_q_norm.weight", (shape.head,)), (b + "attn_k_norm.weight", (shape.head,))]
    if shape.arch == "gpt-oss":
        yield b + "attn_sinks.weight", (shape.n_head,)


def _feed_forward(shape: Shape, b: str, layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    d, n, f = shape.n_embd, shape.n_expert, shape.n_ff_exp or shape.n_ff
    if layer < shape.n_dense_layers:
        yield from [(b + "ffn_gate.weight", (d, shape.n_ff)), (b + "ffn_up.weight", (d, shape.n_ff))]
        yield b + "ffn_down.weight", (shape.n_ff, d)
        return
    yield b + "ffn_gate_inp.weight", (d, n)
    yield from [(b + "ffn_gate_exps.weight", (d, f, n)), (b + "ffn_up_exps.weight", (d, f, n))]
    yield b + "ffn_down_exps.weight", (f, d, n)
    if shape.arch == "gpt-oss":
        yield from [(b + "ffn_gate_inp.bias", (n,)), (b + "ffn_down_exps.bias", (d, n))]
        yield from [(b + "ffn_gate_exps.bias", (f, n)), (b + "ffn_up_exps.bias", (f, n))]
    if shape.arch == "deepseek2":
        yield b + "exp_probs_b.bias", (n,)
        yield from [(b + "ffn_gate_shexp.weight", (d, f)), (b + "ffn_up_shexp.weight", (d, f))]
        yield b + "ffn_down_shexp.weight", (f, d)


def types(shape: Shape) -> dict[str, tuple[tuple[int, ...], GgmlType]]:
    """Dimensions and types of all tensors, as llama.cpp's quantiser would choose them."""
    listed = list(_tensors(shape))
    names = [ffi.new("char[]", name.encode()) for name, _ in listed]
    tensors = ffi.new("struct moebind_quant_tensor[]", len(listed))
    for each, text, (name, ne) in zip(tensors, names, listed, strict=True):
        each.name, each.ne = text, [*ne, 1, 1, 1][:4]
        vector = len(ne) == 1 or name.endswith(".bias") or "ffn_gate_inp" in name
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


def write(path: Path, shape: Shape) -> Path:
    """Write the header, and leave a hole for the tensors."""
    file = ffi.gc(lib.gguf_init_empty(), lib.gguf_free)
    for key, value in metadata(shape).items():
        _set(file, key, value)
    _set(file, "general.name", path.stem)
    _set(file, "general.file_type", int(shape.ftype))
    _set_vocabulary(file, shape)
    listed = types(shape)
    size = lib.ggml_tensor_overhead() * (len(listed) + 1)
    context = ffi.gc(lib.ggml_init({"mem_size": size, "mem_buffer": ffi.NULL, "no_alloc": True}), lib.ggml_free)
    for name, (ne, kind) in listed.items():
        tensor = lib.ggml_new_tensor(context, kind, len(ne), ffi.new("int64_t[]", ne))
        lib.ggml_set_name(tensor, name.encode())
        lib.gguf_add_tensor(file, tensor)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not lib.gguf_write_to_file(file, str(path).encode(), True):
        raise OSError(f"{path} cannot be written")
    last = lib.gguf_get_n_tensors(file) - 1
    end = lib.gguf_get_tensor_offset(file, last) + lib.gguf_get_tensor_size(file, last)
    with path.open("r+b") as hole:
        hole.truncate(path.stat().st_size + -(-end // 32) * 32)
    return path


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
        lib.gguf_set_arr_data(file, name, lib.GGUF_TYPE_BOOL, ffi.new("bool[]", value), len(value))


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
        sizes = {
            name: sum(lib.ggml_row_size(kind, ne[0]) * _rows(ne) for ne, kind in types(shape).values())
            for name, shape in SHAPES.items()
        }
        columns = [Column("shape", left=True), Column("tensors, GiB", ".2f")]
        print("\n".join(text_table(columns, [(name, size / 2**30) for name, size in sizes.items()])))
        return
    for name in arguments.shapes or SHAPES:
        print(write(arguments.folder / f"{name}.gguf", SHAPES[name]))


def _rows(ne: tuple[int, ...]) -> int:
    rows = 1
    for size in ne[1:]:
        rows *= size
    return rows


if __name__ == "__main__":
    main()
