"""Assumptions of single architectures: numbers that they divide by, tensors that they call optional and use.

Found by completing a tiny model of each architecture from libllama's own complaints, and then changing each number and
leaving out each tensor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

__all__ = ["WITHOUT_ROPE", "architecture_problems"]

_MAMBA2 = ("mamba2", "falcon-h1", "nemotron_h", "nemotron_h_moe", "granitehybrid")
_LINEAR_ATTENTION = ("qwen3next", "qwen35", "qwen35moe", "qwen4exp")
_RWKV = ("rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7")

#: No positions are rotated here, or in some models only: others would rotate 0 numbers for ever.
WITHOUT_ROPE = (
    *("gpt2", "gptj", "mpt", "refact", "bloom", "jais", "jina-bert-v2", "t5", "t5encoder", "wavtokenizer-dec"),
    *("mamba", "mamba2", "jamba", "granitehybrid", "nemotron_h", "nemotron_h_moe", "kimi-linear", "kimi-k3"),
    *("glm5-next", *_RWKV),
)
#: Keys of which 0 is no value, most being divisors, and the architectures concerned. Elsewhere 0 means "none".
_NONZERO_KEYS = {
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
_REQUIRED_KEYS = {"attention.head_count": ("phimoe", "olmo2"), "attention.sliding_window": ("afmoe",)}
#: Architectures whose positions have several axes: sections of a head, one an axis.
_SEVERAL_AXES = ("qwen2vl", "paddleocr", "qwen3vl", "qwen3vlmoe", "qwen35", "qwen35moe", "qwen4exp", "qwen3tts")
#: In a layer that has the first tensor, one of these groups of tensors has to be whole.
_REQUIRED_TENSORS: tuple[tuple[tuple[str, ...], str, tuple[tuple[str, ...], ...]], ...] = (
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
    (("qwen35", "qwen35moe"), "blk.{}.ssm_out.weight", (("blk.{}.attn_qkv.weight", "blk.{}.attn_gate.weight"),)),
    (
        ("qwen3next",),
        "blk.{}.ssm_out.weight",
        (("blk.{}.attn_qkv.weight", "blk.{}.attn_gate.weight"), ("blk.{}.ssm_in.weight",)),
    ),
    (("t5", "t5encoder"), "enc.output_norm.weight", (("enc.blk.0.attn_rel_b.weight",),)),
    (("t5",), "dec.output_norm.weight", (("dec.blk.0.attn_rel_b.weight",),)),
)


def architecture_problems(
    architecture: str,
    integers: Callable[[str], list[int]],
    head: int,
    tensors: Iterable[str],
) -> Iterator[tuple[str, str]]:
    """Find values and missing tensors that end the process when this architecture is loaded.

    Parameters
    ----------
    architecture
        Its name in files.
    integers
        Gives the numbers under a key, which is without the architecture's name.
    head
        The width of a head.
    tensors
        The names of all tensors.

    Yields
    ------
    tuple[str, str]
        A key without the architecture's name, or the name of a tensor, and what is wrong with it.
    """
    for key, concerned in _NONZERO_KEYS.items():
        if architecture in concerned and 0 in integers(key):
            yield key, "is 0; it takes 1 or more"
    for key, concerned in _REQUIRED_KEYS.items():
        if architecture in concerned and not integers(key):
            yield key, "is missing; it takes 1 or more"
    sections = integers("rope.dimension_sections")
    if architecture in _SEVERAL_AXES and not (any(sections[:3]) and sum(sections) <= max(head, 1)):
        yield (
            "rope.dimension_sections",
            f"is {sections or 'missing'}; the first three are not all 0, together they are at most {head}",
        )
    indexer = integers("attention.indexer.key_length")
    if architecture == "deepseek4" and indexer == integers("attention.key_length"):
        # Its caches without layers then divide by the width of their keys.
        yield "attention.indexer.key_length", f"is {indexer[0] if indexer else 'missing'}, as attention.key_length is"
    names = set(tensors)
    for concerned, mark, groups in _REQUIRED_TENSORS:
        if architecture not in concerned:
            continue
        pattern = re.compile(re.escape(mark).replace(r"\{\}", r"(\d+)"))
        for name in names:
            found = pattern.fullmatch(name)
            if found is None:
                continue
            layer = found[1] if found.groups() else ""
            if not any(all(each.format(layer) in names for each in group) for group in groups):
                wanted = " or ".join(", ".join(each.format(layer) for each in group) for group in groups)
                yield name, f"does without {wanted}"
