"""Tiny models with random weights, made from a seed: every shape of mixture-of-experts that placement must know."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

#: Random F32 weights of a shape.
Weights = Callable[..., np.ndarray]


@dataclass(frozen=True)
class Shape:
    """What a tiny model is like. All weights are F32.

    Architectures: llama, dense or with experts; deepseek, whose first layers are dense and which has shared experts;
    dots1, which is like it and chooses by sigmoids and biases, in groups if there are some (n_head_kv = n_head);
    granite_swa, which takes fused gate and up matrices; grovemoe, which has experts for groups of experts (chexps);
    mamba, which has recurrent state instead of a KV cache; lfm2, in which every other layer has; bert, an encoder,
    with ``n_cls_out`` > 0 a classification head; nomic-bert, an encoder with gated SiLU and rotated positions; t5,
    which has an encoder and a decoder; qwen2vl, whose positions have three dimensions; gemma4, which looks up
    embeddings for each layer; glm4moe, of which the last ``n_mtp`` layers predict the token after the next.
    """

    arch: str = "llama"
    n_layer: int = 2
    n_embd: int = 64
    n_ff: int = 96
    n_head: int = 4
    n_head_kv: int = 2
    n_ctx_train: int = 512
    n_expert: int = 0
    n_expert_used: int = 2
    n_dense_layers: int = 0
    seed: int = 1
    n_cls_out: int = 0
    #: Whether the token embeddings make the logits too.
    tied: bool = False
    #: Of lfm2 and granite_swa, which has one of 64 without: the width of the sliding window.
    n_swa: int = 0
    #: Groups of experts, of which two are chosen first.
    n_expert_groups: int = 0
    #: Of glm4moe: how many of the layers predict further ahead.
    n_mtp: int = 0

    @property
    def n_ff_exp(self) -> int:
        """Width of one expert."""
        return self.n_ff // 2 if self.arch in {"deepseek", "dots1", "grovemoe"} else self.n_ff


#: Width of what gemma4 looks up for a layer.
PER_LAYER = 16
#: Byte tokens and a few special ones: any text can be tokenised.
TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
TOKENS += [f"▁{word}" for word in ["the", "a", "of", "to", "and", "in", "it", "is", "was", "on"]]
TOKENS += list("▁abcdefghijklmnopqrstuvwxyz")


def write(
    path: Path, shape: Shape, split: int = 1, *, add: Mapping[str, np.ndarray] | None = None, without: str = "(?!)"
) -> Path:
    """Write the model; with ``split`` > 1 in so many files, of which the first is returned.

    ``add`` is added to the tensors of these names; tensors with names that match ``without`` are left out.
    """
    random = np.random.default_rng(shape.seed)
    metadata = _metadata(shape)
    tensors = _tensors(shape, random)
    tensors = {name: data for name, data in tensors.items() if not re.match(without, name)}
    for name, change in (add or {}).items():
        tensors[name] = (tensors[name] + change).astype(np.float32)
    if split == 1:
        _write_file(path, shape.arch, metadata, tensors)
        return path
    names = list(tensors)
    parts = [names[i::split] for i in range(split)]
    files = [path.with_name(f"{path.stem}-{i + 1:05d}-of-{split:05d}.gguf") for i in range(split)]
    for number, (file, part) in enumerate(zip(files, parts, strict=True)):
        extra = {"split.no": np.uint16(number), "split.count": np.uint16(split), "split.tensors.count": len(names)}
        chosen = {name: tensors[name] for name in part}
        _write_file(file, shape.arch, {**(metadata if number == 0 else {}), **extra}, chosen)
    return files[0]


def _metadata(shape: Shape) -> dict[str, object]:
    a = shape.arch
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    kinds += [gguf.TokenType.BYTE] * 256 + [gguf.TokenType.NORMAL] * (len(TOKENS) - 259)
    metadata: dict[str, object] = {
        "general.name": "tiny",
        f"{a}.block_count": shape.n_layer,
        f"{a}.context_length": shape.n_ctx_train,
        f"{a}.embedding_length": shape.n_embd,
        f"{a}.feed_forward_length": shape.n_ff,
        f"{a}.attention.head_count": shape.n_head,
        f"{a}.attention.head_count_kv": shape.n_head_kv,
        f"{a}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{a}.rope.dimension_count": shape.n_embd // shape.n_head,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.scores": [-float(i) for i in range(len(TOKENS))],
        "tokenizer.ggml.token_type": [int(kind) for kind in kinds],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    if shape.n_expert:
        metadata[f"{a}.expert_count"] = shape.n_expert
        metadata[f"{a}.expert_used_count"] = shape.n_expert_used
    if shape.n_expert_groups:
        metadata[f"{a}.expert_group_count"] = shape.n_expert_groups
        metadata[f"{a}.expert_group_used_count"] = 2
    if a == "dots1":
        metadata[f"{a}.expert_gating_func"] = 2  # sigmoid
        metadata[f"{a}.expert_weights_norm"] = True
    if a in {"deepseek", "dots1"}:
        metadata[f"{a}.leading_dense_block_count"] = shape.n_dense_layers
        metadata[f"{a}.expert_shared_count"] = 1
        metadata[f"{a}.expert_weights_scale"] = 1.0
    if a in {"deepseek", "dots1", "grovemoe"}:
        metadata[f"{a}.expert_feed_forward_length"] = shape.n_ff_exp
    if a == "grovemoe":
        metadata[f"{a}.expert_group_scale"] = 0.05
        metadata[f"{a}.experts_per_group"] = 2
        metadata[f"{a}.expert_chunk_feed_forward_length"] = 32
    if a in {"bert", "nomic-bert"}:
        metadata[f"{a}.attention.layer_norm_epsilon"] = 1e-5
        metadata[f"{a}.attention.causal"] = False
        metadata["tokenizer.ggml.token_type_count"] = 1
        metadata["tokenizer.ggml.seperator_token_id"] = 2  # spelled so in GGUF
        metadata["tokenizer.ggml.add_bos_token"] = metadata["tokenizer.ggml.add_eos_token"] = True
        if shape.n_cls_out:
            metadata[f"{a}.classifier.output_labels"] = [f"label {i}" for i in range(shape.n_cls_out)]
    if a == "t5":
        metadata[f"{a}.attention.relative_buckets_count"] = 32
        metadata[f"{a}.decoder_start_token_id"] = 5
    if a == "mamba":
        sizes = {"conv_kernel": 4, "inner_size": 2 * shape.n_embd, "state_size": 8, "time_step_rank": 4}
        metadata |= {f"{a}.ssm.{name}": size for name, size in sizes.items()}
        metadata |= {f"{a}.attention.head_count": 0, f"{a}.attention.head_count_kv": 0, f"{a}.feed_forward_length": 0}
        del metadata[f"{a}.rope.dimension_count"]
    if a == "lfm2":
        metadata[f"{a}.shortconv.l_cache"] = 3
        metadata[f"{a}.attention.head_count_kv"] = [shape.n_head_kv * (layer % 2) for layer in range(shape.n_layer)]
        if shape.n_swa:
            metadata[f"{a}.attention.sliding_window"] = shape.n_swa
    if a == "gemma4":
        metadata[f"{a}.embedding_length_per_layer_input"] = PER_LAYER
        metadata |= {f"{a}.attention.{name}_length_swa": shape.n_embd // shape.n_head for name in ("key", "value")}
        metadata |= {f"{a}.attention.{name}_length": shape.n_embd // shape.n_head for name in ("key", "value")}
        metadata[f"{a}.attention.sliding_window"] = 64
        metadata[f"{a}.attention.sliding_window_pattern"] = [layer % 2 == 0 for layer in range(shape.n_layer)]
    if a == "qwen2vl":
        metadata[f"{a}.rope.dimension_sections"] = [2, 3, 3, 0]
    if a == "glm4moe":
        metadata[f"{a}.nextn_predict_layers"] = shape.n_mtp
        metadata[f"{a}.expert_shared_count"] = 1
        metadata[f"{a}.expert_feed_forward_length"] = shape.n_ff_exp
    if a == "granite_swa":
        metadata[f"{a}.logit_scale"] = 1.0
        metadata[f"{a}.attention.sliding_window"] = shape.n_swa or 64
        metadata[f"{a}.attention.sliding_window_pattern"] = [layer % 2 == 0 for layer in range(shape.n_layer)]
    return metadata


def _tensors(shape: Shape, random: np.random.Generator) -> dict[str, np.ndarray]:
    def weights(*size: int) -> np.ndarray:
        return (random.standard_normal(size) / np.sqrt(size[-1])).astype(np.float32)

    if shape.arch in OTHERS:
        return OTHERS[shape.arch](shape, weights)
    ones = np.ones(shape.n_embd, np.float32)
    d, kv = shape.n_embd, shape.n_embd * shape.n_head_kv // shape.n_head
    tensors = {"token_embd.weight": weights(len(TOKENS), d), "output.weight": weights(len(TOKENS), d)}
    if shape.tied:
        del tensors["output.weight"]
    tensors["token_embd_norm.weight" if shape.arch == "lfm2" else "output_norm.weight"] = ones
    for layer in range(shape.n_layer):
        b = f"blk.{layer}."
        if shape.arch == "mamba":
            inner = 2 * d
            tensors |= {b + "attn_norm.weight": ones, b + "ssm_in.weight": weights(2 * inner, d)}
            tensors |= {b + "ssm_conv1d.weight": weights(inner, 4), b + "ssm_conv1d.bias": weights(inner)}
            tensors |= {b + "ssm_x.weight": weights(4 + 2 * 8, inner), b + "ssm_dt.weight": weights(inner, 4)}
            tensors |= {b + "ssm_dt.bias": weights(inner), b + "ssm_a": -np.abs(weights(inner, 8))}
            tensors |= {b + "ssm_d": weights(inner), b + "ssm_out.weight": weights(d, inner)}
            continue
        tensors |= {b + "attn_norm.weight": ones, b + "ffn_norm.weight": ones}
        if shape.arch == "lfm2" and layer % 2 == 0:
            tensors |= {b + "shortconv.conv.weight": weights(d, 3), b + "shortconv.in_proj.weight": weights(3 * d, d)}
            tensors[b + "shortconv.out_proj.weight"] = weights(d, d)
        else:
            tensors |= {b + "attn_q.weight": weights(d, d), b + "attn_output.weight": weights(d, d)}
            tensors |= {b + "attn_k.weight": weights(kv, d), b + "attn_v.weight": weights(kv, d)}
        if shape.arch in {"dots1", "grovemoe"} or (shape.arch == "lfm2" and layer % 2):
            head = np.ones(d // shape.n_head, np.float32)
            tensors |= {b + "attn_q_norm.weight": head, b + "attn_k_norm.weight": head}
        if shape.arch == "qwen2vl":
            tensors |= {b + "attn_q.bias": weights(d), b + "attn_k.bias": weights(kv), b + "attn_v.bias": weights(kv)}
        if shape.arch == "granite_swa":
            tensors[b + "attn_sinks.weight"] = weights(shape.n_head)
        if not shape.n_expert or layer < shape.n_dense_layers:
            tensors |= {b + f"ffn_{part}.weight": weights(shape.n_ff, d) for part in ("gate", "up")}
            tensors[b + "ffn_down.weight"] = weights(d, shape.n_ff)
            continue
        n, f = shape.n_expert, shape.n_ff_exp
        tensors[b + "ffn_gate_inp.weight"] = weights(n, d)
        if shape.arch == "granite_swa":
            tensors[b + "ffn_gate_up_exps.weight"] = weights(n, 2 * f, d)
        else:
            tensors |= {b + f"ffn_{part}_exps.weight": weights(n, f, d) for part in ("gate", "up")}
        tensors[b + "ffn_down_exps.weight"] = weights(n, d, f)
        if shape.arch == "grovemoe":
            tensors |= {b + f"ffn_{part}_chexps.weight": weights(n // 2, 32, d) for part in ("gate", "up")}
            tensors[b + "ffn_down_chexps.weight"] = weights(n // 2, d, 32)
        if shape.arch == "dots1":
            tensors[b + "exp_probs_b.bias"] = weights(n)
        if shape.arch in {"deepseek", "dots1"}:
            tensors |= {b + f"ffn_{part}_shexp.weight": weights(f, d) for part in ("gate", "up")}
            tensors[b + "ffn_down_shexp.weight"] = weights(d, f)
    return tensors


def _bert(shape: Shape, weights: Weights) -> dict[str, np.ndarray]:
    d = shape.n_embd
    tensors = {"token_embd.weight": weights(len(TOKENS), d), "token_types.weight": weights(1, d)}
    if shape.arch == "bert":
        tensors["position_embd.weight"] = weights(shape.n_ctx_train, d)
    norms = ["token_embd_norm"]
    for layer in range(shape.n_layer):
        b = f"blk.{layer}."
        tensors |= {f"{b}attn_{part}.weight": weights(d, d) for part in ("q", "k", "v", "output")}
        tensors |= {b + "ffn_up.weight": weights(shape.n_ff, d), b + "ffn_down.weight": weights(d, shape.n_ff)}
        if shape.arch == "nomic-bert":
            tensors[b + "ffn_gate.weight"] = weights(shape.n_ff, d)
        norms += [b + "attn_output_norm", b + "layer_output_norm"]
    for norm in norms:
        tensors |= {norm + ".weight": np.ones(d, np.float32), norm + ".bias": weights(d)}
    if shape.n_cls_out:
        tensors |= {"cls.output.weight": weights(shape.n_cls_out, d), "cls.output.bias": weights(shape.n_cls_out)}
    return tensors


def _t5(shape: Shape, weights: Weights) -> dict[str, np.ndarray]:
    d, f = shape.n_embd, shape.n_ff
    ones = np.ones(d, np.float32)
    tensors = {"token_embd.weight": weights(len(TOKENS), d), "output.weight": weights(len(TOKENS), d)}
    tensors |= {"enc.output_norm.weight": ones, "dec.output_norm.weight": ones}
    for layer in range(shape.n_layer):
        for side, attentions in (("enc", ("attn",)), ("dec", ("attn", "cross_attn"))):
            b = f"{side}.blk.{layer}."
            tensors |= {b + "ffn_norm.weight": ones}
            tensors |= {b + "ffn_up.weight": weights(f, d), b + "ffn_down.weight": weights(d, f)}
            for attention in attentions:
                tensors[f"{b}{attention}_norm.weight"] = ones
                tensors |= {f"{b}{attention}_{part}.weight": weights(d, d) for part in ("q", "k", "v", "o")}
            tensors[b + "attn_rel_b.weight"] = weights(32, shape.n_head)
    return tensors


def _gemma4(shape: Shape, weights: Weights) -> dict[str, np.ndarray]:
    d, kv, head = shape.n_embd, shape.n_embd * shape.n_head_kv // shape.n_head, shape.n_embd // shape.n_head
    ones = np.ones(d, np.float32)
    width = PER_LAYER * shape.n_layer
    tensors = {"token_embd.weight": weights(len(TOKENS), d), "output_norm.weight": ones}
    tensors |= {
        "per_layer_token_embd.weight": weights(len(TOKENS), width),
        "per_layer_model_proj.weight": weights(width, d),
    }
    tensors["per_layer_proj_norm.weight"] = np.ones(PER_LAYER, np.float32)
    tensors["rope_freqs.weight"] = np.ones(head // 2, np.float32)
    for layer in range(shape.n_layer):
        b = f"blk.{layer}."
        norms = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm", "post_norm")
        tensors |= {f"{b}{norm}.weight": ones for norm in norms}
        tensors |= {f"{b}attn_{part}_norm.weight": np.ones(head, np.float32) for part in "qk"}
        tensors |= {b + "attn_q.weight": weights(d, d), b + "attn_output.weight": weights(d, d)}
        tensors |= {b + "attn_k.weight": weights(kv, d), b + "attn_v.weight": weights(kv, d)}
        tensors |= {b + f"ffn_{part}.weight": weights(shape.n_ff, d) for part in ("gate", "up")}
        tensors[b + "ffn_down.weight"] = weights(d, shape.n_ff)
        tensors |= {b + "inp_gate.weight": weights(PER_LAYER, d), b + "proj.weight": weights(d, PER_LAYER)}
    return tensors


def _glm4moe(shape: Shape, weights: Weights) -> dict[str, np.ndarray]:
    d, kv, n, f = shape.n_embd, shape.n_embd * shape.n_head_kv // shape.n_head, shape.n_expert, shape.n_ff_exp
    ones = np.ones(d, np.float32)
    tensors = {"token_embd.weight": weights(len(TOKENS), d), "output.weight": weights(len(TOKENS), d)}
    tensors["output_norm.weight"] = ones
    for layer in range(shape.n_layer):
        b = f"blk.{layer}."
        tensors |= {b + "attn_norm.weight": ones, b + "post_attention_norm.weight": ones}
        tensors |= {b + "attn_q.weight": weights(d, d), b + "attn_output.weight": weights(d, d)}
        tensors |= {b + "attn_k.weight": weights(kv, d), b + "attn_v.weight": weights(kv, d)}
        tensors |= {b + "ffn_gate_inp.weight": weights(n, d), b + "exp_probs_b.bias": weights(n)}
        tensors |= {b + f"ffn_{part}_exps.weight": weights(n, f, d) for part in ("gate", "up")}
        tensors |= {b + f"ffn_{part}_shexp.weight": weights(f, d) for part in ("gate", "up")}
        tensors |= {b + "ffn_down_exps.weight": weights(n, d, f), b + "ffn_down_shexp.weight": weights(d, f)}
        if layer >= shape.n_layer - shape.n_mtp:
            tensors[b + "nextn.eh_proj.weight"] = weights(d, 2 * d)
            tensors |= {f"{b}nextn.{norm}.weight": ones for norm in ("enorm", "hnorm", "shared_head_norm")}
    return tensors


#: Architectures that are not built like llama.
OTHERS: dict[str, Callable[[Shape, Weights], dict[str, np.ndarray]]] = {
    "bert": _bert,
    "nomic-bert": _bert,
    "t5": _t5,
    "gemma4": _gemma4,
    "glm4moe": _glm4moe,
}


def _write_file(path: Path, arch: str, metadata: dict[str, object], tensors: dict[str, np.ndarray]) -> None:
    writer = gguf.GGUFWriter(path, arch)
    describe(writer, metadata)
    finish(writer, tensors)


def describe(writer: gguf.GGUFWriter, metadata: Mapping[str, object]) -> None:
    """Give the writer metadata, each value as its type says; whole numbers are uint32."""
    for key, value in metadata.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, np.uint16):
            writer.add_uint16(key, int(value))
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif key == "split.tensors.count":
            writer.add_int32(key, int(value))  # type: ignore[call-overload]
        else:
            writer.add_uint32(key, int(value))  # type: ignore[call-overload]


def finish(writer: gguf.GGUFWriter, tensors: Mapping[str, np.ndarray]) -> None:
    """Write the file whose metadata the writer has."""
    for name, data in tensors.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def realigned(path: Path, alignment: int) -> Path:
    """Write a llama model with its tensors at another alignment, beside the first."""
    reader = gguf.GGUFReader(path)
    copy = path.with_name(f"{path.stem}-{alignment}.gguf")
    writer = gguf.GGUFWriter(copy, "llama")
    writer.add_custom_alignment(alignment)
    for field in list(reader.fields.values())[3:]:
        if field.name != "general.architecture":
            kind = field.types[0]
            item = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, item)
    finish(writer, {tensor.name: tensor.data for tensor in reader.tensors})
    return copy
