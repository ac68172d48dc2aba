"""Grammars of the package llguidance, as samplers."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary, ref

import numpy as np

from moebind._core.fork import new_in_child
from moebind._core.shown import shown
from moebind.errors import ClosedError, GrammarError, SamplerError, TokenizeError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["Guidance"]


class Vocabulary(Protocol):
    """What is asked of a model; :class:`moebind.Model` has it."""

    n_vocab: int
    token_bos: int | None

    def tokens(self, *, special: bool = True) -> Iterator[tuple[int, bytes]]: ...
    def is_eog_token(self, token: int) -> bool: ...
    def is_control_token(self, token: int) -> bool: ...
    def str_to_token(self, text: str, *, add_special: bool, parse_special: bool) -> NDArray[np.int32]: ...


class Candidates(Protocol):
    """What is done with candidates; :class:`moebind.TokenDataArray` has it."""

    @property
    def data(self) -> NDArray[np.void]: ...
    @property
    def sorted(self) -> bool: ...
    def keep(self, which: NDArray[np.bool_]) -> None: ...


class Guidance:
    """One text that is being written, and the tokens that may come next: for ``Sampler.from_callable``."""

    def __init__(self, matcher: Any, n_vocab: int) -> None:
        self._matcher = matcher
        #: A bit a token, in words of 32.
        self._mask = np.zeros(-(-n_vocab // 32), np.uint32)

    @classmethod
    def of(
        cls,
        model: Vocabulary,
        *,
        grammar: str | None = None,
        json_schema: Mapping[str, object] | str | None = None,
        regex: str | None = None,
        lark: str | None = None,
    ) -> Guidance:
        """A text that has not begun, for one of these; see :meth:`moebind.Sampler.llguidance`."""
        given = {"grammar": grammar, "json_schema": json_schema, "regex": regex, "lark": lark}
        chosen = {name: value for name, value in given.items() if value is not None}
        if len(chosen) != 1:
            raise TypeError(f"llguidance takes one of {', '.join(given)}; given: {', '.join(chosen) or 'none'}")
        [(name, value)] = chosen.items()
        if not isinstance(value, str) and not (name == "json_schema" and isinstance(value, Mapping)):
            raise TypeError(f"{name} is {shown(value)} ({type(value).__name__}); it takes {_KINDS[name]}")
        tokenizer = _tokenizer(model)
        from llguidance import LLMatcher

        text = _compiled(name, value)
        failed, said = LLMatcher.validate_grammar_with_warnings(text, tokenizer)
        if failed:
            raise GrammarError(f"{name} is refused by llguidance: {' '.join(said[0].split())}")
        return cls(LLMatcher(tokenizer, text, log_level=0), model.n_vocab)

    def __call__(self, candidates: Candidates) -> None:
        """Make what may not come next impossible."""
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        self._check()
        allowed = np.unpackbits(self._mask.view(np.uint8), bitorder="little")[candidates.data["id"]]
        if not allowed.any():
            raise SamplerError(
                "no candidate is allowed: put the sampler of llguidance first in the chain, so that it sees all of them"
            )
        # It stays sorted where it was: what is out goes to the end.
        if candidates.sorted:
            candidates.keep(allowed.astype(bool))
        else:
            np.copyto(candidates.data["logit"], -np.inf, where=allowed == 0)

    def accept(self, token: int) -> None:
        """Go on with a token that was chosen."""
        if self._matcher.is_stopped() and not self._matcher.is_error():
            return  # the text is complete, and its end has come
        if not self._matcher.is_error() and self._matcher.validate_tokens([token]) != 1:
            raise SamplerError(f"llguidance does not allow token {token} here: the text has to go on in another way")
        self._matcher.consume_token(token)
        self._check()

    def reset(self) -> None:
        """Begin again."""
        self._matcher.reset()

    def clone(self) -> Guidance:
        """The same text at the same place, on its own from here."""
        return Guidance(self._matcher.deep_copy(), 32 * len(self._mask))

    def _check(self) -> None:
        if self._matcher.is_error():
            # What follows is of use to its authors only: traces, its state, the whole grammar.
            said = re.split("<state>|<backtrace>|, traceback: ", str(self._matcher.get_error()))[0]
            raise SamplerError(f"llguidance: {' '.join(said.split())[:200]}")


_KINDS = {
    "grammar": "text in GBNF",
    "json_schema": "a dict, or JSON text",
    "regex": "a regular expression",
    "lark": "text in llguidance's form of Lark",
}


def _compiled(name: str, value: Any) -> str:
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import GbnfToLarkError, gbnf_to_lark

    try:
        if name == "json_schema":
            return LLMatcher.grammar_from_json_schema(value if isinstance(value, str) else json.dumps(value))
        if name == "regex":
            return LLMatcher.grammar_from_regex(value)
        return LLMatcher.grammar_from_lark(gbnf_to_lark(value) if name == "grammar" else value)
    except Exception as error:
        # Its converter of GBNF raises plain Exception for some faults.
        if not (isinstance(error, (GbnfToLarkError, TypeError, ValueError)) or type(error) is Exception):
            raise
        raise GrammarError(f"{name} is refused by llguidance: {' '.join(str(error).split())}") from None


# --- one tokenizer for each model: making it takes a while ---


class _Tokens:
    """A vocabulary in the form that llguidance asks for. It does not keep the model."""

    def __init__(self, model: Vocabulary) -> None:
        self._model = ref(model)
        self.eos_token_id = 0  # those that end are given besides
        self.bos_token_id = model.token_bos
        self.tokens = [piece for _, piece in model.tokens()]
        self.special_token_ids = [token for token in range(len(self.tokens)) if model.is_control_token(token)]

        self._ids = {piece: token for token, piece in reversed([*enumerate(self.tokens)]) if piece}
        for token in self.special_token_ids:
            self._ids.pop(self.tokens[token], None)
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: str) -> Sequence[int]:
        """Tokens of a text; llguidance tries bytes first, and goes by whether that raises."""
        model = self._model()
        encoded = text.encode()
        try:
            if model is None:
                return self._greedy(encoded)
            tokens: list[int] = model.str_to_token(text, add_special=False, parse_special=False).tolist()
        except ClosedError:
            return self._greedy(encoded)
        spelled = b"".join(self.tokens[token] for token in tokens)
        if spelled == encoded:
            return tokens
        if spelled == b" " + encoded:  # SentencePiece puts a space before any text
            return [*self._greedy(self.tokens[tokens[0]][1:]), *tokens[1:]]
        return self._greedy(encoded)

    def _greedy(self, data: bytes) -> list[int]:
        found = []
        while data:
            sizes = range(min(self._longest, len(data)), 0, -1)
            size = next((size for size in sizes if data[:size] in self._ids), 0)
            if not size:
                raise ValueError(f"no token spells {data[:8]!r}")
            found.append(self._ids[data[:size]])
            data = data[size:]
        return found


_tokenizers: WeakKeyDictionary[Vocabulary, Any] = WeakKeyDictionary()
_lock = new_in_child(threading.RLock())


def _tokenizer(model: Vocabulary) -> Any:
    try:
        from llguidance import LLTokenizer, TokenizerWrapper
    except ImportError as error:
        raise ImportError("llguidance is a package of its own: pip install 'moebind[guidance]'") from error
    with _lock:
        if model not in _tokenizers:
            ends = [token for token in range(model.n_vocab) if model.is_eog_token(token)]
            if not ends:
                raise TokenizeError("the model has no token that ends a text, and a grammar has to end with one")
            _tokenizers[model] = LLTokenizer(TokenizerWrapper(_Tokens(model)), eos_token=ends)
        return _tokenizers[model]
