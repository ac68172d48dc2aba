"""A generation owns its sequence: a later one takes it over, and the earlier raises."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from conftest import SMALL
from moebind import Batch, BatchExt, ClosedError, Context, DecodeError, Model, Sampler

PROMPTS = [[1, 2, 3, 4], [5, 6, 7], [9, 8, 7, 6, 5]]
TAKEN = (
    "another call to generate took over sequence 0 of this context; finish or close one generator before you start the "
    "next, or give each a sequence or context of its own"
)


@pytest.fixture
def two(dense: Model) -> Iterator[Context]:
    """With two sequences."""
    with dense.new_context(SMALL.with_n_seq_max(2)) as context:
        yield context


def tokens_of(context: Context, prompt: list[int], **options: object) -> list[int]:
    return [piece.token for piece in context.generate(prompt, max_tokens=12, **options)]  # type: ignore[arg-type]


@pytest.mark.parametrize("chosen", [True, False])
def test_the_later_generator_takes_over(two: Context, chosen: bool) -> None:
    expected = [tokens_of(two, prompt) for prompt in PROMPTS]

    def begin(prompt: list[int]) -> Iterator[int]:
        sampler = Sampler.chain([Sampler.top_k(1), Sampler.dist(1)]) if chosen else None
        return (piece.token for piece in two.generate(prompt, max_tokens=12, sampler=sampler))

    first, second = begin(PROMPTS[0]), begin(PROMPTS[1])
    got = [next(first), next(first)]
    later = [next(second)]
    with pytest.raises(ClosedError) as raised:
        got.append(next(first))
    assert str(raised.value) == TAKEN
    assert list(first) == []
    assert [*later, *second] == expected[1]
    assert got == expected[0][:2]
    # What the first one left behind is not taken for what the sequence holds.
    assert tokens_of(two, PROMPTS[0]) == expected[0]


def test_a_generator_that_did_not_begin_takes_nothing(two: Context) -> None:
    expected = tokens_of(two, PROMPTS[0])
    first = two.generate(PROMPTS[0], max_tokens=12)
    got = [next(first).token]
    two.generate(PROMPTS[1])
    assert [*got, *(piece.token for piece in first)] == expected


def test_other_sequences_go_on(two: Context) -> None:
    expected = [tokens_of(two, prompt) for prompt in PROMPTS[:2]]
    both = [two.generate(prompt, max_tokens=12, seq_id=seq) for seq, prompt in enumerate(PROMPTS[:2])]
    got = [[left.token, right.token] for left, right in zip(*both, strict=True)]
    assert [list(each) for each in zip(*got, strict=True)] == expected


def test_chats_are_generations(demo: Model) -> None:
    with demo.new_context(SMALL) as context:
        reply = context.chat([{"role": "user", "content": "Hello"}], max_tokens=8)
        next(reply)
        next(context.generate("Once"))
        with pytest.raises(ClosedError, match="took over sequence 0"):
            reply.complete()


def test_many_at_once_take_all_sequences(two: Context) -> None:
    expected = tokens_of(two, PROMPTS[0])
    single = two.generate(PROMPTS[0], max_tokens=12, seq_id=1)
    next(single)
    many = two.generate_many(PROMPTS, max_tokens=12)
    next(many)
    with pytest.raises(ClosedError, match="took over sequence 1"):
        next(single)
    last = two.generate(PROMPTS[0], max_tokens=12)
    got = [next(last).token, next(last).token]
    with pytest.raises(ClosedError, match="took over sequence 0"):
        list(many)
    # The others that it had are empty now; that one is not.
    assert two.kv_cache_seq_pos_max(1) == -1
    assert [*got, *(piece.token for piece in last)] == expected


CHANGES: dict[str, Callable[[Context], object]] = {
    "clear": lambda context: context.kv_cache_clear(),
    "rm": lambda context: context.kv_cache_seq_rm(0, 2),
    "rm of all": lambda context: context.kv_cache_seq_rm(-1),
    "cp": lambda context: context.kv_cache_seq_cp(1, 0),
    "keep": lambda context: context.kv_cache_seq_keep(1),
    "add": lambda context: context.kv_cache_seq_add(0, 0, None, 3),
    "div": lambda context: context.kv_cache_seq_div(0, 0, None, 2),
    "decode": lambda context: context.decode(Batch.get_one([4])),
    "state": lambda context: context.state_set(context.state_get()),
    "state of the sequence": lambda context: context.state_seq_set(context.state_seq_get(1), 0),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changing_the_sequence_ends_its_generation(two: Context, change: Callable[[Context], object]) -> None:
    pieces = two.generate(PROMPTS[0], max_tokens=12)
    next(pieces)
    change(two)
    with pytest.raises(ClosedError, match="another call changed sequence 0 of this context"):
        next(pieces)


HARMLESS: dict[str, Callable[[Context], object]] = {
    "rm of another": lambda context: context.kv_cache_seq_rm(1),
    "copy from it": lambda context: context.kv_cache_seq_cp(0, 1),
    "keep it": lambda context: context.kv_cache_seq_keep(0),
    "state of it": lambda context: context.state_seq_set(context.state_seq_get(0), 1),
    "generate": lambda context: list(context.generate(PROMPTS[1], max_tokens=3, seq_id=1)),
    "a batch that is refused": lambda context: refused(context.decode, Batch(1)),
    "a batch of another": lambda context: context.decode(batch_of(1)),
    "bad arguments": lambda context: refused(context.generate, []),
    "a move that is refused": lambda context: refused(context.kv_cache_seq_add, 0, 0, None, 2**31 - 2),
    "a division that is refused": lambda context: refused(context.kv_cache_seq_div, 0, 0, None, 0),
    "a batch that llama.cpp refuses": lambda context: refused(context.decode, batch_of(0, 500)),
    "an extended batch that llama.cpp refuses": lambda context: refused(context.process, ext_of(context, 500)),
}


def refused(call: Callable[..., object], *arguments: object) -> None:
    with pytest.raises((ValueError, DecodeError), match=r"token|beyond|takes|refused the batch"):
        call(*arguments)


def batch_of(seq: int, pos: int = 0) -> Batch:
    batch = Batch(2)
    batch.add(3, pos, seq, True)
    return batch


def ext_of(context: Context, pos: int) -> BatchExt:
    batch = BatchExt(context)
    batch.add(0, pos, token=3)
    return batch


@pytest.mark.parametrize("call", HARMLESS.values(), ids=HARMLESS)
def test_what_leaves_the_sequence_alone(two: Context, call: Callable[[Context], object]) -> None:
    expected = tokens_of(two, PROMPTS[0])
    pieces = two.generate(PROMPTS[0], max_tokens=12)
    got = [next(pieces).token]
    call(two)
    assert [*got, *(piece.token for piece in pieces)] == expected


def shared_batch(context: Context) -> None:
    batch = Batch(4, n_seq_max=2)
    for pos, token in enumerate(PROMPTS[0]):
        batch.add(token, pos, [0, 1], False)
    context.decode(batch)


def copied(context: Context) -> None:
    context.decode(Batch.get_one(PROMPTS[0]))
    context.kv_cache_seq_cp(0, 1)


def restored(context: Context) -> None:
    copied(context)
    context.state_set(context.state_get())


MOVES: dict[str, Callable[[Context], object]] = {
    "add": lambda context: context.kv_cache_seq_add(0, 0, None, 3),
    "add in the middle": lambda context: context.kv_cache_seq_add(0, 2, 3, -1),
    "div": lambda context: context.kv_cache_seq_div(0, 0, None, 2),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
@pytest.mark.parametrize("share", [shared_batch, copied, restored])
def test_moving_what_is_shared_ends_the_generation_of_the_other(
    dense: Model, share: Callable[[Context], None], move: Callable[[Context], object]
) -> None:
    with dense.new_context(SMALL.with_n_seq_max(2).with_kv_unified(True)) as context:
        share(context)
        pieces = context.generate(PROMPTS[0], max_tokens=12, seq_id=1)
        next(pieces)
        move(context)
        with pytest.raises(ClosedError, match="another call changed sequence 1 of this context"):
            next(pieces)
        # And what was moved is not taken for the beginning of a prompt.
        fresh = tokens_of(context, PROMPTS[0], seq_id=1, reuse_prefix=False)
        move(context)
        assert tokens_of(context, PROMPTS[0], seq_id=1) == fresh


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_moving_what_is_not_shared_leaves_the_other_alone(dense: Model, move: Callable[[Context], object]) -> None:
    with dense.new_context(SMALL.with_n_seq_max(2).with_kv_unified(True)) as context:
        expected = tokens_of(context, PROMPTS[0], seq_id=1)
        copied(context)
        context.kv_cache_clear()  # nothing is shared any more
        context.decode(Batch.get_one(PROMPTS[1]))
        pieces = context.generate(PROMPTS[0], max_tokens=12, seq_id=1)
        got = [next(pieces).token]
        move(context)
        assert [*got, *(piece.token for piece in pieces)] == expected


def test_a_state_that_is_taken_meanwhile_knows_its_tokens(two: Context) -> None:
    pieces = two.generate(PROMPTS[0], max_tokens=12)
    said = [next(pieces).token, next(pieces).token]
    state = two.state_seq_get(0)
    two.state_seq_set(state, 1)
    list(pieces)
    assert two._history[1] == [*PROMPTS[0], said[0]]


@pytest.mark.parametrize("n_seq", [1, 2])
def test_threads_never_get_the_text_of_others(dense: Model, n_seq: int) -> None:
    """In one sequence each gets its own text, up to its end or to ``ClosedError``; in several, all of it."""
    with dense.new_context(SMALL.with_n_seq_max(2)) as context:
        expected = [tokens_of(context, prompt) for prompt in PROMPTS[:2]]
        wrong: list[object] = []
        taken = [0]

        def work(at: int) -> None:
            for _ in range(30):
                got = []
                try:
                    for piece in context.generate(PROMPTS[at], max_tokens=12, seq_id=at % n_seq):
                        got.append(piece.token)  # noqa: PERF401  # what came before an exception counts
                    if got != expected[at]:
                        wrong.append(got)
                except ClosedError:
                    taken[0] += 1
                    if got != expected[at][: len(got)]:
                        wrong.append(got)
                except BaseException as error:  # whatever it is, the other thread would not tell
                    wrong.append(error)

        threads = [threading.Thread(target=work, args=(at,)) for at in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert n_seq == 1 or taken == [0]
