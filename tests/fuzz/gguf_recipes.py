"""What libllama does not ask for: numbers that go together in an architecture, and tensors that may be there.

A model is completed from complaints (``gguf_architectures.py``). No complaint tells that some layers should have
recurrent state, what the parts of a compressed attention add up to, or that an optional router brings experts with it.
"""

from __future__ import annotations

import tiny

from moebind.files.architecture_facts import DRAFT_FROM_STATES

__all__ = ["NOT_MADE", "RECIPES", "SEEDS", "WHOLE", "WITHOUT_FLASH_ATTENTION"]

#: Keys that do not begin with the architecture's name.
WHOLE = ("tokenizer.", "xielu.")

#: Every other layer has recurrent state in place of attention.
_EVERY_OTHER: dict[str, object] = {"attention.head_count_kv": [0, 4]}
#: A layer with recurrent state, one with attention, one with a feed-forward network.
_ONE_OF_EACH: dict[str, object] = {
    "block_count": 3,
    "attention.head_count_kv": [0, 4, 0],
    "feed_forward_length": [0, 0, 96],
}
#: The gated delta net of Qwen's models: its state is as wide as its heads.
_DELTA_NET: dict[str, object] = {"ssm.inner_size": 64, "ssm.group_count": 2}
#: Compressed attention (MLA): a key in the cache is a compressed one and the rotated part.
_COMPRESSED: dict[str, object] = {
    "attention.head_count_kv": 1,
    "attention.kv_lora_rank": 32,
    "attention.q_lora_rank": 32,
    "attention.key_length": 48,
    "attention.value_length": 32,
    "attention.key_length_mla": 32,
    "attention.value_length_mla": 16,
    "attention.indexer.key_length": 64,
    "attention.indexer.top_k": 8,
}
#: Kimi's delta attention in every other layer, compressed attention in the others.
_KDA: dict[str, object] = {**_COMPRESSED, "attention.head_count_kv": [0, 1], "kda.head_dim": 16}
_DENSE_FIRST: dict[str, object] = {"leading_dense_block_count": 1}
_HYPER: dict[str, object] = {
    "hyper_connection.count": 4,
    "hyper_connection.sinkhorn_iterations": 2,
    "hyper_connection.epsilon": 1e-6,
    "hyper_connection.low_rank": 8,
}
_ENCODER: dict[str, object] = {"tokenizer.ggml.token_type_count": 1}
_BUCKETS: dict[str, object] = {"attention.relative_buckets_count": 32}
_WINDOWS: dict[str, object] = {
    "attention.key_length_swa": 16,
    "attention.value_length_swa": 16,
    "rope.dimension_count_swa": 16,
}

_OWN_EMBEDDINGS = {"token_embd.weight": [64, len(tiny.TOKENS)], "output.weight": [1]}
_ROUTER = {"blk.{}.ffn_gate_inp.weight": [1]}
_EXPERTS = {**_ROUTER, **{f"blk.{{}}.ffn_{name}_exps.weight": [1] for name in ("gate", "up", "down")}}
_INDEXER = ("k_norm.weight", "k_norm.bias", "proj.weight", "attn_k.weight", "attn_q_b.weight")

#: Architectures of which no tiny model is made, and why.
NOT_MADE = {
    "(unknown)": "it is the name of what llama.cpp does not know",
    "clip": "it is no model by itself: libmtmd loads it",
    "gptj": "llama.cpp has a name for it, and nothing that loads it",
    "chameleon": "its graph writes to 8192 tokens of images, which a tiny vocabulary has not",
    "wavtokenizer-dec": "its convolutions want shapes that no complaint tells; it makes sound, and has no experts",
    "gemma4-assistant": "its contexts need one of the Gemma 4 that it drafts for; it has no experts",
}

#: Of which llama.cpp's graph does not fit its own cache with flash attention.
WITHOUT_FLASH_ATTENTION = ("plm",)

#: By architecture, what differs from ``NUMBERS``; None: the key is left out. Keys of ``WHOLE`` are whole.
RECIPES: dict[str, dict[str, object]] = {
    **dict.fromkeys(("jamba", "granitehybrid", "lfm2", "lfm2moe"), _EVERY_OTHER),
    **dict.fromkeys(("nemotron_h", "nemotron_h_moe"), _ONE_OF_EACH),
    **dict.fromkeys(("qwen3next", "qwen35", "qwen35moe"), _DELTA_NET),
    "clef": {**_DELTA_NET, "decision.routing_block_count": 1, "decision.block_count": 1, "decision.head_count": 2},
    "plamo2": {**_EVERY_OTHER, "ssm.group_count": 0},
    "qwen4exp": {**_DELTA_NET, **_HYPER, "attention.indexer.top_k": 8},
    **dict.fromkeys(("deepseek2", "deepseek32", "glm-dsa", "mistral4"), _COMPRESSED),
    "hy_v4": {**_COMPRESSED, **_HYPER, "attention.indexer.types": [1, 0]},
    "dots3note": {
        **_COMPRESSED,
        "attention.indexer.types": [0, 1],
        "leading_dense_block_count": 1,
        "attention.kv_lora_rank_swa": 32,
        "attention.key_length_mla_swa": 32,
        "attention.value_length_mla_swa": 16,
    },
    **dict.fromkeys(("kimi-linear", "kimi-k3"), _KDA),
    "bailingmoe3": {**_KDA, **_DENSE_FIRST, "kda.gate_lower_bound": -5.0},
    "glm5-next": {
        **_KDA,
        **_HYPER,
        "kda.gate_lower_bound": -5.0,
        "attention.key_length": 32,
        "attention.indexer.kpool": 2,
        "rope.dimension_count": 0,
    },
    "plm": {"attention.kv_lora_rank": 32, "attention.key_length": 32},
    "llama4": {"block_count": 4},
    "apertus": {f"xielu.{name}": 1.0 for name in ("alpha_n", "alpha_p", "beta", "eps")},
    "hrm_text": {"hrm.layers_per_stack": 1, "hrm.h_cycles": 1, "hrm.l_cycles": 1},
    **dict.fromkeys(("laguna", "cohere2moe"), _DENSE_FIRST),
    "nomic-bert-moe": {**_ENCODER, "moe_every_n_layers": 2},
    "k2-horizon": {"attention.value_expert_count": 6, "attention.value_expert_used_count": 3},
    "rwkv7": {"attention.gate_lora_rank": 8, "wkv.head_size": 64},
    # As wide outside as its target is inside.
    "gemma4-assistant": {**_WINDOWS, "embedding_length": 32, "embedding_length_out": 64, "nextn_predict_layers": 2},
    "eagle3": {"block_count": 1, "target_layers": [0, 1, 1], "target_hidden_size": 64},
    "dflash": {
        **_HYPER,
        "target_layers": [0, 1],
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": 32,
        "attention.output_group_count": 1,
        "attention.output_lora_rank": 16,
        "attention.compress_ratios": [0, 0],
        "expert_weights_norm": True,
        "expert_gating_func": 4,
        "rope.dimension_sections": None,
    },
    "graniteswitch": {
        "adapters.count": 2,
        "adapters.token_ids_activate": [40, 41],
        "adapters.token_ids_substitute": [42, 43],
    },
    "deepseek4": {
        **_HYPER,
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": 32,
        "attention.indexer.key_length": 64,
        "attention.output_group_count": 1,
        "attention.output_lora_rank": 16,
        "attention.compress_rope_freq_base": 10000.0,
        "attention.compress_ratios": [4, 4],
        "attention.indexer.top_k": 8,
        "hash_layer_count": 0,
        "expert_gating_func": 4,
        "expert_weights_norm": True,
    },
    **dict.fromkeys(("bert", "nomic-bert", "jina-bert-v3", "jina-bert-v2"), _ENCODER),
    **dict.fromkeys(("t5", "t5encoder"), _BUCKETS),
    "gemma4": _WINDOWS,
    "rwkv6qwen2": {"token_shift_count": 1},
    "arwkv7": {"token_shift_count": 1, "wkv.head_size": 64},
}

#: By architecture, optional tensors of each layer, with their shapes; or [1], if libllama tells.
SEEDS: dict[str, dict[str, list[int]]] = {
    **dict.fromkeys(("gemma4", "jamba"), _ROUTER),
    **dict.fromkeys(("hy_v3", "mimo2", "step35"), _EXPERTS),
    "glm-dsa": {f"blk.{{}}.indexer.{name}": [1] for name in _INDEXER},
    "jina-bert-v2": {"blk.{}.ffn_up.weight": [64, 96]},
    "laguna": {"blk.{}.attn_gate.weight": [64, 4]},
    # Embeddings of their own: they need no context of the model that they draft for.
    **dict.fromkeys(DRAFT_FROM_STATES, _OWN_EMBEDDINGS),
    "clef": {"decision.proj_memory.weight": [64, 32], "dec.blk.0.ffn_up.weight": [32, 48]},
    "rwkv6": {"blk.{}.time_mix_lerp_fused.weight": [1]},
}
