"""Engines: texts are those that each request has alone, whatever is computed beside it, in any order."""

from __future__ import annotations

import inspect
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lora
import pytest
from engines import EXACT, PROMPTS, alone, check, endless, wait_until
from generations import Gate

import moebind
from conftest import CPU, SMALL
from moebind import (
    BatchError,
    ClosedError,
    Completion,
    Engine,
    EngineFullError,
    LoraAdapter,
    LoraError,
    Model,
    Sampler,
)
from moebind.context import engine as module

TOO_SMALL = SMALL.with_n_batch(2).with_n_outputs_max(3).with_n_seq_max(3)
PREFIX = [1, *(3 + (i * 37) % 280 for i in range(40))]
LONG = [1, *(3 + (i * 11) % 280 for i in range(200))]
SHARING = [[*PREFIX, *end] for end in ([7, 8], [9], [60, 61, 62], [7, 9], [250], [7, 8])] + [PREFIX[:30], LONG]

SHAPES: dict[str, dict[str, Any]] = {
    "dense": {},
    "experts": {"n_expert": 4},
    "recurrent": {"arch": "mamba"},
    "hybrid": {"arch": "lfm2"},
    "sliding window": {"arch": "granite_swa", "n_expert": 4},
}


@pytest.fixture
def engine(dense: Model) -> Iterator[Engine]:
    with Engine(dense, EXACT, prompt_chunk=16) as engine:
        yield engine
        check(engine)


def texts(engine: Engine, prompts: list[list[int]], **options: Any) -> list[Completion]:
    asked = [engine.generate(prompt, **{"max_tokens": 8, **options}) for prompt in prompts]
    return [each.complete() for each in asked]


# --- texts ---


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("unified", [False, True])
def test_texts_are_those_that_each_has_alone(tiny_path: Callable[..., Path], shape: str, unified: bool) -> None:
    """In several orders, with what they begin with alike computed once, kept and lost again, and long prompts cut."""
    with Model.load_from_file(tiny_path(**SHAPES[shape]), CPU) as model:
        expected = alone(model, SHARING)
        params = EXACT.with_kv_unified(unified).with_n_ctx(512 if unified else 1024)
        for seed in range(3):
            order = random.Random(seed).sample(range(len(SHARING)), len(SHARING))
            with Engine(model, params, prompt_chunk=(1, 16, 512)[seed]) as engine:
                for _ in range(2):
                    found = texts(engine, [SHARING[at] for at in order])
                    assert [each.tokens for each in found] == [expected[at] for at in order]
                    assert [each.usage.prompt_tokens for each in found] == [len(SHARING[at]) for at in order]
                check(engine)


def test_requests_that_come_while_others_are_computed(dense: Model, engine: Engine) -> None:
    expected = alone(dense, PROMPTS)
    first = engine.generate(LONG, sampler=endless(dense), max_tokens=100)
    for prompt, tokens in zip(PROMPTS, expected, strict=True):
        next(first)
        assert engine.generate(prompt, max_tokens=8).complete().tokens == tokens
    whole = [*first._record.pieces, *first]
    [alone_] = alone(dense, [LONG], sampler=endless(dense), max_tokens=100)
    assert tuple(piece.token for piece in whole) == alone_


def test_samplers_and_seeds(dense: Model, engine: Engine) -> None:
    options = {"temperature": 1.2, "repeat_penalty": 1.3, "seed": 7, "max_tokens": 12}
    assert [each.tokens for each in texts(engine, PROMPTS, **options)] == alone(dense, PROMPTS, **options)
    with Sampler.chain([Sampler.penalties(16, 1.3), Sampler.temp(1.2), Sampler.dist(5)]) as sampler:
        expected = [alone(dense, [prompt], sampler=sampler.clone())[0] for prompt in PROMPTS]
        # Each has a clone, as it was when it was asked.
        asked = [engine.generate(prompt, sampler=sampler, max_tokens=8) for prompt in PROMPTS]
        sampler.accept(7)
        assert [each.complete().tokens for each in asked] == expected


def test_schemas_stops_and_probabilities(demo: Model) -> None:
    prompt, schema = "Is the sky blue? Answer yes or no, as JSON: ", {"enum": ["yes", "no"]}
    params = SMALL.with_n_seq_max(3).with_n_ctx(768)
    with demo.new_context(SMALL) as context:
        stopped = context.generate("One, two, three,", max_tokens=12, stop=[" five"]).complete()
        scored = context.generate("Once upon", max_tokens=3, logprobs=2, reuse_prefix=False).complete()
    with Engine(demo, params) as engine:
        answers = [
            engine.generate(prompt, json_schema=schema, max_tokens=16),
            engine.generate("One, two, three,", max_tokens=12, stop=[" five"]),
            engine.generate("Once upon", max_tokens=3, logprobs=2),
            engine.generate("Never", max_tokens=0),
        ]
        one, two, three, nothing = [each.complete() for each in answers]
        check(engine)
    assert one.text in {'"yes"', '"no"'}
    assert one.stop_reason == "eog"
    assert (two.text, two.stop_reason, two.stop) == (stopped.text, "stop", " five")
    assert three.logprobs == pytest.approx(scored.logprobs, abs=0.2)  # quantised weights
    assert all(len(piece.top) == 2 for piece in three.pieces)
    assert (nothing.text, nothing.stop_reason) == ("", "length")


def test_chats(demo: Model) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    with demo.new_context(SMALL) as context:
        expected = context.chat(messages, max_tokens=12).complete()
    with Engine(demo, SMALL.with_n_seq_max(2).with_n_ctx(1024)) as engine:
        assert engine.chat(messages, max_tokens=12).complete() == expected
        deltas = list(engine.chat(messages, max_tokens=12).deltas())
        assert "".join(delta.get("content", "") for delta in deltas).strip() == expected["content"].strip()
        check(engine)


@pytest.mark.thorough
def test_tools(demo: Model) -> None:
    messages = [{"role": "user", "content": "Count to one."}]
    with Engine(demo, SMALL.with_n_seq_max(2).with_n_ctx(1024)) as engine:
        number = {"type": "object", "properties": {"n": {"enum": [1]}}, "required": ["n"]}
        tool = {"type": "function", "function": {"name": "count", "description": "Counts", "parameters": number}}
        tools: dict[str, Any] = {"tools": [tool], "tool_choice": "required", "template": "chatml-tools"}
        call = engine.chat(messages, **tools, parallel_tool_calls=False, max_tokens=48).complete()
        [called] = call["tool_calls"]
        assert called["function"]["name"] == "count"
        check(engine)


@pytest.mark.parametrize("kind", ["ngram-simple", "auto"])
def test_drafts_change_nothing(dense: Model, kind: str) -> None:
    repeating = [[1, *[5, 6, 7, 8] * 6, token] for token in (5, 6, 7, 9, 5)]
    expected = alone(dense, repeating, max_tokens=24)
    with Engine(dense, EXACT, speculative=kind, prompt_chunk=8) as engine:
        left = engine.generate(repeating[0], sampler=endless(dense))
        asked = [engine.generate(prompt, max_tokens=24) for prompt in repeating]
        next(left)
        left.close()
        assert [each.complete().tokens for each in asked] == expected
        check(engine)


# --- what is computed once ---


def computed(completions: list[Completion]) -> int:
    return sum(each.usage.prompt_tokens - each.usage.cached_tokens for each in completions)


@pytest.mark.parametrize("unified", [False, True])
def test_a_prefix_is_computed_once_and_kept(dense: Model, unified: bool) -> None:
    with Engine(dense, EXACT.with_kv_unified(unified)) as engine:
        assert computed(texts(engine, [[*PREFIX, 5 + n, 6] for n in range(6)])) == len(PREFIX) + 6 * 2
        # One after the other, with nothing running in between.
        for n in range(6):
            assert computed(texts(engine, [[*PREFIX, 5 + n, 9]])) <= 2
        # It goes on from a whole conversation, whose beginning was used by another one meanwhile.
        [first] = texts(engine, [[*PREFIX, 11, 12]], sampler=endless(dense), max_tokens=24)
        texts(engine, [[*PREFIX, 13, 14]])
        conversation = [*PREFIX, 11, 12, *first.tokens, 3]
        assert computed(texts(engine, [conversation])) == 2
        check(engine)


def test_what_was_used_longest_ago_is_lost(dense: Model) -> None:
    def prompt(n: int) -> list[int]:
        return [1, *(3 + (i * n) % 280 for i in range(40))]

    with Engine(dense, EXACT) as engine:  # three sequences
        for n in (1, 2, 3, 1, 4):
            texts(engine, [prompt(n)])
        assert [computed(texts(engine, [prompt(n)])) for n in (1, 4, 3)] == [1, 1, 1]
        assert computed(texts(engine, [prompt(2)])) == 41
        check(engine)


def test_a_full_cache_forgets_what_is_kept_first(dense: Model) -> None:
    params = EXACT.with_n_ctx(256).with_kv_unified(True)
    prompts = [[1, *(3 + (i * k) % 280 for i in range(100))] for k in (1, 3, 7, 11, 13)]
    expected = alone(dense, prompts, EXACT.with_n_ctx(512), max_tokens=30)
    with Engine(dense, params, prompt_chunk=10) as engine:
        for prompt, tokens in zip(prompts, expected, strict=True):
            assert [each.tokens for each in texts(engine, [prompt], max_tokens=30)] == [tokens]
        # And all at once: who comes last waits, and is computed again.
        assert [each.tokens for each in texts(engine, prompts, max_tokens=30)] == expected
        check(engine)


# --- whose turn it is ---


def order_of(engine: Engine, asked: list[tuple[str, int]]) -> list[str]:
    """In which order requests with these priorities begin, in an engine with one sequence."""
    gate, begun = Gate(), list[str]()

    def noting(name: str) -> Sampler:
        return Sampler.chain([Sampler.from_callable(lambda _: begun.append(name)), Sampler.greedy()])

    first = engine.generate([1], sampler=gate.sampler(), max_tokens=1)
    wait_until(gate.reached.is_set)
    rest = [engine.generate([1, 5], sampler=noting(name), max_tokens=1, priority=priority) for name, priority in asked]
    assert (engine.n_running, engine.n_waiting) == (1, len(asked))
    gate.open.set()
    for each in (first, *rest):
        each.complete()
    return begun


def test_priorities(dense: Model) -> None:
    with Engine(dense, EXACT.with_n_seq_max(1)) as engine:
        asked = [("a", 0), ("b", 1), ("c", 0), ("d", 2), ("e", -1), ("f", 1)]
        assert order_of(engine, asked) == list("dbface")
        check(engine)


def test_nobody_is_overtaken_by_more_than_a_number(dense: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PLACES", 3)
    with Engine(dense, EXACT.with_n_seq_max(1)) as engine:
        assert order_of(engine, [("low", 0), *((str(n), 1) for n in range(6))]) == ["0", "1", "low", "2", "3", "4", "5"]
        assert order_of(engine, [("low", -1), *((str(n), 0) for n in range(6))])[2] == "low"
        check(engine)


@pytest.mark.parametrize(("chunk", "n_replies"), [(16, 25), (100, 4), (512, 1)])
def test_a_long_prompt_does_not_stall_replies(dense: Model, chunk: int, n_replies: int) -> None:
    """In tokens of the reply, while a prompt of 400 is computed."""
    written, gate = list[str](), Gate(after=1)
    told = Sampler.from_callable(lambda _: written.append("reply"))
    first = Sampler.chain([Sampler.from_callable(lambda _: written.append("prompt")), Sampler.greedy()])
    with Engine(dense, EXACT.with_n_ctx(3 * 512), prompt_chunk=chunk) as engine:
        reply = engine.generate([1, 7], sampler=endless(dense, told, Sampler.from_callable(gate)), max_tokens=60)
        wait_until(gate.reached.is_set)
        prompt = engine.generate([1, *(3 + i % 250 for i in range(399))], sampler=first, max_tokens=1)
        written.clear()
        gate.open.set()
        prompt.complete()
        reply.close()
        check(engine)
    assert written.index("prompt") == n_replies


# --- adapters ---


def test_each_has_its_adapters(
    moe: Model, adapter: LoraAdapter, first: lora.Pairs, tmp_path: Path, other: Model
) -> None:
    params = EXACT.with_n_seq_max(3)
    with moe.new_context(EXACT.with_n_seq_max(1).with_n_ctx(512)) as context:

        def tokens(prompt: list[int], scale: float) -> tuple[int, ...]:
            context.set_lora_adapters({adapter: scale} if scale else {})
            return context.generate(prompt, max_tokens=8, reuse_prefix=False).complete().tokens

        asked = [(prompt, scale) for prompt in SHARING[:4] for scale in (0.0, 1.0, -2.0, 1.0)]
        expected = [tokens(*each) for each in asked]
    assert len({*expected[:3]}) == 3
    with Engine(moe, params) as engine:
        running = [
            engine.generate(prompt, adapters={adapter: scale} if scale else None, max_tokens=8)
            for prompt, scale in asked
        ]
        assert [each.complete().tokens for each in running] == expected
        with pytest.raises(LoraError, match="another model"), lora_of(other, first, tmp_path) as foreign:
            engine.generate([1], adapters={foreign: 1})
        with pytest.raises(TypeError, match="adapters is 3"):
            engine.generate([1], adapters=3)  # type: ignore[arg-type]
        check(engine)


def lora_of(model: Model, matrices: lora.Pairs, folder: Path) -> LoraAdapter:
    return model.lora_adapter_init(lora.write(folder / "foreign.gguf", matrices))


# --- what is refused ---


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda e: e.generate([1, 7], seq_id=1), TypeError, "no argument 'seq_id': an engine chooses sequences"),
        (lambda e: e.chat([{"role": "user", "content": "x"}], mtmd=None), TypeError, "pictures and sound"),
        (lambda e: e.generate([1, 7], temprature=1), TypeError, "did you mean 'temperature'"),
        (lambda e: e.generate([1] * 600), ValueError, "prompt has 600 tokens; a sequence of this context takes 512"),
        (lambda e: e.generate([]), ValueError, "no tokens"),
        (lambda e: e.generate([1], priority=1.5), TypeError, "priority is 1.5"),
        (lambda e: e.generate([1], sampler=Sampler.greedy(), temperature=1), TypeError, "both given"),
        (lambda e: e.generate([1], sampler=Sampler.top_k(3)), moebind.SamplerError, "choose"),
        (lambda e: e.agenerate([1] * 600), ValueError, "takes 512"),
        (lambda e: e.achat([{"role": "x"}]), ValueError, "role|content"),
    ],
)
def test_refused_requests(engine: Engine, call: Callable[[Engine], object], kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        call(engine)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda m: Engine("model"), TypeError, "model is 'model'; it takes a Model"),
        (lambda m: Engine(m, 5), TypeError, "params is 5"),
        (lambda m: Engine(m, n_ctx=5), TypeError, "n_ctx"),
        (lambda m: Engine(m, params=SMALL), TypeError, "no argument 'params'; it is 'context_params' here"),
        (lambda m: Engine(m, prompt_chunk=0), ValueError, "prompt_chunk is 0"),
        (lambda m: Engine(m, n_ahead=0), ValueError, "n_ahead is 0"),
        (lambda m: Engine(m, max_waiting=-1), ValueError, "max_waiting is -1"),
        (lambda m: Engine(m, speculative="clever"), ValueError, "clever"),
        (
            lambda m: Engine(m, SMALL.with_n_batch(2).with_n_outputs_max(3).with_n_seq_max(3)),
            ValueError,
            "n_batch is 2 and n_seq",
        ),
    ],
)
def test_refused_engines(dense: Model, make: Callable[[Model], object], kind: type, message: str) -> None:
    n_threads = threading.active_count()
    with pytest.raises(kind, match=message):
        make(dense)
    assert threading.active_count() <= n_threads


def test_models_without_texts(bert: Model, t5: Model) -> None:
    with pytest.raises(BatchError, match="no cache"):
        Engine(bert, SMALL)
    with pytest.raises(BatchError, match="encoded"):
        Engine(t5, SMALL)


def test_too_many_requests(dense: Model) -> None:
    gate = Gate()
    with Engine(dense, EXACT.with_n_seq_max(1), max_waiting=2) as engine:
        asked = [engine.generate([1, 7], sampler=gate.sampler(), max_tokens=1) for _ in range(3)]
        with pytest.raises(EngineFullError, match=r"3 requests .*: 1 for its sequences .*, and 2 that wait"):
            engine.generate([1, 7])
        gate.open.set()
        for each in asked:
            each.complete()
        check(engine)
        engine.generate([1, 7], max_tokens=1).complete()


def test_what_it_says(dense: Model) -> None:
    with Engine(dense, EXACT) as engine:
        assert repr(engine) == f"<Engine of {dense!r}, 3 sequences, 0 running, 0 waiting>"
        assert (engine.model, engine.params, engine.n_seq_max, engine.n_ctx_seq) == (dense, EXACT, 3, 512)
        texts(engine, PROMPTS)
        assert engine.timings().n_p_eval > 0
        assert not engine.closed
        with pytest.raises(AttributeError):
            engine.generate_all  # type: ignore[attr-defined]  # noqa: B018
        with pytest.raises(TypeError, match=r"generate\("):
            engine("Hello")
        with pytest.raises(TypeError, match="^an Engine cannot be pickled"):
            __import__("pickle").dumps(engine)
    assert engine.closed
    assert repr(engine) == "<Engine, closed>"
    for call in (lambda: engine.generate([1]), lambda: engine.timings(), engine.abort, engine.__enter__):
        with pytest.raises(ClosedError, match="closed"):
            call()
    engine.close()


def test_options_are_those_of_contexts() -> None:
    for name in ("generate", "chat"):
        asynchronous, plain = (inspect.signature(getattr(Engine, prefix + name)) for prefix in ("a", ""))
        assert asynchronous.parameters == plain.parameters
