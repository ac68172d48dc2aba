"""Each sampler against a few lines of numpy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from samplers import any_logits, softmax
from tiny import TOKENS

from moebind import Model, Sampler, SamplerError, TokenDataArray

#: Apart by more than rounding, so that there is one order.
logit_lists = st.lists(st.integers(-768, 768), min_size=2, max_size=40, unique=True).map(
    lambda values: [value / 64 for value in values]
)
seeds = st.integers(0, 2**32 - 2)


def apply(logits: Sequence[float], sampler: Sampler) -> TokenDataArray:
    candidates = TokenDataArray.from_logits(np.array(logits, np.float32))
    sampler.apply(candidates)
    return candidates


def left(logits: Sequence[float], sampler: Sampler) -> dict[int, float]:
    """What a sampler leaves: logits by token."""
    with sampler:
        data = apply(logits, sampler).data
    return dict(zip(data["id"].tolist(), data["logit"].tolist(), strict=True))


def apart(values: np.ndarray, border: float, by: float = 1e-4) -> bool:
    """Whether no value is so near a border that rounding could decide."""
    return bool((np.abs(values - border) > by).all())


@given(logit_lists, st.floats(0.05, 0.95), st.integers(0, 5))
def test_typical_keeps_what_is_about_as_surprising_as_expected(logits: list[float], p: float, min_keep: int) -> None:
    probabilities = softmax(np.array(logits))
    surprise = -np.log(probabilities)
    distance = np.abs(surprise - (probabilities * surprise).sum())
    order = np.argsort(distance)
    assume(np.diff(distance[order]).min() > 1e-4)
    cumulative = np.cumsum(probabilities[order])
    assume(apart(cumulative, p))
    n = max(int(np.searchsorted(cumulative, p)) + 1, min_keep)
    assert set(left(logits, Sampler.typical(p, min_keep))) == set(order[:n].tolist())


@given(logit_lists, st.floats(0.0, 2.0), st.floats(0.01, 2.0), st.floats(0.2, 3.0))
def test_temp_ext_heats_by_entropy(logits: list[float], t: float, delta: float, exponent: float) -> None:
    values = np.array(logits)
    probabilities = softmax(values)
    entropy = -(probabilities * np.log(probabilities)).sum() / math.log(len(logits))
    low = max(0.0, t - delta)
    dynamic = low + (t + delta - low) * entropy**exponent
    assume(dynamic > 1e-2)
    kept = left(logits, Sampler.temp_ext(t, delta, exponent))
    np.testing.assert_allclose([kept[i] for i in range(len(logits))], values / dynamic, rtol=2e-2, atol=1e-3)


@given(logit_lists, st.floats(0.1, 3.0))
def test_temp_ext_without_a_range_is_temp(logits: list[float], t: float) -> None:
    assert left(logits, Sampler.temp_ext(t, 0.0, 1.0)) == left(logits, Sampler.temp(t))


@given(logit_lists, st.floats(0.01, 0.5), st.integers(0, 4), seeds)
def test_xtc_excludes_the_top_choices(logits: list[float], t: float, min_keep: int, seed: int) -> None:
    order = np.argsort(logits)[::-1]
    probabilities = softmax(np.array(logits))[order]
    assume(apart(probabilities, t))
    removed = max(int((probabilities >= t).sum()) - 1, 0)
    if len(logits) - removed < min_keep:
        removed = 0
    assert set(left(logits, Sampler.xtc(1.0, t, min_keep, seed))) == set(order[removed:].tolist())
    assert set(left(logits, Sampler.xtc(0.0, t, min_keep, seed))) == set(range(len(logits)))


@given(logit_lists, st.floats(0.1, 4.0))
def test_top_n_sigma_forbids_what_is_far_below(logits: list[float], n: float) -> None:
    values = np.array(logits)
    border = values.max() - n * values.std()
    assume(apart(values, border, 1e-3))
    kept = left(logits, Sampler.top_n_sigma(n))
    assert {token for token, logit in kept.items() if logit > -math.inf} == set(
        np.flatnonzero(values >= border).tolist()
    )
    assert left(logits, Sampler.top_n_sigma(-n)) == dict(enumerate(np.array(logits, np.float32).tolist()))


@given(logit_lists, st.dictionaries(st.integers(0, 45), st.floats(-5, 5, width=32) | st.just(-math.inf), max_size=8))
def test_logit_bias_adds(logits: list[float], biases: dict[int, float]) -> None:
    expected = np.array(logits, np.float32)
    for token, bias in biases.items():
        if token < expected.size:
            expected[token] += np.float32(bias)
    assert left(logits, Sampler.logit_bias(biases)) == dict(enumerate(expected.tolist()))
    shuffled = left(logits, Sampler.chain([Sampler.top_k(len(logits)), Sampler.logit_bias(biases)]))
    assert shuffled == dict(enumerate(expected.tolist()))


@given(logit_lists, seeds, st.floats(0.5, 6.0), st.floats(0.0, 0.5))
def test_mirostat_v2_keeps_the_surprise_down(logits: list[float], seed: int, tau: float, eta: float) -> None:
    probabilities = softmax(np.array(logits))
    mu = 2 * tau
    with Sampler.mirostat_v2(seed, tau, eta) as sampler:
        for _ in range(5):
            surprise = -np.log2(probabilities)
            assume(apart(surprise, mu, 1e-3))
            allowed = np.flatnonzero(surprise <= mu)
            if not allowed.size:
                allowed = np.array([probabilities.argmax()])
            candidates = apply(logits, sampler)
            assert set(candidates.data["id"].tolist()) == set(allowed.tolist())
            assert candidates.selected_token in allowed
            chosen = probabilities[candidates.selected_token] / probabilities[allowed].sum()
            mu -= eta * (-math.log2(chosen) - tau)


@given(logit_lists, seeds, st.floats(0.5, 6.0), st.floats(0.0, 0.5), st.integers(2, 100))
def test_mirostat_estimates_how_many_to_keep(logits: list[float], seed: int, tau: float, eta: float, m: int) -> None:
    n_vocab, mu = 300, 2 * tau
    probabilities = np.sort(softmax(np.array(logits)))[::-1]
    n = min(m - 1, probabilities.size - 1)
    t = np.log((np.arange(n) + 2) / (np.arange(n) + 1))
    s_hat = (t * np.log(probabilities[:n] / probabilities[1 : n + 1])).sum() / (t * t).sum()
    epsilon = s_hat - 1
    assume(abs(epsilon) > 1e-2)
    k = (epsilon * 2**mu / (1 - n_vocab**-epsilon)) ** (1 / s_hat)
    assume(k < 1e6 and abs(k - round(k)) > 1e-2 * k)
    with Sampler.mirostat(n_vocab, seed, tau, eta, m) as sampler:
        candidates = apply(logits, sampler)
        assert len(candidates) == min(max(int(k), 1), len(logits))
        assert candidates.selected_token in candidates.data["id"]


@given(logit_lists, seeds, st.floats(0.0, 1.0), st.floats(0.0, 0.99))
def test_adaptive_p_prefers_probabilities_near_its_target(
    logits: list[float], seed: int, target: float, decay: float
) -> None:
    probabilities = softmax(np.array(logits))
    weighted, total = target / (1 - decay), 1 / (1 - decay)
    with Sampler.adaptive_p(target, decay, seed) as sampler:
        for _ in range(4):
            adapted = np.clip(2 * target - weighted / total, 0, 1)
            distance = np.abs(probabilities - adapted) / 0.3
            candidates = apply(logits, sampler)
            expected = 5 - 10 * distance**2 / (1 + distance)
            np.testing.assert_allclose(candidates.data["logit"], expected, rtol=1e-3, atol=1e-3)
            token = candidates.selected_token
            assert token is not None
            sampler.accept(token)
            weighted, total = probabilities[token] + decay * weighted, 1 + decay * total


def dry_penalty(history: list[int], token: int, multiplier: float, base: float, allowed: int) -> float:
    """By looking for each earlier place where the end of the text occurred, and this token came next."""
    longest = 0
    for end in range(1, len(history)):
        if history[end] == token:
            n = 0
            while n < end and history[end - 1 - n] == history[-1 - n]:
                n += 1
            longest = max(longest, n)
    return multiplier * base ** (longest - allowed) if longest >= max(allowed, 1) else 0.0


@given(st.lists(st.integers(0, 3), max_size=30), st.floats(0.1, 2.0), st.floats(1.1, 2.0), st.integers(1, 5), st.data())
def test_dry_makes_repetitions_dear(
    dense: Model, history: list[int], multiplier: float, base: float, allowed: int, data: st.DataObject
) -> None:
    last_n = data.draw(st.integers(1, 40))
    sampler = Sampler.dry(dense, multiplier, base, allowed, last_n, []).with_tokens(history)
    kept = left([0.0] * 6, sampler)
    seen = history[-last_n:]
    for token, logit in kept.items():
        expected = dry_penalty(seen, token, multiplier, base, allowed) if len(seen) > allowed else 0.0
        assert logit == pytest.approx(-expected, rel=1e-3, abs=1e-4)


def test_dry_stops_at_breakers(dense: Model) -> None:
    a, b = (int(token) for token in dense.str_to_token("ab", add_special=False)[-2:])
    logits = np.zeros(dense.n_vocab)
    for breakers, spared in ((["b"], True), (["q"], False), ([], False)):
        with Sampler.dry(dense, 1.0, 1.75, 2, 64, breakers).with_tokens([a, b, a, a, b, a, a, b]) as sampler:
            data = apply(logits, sampler).data
            assert (data["logit"][data["id"] == a].item() == 0.0) == spared


def test_infill_joins_what_begins_alike(dense: Model) -> None:
    # In llama.h's words: tokens with the same prefix are combined, unlikely ones are dropped.
    ids = {text: TOKENS.index(f"▁{text}") for text in ("a", "and", "of")}
    wanted = {"a": 0.5, "and": 0.2, "of": 0.3}
    data = np.array(
        [(ids[text], math.log(p), 0.0) for text, p in wanted.items()], TokenDataArray([(0, 0, 0)]).data.dtype
    )
    candidates = TokenDataArray(data)
    with Sampler.infill(dense) as infill:
        infill.apply(candidates)
        assert [dense.token_to_str(token) for token in candidates.data["id"]] == [" a"]
        # A text that is likely to end, ends.
        ending = TokenDataArray([(ids["a"], 0.0, 0.0), (2, 0.0, 0.0)])
        infill.clone().apply(ending)
        assert ending.data["id"].tolist() == [2]


def test_infill_refuses_many_candidates(dense: Model) -> None:
    many = np.zeros(1025, TokenDataArray([(0, 0, 0)]).data.dtype)
    with Sampler.infill(dense) as infill:
        with pytest.raises(SamplerError, match="1025 candidates.*top_k"):
            infill.apply(TokenDataArray(many))
        with Sampler.chain([Sampler.top_k(40), Sampler.infill(dense), Sampler.greedy()]) as chain:
            chain.apply(TokenDataArray(many))
        foreign = TokenDataArray([(10**6, 0.0, 0.0), (-5, 0.0, 0.0)])
        with pytest.raises(SamplerError):
            infill.apply(foreign)


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: Sampler.dist(seed),
        lambda seed: Sampler.mirostat(500, seed, 6.0, 0.1, 100),
        lambda seed: Sampler.mirostat_v2(seed, 5.0, 0.1),
        lambda seed: Sampler.adaptive_p(0.3, 0.9, seed),
        lambda seed: Sampler.chain([Sampler.xtc(0.5, 0.001, 1, seed), Sampler.dist(3)]),
    ],
)
def test_seeds_repeat_and_reset_begins_again(make: Callable[[int], Sampler]) -> None:
    logits = np.linspace(0, 9, 500) ** 1.2

    def tokens(sampler: Sampler) -> list[int | None]:
        return [apply(logits, sampler).selected_token for _ in range(12)]

    with make(1) as first, make(1) as second, make(2) as other:
        chosen = tokens(first)
        assert chosen == tokens(second) != tokens(other)
        if first.name != "adaptive-p":  # of which llama.cpp copies the average, and seeds the numbers anew
            with first.clone() as copy:
                assert tokens(copy) == tokens(first)
        first.reset()
        assert tokens(first) == chosen


def test_without_a_seed_it_is_a_random_one() -> None:
    makes: list[Callable[[], Sampler]] = [
        Sampler.dist,
        lambda: Sampler.mirostat(500, None, 6.0, 0.1),
        lambda: Sampler.mirostat_v2(None, 5.0, 0.1),
    ]
    for make in makes:
        seeds = {make().seed for _ in range(3)}
        assert len(seeds) == 3
        assert None not in seeds
    # Of these llama.cpp does not tell the seed.
    logits = np.linspace(0, 1, 500)
    for make in (
        lambda: Sampler.adaptive_p(0.3, 0.9, None),
        lambda: Sampler.chain([Sampler.xtc(0.5, 0.0, 1, None), Sampler.greedy()]),
    ):
        with make() as first, make() as second:
            chosen = [[apply(logits, each).selected_token for _ in range(64)] for each in (first, second)]
        assert chosen[0] != chosen[1]


def test_a_copy_of_adaptive_p_forgets_what_it_has_no_probability_of() -> None:
    with Sampler.chain([Sampler.adaptive_p(0.5, 0.9, 1)]) as sampler:
        token = apply([1.0, 2.0, 3.0], sampler).selected_token
        assert token is not None
        with sampler.clone() as copy:
            copy.accept(token)  # would read the probabilities that only the original has
            assert apply([1.0, 2.0, 3.0], copy).selected_token in {0, 1, 2}


@pytest.mark.parametrize(
    "logits", [[math.nan] * 4, [-math.inf] * 4, [math.inf, 0.0, 1.0, math.nan], [1e38, -1e38, 0, 0]]
)
def test_logits_that_mean_nothing(dense: Model, logits: list[float]) -> None:
    for make in (
        lambda: Sampler.typical(0.5),
        lambda: Sampler.temp_ext(1.0, 0.5, 1.0),
        lambda: Sampler.xtc(1.0, 0.0, 0, 1),
        lambda: Sampler.top_n_sigma(1.0),
        lambda: Sampler.mirostat(300, 1, 5.0, 0.1, 100),
        lambda: Sampler.mirostat_v2(1, 0.0, 10.0),
        lambda: Sampler.adaptive_p(0.5, 0.9, 1),
        lambda: Sampler.dry(dense, 1.0).with_tokens([1, 2, 3] * 5),
        lambda: Sampler.infill(dense),
    ):
        with make() as sampler, sampler.clone() as copy:
            for each in (sampler, copy, sampler):
                candidates = apply(logits, each)
                assert candidates.selected_token in {None, 0, 1, 2, 3}
                assert len(candidates) >= 1


small, numbers = st.integers(0, 50), st.floats(0, 100)
likely = st.floats(0, 1)
KINDS = st.one_of(
    small.map(lambda k: lambda _: Sampler.top_k(k)),
    st.tuples(likely, small).map(lambda a: lambda _: Sampler.top_p(*a)),
    st.tuples(likely, small).map(lambda a: lambda _: Sampler.min_p(*a)),
    st.tuples(likely, small).map(lambda a: lambda _: Sampler.typical(*a)),
    numbers.map(lambda n: lambda _: Sampler.top_n_sigma(n)),
    st.tuples(likely, likely, small, seeds).map(lambda a: lambda _: Sampler.xtc(*a)),
    numbers.map(lambda t: lambda _: Sampler.temp(t)),
    st.tuples(numbers, numbers, numbers).map(lambda a: lambda _: Sampler.temp_ext(*a)),
    st.tuples(small, st.floats(0.1, 9), numbers, numbers).map(lambda a: lambda _: Sampler.penalties(*a)),
    st.tuples(numbers, numbers, small, small).map(lambda a: lambda m: Sampler.dry(m, *a, [])),
    st.dictionaries(small, numbers).map(lambda b: lambda _: Sampler.logit_bias(b)),
    st.tuples(st.integers(1, 300), seeds, numbers, numbers, st.integers(1, 99)).map(
        lambda a: lambda _: Sampler.mirostat(*a)
    ),
    st.tuples(seeds, numbers, numbers).map(lambda a: lambda _: Sampler.mirostat_v2(*a)),
    st.tuples(st.floats(-1, 1), st.floats(0, 0.99), seeds).map(lambda a: lambda _: Sampler.adaptive_p(*a)),
    seeds.map(lambda seed: lambda _: Sampler.dist(seed)),
    st.just(lambda m: Sampler.infill(m)),
    st.just(lambda _: Sampler.greedy()),
    st.just(lambda _: Sampler.from_callable(lambda c: c.sort())),
    st.just(lambda m: Sampler.grammar(m, "root ::= [a-z]+")),
)


@given(st.lists(st.floats(width=32), min_size=1, max_size=50), st.lists(KINDS, max_size=5), st.lists(small, max_size=9))
@settings(max_examples=300)
def test_any_chain_on_any_logits(
    dense: Model, logits: list[float], makes: list[Callable[[Model], Sampler]], history: list[int]
) -> None:
    with Sampler.chain([make(dense) for make in makes]) as chain:
        for token in history:
            chain.try_accept(token)
        with chain.clone() as copy:
            for sampler in (chain, copy):
                candidates = TokenDataArray.from_logits(logits)
                try:
                    sampler.apply(candidates)
                except SamplerError as error:
                    assert "grammar" in str(error)  # noqa: PT017  # it forbids all of them
                assert 1 <= len(candidates) <= len(logits)
                assert set(candidates.data["id"].tolist()) <= {*range(len(logits)), 2}  # infill may end the text
                assert candidates.selected_token in {None, *candidates.data["id"].tolist()}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda m: Sampler.typical(1.5), ValueError, "p is 1.5"),
        (lambda m: Sampler.temp_ext(1.0, -1.0, 1.0), ValueError, "delta"),
        (lambda m: Sampler.temp_ext(1.0, 1.0, math.nan), ValueError, "exponent"),
        (lambda m: Sampler.xtc(0.5, 2.0, 1, 1), ValueError, "t is 2"),
        (lambda m: Sampler.xtc(0.5, 0.1, -1, 1), ValueError, "min_keep"),
        (lambda m: Sampler.xtc(0.5, 0.1, 1, 2**32), ValueError, "seed"),
        (lambda m: Sampler.top_n_sigma(math.inf), ValueError, "n is inf"),
        (lambda m: Sampler.top_n_sigma(True), TypeError, "n is True"),
        (lambda m: Sampler.mirostat(0, 1, 5.0, 0.1, 100), ValueError, "n_vocab"),
        (lambda m: Sampler.mirostat("x", 1, 5.0, 0.1, 100), TypeError, "Model"),
        (lambda m: Sampler.mirostat(10, 1, -5.0, 0.1, 100), ValueError, "tau"),
        (lambda m: Sampler.mirostat(10, 1, 5.0, 0.1, 0), ValueError, "m is 0"),
        (lambda m: Sampler.mirostat_v2(-1, 5.0, 0.1), ValueError, "seed"),
        (lambda m: Sampler.mirostat_v2(1, 5.0, -0.1), ValueError, "eta"),
        (lambda m: Sampler.adaptive_p(1.1, 0.5, 1), ValueError, "target"),
        (lambda m: Sampler.adaptive_p(0.5, 1.0, 1), ValueError, "decay"),
        (lambda m: Sampler.dry(None, 1.0), TypeError, "Model"),
        (lambda m: Sampler.dry(m, math.nan), ValueError, "multiplier"),
        (lambda m: Sampler.dry(m, 1.0, 1.75, -1), ValueError, "allowed_length"),
        (lambda m: Sampler.dry(m, 1.0, 1.75, 2, 2**31 - 1), ValueError, "penalty_last_n"),
        (lambda m: Sampler.dry(m, 1.0, 1.75, 2, 64, "ab"), TypeError, "sequence of texts"),
        (lambda m: Sampler.dry(m, 1.0, 1.75, 2, 64, [""]), ValueError, "1 to 40 bytes"),
        (lambda m: Sampler.dry(m, 1.0, 1.75, 2, 64, ["é" * 21]), ValueError, "1 to 40 bytes"),
        (lambda m: Sampler.dry(m, 1.0, 1.75, 2, 64, ["\ud800"]), ValueError, "surrogate"),
        (lambda m: Sampler.dry(m, 1.0, 1.75, 2, 64, ["a\0"]), ValueError, "NUL"),
        (lambda m: Sampler.dry(m, 1.0, 1.75, 2, 64, [3]), TypeError, "str"),
        (lambda m: Sampler.logit_bias([(1, 2.0)]), TypeError, "mapping"),
        (lambda m: Sampler.logit_bias({-1: 2.0}), ValueError, "token"),
        (lambda m: Sampler.logit_bias({5: 2.0}, n_vocab=5), ValueError, "token"),
        (lambda m: Sampler.logit_bias({1: math.inf}), ValueError, "finite"),
        (lambda m: Sampler.logit_bias({1: math.nan}), ValueError, "finite"),
        (lambda m: Sampler.logit_bias({1: "2"}), TypeError, "number"),
        (lambda m: Sampler.infill(3), TypeError, "Model"),
    ],
)
def test_bad_arguments(dense: Model, make: Callable[[Model], Sampler], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(dense)


@given(any_logits, st.integers(0, 70))
def test_top_k_keeps_the_largest(logits: list[float], k: int) -> None:
    kept = left(logits, Sampler.top_k(k))
    expected = sorted(np.array(logits, np.float32).tolist(), reverse=True)
    assert sorted(kept.values(), reverse=True) == (expected[:k] if k else expected)


@given(any_logits, st.floats(0.01, 1.0), st.integers(1, 5))
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits: list[float], p: float, min_keep: int) -> None:
    kept = left(logits, Sampler.top_p(p, min_keep))
    probabilities = np.sort(softmax(np.array(logits, np.float32)))[::-1]
    cumulative = np.cumsum(probabilities)
    needed = int(np.searchsorted(cumulative, p - 1e-5)) + 1
    most = int(np.searchsorted(cumulative, p + 1e-5)) + 1
    if p < 1.0:
        assert min(max(needed, min_keep), len(logits)) <= len(kept) <= min(max(most, min_keep), len(logits))
    else:
        assert len(kept) == len(logits)


@given(any_logits, st.floats(0.0, 1.0), st.integers(0, 5))
def test_min_p_keeps_what_is_likely_enough(logits: list[float], p: float, min_keep: int) -> None:
    kept = left(logits, Sampler.min_p(p, min_keep))
    values = np.array(logits, np.float32)
    if p == 0.0:
        assert len(kept) == len(logits)
        return
    border = values.max() + math.log(p)
    sure, possible = int((values > border + 1e-4).sum()), int((values > border - 1e-4).sum())
    assert min(max(sure, min_keep), len(logits)) <= len(kept) <= min(max(possible, min_keep, 1), len(logits))


@given(any_logits, st.floats(0.1, 5.0))
def test_temp_divides(logits: list[float], t: float) -> None:
    kept = left(logits, Sampler.temp(t))
    np.testing.assert_allclose(list(kept.values()), np.array(logits, np.float32)[list(kept)] / np.float32(t), rtol=1e-5)


@given(any_logits)
def test_temp_zero_leaves_the_maximum(logits: list[float]) -> None:
    kept = left(logits, Sampler.temp(0.0))
    finite = [token for token, logit in kept.items() if math.isfinite(logit)]
    assert [np.float32(logits[token]) for token in finite] == [np.float32(max(logits))]


@given(any_logits, st.lists(st.integers(0, 59), max_size=30), st.floats(1.0, 2.0), st.floats(0, 2), st.floats(0, 2))
def test_penalties(logits: list[float], history: list[int], repeat: float, freq: float, present: float) -> None:
    last_n = 10
    kept = left(logits, Sampler.penalties(last_n, repeat, freq, present).with_tokens(history))
    counts = np.bincount(history[-last_n:], minlength=60)
    for token, logit in kept.items():
        expected = float(np.float32(logits[token]))
        if counts[token]:
            expected = expected * repeat if expected <= 0 else expected / repeat
            expected -= counts[token] * freq + present
        assert logit == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_dist_follows_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    with Sampler.dist(7) as sampler:
        counts = np.zeros(3)
        for _ in range(3000):
            candidates = TokenDataArray.from_logits(logits)
            sampler.apply(candidates)
            assert candidates.selected_token is not None
            counts[candidates.selected_token] += 1
    np.testing.assert_allclose(counts / 3000, [0.5, 0.3, 0.2], atol=0.04)
