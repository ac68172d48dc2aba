"""What comes before the first token: a prompt enters the cache, as far as it is not there already."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from moebind._core.native import CData, lib
from moebind.context.batch import Batch
from moebind.context.decode import Decoding
from moebind.context.pieces import Record, Writer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moebind.context.media import Media, MediaPart, MediaPrompt
    from moebind.context.stops import Stops
    from moebind.sampling.sampler import Sampler

__all__ = ["Request", "common_prefix", "prepare", "sees_all"]


@dataclass(frozen=True)
class Request:
    """A text that is asked for: the arguments of :meth:`moebind.Context.generate`, checked.

    ``sampler`` makes what chooses; None is the sequence's backend sampler, or always the likeliest token. ``preserved``
    are special tokens whose text is given out. ``n_top`` is how many tokens a piece's ``top`` has; None: no
    probabilities either. With ``media``, ``tokens`` are the positions of the prompt (:class:`MediaPrompt`).
    """

    tokens: NDArray[np.int32]
    limit: int | None
    stops: Stops
    sampler: Callable[[], Sampler | None]
    n_top: int | None
    preserved: frozenset[int] = frozenset()
    media: MediaPrompt | None = None

    @property
    def n_cells(self) -> int:
        """Cells of the cache that the prompt takes: its tokens, those of pictures and sound among them."""
        return int(self.tokens.size) if self.media is None else self.media.n_cells

    def steps(self, keep: int, n_batch: int) -> Iterator[tuple[int, int, MediaPart | None]]:
        """What of the prompt is computed, after so many tokens that the cache holds already."""
        if self.media is not None:
            return self.media.steps(keep, n_batch)
        size = self.tokens.size
        return ((start, min(start + n_batch, size), None) for start in range(keep, size, n_batch))

    def writer(self, context: Decoding) -> Writer:
        """What turns its tokens into pieces."""
        return Writer(context._model, self.n_cells, context._length_max, self.limit, self.stops, self.preserved)


class Follower(Protocol):
    """What drafts for the text, and follows the context."""

    def keep(self, seq: int, tokens: NDArray[np.int32], n: int) -> int:
        """A text begins, of which the context has ``n`` tokens; how many of them need not be computed again."""

    def begin(self, seq: int, tokens: Sequence[int]) -> None:
        """The prompt is computed."""

    def computed(self, batch: Batch) -> None:
        """The context has computed this batch."""


def common_prefix(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    """How many tokens two arrays begin with alike."""
    n = min(a.size, b.size)
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if differ.size else n


def sees_all(memory: CData, seq_id: int, pos: int, window: int) -> bool:
    """Whether the cache holds all of a sequence that a token at this position sees.

    Without ``swa_full``, positions before a sliding window are dropped, and none between the first and the last.
    """
    first = int(lib.llama_memory_seq_pos_min(memory, seq_id))
    return first == 0 or (0 < first <= pos - window and window > 0)


def prepare(
    context: Media,
    request: Request,
    seq_id: int,
    reuse_prefix: bool,
    choose: Callable[[CData], int],
    record: Record,
    drafting: Follower | None = None,
) -> tuple[int, list[int], int]:
    """Take over a sequence and bring the prompt into its cache.

    Returns the number of this generation, what the cache holds, and the token that is chosen to follow. ``drafting`` is
    what drafts for it.
    """
    tokens, media = request.tokens, request.media
    with context._exclusive() as native:
        history = context._history.pop(seq_id, None)
        generation = context._take_over([seq_id])
        memory = lib.llama_get_memory(native)
        keep = 0
        if reuse_prefix and history is not None and lib.llama_memory_seq_pos_min(memory, seq_id) >= 0:
            cached = lib.llama_memory_seq_pos_max(memory, seq_id) + 1
            # The last token is decoded in any case, for its logits.
            keep = min(common_prefix(np.array(history, np.int32), tokens), cached, tokens.size - 1)
            keep = keep if media is None else media.whole(keep)
            if not sees_all(memory, seq_id, keep, lib.llama_model_n_swa(context._model._open())):
                keep = 0
        if drafting is not None:
            keep = drafting.keep(seq_id, tokens, keep)
        if not lib.llama_memory_seq_rm(memory, seq_id, keep, -1):
            keep = 0  # this memory can only forget a whole sequence
            lib.llama_memory_seq_rm(memory, seq_id, -1, -1)
            if drafting is not None:
                drafting.keep(seq_id, tokens, keep)
        record.n_cached = keep if media is None else media.cells(keep)
    n_batch = context.n_batch
    for start, stop, part in request.steps(keep, n_batch):
        if media is not None and part is not None:
            rows = media.mtmd.encode_chunk(part.chunk)
            with context._exclusive() as native:
                context._must_own(seq_id, generation)
                context._decode_media(native, media.mtmd, part.chunk, rows, start, seq_id, n_batch)
            continue
        batch = Batch(stop - start)
        batch.extend(tokens[start:stop], start, seq_id, False)
        batch.logits[-1] = stop == tokens.size
        with context._exclusive() as native:
            context._must_own(seq_id, generation)
            before = context._written.counted(native)
            context._decode(native, batch)
            if drafting is not None:
                drafting.computed(batch)
            if stop < tokens.size:
                continue
            context._history[seq_id] = held = tokens.tolist()
            # Before anybody else computes something here: the logits are those of the last batch.
            token = choose(native)
            if batch.n_tokens == 1:
                context._written.add_prompt(native, before)
            if drafting is not None:
                drafting.begin(seq_id, held)
            return generation, held, token
    raise AssertionError("a prompt has tokens")
