"""Chunks: the pieces of a prompt, text tokens or the parts of a picture or sound, in their order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, SupportsIndex, overload

import numpy as np

from moebind._core import checks
from moebind._core.native import CData, decoded, ffi, keeping, lib, own, part_of
from moebind._core.owner import Owner
from moebind._core.shown import shown
from moebind.enums import _Open

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moebind._core.context_base import ContextBase
    from moebind.mtmd.projector_base import ProjectorBase

__all__ = ["InputChunk", "InputChunkType", "InputChunks"]


class InputChunkType(_Open):
    """What a piece of a prompt is."""

    TEXT = lib.MTMD_INPUT_CHUNK_TYPE_TEXT
    """Tokens of text."""
    IMAGE = lib.MTMD_INPUT_CHUNK_TYPE_IMAGE
    """A picture, or a part of one."""
    AUDIO = lib.MTMD_INPUT_CHUNK_TYPE_AUDIO
    """Sound, or a part of it."""


class InputChunk(Owner):
    """A piece of a prompt: text tokens, or a picture or sound (a part of one, where a projector cuts them).

    Got from :class:`InputChunks`, whose memory it keeps.
    """

    _elsewhere = "tokenize there"
    #: What made it, by which it can be encoded.
    _maker: int = 0

    def __init__(self, *_arguments: object, **_keywords: object) -> None:
        raise TypeError("chunks are made by MtmdContext.tokenize")

    @classmethod
    def _of(cls, pointer: CData, maker: int) -> InputChunk:
        chunk = cls.__new__(cls)
        chunk._maker = maker
        chunk._pointer = pointer
        return chunk

    def __repr__(self) -> str:
        if self.closed:
            return "<InputChunk, closed>"
        return f"<InputChunk of {self.n_tokens} tokens, {self.chunk_type.name}>"

    @property
    def chunk_type(self) -> InputChunkType:
        """Whether it is text, a picture or sound (``mtmd_input_chunk_get_type``)."""
        return InputChunkType(lib.mtmd_input_chunk_get_type(self._open()))

    @property
    def text_tokens(self) -> NDArray[np.int32] | None:
        """The tokens of text; None for others.

        Returns
        -------
        numpy.ndarray or None
            int32, ``(n_tokens,)``: a read-only view without a copy, which keeps the memory.

        Notes
        -----
        Uses ``mtmd_input_chunk_get_tokens_text``.
        """
        pointer = self._open()
        count = ffi.new("size_t *")
        raw = lib.mtmd_input_chunk_get_tokens_text(pointer, count)
        if self.chunk_type != InputChunkType.TEXT:
            return None
        if not count[0]:
            return np.empty(0, np.int32)
        tokens: NDArray[np.int32] = np.frombuffer(ffi.buffer(keeping(raw, pointer), 4 * count[0]), np.int32)
        tokens.flags.writeable = False
        return tokens

    @property
    def n_tokens(self) -> int:
        """Cells of the cache that it takes (``mtmd_input_chunk_get_n_tokens``)."""
        return int(lib.mtmd_input_chunk_get_n_tokens(self._open()))

    @property
    def n_positions(self) -> int:
        """Positions that it takes: as many as tokens, or fewer with M-RoPE (``mtmd_input_chunk_get_n_pos``)."""
        return int(lib.mtmd_input_chunk_get_n_pos(self._open()))

    @property
    def id(self) -> str | None:
        """The id of the bitmap that it comes from; None for text (``mtmd_input_chunk_get_id``)."""
        text = lib.mtmd_input_chunk_get_id(self._open())
        return decoded(text) if text else None

    def copy(self) -> InputChunk:
        """A copy that has its own memory (``mtmd_input_chunk_copy``)."""
        return InputChunk._of(own(lib.own_mtmd_input_chunk_copy, self._open()), self._maker)


class InputChunks(Owner, Sequence[InputChunk]):
    """The chunks of a prompt, made by ``MtmdContext.tokenize``: a sequence. Empty if you make one yourself.

    Freed by ``mtmd_input_chunks_free``.
    """

    _elsewhere = "tokenize there"
    _maker: int = 0

    def __init__(self) -> None:
        self._pointer = own(lib.own_mtmd_input_chunks_init)

    def __len__(self) -> int:
        """How many there are (``mtmd_input_chunks_size``)."""
        return int(lib.mtmd_input_chunks_size(self._open()))

    @overload
    def __getitem__(self, index: int) -> InputChunk: ...
    @overload
    def __getitem__(self, index: slice) -> list[InputChunk]: ...
    def __getitem__(self, index: int | slice) -> InputChunk | list[InputChunk]:
        """One of them, or a list (``mtmd_input_chunks_get``)."""
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        size = len(self)
        at = checks.integer("index", index, -(2**31))
        if not -size <= at < size:
            raise IndexError(f"index is {at}; there are {size} chunks")
        pointer = self._open()
        return InputChunk._of(part_of(pointer, lib.mtmd_input_chunks_get(pointer, at % size)), self._maker)

    def __iter__(self) -> Iterator[InputChunk]:
        return (self[at] for at in range(len(self)))

    def __repr__(self) -> str:
        if self.closed:
            return "<InputChunks, closed>"
        return f"<{len(self)} InputChunks of {self.total_tokens} tokens>"

    @property
    def total_tokens(self) -> int:
        """Cells of the cache that all of them take (``mtmd_helper_get_n_tokens``)."""
        return int(lib.mtmd_helper_get_n_tokens(self._open()))

    @property
    def total_positions(self) -> int:
        """Positions that all of them take (``mtmd_helper_get_n_pos``)."""
        return int(lib.mtmd_helper_get_n_pos(self._open()))

    def eval_chunks(
        self,
        mtmd: ProjectorBase,
        context: ContextBase,
        n_past: SupportsIndex = 0,
        seq_id: SupportsIndex = 0,
        n_batch: SupportsIndex | None = None,
        logits_last: bool = True,
    ) -> int:
        """Encode and decode all of them, one after the other.

        Parameters
        ----------
        mtmd
            What tokenized them.
        context
            A context of the same model.
        n_past
            The position of the first.
        seq_id
            The sequence.
        n_batch
            Tokens in one batch; None: the context's ``n_batch``.
        logits_last
            Whether to compute logits for the last token, which has to be text.

        Returns
        -------
        int
            The position after the last.

        Raises
        ------
        MtmdError
            If they were tokenized by another projector, or cannot be computed by this context.
        NoKvSlotError, AbortedError, DecodeError
            As :meth:`moebind.Context.decode` does.

        Notes
        -----
        Uses ``mtmd_encode_chunk`` and ``mtmd_helper_decode_image_chunk``, as ``mtmd_helper_eval_chunks`` does. Nobody
        else can use the context meanwhile, but for while a picture is encoded.
        """
        if not hasattr(context, "_eval_chunks"):
            raise TypeError(f"context is {shown(context)}; it takes a Context")
        reached: int = context._eval_chunks(mtmd, list(self), n_past, seq_id, n_batch, logits_last)
        return reached
