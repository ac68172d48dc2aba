"""Pictures and sound: the part of ``Context`` that brings them into its cache, and prompts that have them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, SupportsIndex

import numpy as np

from moebind._core import checks
from moebind._core.native import CData, ffi, lib
from moebind._core.owner import Owner
from moebind._core.shown import shown
from moebind.context.batch import POS_MAX, Batch
from moebind.context.decode import Decoding
from moebind.errors import BatchError, MtmdError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moebind.mtmd.chunks import InputChunk
    from moebind.mtmd.projector import MtmdContext

__all__ = ["Media", "MediaPart", "MediaPrompt", "has_media"]


@dataclass(frozen=True)
class MediaPart:
    """A picture or sound in a prompt: where, as positions from the one up to the other."""

    chunk: InputChunk
    start: int
    stop: int


@dataclass(frozen=True)
class MediaPrompt:
    """A prompt with pictures or sound.

    Attributes
    ----------
    tokens : numpy.ndarray
        int32, one for each position: of text the token, of others a negative number that stands for what they show.
    parts : list of MediaPart
        The pictures and sounds, in their order.
    n_cells : int
        Cells of the cache that all of it takes; more than positions, where these have several dimensions.
    """

    mtmd: MtmdContext
    tokens: NDArray[np.int32]
    parts: list[MediaPart]
    n_cells: int

    def whole(self, keep: int) -> int:
        """So many positions, or fewer if a part would be cut."""
        cut = next((part for part in self.parts if part.start < keep < part.stop), None)
        return keep if cut is None else cut.start

    def cells(self, positions: int) -> int:
        """Cells of the cache that the first positions take."""
        return positions + sum(
            part.chunk.n_tokens - part.chunk.n_positions for part in self.parts if part.stop <= positions
        )

    def steps(self, keep: int, n_batch: int) -> Iterator[tuple[int, int, MediaPart | None]]:
        """What is computed after the first ``keep`` positions: from where, up to where, and which part, if no text."""
        at = keep
        for part in [*(each for each in self.parts if each.start >= keep), None]:
            stop = self.tokens.size if part is None else part.start
            for start in range(at, stop, n_batch):
                yield start, min(start + n_batch, stop), None
            if part is not None:
                yield part.start, part.stop, part
                at = part.stop


def has_media(prompt: object, mtmd: object) -> bool:
    """Whether a prompt is a list of texts and bitmaps."""
    kinds = (Owner,) if mtmd is None else (Owner, str)
    return isinstance(prompt, (list, tuple)) and any(isinstance(each, kinds) for each in prompt)


class Media(Decoding):
    """The part of a context that takes pictures and sound. :class:`moebind.Context` has it."""

    def _eval_chunks(
        self,
        mtmd: MtmdContext,
        chunks: Sequence[InputChunk],
        n_past: SupportsIndex,
        seq_id: SupportsIndex,
        n_batch: SupportsIndex | None,
        logits_last: bool,
    ) -> int:
        """See :meth:`moebind.mtmd.InputChunks.eval_chunks`."""
        self._must_fit(mtmd)
        pos = checks.integer("n_past", n_past, 0, POS_MAX)
        seq = self._seq("seq_id", seq_id)
        size = self.n_batch if n_batch is None else checks.integer("n_batch", n_batch, 1, self.n_batch)
        last = checks.boolean("logits_last", logits_last)
        if last and chunks and chunks[-1].text_tokens is None:
            raise MtmdError("the last chunk is no text, and only text has logits: add text, or give logits_last=False")
        for each in chunks:
            mtmd._opened_media(each) if each.text_tokens is None else each._open()
        for at, chunk in enumerate(chunks):
            tokens = chunk.text_tokens
            if tokens is None:
                rows = mtmd.encode_chunk(chunk)
                with self._exclusive() as native:
                    self._changes([seq])
                    self._decode_media(native, mtmd, chunk, rows, pos, seq, size)
            else:
                ends = last and at + 1 == len(chunks)
                for start in range(0, tokens.size, size):
                    part = tokens[start : start + size]
                    batch = Batch(part.size)
                    batch.extend(part, pos + start, seq, False)
                    batch.logits[-1] = ends and start + part.size == tokens.size
                    self.decode(batch)
            pos += chunk.n_positions
        return pos

    def _media_prompt(self, prompt: Sequence[object], mtmd: MtmdContext | None) -> MediaPrompt:
        """A prompt of texts and bitmaps, made into chunks.

        Raises
        ------
        TypeError, ValueError, MtmdError
        """
        from moebind.mtmd.projector import checked_parts

        parts = checked_parts("prompt", prompt)
        if mtmd is None:
            raise ValueError(
                "prompt has pictures or sound: it takes mtmd=..., the MtmdContext that was loaded for this model"
            )
        chunks, contents = mtmd._tokenize_known(parts)
        tokens: list[NDArray[np.int32]] = []
        found: list[MediaPart] = []
        seen: Counter[bytes] = Counter()
        at = 0
        for chunk, content in zip(chunks, contents, strict=True):
            n = chunk.n_positions
            text = chunk.text_tokens
            if text is None:
                # The same picture again is another one, and so is each part of a picture.
                tokens.append(_stand_ins(b"%d %d %b" % (mtmd._number, seen[content], content), n))
                seen[content] += 1
                found.append(MediaPart(chunk, at, at + n))
            else:
                tokens.append(text)
            at += n
        if not chunks:
            raise ValueError("prompt has no tokens; it takes at least one")
        if found and found[-1].stop == at:
            raise MtmdError("the prompt ends with a picture or sound; it takes text after it, to go on from")
        self._pieces_fit([part.chunk for part in found], mtmd)
        return MediaPrompt(mtmd, np.concatenate(tokens), found, chunks.total_tokens)

    def _pieces_fit(self, chunks: Sequence[InputChunk], mtmd: MtmdContext) -> None:
        for chunk in chunks:
            self._media_batch(mtmd, chunk, self.n_batch)

    def _must_fit(self, mtmd: MtmdContext) -> None:
        """Raise unless this context can take what a projector makes."""
        from moebind.mtmd.projector import MtmdContext  # most programs need none

        if not isinstance(mtmd, MtmdContext):
            raise TypeError(f"mtmd is {shown(mtmd)}; it takes an MtmdContext: MtmdContext.init_from_file(path, model)")
        mtmd._open()
        if mtmd.model is not self._model:
            raise MtmdError(f"{mtmd!r} was loaded for another model than that of this context: load it for this one")
        if self._encodes or self._has_cross_attention or self._drafts_from is not None or self._predicts_ahead:
            raise MtmdError("this context takes no pictures or sound: use one of a model that writes text")

    def _media_batch(self, mtmd: MtmdContext, chunk: InputChunk, n_batch: int) -> int:
        """How many of a chunk's rows to decode at once.

        Raises
        ------
        BatchError
            If the model looks at all of them, and they are too many.
        """
        n_batch = min(n_batch, self._n_outputs_max) if self._embeddings else n_batch
        if not mtmd.decode_use_non_causal(chunk):
            return n_batch
        most, n = min(n_batch, self.n_ubatch), chunk.n_tokens
        if n > most:
            raise BatchError(
                f"a picture has {n} tokens, which this model looks at at once; this context takes {most} (n_batch, "
                f"n_ubatch): make it with ContextParams(n_batch={n}, n_ubatch={n})"
            )
        return most

    def _decode_media(
        self,
        native: CData,
        mtmd: MtmdContext,
        chunk: InputChunk,
        rows: NDArray[np.float32],
        pos: int,
        seq_id: int,
        n_batch: int,
    ) -> None:
        """Bring a chunk that was encoded into the cache. The caller holds the context."""
        if self._model._without_weights:
            raise BatchError("the model was loaded with no_alloc: it has no weights to compute with")
        after = pos + chunk.n_positions
        if after > (self._n_pos or POS_MAX):
            raise BatchError(f"the prompt reaches position {after}; this model takes {self._n_pos or POS_MAX}")
        size = self._media_batch(mtmd, chunk, n_batch)
        causal = bool(lib.llama_get_causal_attn(native))
        self._reserve_outputs(native, size if self._embeddings else 1)
        if lib.moebind_hooks_aborted(self._hooks.pointer):
            self._raise_decode_error(2, chunk.n_tokens)
        reached = ffi.new("llama_pos *", pos)
        embeddings = ffi.from_buffer("float[]", rows)
        try:
            code = self._run(_decode_rows, native, mtmd._open(), chunk._open(), embeddings, pos, seq_id, size, reached)
        finally:
            lib.llama_set_causal_attn(native, causal)
        if code != 0:
            self._raise_decode_error(code, chunk.n_tokens)


def _stand_ins(key: bytes, n: int) -> NDArray[np.int32]:
    """Negative numbers that stand for the positions of a picture: others for any other key."""
    import hashlib  # rarely needed, and slow to import

    numbers = np.frombuffer(hashlib.shake_256(key).digest(4 * n), "<u4") % (2**31 - 2)
    return (-2 - numbers.astype(np.int64)).astype(np.int32)


def _decode_rows(
    native: CData, mtmd: CData, chunk: CData, rows: CData, pos: int, seq: int, size: int, reached: CData
) -> int:
    return int(
        lib.mtmd_helper_decode_image_chunk(mtmd, native, chunk, rows, pos, seq, size, reached, ffi.NULL, ffi.NULL)
    )
