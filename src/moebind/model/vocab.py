"""Text and tokens: the part of ``Model`` that works on its vocabulary."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import TYPE_CHECKING, SupportsIndex

import numpy as np

from moebind._core import checks
from moebind._core.arguments import explained
from moebind._core.model_base import ModelBase
from moebind._core.native import CData, decoded, ffi, lib
from moebind._core.shown import shown
from moebind.enums import TokenAttr, VocabType
from moebind.errors import NativeError, TokenizeError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["Vocabulary"]

#: A token's text is rarely longer; where it is, a second call makes room.
PIECE_BYTES = 64


class Vocabulary(ModelBase):
    """The part of a model that turns text into tokens and back. :class:`moebind.Model` has it."""

    @property
    def vocab_type(self) -> VocabType:
        """How text becomes tokens (``llama_vocab_type``)."""
        return VocabType(lib.llama_vocab_type(self._open_vocab()))

    def _special(self, token: int) -> int | None:
        return None if token == lib.LLAMA_TOKEN_NULL else int(token)

    @property
    def token_bos(self) -> int | None:
        """Beginning of a text (``llama_vocab_bos``)."""
        return self._special(lib.llama_vocab_bos(self._open_vocab()))

    @property
    def token_eos(self) -> int | None:
        """End of a text (``llama_vocab_eos``)."""
        return self._special(lib.llama_vocab_eos(self._open_vocab()))

    @property
    def token_eot(self) -> int | None:
        """End of a turn (``llama_vocab_eot``)."""
        return self._special(lib.llama_vocab_eot(self._open_vocab()))

    @property
    def token_nl(self) -> int | None:
        """New line (``llama_vocab_nl``)."""
        return self._special(lib.llama_vocab_nl(self._open_vocab()))

    @property
    def token_sep(self) -> int | None:
        """Separator of texts (``llama_vocab_sep``)."""
        return self._special(lib.llama_vocab_sep(self._open_vocab()))

    @property
    def token_pad(self) -> int | None:
        """Padding (``llama_vocab_pad``)."""
        return self._special(lib.llama_vocab_pad(self._open_vocab()))

    @property
    def token_mask(self) -> int | None:
        """Mask (``llama_vocab_mask``)."""
        return self._special(lib.llama_vocab_mask(self._open_vocab()))

    @property
    def token_fim_pre(self) -> int | None:
        """Before the gap, when filling in the middle (``llama_vocab_fim_pre``)."""
        return self._special(lib.llama_vocab_fim_pre(self._open_vocab()))

    @property
    def token_fim_suf(self) -> int | None:
        """After the gap, when filling in the middle (``llama_vocab_fim_suf``)."""
        return self._special(lib.llama_vocab_fim_suf(self._open_vocab()))

    @property
    def token_fim_mid(self) -> int | None:
        """The gap itself, when filling in the middle (``llama_vocab_fim_mid``)."""
        return self._special(lib.llama_vocab_fim_mid(self._open_vocab()))

    @property
    def token_fim_pad(self) -> int | None:
        """Padding, when filling in the middle (``llama_vocab_fim_pad``)."""
        return self._special(lib.llama_vocab_fim_pad(self._open_vocab()))

    @property
    def token_fim_rep(self) -> int | None:
        """Before the name of a repository, when filling in the middle (``llama_vocab_fim_rep``)."""
        return self._special(lib.llama_vocab_fim_rep(self._open_vocab()))

    @property
    def token_fim_sep(self) -> int | None:
        """Before a file, when filling in the middle (``llama_vocab_fim_sep``)."""
        return self._special(lib.llama_vocab_fim_sep(self._open_vocab()))

    @property
    def add_bos(self) -> bool:
        """Whether the tokenizer begins a text with :attr:`token_bos` (``llama_vocab_get_add_bos``)."""
        return bool(lib.llama_vocab_get_add_bos(self._open_vocab()))

    @property
    def add_eos(self) -> bool:
        """Whether the tokenizer ends a text with :attr:`token_eos` (``llama_vocab_get_add_eos``)."""
        return bool(lib.llama_vocab_get_add_eos(self._open_vocab()))

    @property
    def add_sep(self) -> bool:
        """Whether :attr:`token_sep` goes between two texts, when reranking (``llama_vocab_get_add_sep``)."""
        return bool(lib.llama_vocab_get_add_sep(self._open_vocab()))

    @property
    def suppress_tokens(self) -> NDArray[np.int32]:
        """Tokens that the model must never write, sorted (``llama_vocab_get_suppress_tokens``).

        ``Context.generate`` and ``Sampler.sample`` respect this, as llama.cpp's programs do.

        Returns
        -------
        numpy.ndarray
            int32, shape ``(n,)``, a copy; empty for most models.
        """
        copy: NDArray[np.int32] = self._suppressed().copy()
        return copy

    #: The tokens that :meth:`_suppressed` found, once it was called.
    _suppress: NDArray[np.int32] | None = None

    def _suppressed(self) -> NDArray[np.int32]:
        vocab = self._open_vocab()
        if self._suppress is None:
            count = ffi.new("int32_t *")
            tokens = lib.llama_vocab_get_suppress_tokens(vocab, count)
            found = {tokens[i] for i in range(count[0])}
            self._suppress = np.array(sorted(token for token in found if 0 <= token < self._n_vocab), np.int32)
        return self._suppress

    def _token(self, token: SupportsIndex) -> int:
        return checks.integer("token", token, 0, self.n_vocab - 1)

    def is_eog_token(self, token: SupportsIndex) -> bool:
        """Whether a token ends a generation (``llama_vocab_is_eog``)."""
        return bool(lib.llama_vocab_is_eog(self._usable_vocab(), self._token(token)))

    def is_control_token(self, token: SupportsIndex) -> bool:
        """Whether a token controls the model and is not text (``llama_vocab_is_control``)."""
        return bool(lib.llama_vocab_is_control(self._usable_vocab(), self._token(token)))

    def token_attr(self, token: SupportsIndex) -> TokenAttr:
        """The kind of the token (``llama_vocab_get_attr``)."""
        return TokenAttr(lib.llama_vocab_get_attr(self._usable_vocab(), self._token(token)))

    def token_score(self, token: SupportsIndex) -> float:
        """The score that the vocabulary gives it (``llama_vocab_get_score``)."""
        return float(lib.llama_vocab_get_score(self._usable_vocab(), self._token(token)))

    def token_text(self, token: SupportsIndex) -> str:
        """How the vocabulary writes it, such as ``"▁the"`` or ``"Ġthe"`` (``llama_vocab_get_text``).

        :meth:`token_to_str` returns the text that it stands for.
        """
        return decoded(lib.llama_vocab_get_text(self._usable_vocab(), self._token(token)))

    @explained(other_names={"add_bos": "add_special", "special": "parse_special"})
    def str_to_token(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> NDArray[np.int32]:
        """Turn text into tokens.

        Parameters
        ----------
        text
            Any text.
        add_special
            Add the tokens that the model wants at the beginning and end.
        parse_special
            Read the text of special tokens as those tokens, instead of as ordinary text.

        Returns
        -------
        numpy.ndarray
            int32, shape ``(n,)``.

        Raises
        ------
        TokenizeError
            If the model has no vocabulary, or its pre-tokenizer would need more memory for the text than there is.
        ValueError
            If the text holds a lone surrogate.

        Notes
        -----
        Uses ``llama_tokenize``. Some pre-tokenizers recurse over every run of letters, digits or spaces, with 320
        bytes per character; long texts are read on a thread with a stack as large as they may need.

        Examples
        --------
        >>> model.tokens_to_str(model.str_to_token("Hello, world!"))
        'Hello, world!'
        """
        vocab = self._usable_vocab()
        encoded = checks.utf8("text", text)
        special = (checks.boolean("add_special", add_special), checks.boolean("parse_special", parse_special))
        if len(encoded) > checks.INT32_MAX - 16:
            raise TokenizeError(f"text has {len(encoded)} bytes; at most {checks.INT32_MAX - 16} are taken")
        capacity = len(encoded) + 16
        while True:
            tokens = np.empty(capacity, np.int32)
            ids = ffi.from_buffer("llama_token[]", tokens)
            try:
                count = lib.moebind_tokenize(vocab, encoded, len(encoded), ids, capacity, *special)
            except NativeError as error:
                raise TokenizeError(f"the text cannot be tokenized: {error.message}") from None
            if count >= 0:
                found: NDArray[np.int32] = tokens[:count].copy()
                return found if parse_special or self.vocab_type != VocabType.RWKV else self._as_text(found)
            if -count <= capacity:
                raise TokenizeError(f"llama.cpp could not tokenize the text (it returned {count})")
            capacity = -count

    def _as_text(self, tokens: NDArray[np.int32]) -> NDArray[np.int32]:
        """RWKV's tokens of a text that is nothing but text: llama.cpp finds control tokens in it all the same."""
        controls = [token for token in np.unique(tokens).tolist() if self.is_control_token(token)]
        places = np.flatnonzero(np.isin(tokens, controls)).tolist()
        parts = np.split(tokens, places)
        for i, at in enumerate(places, 1):
            text = self.token_to_bytes(int(tokens[at]), special=True).decode()
            spelled = (self.str_to_token(part, add_special=False, parse_special=False) for part in (text[:1], text[1:]))
            parts[i] = np.concatenate([*spelled, parts[i][1:]])
        return np.concatenate(parts)

    def tokens_to_str(self, tokens: ArrayLike, *, special: bool = False) -> str:
        """Turn tokens into text: the inverse of :meth:`str_to_token`.

        Parameters
        ----------
        tokens
            Token ids, shape ``(n,)``.
        special
            Write the text of special tokens too.

        Returns
        -------
        str
            Bytes that are not UTF-8 are replaced.

        Raises
        ------
        ValueError
            If an id is not one of the vocabulary's.

        Notes
        -----
        Uses ``llama_token_to_piece`` for each token, and for WordPiece ``llama_detokenize``, which takes spaces before
        punctuation away. A vocabulary may lack characters or bytes, which the tokenizer then leaves out; and
        SentencePiece takes ``"▁"`` for a space.
        """
        vocab = self._usable_vocab()
        array = checks.int32_array("tokens", tokens, 0, self._n_vocab - 1)
        shown = checks.boolean("special", special)
        if not shown and array.size and array[0] == lib.llama_vocab_bos(vocab):
            # It has no text, but would hide from libllama that the space after it was added by the tokenizer.
            array = array[1:]
        capacity = 8 * array.size + PIECE_BYTES
        while True:
            buffer = ffi.new("char[]", capacity)
            ids = ffi.from_buffer("llama_token[]", array)
            count = lib.moebind_detokenize(vocab, ids, array.size, buffer, capacity, shown)
            if count >= 0:
                return bytes(ffi.buffer(buffer, count)).decode("utf-8", "replace")
            capacity = -count

    def token_to_bytes(self, token: SupportsIndex, *, special: bool = False) -> bytes:
        """The bytes of one token, which may be part of a character (``llama_token_to_piece``).

        Parameters
        ----------
        token
            Its id.
        special
            Return the text of a special token too, instead of nothing.
        """
        return self._piece(self._usable_vocab(), self._token(token), checks.boolean("special", special))

    @staticmethod
    def _piece(vocab: CData, token: int, special: bool, lstrip: int = 0) -> bytes:
        buffer = ffi.new("char[]", PIECE_BYTES)
        count = lib.llama_token_to_piece(vocab, token, buffer, PIECE_BYTES, lstrip, special)
        if count < 0:
            buffer = ffi.new("char[]", -count)
            count = lib.llama_token_to_piece(vocab, token, buffer, -count, lstrip, special)
        return bytes(ffi.buffer(buffer, count))

    def token_to_str(self, token: SupportsIndex, *, special: bool = False) -> str:
        """The text of one token; bytes that are not UTF-8 by themselves are replaced (``llama_token_to_piece``)."""
        return self.token_to_bytes(token, special=special).decode("utf-8", "replace")

    def token_to_piece_bytes(self, token: SupportsIndex, *, special: bool = False, lstrip: SupportsIndex = 0) -> bytes:
        """The bytes of one token, without some leading spaces (``llama_token_to_piece``).

        Parameters
        ----------
        token
            Its id.
        special
            Return the text of a special token too, instead of nothing.
        lstrip
            Leave out up to this many leading spaces.
        """
        return self._piece(
            self._usable_vocab(),
            self._token(token),
            checks.boolean("special", special),
            checks.integer("lstrip", lstrip, 0),
        )

    def token_to_piece(self, token: SupportsIndex, decoder: codecs.IncrementalDecoder, *, special: bool = False) -> str:
        """The text that a token completes; a character whose bytes are spread over tokens comes with its last token.

        Parameters
        ----------
        token
            Its id.
        decoder
            Holds unfinished characters between calls: ``codecs.getincrementaldecoder("utf-8")("replace")``.
        special
            Return the text of a special token too, instead of nothing.
        """
        if not isinstance(decoder, codecs.IncrementalDecoder):
            raise TypeError(f"decoder is {shown(decoder)}; it takes codecs.getincrementaldecoder('utf-8')('replace')")
        return decoder.decode(self.token_to_bytes(token, special=special))

    def tokens(self, *, special: bool = True) -> Iterator[tuple[int, bytes]]:
        """Iterate over the vocabulary: ids, and the bytes of each token."""
        vocab = self._usable_vocab()
        for token in range(self._n_vocab):
            self._open()
            yield token, self._piece(vocab, token, checks.boolean("special", special))
