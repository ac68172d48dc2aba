"""The tensors of large models, by their shapes (``shapes.py``): names and dimensions, the length of a row first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from shapes import Shape

__all__ = ["tensors_of"]

Tensor = tuple[str, tuple[int, ...]]

#: Whose projections have biases, and whose norm before the experts is called that after attention.
_BIASED = {"phimoe", "gpt-oss", "glm4moe"}
_NORM_AFTER_ATTENTION = {"gpt-oss", "glm4moe", "qwen35moe"}
#: Whose router adds a bias before it chooses.
_ROUTER_BIAS = {"deepseek2", "glm4moe", "minimax-m2", "nemotron_h_moe"}
#: With a shared expert as wide as the others, where no width is given.
_SHARED = {"deepseek2", "glm4moe", "llama4"}


def tensors_of(shape: Shape) -> Iterator[Tensor]:
    """All tensors of a model."""
    d, vocab = shape.n_embd, shape.n_vocab
    yield "token_embd.weight", (d, vocab)
    if shape.arch == "phimoe":
        yield from [("rope_factors_long.weight", (shape.head // 2,)), ("rope_factors_short.weight", (shape.head // 2,))]
    if shape.arch in {"llama4", "gemma4"}:
        yield "rope_freqs.weight", (shape.head // 2,)
    for layer in range(shape.n_layer):
        yield from _layer(shape, f"blk.{layer}.", layer)
    yield "output_norm.weight", (d,)
    if not shape.tied:
        yield "output.weight", (d, vocab)
    if shape.arch == "phimoe":
        yield from [("output_norm.bias", (d,)), ("output.bias", (vocab,))]


def _layer(shape: Shape, b: str, layer: int) -> Iterator[Tensor]:
    d = shape.n_embd
    yield b + "attn_norm.weight", (d,)
    if shape.arch == "phimoe":
        yield from [(b + "attn_norm.bias", (d,)), (b + "ffn_norm.bias", (d,))]
    if shape.arch == "nemotron_h_moe":  # a layer is attention, or Mamba, or experts
        if _of_layer(shape, "feed_forward_length", layer):
            yield from _feed_forward(shape, b, layer)
        elif _of_layer(shape, "attention.head_count_kv", layer):
            yield from _attention(shape, b, layer)
        else:
            yield from _mamba(shape, b)
        return
    if shape.arch == "qwen35moe" and (layer + 1) % _number(shape, "full_attention_interval"):
        yield from _delta_net(shape, b)
    elif shape.arch == "granitehybrid" and not _of_layer(shape, "attention.head_count_kv", layer):
        yield from _mamba(shape, b)
    elif shape.arch == "deepseek2":
        yield from _latent_attention(shape, b)
    else:
        yield from _attention(shape, b, layer)
    yield b + ("post_attention_norm.weight" if shape.arch in _NORM_AFTER_ATTENTION else "ffn_norm.weight"), (d,)
    yield from _feed_forward(shape, b, layer)


def _number(shape: Shape, key: str) -> int:
    return cast("int", shape.extra[key])


def _of_layer(shape: Shape, key: str, layer: int) -> int:
    return cast("list[int]", shape.extra[key])[layer]


def _attention(shape: Shape, b: str, layer: int) -> Iterator[Tensor]:
    d, head, n_head_kv = shape.n_embd, shape.head, shape.n_head_kv
    windowed = shape.arch == "gemma4" and _of_layer(shape, "attention.sliding_window_pattern", layer)
    if shape.arch == "gemma4":
        head = _number(shape, "attention.key_length_swa") if windowed else head
        n_head_kv = _of_layer(shape, "attention.head_count_kv", layer)
    q, kv = shape.n_head * head, n_head_kv * head
    rows = {"q": 2 * q if shape.arch == "qwen35moe" else q, "k": kv, "v": kv}  # the former with a gate for the output
    if shape.arch == "gemma4" and not windowed:
        del rows["v"]
    for name, count in rows.items():
        yield b + f"attn_{name}.weight", (d, count)
        if shape.arch in _BIASED:
            yield b + f"attn_{name}.bias", (count,)
    yield b + "attn_output.weight", (q, d)
    if shape.arch in _BIASED - {"glm4moe"}:
        yield b + "attn_output.bias", (d,)
    if shape.qk_norm or shape.arch in {"qwen3moe", "gemma4"}:
        yield from [(b + "attn_q_norm.weight", (head,)), (b + "attn_k_norm.weight", (head,))]
    if shape.arch == "minimax-m2":
        yield from [(b + "attn_q_norm.weight", (q,)), (b + "attn_k_norm.weight", (kv,))]
    if shape.arch == "gpt-oss":
        yield b + "attn_sinks.weight", (shape.n_head,)
    if shape.arch == "gemma4":
        yield from [(b + "post_attention_norm.weight", (d,)), (b + "layer_output_scale.weight", (1,))]


def _latent_attention(shape: Shape, b: str) -> Iterator[Tensor]:
    d, rank, key, value, lora = shape.n_embd, 512, 192, 128, 1536
    yield from [(b + "attn_q_a.weight", (d, lora)), (b + "attn_q_a_norm.weight", (lora,))]
    yield from [(b + "attn_q_b.weight", (lora, shape.n_head * key)), (b + "attn_kv_a_norm.weight", (rank,))]
    yield b + "attn_kv_a_mqa.weight", (d, rank + 64)
    yield b + "attn_k_b.weight", (key - 64, rank, shape.n_head)
    yield b + "attn_v_b.weight", (rank, value, shape.n_head)
    yield b + "attn_output.weight", (shape.n_head * value, d)


def _delta_net(shape: Shape, b: str) -> Iterator[Tensor]:
    d, inner, state = shape.n_embd, _number(shape, "ssm.inner_size"), _number(shape, "ssm.state_size")
    heads, mixed = _number(shape, "ssm.time_step_rank"), inner + 2 * _number(shape, "ssm.group_count") * state
    yield from [(b + "attn_qkv.weight", (d, mixed)), (b + "attn_gate.weight", (d, inner))]
    yield b + "ssm_conv1d.weight", (_number(shape, "ssm.conv_kernel"), mixed)
    yield from [(b + "ssm_dt.bias", (heads,)), (b + "ssm_a", (heads,)), (b + "ssm_norm.weight", (state,))]
    yield from [(b + "ssm_beta.weight", (d, heads)), (b + "ssm_alpha.weight", (d, heads))]
    yield b + "ssm_out.weight", (inner, d)


def _mamba(shape: Shape, b: str) -> Iterator[Tensor]:
    d, inner, groups = shape.n_embd, _number(shape, "ssm.inner_size"), _number(shape, "ssm.group_count")
    heads, mixed = _number(shape, "ssm.time_step_rank"), inner + 2 * groups * _number(shape, "ssm.state_size")
    kernel = _number(shape, "ssm.conv_kernel")
    yield b + "ssm_in.weight", (d, inner + mixed + heads)
    yield from [(b + "ssm_conv1d.weight", (kernel, mixed)), (b + "ssm_conv1d.bias", (mixed,))]
    yield from [(b + "ssm_dt.bias", (heads,)), (b + "ssm_a", (1, heads)), (b + "ssm_d", (1, heads))]
    yield from [(b + "ssm_norm.weight", (inner // groups, groups)), (b + "ssm_out.weight", (inner, d))]


def _feed_forward(shape: Shape, b: str, layer: int) -> Iterator[Tensor]:
    d, n, f = shape.n_embd, shape.n_expert, shape.n_ff_exp or shape.n_ff
    if layer < shape.n_dense_layers or shape.arch == "gemma4":  # which has both
        yield from [(b + "ffn_gate.weight", (d, shape.n_ff)), (b + "ffn_up.weight", (d, shape.n_ff))]
        yield b + "ffn_down.weight", (shape.n_ff, d)
    if layer < shape.n_dense_layers:
        return
    yield b + "ffn_gate_inp.weight", (d, n)
    if shape.arch == "gemma4":
        norms = ("post_ffw_norm", "pre_ffw_norm_2", "post_ffw_norm_1", "post_ffw_norm_2")
        yield from ((f"{b}{norm}.weight", (d,)) for norm in norms)
        yield from [(b + "ffn_gate_inp.scale", (d,)), (b + "ffn_down_exps.scale", (n,))]
        yield b + "ffn_gate_up_exps.weight", (d, 2 * f, n)
    elif shape.arch == "nemotron_h_moe":
        yield b + "ffn_up_exps.weight", (d, f, n)
    else:
        yield from [(b + "ffn_gate_exps.weight", (d, f, n)), (b + "ffn_up_exps.weight", (d, f, n))]
    yield b + "ffn_down_exps.weight", (f, d, n)
    if shape.arch == "gpt-oss":
        yield from [(b + "ffn_gate_inp.bias", (n,)), (b + "ffn_down_exps.bias", (d, n))]
        yield from [(b + "ffn_gate_exps.bias", (f, n)), (b + "ffn_up_exps.bias", (f, n))]
    if shape.arch in _ROUTER_BIAS:
        yield b + "exp_probs_b.bias", (n,)
    if "expert_shared_feed_forward_length" in shape.extra or shape.arch in _SHARED:
        f = _number(shape, "expert_shared_feed_forward_length") if shape.arch not in _SHARED else f
        parts = ("up",) if shape.arch == "nemotron_h_moe" else ("gate", "up")
        yield from ((f"{b}ffn_{part}_shexp.weight", (d, f)) for part in parts)
        yield b + "ffn_down_shexp.weight", (f, d)
    if shape.arch == "qwen35moe":
        yield b + "ffn_gate_inp_shexp.weight", (d,)
