"""Generating text for many prompts at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny  # put on the path by conftest.py
from hypothesis import given, settings
from hypothesis import strategies as st

import conftest
from conftest import CPU, SMALL
from moebind import (
    AbortedError,
    AttentionType,
    BatchError,
    ClosedError,
    Context,
    Model,
    PoolingType,
    Sampler,
    SamplerError,
)

#: What is computed together differs by the last bits from what is computed alone, too little for text.
#: (With experts, the last bit may choose another one.)
EXACT = conftest.EXACT.with_n_ctx(1024).with_n_seq_max(3)
PROMPTS = [[1, 7, 8], [1, 270, 271, 272, 9, 61, 62], [1], [1, 60, 61], [1, 99, 98, 97, 96], [1, 5, 5], [1, 40]]


def texts_of(context: Context, prompts: object, n: int, **options: object) -> list[tuple[str, list[int], str | None]]:
    """Text, tokens and reason for each prompt; pieces come in the order of their indices."""
    texts, tokens, reasons = [""] * n, [[] for _ in range(n)], [None] * n  # type: ignore[var-annotated]
    for at, piece in context.generate_many(prompts, **options):  # type: ignore[arg-type]
        assert piece.index == len(tokens[at])
        assert reasons[at] is None
        texts[at] += piece.text
        tokens[at].append(piece.token)
        reasons[at] = piece.stop_reason  # type: ignore[call-overload]
    return list(zip(texts, tokens, reasons, strict=True))


def alone(
    model: Model, prompt: list[int], sampler: Sampler | None = None, **options: object
) -> tuple[str, list[int], object]:
    params = EXACT.with_n_seq_max(1).with_n_ctx(512)
    with model.new_context(params) as context:
        chosen = None if sampler is None else sampler.clone()
        pieces = list(context.generate(prompt, sampler=chosen, **options))  # type: ignore[arg-type]
    return "".join(p.text for p in pieces), [p.token for p in pieces], pieces[-1].stop_reason


@pytest.mark.parametrize("unified", [False, True])
def test_texts_are_those_of_generate(dense: Model, unified: bool) -> None:
    expected = [alone(dense, prompt, max_tokens=10) for prompt in PROMPTS]
    with dense.new_context(EXACT.with_kv_unified(unified)) as context:
        assert texts_of(context, PROMPTS, len(PROMPTS), max_tokens=10) == expected


def test_each_prompt_has_its_own_sampler(dense: Model) -> None:
    sampler = Sampler.chain([Sampler.penalties(16, 1.3), Sampler.temp(1.2), Sampler.top_k(20), Sampler.dist(5)])
    with sampler, dense.new_context(EXACT) as context:
        expected = [alone(dense, prompt, sampler, max_tokens=10) for prompt in PROMPTS]
        runs = context.generate_many(PROMPTS, sampler=sampler, max_tokens=10)
        sampler.accept(7)  # it was cloned
        tokens: list[list[int]] = [[] for _ in PROMPTS]
        for at, piece in runs:
            tokens[at].append(piece.token)
        assert tokens == [each for _, each, _ in expected]


def test_stop_strings_and_ends(dense: Model) -> None:
    whole = [alone(dense, prompt, max_tokens=30) for prompt in PROMPTS]
    stop = [text[len(text) // 2 :][:2] for text, _, _ in whole if len(text) > 6]
    expected = [alone(dense, prompt, max_tokens=30, stop=stop) for prompt in PROMPTS]
    with dense.new_context(EXACT) as context:
        assert texts_of(context, PROMPTS, len(PROMPTS), max_tokens=30, stop=stop) == expected
    assert "stop" in {reason for _, _, reason in expected}


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.lists(st.integers(3, 290), min_size=1, max_size=40), max_size=6),
    st.integers(3, 50),
    st.integers(1, 3),
)
def test_batches_do_not_change_the_text(dense: Model, prompts: list[list[int]], n_batch: int, n_seq_max: int) -> None:
    # Prompts longer than a batch come in parts, beside single tokens of those that run.
    params = EXACT.with_n_batch(n_batch).with_n_ubatch(n_batch).with_n_seq_max(n_seq_max)
    with dense.new_context(params) as context:
        got = texts_of(context, prompts, len(prompts), max_tokens=4)
    assert got == [alone(dense, prompt, max_tokens=4) for prompt in prompts]


def test_a_place_is_taken_by_the_next(dense: Model) -> None:
    asked = []

    def prompts() -> Iterator[list[int]]:
        for prompt in PROMPTS:
            asked.append(prompt)
            yield prompt

    with dense.new_context(EXACT) as context:
        runs = context.generate_many(prompts(), max_tokens=3)
        assert not asked  # nothing is taken before it is needed
        next(runs)
        assert len(asked) == 3
        list(runs)
        assert asked == PROMPTS


def test_the_end_of_a_sequence(dense: Model) -> None:
    # 256 tokens a sequence: a sampler that never ends by itself fills it.
    biased = Sampler.chain([Sampler.top_k(8), Sampler.temp(3.0), Sampler.dist(11)])
    params = EXACT.with_n_ctx(512).with_n_seq_max(2)
    with biased, dense.new_context(params) as context:
        long = [3 + i % 250 for i in range(253)]
        got = texts_of(context, [long, [1, 7]], 2, sampler=biased, max_tokens=6)
        assert got[0][2] in {"context", "eog"}
        assert len(got[0][1]) <= 4


def test_a_full_shared_cache_lets_prompts_wait(dense: Model) -> None:
    # Three sequences share 256 cells: two of these prompts fit, and grow until one does not.
    prompts = [[3 + (i * k) % 280 for i in range(100)] for k in (1, 3, 7)]
    params = EXACT.with_n_ctx(256).with_kv_unified(True)
    with dense.new_context(params) as context:
        got = texts_of(context, prompts, 3, max_tokens=40)
    single = EXACT.with_n_seq_max(1).with_n_ctx(256)
    with dense.new_context(single) as context:
        for (text, tokens, reason), prompt in zip(got, prompts, strict=True):
            pieces = list(context.generate(prompt, max_tokens=40, reuse_prefix=False))
            assert "".join(piece.text for piece in pieces) == text
            assert [piece.token for piece in pieces] == tokens
            assert pieces[-1].stop_reason == reason


def test_nothing_to_do(dense: Model) -> None:
    with dense.new_context(EXACT) as context:
        assert list(context.generate_many([])) == []
        assert list(context.generate_many(PROMPTS, max_tokens=0)) == []
        assert list(context.generate_many(iter(()), max_tokens=1)) == []


def test_text_prompts(demo: Model) -> None:
    params = SMALL.with_n_ctx(512).with_n_seq_max(2)
    with demo.new_context(params) as context:
        texts = texts_of(context, ["The capital of France is", "One, two, three,"], 2, max_tokens=2)
    assert texts[0][0].startswith(" Paris")
    assert texts[1][0].startswith(" four")


def test_recurrent_and_sliding_window_models(tiny_path: Callable[..., Path]) -> None:
    for fields in ({"arch": "mamba"}, {"arch": "granite_swa", "n_expert": 4}):
        with Model.load_from_file(tiny_path(**fields), CPU) as model:
            expected = [alone(model, prompt, max_tokens=6) for prompt in PROMPTS]
            with model.new_context(EXACT) as context:
                assert texts_of(context, PROMPTS, len(PROMPTS), max_tokens=6) == expected


def test_contexts_that_compute_embeddings_too(dense: Model) -> None:
    expected = [alone(dense, prompt, max_tokens=5) for prompt in PROMPTS]
    with dense.new_context(EXACT.with_embeddings(True).with_n_outputs_max(5)) as context:
        assert texts_of(context, PROMPTS, len(PROMPTS), max_tokens=5) == expected


def test_contexts_that_compute_a_batch_at_once(dense: Model) -> None:
    # Without causal attention, or with pooling, libllama takes no batch that is larger than n_ubatch.
    params = EXACT.with_n_ubatch(6).with_n_batch(64)
    for changed in (
        params.with_attention_type(AttentionType.NON_CAUSAL),
        params.with_embeddings(True).with_pooling_type(PoolingType.CLS).with_kv_unified(True),
    ):
        with dense.new_context(changed) as context:
            got = texts_of(context, PROMPTS, len(PROMPTS), max_tokens=3)
            assert all(tokens for _, tokens, _ in got)


def test_what_must_be_encoded_first(tiny_path: Callable[..., Path]) -> None:
    with Model.load_from_file(tiny_path(arch="t5", n_head_kv=4), CPU) as model, model.new_context(SMALL) as context:
        with pytest.raises(BatchError, match="encode"):
            context.generate_many([[1]])


@pytest.mark.parametrize("embeddings", [False, True])
def test_suppressed_tokens_are_not_chosen(tmp_path: Path, dense: Model, embeddings: bool) -> None:
    chosen = {token for prompt in PROMPTS for token in alone(dense, prompt, max_tokens=4)[1]}
    shape = tiny.Shape()
    told = {**tiny._metadata(shape), "tokenizer.ggml.suppress_tokens": sorted(chosen)}
    path = tmp_path / "model.gguf"
    tiny._write_file(path, shape.arch, told, tiny._tensors(shape, np.random.default_rng(shape.seed)))
    with Model.load_from_file(path, CPU) as model:
        expected = [alone(model, prompt, max_tokens=4) for prompt in PROMPTS]
        with model.new_context(EXACT.with_embeddings(embeddings)) as context:
            assert texts_of(context, PROMPTS, len(PROMPTS), max_tokens=4) == expected
    assert chosen.isdisjoint(token for _, tokens, _ in expected for token in tokens)


def test_the_context_is_empty_afterwards(dense: Model) -> None:
    with dense.new_context(EXACT) as context:
        list(context.generate_many(PROMPTS, max_tokens=2))
        runs = context.generate_many(PROMPTS, max_tokens=9)
        next(runs)
        runs.close()  # type: ignore[attr-defined]
        assert [context.kv_cache_seq_pos_max(seq) for seq in range(3)] == [-1] * 3
        expected = alone(dense, PROMPTS[0], max_tokens=4)[1]
        assert [piece.token for piece in context.generate(PROMPTS[0], max_tokens=4)] == expected


def test_abort(dense: Model) -> None:
    with dense.new_context(EXACT) as context:
        other = threading.Thread(target=context.abort)
        with pytest.raises(AbortedError):
            for at, piece in context.generate_many([[1, 7]] * 3, max_tokens=200, sampler=Sampler.dist(3)):
                if at == 0 and piece.index == 2:
                    other.start()
                if piece.index > 2:
                    context.abort()
        other.join()
        context.abort()
        assert len(list(context.generate_many([[1, 7]], max_tokens=1))) == 1


def test_closing_meanwhile(dense: Model) -> None:
    context = dense.new_context(EXACT)
    runs = context.generate_many(PROMPTS, max_tokens=9)
    next(runs)
    context.close()
    with pytest.raises(ClosedError):
        list(runs)
    with pytest.raises(ClosedError):
        context.generate_many(PROMPTS)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"prompts": "the cat"}, TypeError, "list of prompts"),
        ({"prompts": b"a"}, TypeError, "list of prompts"),
        ({"prompts": 3}, TypeError, "list of prompts"),
        ({"prompts": [[1], []]}, ValueError, r"prompts\[1\]: prompt has no tokens"),
        ({"prompts": [[1], [10**6]]}, ValueError, r"prompts\[1\]: prompt"),
        ({"prompts": [[1], ["a"]]}, TypeError, r"prompts\[1\]: prompt"),
        ({"prompts": [[1] * 5000]}, ValueError, "larger n_ctx"),
        ({"prompts": ["\ud800"]}, ValueError, "surrogate"),
        ({"prompts": np.zeros((2, 2))}, TypeError, r"prompts\[0\]"),
        ({"max_tokens": -2}, ValueError, "max_tokens"),
        ({"max_tokens": 1.5}, TypeError, "max_tokens"),
        ({"stop": ""}, ValueError, "empty"),
        ({"stop": [3.5]}, TypeError, "stop"),
        ({"sampler": 3}, TypeError, "Sampler"),
        ({"sampler": Sampler.top_k(3)}, SamplerError, "does not choose"),
    ],
)
def test_bad_arguments(dense: Model, options: dict[str, object], error: type[Exception], message: str) -> None:
    with dense.new_context(EXACT) as context, pytest.raises(error, match=message):
        context.generate_many(**{"prompts": PROMPTS, **options})  # type: ignore[arg-type]


def test_a_bad_prompt_of_an_iterator(dense: Model) -> None:
    with dense.new_context(EXACT) as context:
        runs = context.generate_many(iter([[1, 7], [1, 8], [1, 9], []]), max_tokens=2)
        with pytest.raises(ValueError, match=r"prompts\[3\]"):
            list(runs)
        assert len(list(context.generate_many([[1, 7]], max_tokens=2))) == 2


def test_all_prompts_are_checked_before_all_texts_are_computed(dense: Model) -> None:
    with dense.new_context(EXACT) as context:
        before = context.timings().n_eval + context.timings().n_p_eval
        texts = context.generate_many(iter([[1, 7], [1, 8], [1, 9], []]), max_tokens=2)
        with pytest.raises(ValueError, match=r"prompts\[3\]"):
            texts.complete()
        assert texts.completed == {}
        assert context.timings().n_eval + context.timings().n_p_eval == before
        with pytest.raises(RuntimeError, match="taken already"):
            texts.complete()


def test_what_is_complete_is_kept(dense: Model) -> None:
    fails = Sampler.chain([Sampler.from_callable(lambda _: 1 / 0), Sampler.greedy()])  # type: ignore[arg-type,return-value]
    prompts = [{"prompt": [1, 7], "max_tokens": 1}, {"prompt": [1, 8], "max_tokens": 9, "sampler": Sampler.dist(1)}]
    with dense.new_context(EXACT.with_n_seq_max(1)) as context:
        expected = context.generate_many(prompts).complete()
        texts = context.generate_many([*prompts, {"prompt": [1, 9], "sampler": fails}])
        with pytest.raises(ZeroDivisionError):
            texts.complete()
        assert texts.completed == dict(enumerate(expected))


# --- arguments of single prompts ---


def test_each_prompt_may_have_its_own_arguments(dense: Model) -> None:
    own: list[dict[str, object]] = [
        {"max_tokens": 3},
        {},
        {"stop": [alone(dense, PROMPTS[2], max_tokens=9)[1][4]]},
        {"temperature": 2.0, "seed": 8, "top_k": 0},
        {"sampler": Sampler.chain([Sampler.temp(2.0), Sampler.dist(3)])},
        {"json_schema": {"type": "boolean"}},
        {"max_tokens": -1, "stop": None, "json_schema": {"enum": ["abc"]}, "temperature": 0},
        {"max_tokens": 0},
    ]
    expected = []
    for prompt, options in zip([*PROMPTS, [1]], own, strict=True):
        with dense.new_context(EXACT.with_n_seq_max(1).with_n_ctx(512)) as context:
            copied = {
                name: value.clone() if isinstance(value, Sampler) else value
                for name, value in {"max_tokens": 9, **options}.items()
            }
            expected.append(context.generate(prompt, **copied).complete())  # type: ignore[arg-type]
    prompts = [{"prompt": prompt, **options} for prompt, options in zip([*PROMPTS, [1]], own, strict=True)]
    for asked in (prompts, iter(prompts)):
        with dense.new_context(EXACT) as context:
            got = context.generate_many(asked, max_tokens=9).complete()
        assert [(each.tokens, each.text, each.stop_reason, each.stop) for each in got] == [
            (each.tokens, each.text, each.stop_reason, each.stop) for each in expected
        ]
    assert [each.stop_reason for each in got] == ["length"] * 2 + ["stop"] + ["length"] * 2 + ["eog"] * 2 + ["length"]


def test_what_a_prompt_says_of_choosing_replaces_what_is_said_for_all(dense: Model) -> None:
    sampler = Sampler.chain([Sampler.temp(3.0), Sampler.dist(1)])
    with dense.new_context(EXACT) as context, sampler:
        greedy = alone(dense, [1, 7], max_tokens=6)[1]
        for common, own in (
            ({"sampler": sampler}, {"temperature": 0}),
            ({"temperature": 3.0, "seed": 4}, {"sampler": Sampler.greedy()}),
            ({"temperature": 3.0, "seed": 4}, {"temperature": 0}),
        ):
            prompts = [[1, 7], {"prompt": [1, 7], **own}]
            other, mine = context.generate_many(prompts, max_tokens=6, **common).complete()  # type: ignore[arg-type]
            assert list(mine.tokens) == greedy
            assert list(other.tokens) != greedy


def test_copies_of_a_prompt_differ_by_their_seeds(dense: Model) -> None:
    prompt = [1, *range(40, 70)]
    options: dict[str, object] = {"temperature": 2.0, "top_k": 0, "max_tokens": 12}
    with dense.new_context(EXACT) as context:
        best_of = [context.generate_many([prompt] * 5, seed=7, **options).complete() for _ in range(2)]  # type: ignore[arg-type]
        assert best_of[0] == best_of[1]
        assert len({each.tokens for each in best_of[0]}) == 5
        assert [each.usage.cached_tokens for each in best_of[0]] == [0] + [30] * 4, "the prompt is computed once"
        random = context.generate_many([prompt] * 5, **options).complete()  # type: ignore[arg-type]
        assert len({each.tokens for each in random}) == 5
        same = context.generate_many([{"prompt": prompt, "seed": 9}] * 3, **options).complete()  # type: ignore[arg-type]
        assert len({each.tokens for each in same}) == 1
        assert same[0].tokens == best_of[0][2].tokens
    for at, each in enumerate(best_of[0]):
        with dense.new_context(EXACT.with_n_seq_max(1).with_n_ctx(512)) as context:
            assert context.generate(prompt, seed=7 + at, **options).complete().tokens == each.tokens  # type: ignore[arg-type]


def test_one_schema_for_all(dense: Model) -> None:
    with dense.new_context(EXACT) as context:
        completions = context.generate_many(PROMPTS, json_schema={"enum": ["a", "b"]}, temperature=2.0).complete()
        assert {each.text for each in completions} == {'"a"', '"b"'}


def test_all_or_nothing(dense: Model) -> None:
    with dense.new_context(EXACT) as context:
        pieces = context.generate_many(PROMPTS, max_tokens=3)
        next(pieces)
        with pytest.raises(RuntimeError, match="taken already"):
            pieces.complete()
        assert len(list(pieces)) == 3 * len(PROMPTS) - 1
        assert context.generate_many(iter([]), max_tokens=3).complete() == []
        assert [each.stop_reason for each in context.generate_many([[1]] * 2, max_tokens=0).complete()] == [
            "length"
        ] * 2


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        ({}, TypeError, r"prompts\[1\] has no 'prompt'"),
        (
            {"prompt": [1], "temprature": 1},
            TypeError,
            r"prompts\[1\] has 'temprature': .* takes 'prompt' and sampler, ",
        ),
        ({"role": "user", "content": "Hello"}, TypeError, "a chat is a list of messages"),
        ({"prompt": []}, ValueError, r"prompts\[1\]: prompt has no tokens"),
        ({"prompt": [1], "sampler": 3}, TypeError, r"prompts\[1\]: sampler is 3"),
        ({"prompt": [1], "sampler": Sampler.top_k(2)}, SamplerError, r"prompts\[1\]: .*does not choose"),
        ({"prompt": [1], "sampler": Sampler.greedy(), "seed": 2}, TypeError, r"prompts\[1\]: .*both given"),
        ({"prompt": [1], "seq_id": 1}, TypeError, "seq_id"),
    ],
)
def test_bad_arguments_of_a_prompt(
    dense: Model, prompt: dict[str, object], error: type[Exception], message: str
) -> None:
    with dense.new_context(EXACT) as context:
        with pytest.raises(error, match=message):
            context.generate_many([[1], prompt])
        runs = context.generate_many(iter([[1], prompt]), max_tokens=1)
        with pytest.raises(error, match=message):
            list(runs)
