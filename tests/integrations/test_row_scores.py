"""Scores of rows, against the logits of one row at a time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from conftest import CPU, EXACT
from moebind import Batch, Context, Model
from moebind.integrations.row_scores import Row, RowScore, score_rows

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "numerics"))
from references import COMPARISONS

#: Logits differ by the order of sums, and a row's score is a sum of up to 40 of their logarithms.
NEAR = 1e-3


def alone(context: Context, row: Row) -> RowScore:
    """The score by the logits of all tokens of one row."""
    tokens = row.given + row.scored
    context.kv_cache_clear()
    batch = Batch(len(tokens))
    batch.add_sequence(tokens, 0, logits_all=True)
    context.decode(batch)
    logits = context.get_logits().astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    first = len(row.given) - 1
    places = [(first + at, token) for at, token in enumerate(row.scored)]
    return RowScore(
        sum(float(logprobs[at, token]) for at, token in places),
        all(int(logits[at].argmax()) == token for at, token in places),
    )


def rows_of(random: np.random.Generator, model: Model) -> list[Row]:
    """Questions with several answers each, one of them the likeliest text, and rows that have nothing in common."""

    def text(n: int) -> tuple[int, ...]:
        return tuple(random.integers(3, model.n_vocab, n).tolist())

    rows = []
    for _ in range(3):
        question = text(12)
        rows += [Row(question, text(n)) for n in (1, 3, 40)]
        rows.append(Row(question + rows[-1].scored[:2], text(2)))
        rows.append(rows[-1])  # twice the same
    rows += [Row(text(1), text(5)), Row(text(30), ()), Row(text(1), text(1))]
    return [rows[each] for each in random.permutation(len(rows))]


@pytest.fixture(scope="module", params=["moe", "mamba", "lfm2"])
def model(request: pytest.FixtureRequest, tiny_path: Callable[..., Path]) -> Iterator[Model]:
    fields = {"moe": {"n_expert": 4}, "mamba": {"arch": "mamba"}, "lfm2": {"arch": "lfm2"}}[request.param]
    with Model.load_from_file(tiny_path(**fields), CPU) as model:
        yield model


@pytest.mark.parametrize(
    ("n_seq_max", "n_ctx", "n_batch", "unified"),
    [(1, 64, 64, True), (8, 256, 256, True), (8, 256, 32, True), (5, 64, 16, True), (4, 256, 256, False)],
)
def test_scores_are_those_of_one_row_at_a_time(
    model: Model, n_seq_max: int, n_ctx: int, n_batch: int, unified: bool
) -> None:
    params = EXACT.with_n_seq_max(n_seq_max).with_n_batch(n_batch).with_kv_unified(unified)
    params = params.with_n_ctx(n_ctx if unified else n_ctx * n_seq_max)
    rows = rows_of(np.random.default_rng(n_seq_max), model)
    with model.new_context(EXACT) as context:
        greedy = context.generate(rows[0].given, max_tokens=4).complete().tokens
        rows.append(Row(rows[0].given, greedy))
        expected = [alone(context, row) for row in rows]
    with model.new_context(params) as context:
        found = dict(score_rows(context, rows))
        assert context.kv_cache_seq_pos_max(0) in {-1, None}
    assert sorted(found) == [*range(len(rows))]
    for at, score in enumerate(expected):
        assert found[at].logprob == pytest.approx(score.logprob, abs=NEAR)
        assert found[at].is_greedy == score.is_greedy
    assert found[len(rows) - 1].is_greedy
    assert not all(each.is_greedy for each in found.values())


@pytest.mark.parametrize("name", ["mixtral", "qwen3moe"])
def test_scores_are_those_of_transformers(name: str) -> None:
    # Whose logits tests/numerics keeps; a token's logarithm is twice as far off as a logit, at most.
    each = next(each for each in COMPARISONS if each.name == name)
    tokens, logits = each.tokens().tolist(), each.logits().astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    places = [(1, 64), (20, 30), (20, 25), (40, 64)]
    rows = [Row(tuple(tokens[:start]), tuple(tokens[start:end])) for start, end in places]
    with each.context() as context:
        model = context.model
        with model.new_context(EXACT.with_n_seq_max(4).with_kv_unified(True)) as several:
            found = dict(score_rows(several, rows))
    for at, (start, end) in enumerate(places):
        expected = sum(logprobs[pos - 1, tokens[pos]] for pos in range(start, end))
        assert found[at].logprob == pytest.approx(expected, abs=2 * each.bound * (end - start))
        assert 2 * each.bound * (end - start) < 0.05


def test_what_rows_have_in_common_is_computed_once(moe: Model) -> None:
    question = tuple(range(3, 103))
    rows = [Row(question, (each, each)) for each in range(200, 210)]
    with moe.new_context(EXACT.with_n_seq_max(16).with_kv_unified(True)) as context:
        dict(score_rows(context, rows))
        assert context.timings().n_p_eval == 110
