"""What is particular to single architectures of llama.cpp, as data: numbers that they divide by, tensors that they use.

Found in llama.cpp's source, and by completing a tiny model of each architecture from libllama's own complaints and then
changing each number and leaving out each tensor. ``tests/files/test_architecture_facts.py`` compares it with the
source.
"""

from __future__ import annotations

__all__ = [
    "DRAFT_FROM_STATES",
    "ENCODER_DECODER",
    "EXPERTS_MAX",
    "LAYERS_MAX",
    "MULTIPLES",
    "NEVER_AHEAD",
    "NONZERO_KEYS",
    "ONE_EXPERT_IS_NONE",
    "REQUIRED_KEYS",
    "REQUIRED_TENSORS",
    "SEVERAL_AXES",
    "USE_OTHER_CONTEXT",
    "WITHOUT_ROPE",
]

#: What llama.cpp keeps a place for, as LLAMA_MAX_LAYERS and LLAMA_MAX_EXPERTS.
LAYERS_MAX, EXPERTS_MAX = 512, 1024
#: A decoder that reads what an encoder made of another text.
ENCODER_DECODER = ("t5",)
#: Draft models whose encoder takes hidden states of the model that they draft for.
DRAFT_FROM_STATES = ("eagle3", "dflash")
#: Whose embeddings may have any number of rows, of which llama.cpp looks none up beforehand.
ANY_EMBEDDINGS = ("eagle3",)
#: Draft models that use a context of the model that they draft for.
USE_OTHER_CONTEXT = ("gemma4-assistant", "eagle3", "dflash")
#: Whose layers that predict further ahead are in files, and never loaded.
NEVER_AHEAD = ("bailingmoe2", "dots3note", "exaone-moe", "exaone4", "glm4")
#: Converted with an expert_count of 1 where they have no experts.
ONE_EXPERT_IS_NONE = ("hunyuan_vl", "hunyuan-dense")

_MAMBA2 = ("mamba2", "falcon-h1", "nemotron_h", "nemotron_h_moe", "granitehybrid")
_QWEN35 = ("qwen35", "qwen35moe", "clef")
_LINEAR_ATTENTION = ("qwen3next", *_QWEN35, "qwen4exp")
_RWKV = ("rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7")

#: No positions are rotated here, or in some models only: others would rotate 0 numbers for ever.
WITHOUT_ROPE = (
    *("gpt2", "gptj", "mpt", "refact", "bloom", "jais", "jina-bert-v2", "t5", "t5encoder", "wavtokenizer-dec"),
    *("mamba", "mamba2", "jamba", "granitehybrid", "nemotron_h", "nemotron_h_moe", "kimi-linear", "kimi-k3"),
    *("glm5-next", *_RWKV),
)
#: Keys of which 0 is no value, most being divisors, and the architectures concerned. Elsewhere 0 means "none".
NONZERO_KEYS = {
    "full_attention_interval": (*_LINEAR_ATTENTION, "minimax-01"),
    "attention.head_count": ("phimoe", "olmo2", "gemma2", "gemma3"),
    "attention.head_count_kv": ("modern-bert",),
    "attention.output_group_count": ("deepseek4",),
    "attention.sliding_window": ("afmoe",),  # it always asks for the cache that goes with one
    "experts_per_group": ("grovemoe",),
    "interleave_moe_layer_step": ("ernie4_5-moe",),
    "ssm.group_count": (*_MAMBA2, *_LINEAR_ATTENTION),
    "ssm.time_step_rank": (*_MAMBA2, *_LINEAR_ATTENTION, "plamo2"),
    "wkv.head_size": _RWKV,
}
#: Keys that must be there and the architectures concerned: libllama takes 0 for a key that is missing.
REQUIRED_KEYS = {"attention.head_count": ("phimoe", "olmo2"), "attention.sliding_window": ("afmoe",)}
#: Keys of which the number has to be a multiple of another one, and the architectures concerned: the CPU's kernel goes
#: in steps of so many, beyond the end if there is a remainder.
MULTIPLES = {"wkv.head_size": (64, ("rwkv7", "arwkv7"))}
#: Architectures whose positions have several axes: sections of a head, one an axis.
SEVERAL_AXES = ("qwen2vl", "paddleocr", "qwen3vl", "qwen3vlmoe", *_QWEN35, "qwen4exp", "qwen3tts")
#: In a layer that has the first tensor, one of these groups of tensors has to be whole.
REQUIRED_TENSORS: tuple[tuple[tuple[str, ...], str, tuple[tuple[str, ...], ...]], ...] = (
    (
        ("phi3", "pockettts"),
        "blk.{}.attn_output.weight",
        (
            ("blk.{}.attn_qkv.weight",),
            ("blk.{}.attn_q.weight", "blk.{}.attn_k.weight", "blk.{}.attn_v.weight"),
        ),
    ),
    (
        ("falcon-h1", "granitehybrid", "nemotron_h", "nemotron_h_moe"),
        "blk.{}.ssm_in.weight",
        (("blk.{}.ssm_conv1d.bias",),),
    ),
    (_QWEN35, "blk.{}.ssm_out.weight", (("blk.{}.attn_qkv.weight", "blk.{}.attn_gate.weight"),)),
    (
        ("qwen3next",),
        "blk.{}.ssm_out.weight",
        (("blk.{}.attn_qkv.weight", "blk.{}.attn_gate.weight"), ("blk.{}.ssm_in.weight",)),
    ),
    (("t5", "t5encoder"), "enc.output_norm.weight", (("enc.blk.0.attn_rel_b.weight",),)),
    (("t5",), "dec.output_norm.weight", (("dec.blk.0.attn_rel_b.weight",),)),
)
