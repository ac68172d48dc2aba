"""The shapes of large models have as many parameters as was published, and llama.cpp takes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import shapes

import moebind
from moebind import ContextParams, ModelParams

#: In 10^9: all parameters, and those that work on a token, as their makers tell.
PUBLISHED = {
    "phi-3.5-moe-q4_k_m": (41.9, 6.6),
    "phi-3.5-moe-q2_k": (41.9, 6.6),
    "phi-3.5-moe-q8_0": (41.9, 6.6),
    "mixtral-8x7b-q4_k_m": (46.7, 12.9),
    "qwen3-30b-a3b-q4_k_m": (30.5, 3.3),
    "qwen3-235b-a22b-q4_k_m": (235, 22),
    "gpt-oss-120b-mxfp4": (116.8, 5.1),
    "deepseek-v3-q4_k_m": (671, 37),
    "gpt-oss-20b-mxfp4": (20.9, 3.6),
    "qwen3.5-35b-a3b-q4_k_m": (35, 3),
    "glm-4.5-air-q4_k_m": (106, 12),
    "glm-4.6-q4_k_m": (355, 32),  # with the layer that predicts ahead
    "kimi-k2-q4_k_m": (1040, 32),
    "minimax-m2-q4_k_m": (230, 10),
    "llama-4-scout-q4_k_m": (109, 17),  # with what sees images
    "gemma-4-26b-a4b-q4_k_m": (25.2, 3.8),
    "granite-4-h-small-q4_k_m": (32, 9),
    "nemotron-3-nano-q4_k_m": (31.6, 3.6),
}


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_the_number_of_parameters(name: str) -> None:
    shape = shapes.SHAPES[name]
    total, active = shapes.parameters(shape)
    published, published_active = PUBLISHED[name]
    assert total / 1e9 == pytest.approx(published, rel=0.015)
    # Some count no embeddings among those that work on a token, some those of the input or of the output.
    embeddings = (1 if shape.tied else 2) * shape.n_vocab * shape.n_embd
    assert (active - embeddings) / 1e9 * 0.97 <= published_active <= active / 1e9 * 1.03


@pytest.mark.parametrize("name", ["nemotron-3-nano-q4_k_m", "gemma-4-26b-a4b-q4_k_m"])
def test_llama_cpp_takes_some(shape_path: Callable[..., Path], name: str) -> None:
    _plan(shape_path(name), shapes.SHAPES[name])


@pytest.mark.thorough
@pytest.mark.parametrize("name", shapes.SHAPES)
def test_llama_cpp_takes_them(shape_path: Callable[..., Path], name: str) -> None:
    _plan(shape_path(name), shapes.SHAPES[name])


def _plan(path: Path, shape: shapes.Shape) -> None:
    experts = moebind.experts(path)
    context = ContextParams(n_ctx=4096)
    params = [ModelParams(), ModelParams().with_cpu_moe_all()]
    whole, offloaded = (moebind.plan(path, each, context, devices=["8TiB"]) for each in params)
    assert whole.n_layer == shape.n_layer
    assert len(experts) == shape.n_layer
    assert (experts.n_expert, experts.n_expert_used) == (shape.n_expert, shape.n_expert_used)
    assert whole.expert_bytes == experts.nbytes > 0.8 * experts.total_nbytes
    assert offloaded.expert_bytes == 0
    assert sum(offloaded.weights_per_token.values()) == sum(whole.weights_per_token.values())


def test_no_small_one_of_several_kinds_of_layers() -> None:
    with pytest.raises(ValueError, match="granitehybrid has layers of several kinds"):
        shapes.small(shapes.SHAPES["granite-4-h-small-q4_k_m"])
