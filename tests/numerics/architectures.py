"""Tiny models of each architecture, with seeded weights, and how llama.cpp's converter would write them as GGUF.

Needs torch and transformers; the tests do not import it. The mapping is written out here because the converter is not
among the sources that are vendored: names, permutations and metadata are those of ``conversion/`` in llama.cpp.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from torch import Tensor, nn

#: Bytes and a few more, so that any text can be tokenised.
VOCABULARY = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "e", "t", "a", "o"]
N_VOCAB = len(VOCABULARY)
#: The context that phimoe was "pretrained" with. llama.cpp pads n_ctx to 256: a context of 256 takes the short factors.
PHIMOE_ORIGINAL = 256

_SHARED = {
    "vocab_size": N_VOCAB,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}


def configs() -> dict[str, transformers.PretrainedConfig]:
    """What the models are like, by name of their files: 2 to 4 layers, 4 to 8 experts.

    Each has what is particular to its architecture: biases, shared experts, norms of queries and keys, heads wider
    than their share of the embedding, sinks, sliding windows, and each way of scaling rotary embeddings.
    """
    # As in gpt-oss; with a head of 32 its blend's range, 4.04 to 8.7, is rounded about as theirs, 8.09 to 17.4.
    yarn = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    # 1.24... is what Phi-3.5-MoE has for both.
    longrope = {"rope_type": "longrope", "short_mscale": 1.243163121016122, "long_mscale": 1.243163121016122}
    factors = {"short_factor": [1.0, 1.1, 1.3, 1.6], "long_factor": [1.2, 2.5, 7.0, 20.0]}
    return {
        "llama": transformers.LlamaConfig(
            **_SHARED | {"tie_word_embeddings": True},
            num_hidden_layers=4,
            intermediate_size=64,
            rope_theta=500000.0,
            rope_scaling={**llama3, "original_max_position_embeddings": 32},
        ),
        "mixtral": transformers.MixtralConfig(
            **_SHARED,
            num_hidden_layers=2,
            intermediate_size=32,
            num_local_experts=8,
            num_experts_per_tok=2,
            sliding_window=None,
        ),
        "qwen2moe": transformers.Qwen2MoeConfig(
            **_SHARED,
            num_hidden_layers=2,
            intermediate_size=64,
            num_experts=6,
            num_experts_per_tok=3,
            moe_intermediate_size=24,
            shared_expert_intermediate_size=40,
            norm_topk_prob=False,
        ),
        "qwen3moe": transformers.Qwen3MoeConfig(
            **_SHARED,
            num_hidden_layers=3,
            head_dim=16,
            intermediate_size=64,
            num_experts=8,
            num_experts_per_tok=4,
            moe_intermediate_size=16,
            norm_topk_prob=True,
        ),
        "olmoe": transformers.OlmoeConfig(
            **_SHARED | {"num_key_value_heads": 4},
            num_hidden_layers=2,
            intermediate_size=24,
            num_experts=8,
            num_experts_per_tok=3,
            norm_topk_prob=False,
        ),
        "gpt-oss": transformers.GptOssConfig(
            **_SHARED,
            num_hidden_layers=3,
            head_dim=32,
            intermediate_size=24,
            num_local_experts=4,
            num_experts_per_tok=2,
            sliding_window=16,
            rope_theta=150000.0,
            rope_scaling={**yarn, "original_max_position_embeddings": 4096},
        ),
        "phimoe": transformers.PhimoeConfig(
            **_SHARED | {"max_position_embeddings": 8 * PHIMOE_ORIGINAL},
            num_hidden_layers=2,
            intermediate_size=32,
            num_local_experts=6,
            num_experts_per_tok=2,
            attention_bias=True,
            lm_head_bias=True,
            rope_scaling={**longrope, **factors, "original_max_position_embeddings": PHIMOE_ORIGINAL},
        ),
    }


def model(config: transformers.PretrainedConfig, seed: int) -> nn.Module:
    """The model in float32, all of its weights from the seed.

    Norms are not 1 and biases are not 0, so that a tensor under a wrong name is noticed.
    """
    # Sinks and the sliding window need "eager".
    made = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    made = made.float().eval()
    random = np.random.RandomState(seed)  # whose numbers, unlike a Generator's, never change
    for name, parameter in sorted(made.named_parameters()):
        values = random.standard_normal(tuple(parameter.shape))
        part = name.removesuffix(".weight").rpartition(".")[2]
        if name.endswith(("norm.weight", "layernorm.weight")):
            values = 1 + 0.2 * values
        elif name.endswith("bias") or part == "sinks":
            values *= 0.3
        elif part != "embed_tokens":
            # gpt-oss stores its experts the other way round.
            fan_in = parameter.shape[-2] if parameter.ndim == 3 else parameter.shape[-1]
            # Routers twice as wide: experts whose weights differ.
            values *= (2 if part in {"gate", "router"} else 1) / math.sqrt(fan_in)
        parameter.data = torch.from_numpy(values.astype(np.float32))
    made.tie_weights()
    return made


def tensors(made: nn.Module) -> Iterator[tuple[str, np.ndarray]]:
    """The model's weights under llama.cpp's names, in its layout."""
    config = made.config
    arch = config.model_type
    experts: dict[str, list[Tensor]] = {}
    for name, weight in made.named_parameters():
        weight = weight.detach()
        if name in _WHOLE:
            yield _WHOLE[name], weight.numpy()
            continue
        found = re.fullmatch(r"model\.layers\.(\d+)\.(.+?)(?:\.(weight|bias))?", name)
        assert found is not None, name
        layer, part, kind = found[1], found[2], found[3] or "weight"
        expert = re.fullmatch(r"(?:mlp|block_sparse_moe)\.experts\.(\d+)\.(\w+)", part)
        if expert is not None:  # in order of their numbers
            experts.setdefault(f"blk.{layer}.ffn_{_EXPERT[expert[2]]}_exps.{kind}", []).append(weight)
        elif part.startswith("mlp.experts."):
            for short, stacked in _gpt_oss_experts(part.removeprefix("mlp.experts."), weight):
                yield f"blk.{layer}.{short}", stacked.contiguous().numpy()
        else:
            if arch in {"llama", "mixtral"} and part in {"self_attn.q_proj", "self_attn.k_proj"}:
                n_head = config.num_attention_heads if "q_proj" in part else config.num_key_value_heads
                weight = _interleave(weight, n_head)
            short = _LAYER[part]
            if arch == "gpt_oss" and short == "ffn_norm":
                short = "post_attention_norm"
            yield f"blk.{layer}.{short}.{kind}", weight.numpy()
    for name, each in experts.items():
        yield name, torch.stack(each).numpy()
    scaling = getattr(config, "rope_scaling", None) or {}
    if scaling.get("rope_type") == "longrope":
        yield "rope_factors_long.weight", np.array(scaling["long_factor"], np.float32)
        yield "rope_factors_short.weight", np.array(scaling["short_factor"], np.float32)
    elif scaling.get("rope_type") == "llama3":
        yield "rope_freqs.weight", _llama3_factors(config)


_WHOLE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "model.norm.bias": "output_norm.bias",
    "lm_head.weight": "output.weight",
    "lm_head.bias": "output.bias",
}
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.sinks": "attn_sinks",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.router": "ffn_gate_inp",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
}
_EXPERT = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down", "w1": "gate", "w3": "up", "w2": "down"}


def _interleave(weight: Tensor, n_head: int) -> Tensor:
    """Rows of each head in the order that llama.cpp's ``llama`` graph rotates: pairs beside each other."""
    halves = weight.reshape(n_head, 2, weight.shape[0] // n_head // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape).contiguous()


def _gpt_oss_experts(part: str, weight: Tensor) -> Iterator[tuple[str, Tensor]]:
    """All experts are one parameter there; gate and up alternate in one matrix."""
    bias = part.endswith("_bias")
    weight = weight if bias else weight.transpose(-1, -2)  # (n_expert, out) or (n_expert, out, in)
    kind = "bias" if bias else "weight"
    if part.startswith("down_proj"):
        yield f"ffn_down_exps.{kind}", weight
    else:
        yield f"ffn_gate_exps.{kind}", weight[:, ::2]
        yield f"ffn_up_exps.{kind}", weight[:, 1::2]


def _llama3_factors(config: transformers.PretrainedConfig) -> np.ndarray:
    scaling = config.rope_scaling
    low, high, factor = (scaling[key] for key in ("low_freq_factor", "high_freq_factor", "factor"))
    size = config.head_dim
    wavelengths = 2 * math.pi * config.rope_theta ** (np.arange(0, size, 2) / size)
    # From 1 (turns often within the original context) to ``factor`` (turns less than once).
    smooth = (scaling["original_max_position_embeddings"] / wavelengths - low) / (high - low)
    return (1 / ((1 - smooth.clip(0, 1)) / factor + smooth.clip(0, 1))).astype(np.float32)


def write(path: Path, made: nn.Module) -> None:
    """Write the model as GGUF, everything F32."""
    config = made.config
    arch = {"gpt_oss": "gpt-oss", "mixtral": "llama"}.get(config.model_type, config.model_type.replace("_", ""))
    writer = gguf.GGUFWriter(path, arch)
    _metadata(writer, config)
    _vocabulary(writer)
    for name, data in tensors(made):
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _metadata(writer: gguf.GGUFWriter, config: transformers.PretrainedConfig) -> None:
    arch = config.model_type
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    if (head := getattr(config, "head_dim", None)) is not None:
        writer.add_key_length(head)
        writer.add_value_length(head)
    if arch in {"llama", "mixtral", "phimoe"}:
        writer.add_rope_dimension_count(head or config.hidden_size // config.num_attention_heads)
    if arch in {"llama", "mixtral"}:
        writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    if arch != "llama":
        writer.add_expert_count(getattr(config, "num_local_experts", None) or config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    if arch in {"qwen2_moe", "qwen3_moe"}:
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if arch == "qwen2_moe":
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    scaling = getattr(config, "rope_scaling", None) or {}
    if arch == "gpt_oss":
        writer.add_expert_feed_forward_length(config.intermediate_size)
        writer.add_sliding_window(config.sliding_window)
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(scaling["factor"])
        writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(scaling["beta_fast"])
        writer.add_rope_scaling_yarn_beta_slow(scaling["beta_slow"])
    if arch == "phimoe":
        writer.add_sliding_window(0)
        writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
        writer.add_rope_scaling_attn_factors(phimoe_magnitude(config))


def phimoe_magnitude(config: transformers.PretrainedConfig) -> float:
    """The attention's magnitude scale that the converter writes for phimoe, whatever the config's mscales are."""
    original = config.rope_scaling["original_max_position_embeddings"]
    return math.sqrt(1 + math.log(config.max_position_embeddings / original) / math.log(original))


def _vocabulary(writer: gguf.GGUFWriter) -> None:
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    kinds += [gguf.TokenType.BYTE] * 256
    kinds += [gguf.TokenType.NORMAL] * (N_VOCAB - len(kinds))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(VOCABULARY)
    writer.add_token_scores([-float(i) for i in range(N_VOCAB)])
    writer.add_token_types([int(kind) for kind in kinds])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
