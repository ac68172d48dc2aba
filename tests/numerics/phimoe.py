"""Phimoe as llama.cpp computes it: transformers' model with three parts exchanged.

llama.cpp builds the graph of phi3 with experts (``src/models/phi3.cpp``) and differs from the model in three places:
each is a part here that can be exchanged alone, so that its share can be measured.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from unittest.mock import patch

import torch
from architectures import phimoe_magnitude
from torch import Tensor, nn
from transformers.models.phimoe import modeling_phimoe

#: What llama.cpp does otherwise.
PARTS = {
    "norm": "RMS norm where the model has LayerNorm",
    "router": "the two router weights divided by their sum, where sparsemixer gives each about 1",
    "magnitude": "the rotary embedding's scale from a formula, where the config has short_mscale and long_mscale",
}


class RmsNorm(nn.Module):
    """A LayerNorm's weights in a norm that does not subtract the mean (``LLM_NORM_RMS``)."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.norm.eps)
        return x * scale * self.norm.weight + self.norm.bias


def top_two(scores: Tensor, jitter_eps: float, training: bool) -> tuple[Tensor, Tensor]:
    """The two likeliest experts and their probabilities, divided by their sum (``build_moe_ffn``, ``norm_w``)."""
    weights, chosen = scores.softmax(-1).topk(2)
    return weights / weights.sum(-1, keepdim=True), chosen


def logits(model: nn.Module, tokens: Tensor, parts: Collection[str] = tuple(PARTS), long: bool = False) -> Tensor:
    """Logits, shape ``(n_tokens, n_vocab)``, with these parts done in llama.cpp's way.

    ``long`` takes the long rotary factors whatever the length, as llama.cpp does when the context's ``n_ctx`` is more
    than the model's original context.
    """
    model = copy.deepcopy(model)
    if "norm" in parts:
        for layer in model.model.layers:
            layer.input_layernorm = RmsNorm(layer.input_layernorm)
            layer.post_attention_layernorm = RmsNorm(layer.post_attention_layernorm)
        model.model.norm = RmsNorm(model.model.norm)
    if "magnitude" in parts:
        rotary = model.model.rotary_emb
        rotary.short_mscale = rotary.long_mscale = phimoe_magnitude(model.config)
    if long:
        model.config.rope_scaling["short_factor"] = model.config.rope_scaling["long_factor"]
    mixer = top_two if "router" in parts else modeling_phimoe.sparsemixer
    with patch.object(modeling_phimoe, "sparsemixer", mixer), torch.no_grad():
        return model(tokens[None]).logits[0]
