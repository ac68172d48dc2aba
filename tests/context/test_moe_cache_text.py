"""The cache of experts changes no text: whatever is evicted, however it is computed."""

from __future__ import annotations

import itertools
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from conftest import SMALL
from moebind import AbortedError, Batch, Context, ContextParams, Device, Model, ModelParams

MakeTiny = Callable[..., Path]
PARAMS = SMALL.with_n_seq_max(3).with_kv_unified(True)
#: One with room for two experts, which evicts at every layer, one with a token's, and one with nearly all.
SIZES = ["one layer", "one token", "nearly all"]
PROMPTS = [[1, 2, 3, 4], [5, 6, 7], [9, 8, 7, 6, 5]]


@pytest.fixture(scope="module")
def model(tiny_path: MakeTiny, device: Device) -> Iterator[Model]:
    params = ModelParams(n_gpu_layers=-1, devices=(device,), use_extra_bufts=False).with_cpu_moe_all()
    with Model.load_from_file(tiny_path(n_expert=8, n_layer=3), params) as model:
        yield model


def with_cache(model: Model, size: str, params: ContextParams = PARAMS) -> Context:
    slots = {"one layer": 2, "one token": 6, "nearly all": 23}[size]
    expert = 3 * 4 * 64 * 96
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the smallest is told of
        return model.new_context(params.with_moe_cache_size(expert * (slots + 1)))


def tokens_of(context: Context, prompt: list[int], n: int = 16, seq_id: int = 0) -> list[int]:
    return [piece.token for piece in context.generate(prompt, max_tokens=n, seq_id=seq_id)]


@pytest.fixture(scope="module")
def expected(model: Model) -> list[list[int]]:
    with model.new_context(PARAMS) as context:
        return [tokens_of(context, prompt) for prompt in PROMPTS]


@pytest.mark.parametrize("size", SIZES)
def test_several_sequences(model: Model, expected: list[list[int]], size: str) -> None:
    with with_cache(model, size) as context:
        assert [tokens_of(context, prompt) for prompt in PROMPTS] == expected
        every = [context.generate(prompt, max_tokens=16, seq_id=seq) for seq, prompt in enumerate(PROMPTS)]
        got = [[piece.token for piece in pieces] for pieces in itertools.zip_longest(*every)]
        assert [list(each) for each in zip(*got, strict=True)] == expected
        stats = context.moe_cache_stats()
        assert stats is not None
        assert stats.misses > 0
        assert stats.hits > 0 or size == "one layer"


@pytest.mark.parametrize("n_tokens", [1, 2, 3, 5, 8, 31, 32, 33, 64])
@pytest.mark.parametrize("size", SIZES)
def test_batches_of_any_size(model: Model, size: str, n_tokens: int) -> None:
    def logits(context: Context) -> np.ndarray:
        batch = Batch(n_tokens)
        batch.add_sequence(np.arange(n_tokens) * 7 % 60 + 3, 0, logits_all=True)
        context.decode(batch)
        first = np.array(context.get_logits())
        context.decode(Batch.get_one([5]))
        return np.concatenate([first, context.get_logits()])

    with model.new_context(PARAMS) as plain, with_cache(model, size) as cached:
        np.testing.assert_array_equal(logits(plain).argmax(axis=1), logits(cached).argmax(axis=1))


@pytest.mark.parametrize("size", SIZES)
def test_states(model: Model, expected: list[list[int]], size: str) -> None:
    with model.new_context(PARAMS) as plain, with_cache(model, size) as cached:
        for source, target in ((plain, cached), (cached, plain)):
            head = tokens_of(source, PROMPTS[0], 8)
            target.state_set(source.state_get())
            tail = tokens_of(target, [*PROMPTS[0], *head], 8)
            assert [*head, *tail] == expected[0]
            target.kv_cache_clear()


@pytest.mark.parametrize("size", SIZES)
def test_an_abort_in_the_middle(model: Model, expected: list[list[int]], size: str) -> None:
    asked, over = itertools.count(), threading.Event()

    def stop() -> bool:  # asked once in some milliseconds, so that a fast machine is done with many prompts in between
        return next(asked) % 5 == 4 and not over.is_set()

    with with_cache(model, size, PARAMS.with_abort_callback(stop)) as context:
        aborted = 0
        for prompt, text in itertools.cycle(zip(PROMPTS, expected, strict=True)):
            try:
                assert tokens_of(context, prompt) == text
            except AbortedError:
                aborted += 1
                if aborted == 3:
                    break
        over.set()
        assert [tokens_of(context, prompt) for prompt in PROMPTS] == expected


def test_contexts_of_one_model_have_caches_of_their_own(model: Model, expected: list[list[int]]) -> None:
    wrong: list[object] = []

    def work(size: str, at: int) -> None:
        try:
            with with_cache(model, size) as context:
                for _ in range(3):
                    got = tokens_of(context, PROMPTS[at])
                    if got != expected[at]:
                        wrong.append((size, at, got))
        except BaseException as error:  # the thread that waits would not hear of it
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(size, at)) for at, size in enumerate(SIZES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_what_it_counts(model: Model) -> None:
    with model.new_context(PARAMS) as plain:
        assert plain.moe_cache_stats() is None
        assert plain.timings().moe_cache is None
        assert "cache" not in str(plain.timings())
    with with_cache(model, "nearly all") as context:
        fresh = context.moe_cache_stats()
        assert fresh is not None
        assert (fresh.n_slots, fresh.hits, fresh.misses, fresh.bytes_uploaded, fresh.copied) == (23, 0, 0, 0, 0)
        assert np.isnan(fresh.hit_rate)
        tokens_of(context, PROMPTS[0])
        first = context.moe_cache_stats()
        assert first is not None
        assert first.bytes_uploaded == first.misses * 3 * 4 * 64 * 96
        assert first == context.timings().moe_cache
        assert f"of {first.hits + first.misses} experts were in the cache of 23" in str(context.timings())
        context.reset_timings()
        tokens_of(context, PROMPTS[1])
        second, since = context.moe_cache_stats(), context.timings().moe_cache
        assert second is not None
        assert since is not None
        assert (since.hits, since.misses) == (second.hits - first.hits, second.misses - first.misses)
        assert since.n_slots == 23
