"""moebind's side of benchmarks/speed.py: each function measures once, in a process that stays.

They return speeds, in units of work a second, but for names that end in ``_us``, microseconds, and ``_ms``.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, cast

import numpy as np
from speed_settings import COUNTING, SAMPLING, Settings, long_text, schema, short_texts, shortest

from moebind import Batch, ContextParams, Model, ModelParams, PoolingType, ffi, lib

#: All quantities that a function finds.
Found = dict[str, float]
Clock = Callable[[], float]
CPU = ModelParams(n_gpu_layers=0)


@cache
def _model(path: str) -> Model:
    return Model.load_from_file(path, CPU)


def _params(settings: Settings) -> ContextParams:
    return ContextParams(n_ctx=settings.n_ctx, n_threads=settings.threads, n_threads_batch=settings.threads)


def _generated(settings: Settings, path: str, clock: Clock | None = None, **arguments: Any) -> float:
    """Tokens a second, from the first to the last, as text."""
    now = clock or settings.clock
    with _model(path).new_context(_params(settings)) as context:
        pieces = context.generate(COUNTING, max_tokens=settings.tokens + 1, **arguments)
        stamps = [now() for _ in pieces]
    if len(stamps) < 2:
        raise RuntimeError("the model ended its text at once")
    return (len(stamps) - 1) / (stamps[-1] - stamps[0])


@cache
def inside_us() -> Callable[[], float]:
    """Tells the microseconds of this process in llama_decode: ``speed_clock.c``, which it has to be run with."""
    try:
        function = ctypes.CDLL(None).speed_clock_inside_us
    except AttributeError:
        raise RuntimeError("there is no C compiler (cc), which the clock around llama_decode takes") from None
    function.restype = ctypes.c_double
    return cast("Callable[[], float]", function)


def outside(pieces: Iterable[object]) -> float:
    """Microseconds of a token outside of llama_decode: their median, so that a thread that has to wait is left out."""
    found: list[float] = []
    before, computed, inside = 0.0, 0.0, inside_us()
    for _ in pieces:
        now, total = time.perf_counter(), inside()
        if before:
            found.append(1e6 * (now - before) - (total - computed))
        computed = total
        before = time.perf_counter()
    return statistics.median(found)


def greedy_wall(settings: Settings) -> Found:
    """Always the likeliest token, as text, by the clock on the wall: llama.cpp's programs tell no other."""
    return {"greedy_wall": _generated(settings, settings.model, time.perf_counter)}


def greedy(settings: Settings) -> Found:
    """Always the likeliest token, as text."""
    return {"greedy": _generated(settings, settings.model)}


def between(settings: Settings) -> Found:
    """What is done between two tokens."""
    with _model(settings.model).new_context(_params(settings)) as context:
        return {"outside_us": outside(context.generate(COUNTING, max_tokens=settings.tokens + 1))}


def sampled(settings: Settings) -> Found:
    """With the usual chain of samplers."""
    return {"sampled": _generated(settings, settings.model, **SAMPLING)}


def constrained(settings: Settings) -> Found:
    """Held to a JSON schema."""
    return {"constrained": _generated(settings, settings.model, json_schema=schema())}


def wide_greedy(settings: Settings) -> Found:
    """:func:`greedy`, with many tokens to choose from."""
    return {"wide_greedy": _generated(settings, settings.wide)}


def wide_constrained(settings: Settings) -> Found:
    """:func:`constrained`, with many tokens to choose from."""
    return {"wide_constrained": _generated(settings, settings.wide, json_schema=schema())}


def prompt(settings: Settings) -> Found:
    """Tokens of a prompt a second, in a context that has computed before: llama-bench warms up, too."""
    model = _model(settings.model)
    tokens = np.random.default_rng(1).integers(0, model.n_vocab, settings.prompt, np.int32)
    batch = Batch(settings.prompt)
    with model.new_context(_params(settings)) as context:
        context.decode(Batch.get_one(tokens))
        context.synchronize()
        context.kv_cache_clear()
        start, wall = settings.clock(), time.perf_counter()
        batch.add_sequence(tokens, 0)
        context.decode(batch)
        context.synchronize()
        end, wall_end = settings.clock(), time.perf_counter()
    return {"prompt": settings.prompt / (end - start), "prompt_wall": settings.prompt / (wall_end - wall)}


def sequences(settings: Settings) -> Found:
    """Tokens a second of several sequences at once, all together; from their first tokens on."""
    model, count = _model(settings.dense), settings.sequences
    room = -(-(16 + settings.tokens + 1) // 256) * 256
    params = _params(settings).with_n_seq_max(count).with_n_ctx(count * room)
    texts = [", ".join(str(number) for number in range(start, start + 20)) for start in range(1, count + 1)]
    with model.new_context(params) as context:
        prompts = [model.str_to_token(text)[:16] for text in texts]
        pieces = context.generate_many(prompts, max_tokens=settings.tokens + 1)
        for _ in range(count):
            next(pieces)
        start = time.perf_counter()
        n = sum(1 for _ in pieces)
        return {"sequences": n / (time.perf_counter() - start)}


def text(settings: Settings) -> Found:
    """Characters to tokens and back, a second."""
    model, written = _model(settings.model), long_text()
    tokens = model.str_to_token(written)
    if model.tokens_to_str(tokens).strip() != written.strip():
        raise RuntimeError("the text did not come back")
    there, back = shortest(lambda: model.str_to_token(written)), shortest(lambda: model.tokens_to_str(tokens))
    return {"tokenise": len(written) / there, "detokenise": len(written) / back}


def state(settings: Settings) -> Found:
    """States a second, taken and put back."""
    model = _model(settings.model)
    batch = Batch(settings.prompt)
    batch.add_sequence(np.arange(settings.prompt, dtype=np.int32) % model.n_vocab, 0)
    with model.new_context(_params(settings)) as context:
        context.decode(batch)
        kept = context.state_get()
        saving, loading = shortest(context.state_get), shortest(lambda: context.state_set(kept))
        return {"state_save": 1 / saving, "state_load": 1 / loading}


def load(settings: Settings) -> Found:
    """Models a second, with a context each."""
    start = settings.clock()
    model = Model.load_from_file(settings.model, CPU)
    context = model.new_context(_params(settings))
    elapsed = settings.clock() - start
    context.close()
    model.close()
    return {"load": 1 / elapsed}


def embed(settings: Settings) -> Found:
    """Texts a second, as embeddings."""
    texts = short_texts(settings.texts)
    params = ContextParams(n_threads=settings.threads, n_threads_batch=settings.threads)
    start = settings.clock()
    _model(settings.dense).embed(texts, context_params=params)
    return {"embed": len(texts) / (settings.clock() - start)}


def embed_plain(settings: Settings) -> Found:
    """The same texts by llama.cpp's functions alone: a context, batches of sixteen texts, their embeddings."""
    model, texts = _model(settings.dense).native, [each.encode() for each in short_texts(settings.texts)]
    vocab, width = lib.llama_model_get_vocab(model), lib.llama_model_n_embd_out(model)
    start = settings.clock()
    params = lib.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 512
    params.n_seq_max, params.kv_unified, params.embeddings = 16, True, True
    params.pooling_type = int(PoolingType.MEAN)
    params.n_threads = params.n_threads_batch = settings.threads
    context = lib.llama_init_from_model(model, params)
    batch, room = lib.llama_batch_init(512, 0, 1), ffi.new("llama_token[512]")
    memory, found = lib.llama_get_memory(context), np.empty((len(texts), width), np.float32)
    for first in range(0, len(texts), 16):
        batch.n_tokens = 0
        part = texts[first : first + 16]
        for seq, each in enumerate(part):
            for pos in range(lib.llama_tokenize(vocab, each, len(each), room, 512, True, True)):
                at = batch.n_tokens
                batch.token[at], batch.pos[at], batch.n_seq_id[at] = room[pos], pos, 1
                batch.seq_id[at][0], batch.logits[at] = seq, 1
                batch.n_tokens = at + 1
        lib.llama_memory_clear(memory, False)
        if lib.llama_decode(context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        for seq in range(len(part)):
            row = ffi.buffer(lib.llama_get_embeddings_seq(context, seq), 4 * width)
            found[first + seq] = np.frombuffer(row, np.float32)
    lib.llama_batch_free(batch)
    lib.llama_free(context)
    return {"embed_plain": len(texts) / (settings.clock() - start)}


_FUNCTIONS = [greedy_wall, greedy, between, sampled, constrained, wide_greedy, wide_constrained, prompt, sequences]
WORK = {each.__name__: each for each in [*_FUNCTIONS, text, state, load, embed, embed_plain]}
