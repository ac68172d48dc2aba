"""How costs grow, for the plots of benchmarks/speed.py: each function gives a cost for each size.

Costs are those of moebind, not of computing: what is outside of llama_decode, but for plans and embeddings.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import shapes
import weights
from speed_moebind import CPU, inside_us, outside
from speed_settings import COUNTING, Settings, short_texts

import moebind
from moebind import ContextParams, Model, Sampler, TokenDataArray

#: Costs by size, as JSON has it.
Found = dict[str, float]


@cache
def _model(path: str) -> Model:
    return Model.load_from_file(path, CPU)


def _params(settings: Settings, n_ctx: int) -> ContextParams:
    return ContextParams(n_ctx=n_ctx, n_threads=settings.threads, n_threads_batch=settings.threads)


def context(settings: Settings) -> Found:
    """Microseconds between two tokens, by how many came before."""
    model, found = _model(settings.dense), {}
    sizes = [settings.prompt * each for each in (1, 2, 4, 8)]
    tokens = np.resize(model.str_to_token(COUNTING), sizes[-1])
    with model.new_context(_params(settings, sizes[-1] + settings.tokens + 1)) as made:
        for size in sizes:
            pieces = made.generate(tokens[:size], max_tokens=settings.tokens + 1)
            found[str(size)] = outside(pieces)
    return found


def sequences(settings: Settings) -> Found:
    """Microseconds of a token between two batches, by how many sequences there are."""
    model, found, inside = _model(settings.dense), {}, inside_us()
    for count in (1, 2, 4, 8, 16):
        params = _params(settings, 256 * count).with_n_seq_max(count)
        prompts = [model.str_to_token(COUNTING)[:16] for _ in range(count)]
        with model.new_context(params) as made:
            stamps, computed = [], []
            for at, _ in made.generate_many(prompts, max_tokens=settings.tokens + 1):
                if at == count - 1:
                    stamps.append(time.perf_counter())
                    computed.append(inside())
        costs = 1e6 * np.diff(stamps) - np.diff(computed)
        found[str(count)] = float(np.median(costs[1:])) / count
    return found


@cache
def _wide(folder: Path, n_vocab: int) -> str:
    shape = replace(shapes.small(shapes.SHAPES["qwen3-30b-a3b-q4_k_m"]), n_vocab=n_vocab, n_expert=8, n_expert_used=2)
    return str(weights.write(folder / f"vocabulary-{n_vocab}.gguf", shape))


def vocabulary(settings: Settings) -> Found:
    """Microseconds between two tokens, by how many there are to choose from."""
    found = {}
    for n_vocab in (10_000, 50_000, 100_000, 150_000):
        with _model(_wide(Path(settings.large).parent, n_vocab)).new_context(_params(settings, 256)) as made:
            tokens = np.arange(300, 316, dtype=np.int32)
            found[str(n_vocab)] = outside(made.generate(tokens, max_tokens=settings.tokens + 1))
    return found


def tensors(settings: Settings) -> Found:
    """Milliseconds of a plan, by how many tensors the model has."""
    folder, found = Path(settings.large).parent, {}
    for n_layer in (8, 16, 32, 64, 128):
        path = folder / f"layers-{n_layer}.gguf"
        if not path.exists():
            shapes.write(path, replace(shapes.SHAPES["phi-3.5-moe-q4_k_m"], n_layer=n_layer))
        count = len(moebind.Gguf.from_file(path).tensors)
        start = time.process_time()
        moebind.plan(path, moebind.ModelParams(), ContextParams(n_ctx=4096), devices=["1TiB"])
        found[str(count)] = 1e3 * (time.process_time() - start)
    return found


def schema(settings: Settings) -> Found:
    """Milliseconds of a token, by how many properties a JSON schema has."""
    model, found = _model(settings.model), {}
    for count in (1, 4, 16, 64):
        properties = {f"property {at}": {"type": "string"} for at in range(count)}
        wanted = {"type": "object", "properties": properties, "required": list(properties)}
        text = "{" + ", ".join(f'"property {at}": "some text"' for at in range(min(count, 4)))
        candidates = TokenDataArray.from_logits(np.zeros(model.n_vocab, np.float32))
        with Sampler.json_schema(model, wanted, strict=False) as sampler:
            found[str(count)] = statistics.median(_masks(sampler, candidates, model, text))
    return found


def _masks(sampler: Sampler, candidates: TokenDataArray, model: Model, text: str) -> Iterator[float]:
    for token in model.str_to_token(text, add_special=False).tolist():
        candidates.data["logit"] = 0.0
        start = time.process_time()
        sampler.apply(candidates)
        yield 1e3 * (time.process_time() - start)
        sampler.accept(token)


def texts(settings: Settings) -> Found:
    """Milliseconds of a text that is embedded, by how many there are."""
    model, found = _model(settings.dense), {}
    params = ContextParams(n_threads=settings.threads, n_threads_batch=settings.threads)
    for count in sorted({1, 4, 16, 64, settings.texts}):
        start = settings.clock()
        model.embed(short_texts(count), context_params=params)
        found[str(count)] = 1e3 * (settings.clock() - start) / count
    return found


WORK = {each.__name__: each for each in (context, sequences, vocabulary, tensors, schema, texts)}
#: Of each plot: what grows, and what the cost is.
AXES = {
    "context": ("tokens before", "µs between two tokens"),
    "sequences": ("sequences", "µs a token between two batches"),
    "vocabulary": ("tokens in the vocabulary", "µs between two tokens"),
    "tensors": ("tensors", "ms a plan"),
    "schema": ("properties of a JSON schema", "ms a token"),
    "texts": ("texts", "ms an embedding"),
}
