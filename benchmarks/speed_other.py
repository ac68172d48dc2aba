"""llama-cpp-python's side of benchmarks/speed.py: the functions of ``speed_moebind.py``, with its own calls."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from typing import Any

import llama_cpp  # brought by speed_llama_cpp_python.py
import numpy as np
from speed_settings import COUNTING, SAMPLING, Settings, long_text, schema, shortest

Found = dict[str, float]


@cache
def _llama(path: str, n_ctx: int, threads: int) -> llama_cpp.Llama:
    return _loaded(path, n_ctx, threads)


def _loaded(path: str, n_ctx: int, threads: int) -> llama_cpp.Llama:
    return llama_cpp.Llama(path, n_gpu_layers=0, n_ctx=n_ctx, n_threads=threads, n_threads_batch=threads, verbose=False)


def _usual(settings: Settings) -> llama_cpp.Llama:
    return _llama(settings.model, settings.n_ctx, settings.threads)


def _written(settings: Settings, **arguments: Any) -> float:
    """Tokens a second, from the first to the last, as text."""
    llama = _usual(settings)
    llama.reset()
    pieces: Iterable[object] = llama.create_completion(
        COUNTING, max_tokens=settings.tokens + 1, stream=True, **arguments
    )
    first, n_first = 0.0, 0
    for _ in pieces:
        if not first:
            first, n_first = settings.clock(), llama.n_tokens
    elapsed = settings.clock() - first
    if llama.n_tokens <= n_first:
        raise RuntimeError("the model ended its text at once")
    return (llama.n_tokens - n_first) / elapsed


def greedy(settings: Settings) -> Found:
    """Always the likeliest token."""
    return {"other_greedy": _written(settings, temperature=0.0)}


def sampled(settings: Settings) -> Found:
    """With the usual chain of samplers."""
    return {"other_sampled": _written(settings, repeat_penalty=1.0, **SAMPLING)}


def constrained(settings: Settings) -> Found:
    """Held to a JSON schema."""
    grammar = llama_cpp.LlamaGrammar.from_json_schema(json.dumps(schema()), verbose=False)
    return {"other_constrained": _written(settings, temperature=0.0, grammar=grammar)}


def prompt(settings: Settings) -> Found:
    """Tokens of a prompt a second."""
    llama = _usual(settings)
    tokens = np.random.default_rng(1).integers(0, llama.n_vocab(), settings.prompt, np.int32).tolist()
    llama.reset()
    start = settings.clock()
    llama.eval(tokens)
    llama_cpp.llama_synchronize(llama.ctx)
    return {"other_prompt": settings.prompt / (settings.clock() - start)}


def text(settings: Settings) -> Found:
    """Characters to tokens and back, a second."""
    llama, written = _usual(settings), long_text().encode()
    tokens = llama.tokenize(written)
    if llama.detokenize(tokens).strip() != written.strip():
        raise RuntimeError("the text did not come back")
    there, back = shortest(lambda: llama.tokenize(written)), shortest(lambda: llama.detokenize(tokens))
    return {"other_tokenise": len(written) / there, "other_detokenise": len(written) / back}


def state(settings: Settings) -> Found:
    """States a second, taken and put back."""
    llama = _usual(settings)
    llama.reset()
    llama.eval([at % llama.n_vocab() for at in range(settings.prompt)])
    kept = llama.save_state()
    saving, loading = shortest(llama.save_state), shortest(lambda: llama.load_state(kept))
    return {"other_state_save": 1 / saving, "other_state_load": 1 / loading}


def load(settings: Settings) -> Found:
    """Models a second, with a context each."""
    start = settings.clock()
    llama = _loaded(settings.model, settings.n_ctx, settings.threads)
    elapsed = settings.clock() - start
    llama.close()
    return {"other_load": 1 / elapsed}


WORK = {each.__name__: each for each in (greedy, sampled, constrained, prompt, text, state, load)}
