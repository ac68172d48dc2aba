"""Grammars: samplers that let through only what a grammar allows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from moebind._core import checks
from moebind._core.arguments import explained
from moebind._core.native import CData, ffi, lib, own
from moebind._core.shown import shown
from moebind.errors import GrammarError, NativeError
from moebind.files.tensor_patterns import check_pattern
from moebind.sampling.kinds import SamplerKinds, vocabulary

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from typing_extensions import Self

    from moebind._core.model_base import ModelBase

__all__ = ["GrammarKinds"]

BYTES_MAX = 2**20
TRIGGERS_MAX = 256


class GrammarKinds(SamplerKinds):
    """The class methods that make grammars. :class:`moebind.Sampler` has them."""

    #: Whether it is a grammar, which has to be asked about each token that is chosen.
    _is_grammar = False
    #: Whether it is a grammar or calls Python, or has one that does: libllama then does not choose on its own.
    _is_checked = False

    @classmethod
    def grammar(cls, model: ModelBase, grammar_str: str, grammar_root: str = "root") -> Self:
        """Allow only text that fits a grammar.

        Put it first in a chain. Wherever it stands, what it forbids is never chosen: if only forbidden candidates are
        left, an error is raised.

        Parameters
        ----------
        model
            The model whose tokens are chosen.
        grammar_str
            In GBNF, the language of llama.cpp's grammars.
        grammar_root
            The rule that describes the whole text.

        Raises
        ------
        GrammarError
            With the place, if it is not a grammar, uses rules or tokens that do not exist, has a rule that begins with
            itself, a repetition ``{m,n}`` with m > n or of more than 2000, or an empty class ``[]``, or is too large.
        TokenizeError
            If the model has no vocabulary.
        SamplerError
            When the sampler is used: if no allowed candidate is left, or if the grammar is so ambiguous that finding
            out would take too long.

        Notes
        -----
        The language and the parser are those of ``llama_sampler_init_grammar``. The code that matches tokens is
        moebind's own, and its time is bounded. It differs in two ways: text is always valid UTF-8, and control tokens
        are not text, so that only a rule that names one, as ``<|tool_call|>`` or ``<[123]>``, allows it.

        Examples
        --------
        >>> yes_or_no = Sampler.grammar(model, 'root ::= "yes" | "no"')
        >>> sampler = Sampler.chain([yes_or_no, Sampler.dist(1)])
        """
        sampler = cls._grammar(model, grammar_str, grammar_root)
        lib.moebind_grammar_begin(sampler._open())
        return sampler

    @classmethod
    @explained(other_names={"json_schema": "schema"})
    def json_schema(cls, model: ModelBase, schema: Mapping[str, object] | str, *, strict: bool = True) -> Self:
        """Allow only JSON that satisfies a schema: ``grammar(model, json_schema_to_grammar(schema))``.

        Parameters
        ----------
        model
            The model whose tokens are chosen.
        schema, strict
            As for :func:`moebind.json_schema_to_grammar`, which says what is refused, or left out.

        Raises
        ------
        GrammarError
            If the schema says something that a grammar cannot express.
        """
        from moebind.sampling.json_schema import json_schema_to_grammar

        return cls.grammar(model, json_schema_to_grammar(schema, strict=strict))

    @classmethod
    def grammar_lazy(
        cls,
        model: ModelBase,
        grammar_str: str,
        grammar_root: str,
        trigger_words: Iterable[str],
        trigger_tokens: ArrayLike = (),
    ) -> Self:
        """Allow everything until a word or token comes; from its beginning on, the grammar applies.

        Parameters
        ----------
        model, grammar_str, grammar_root
            As for :meth:`grammar`. The grammar describes the text from the trigger on, including the trigger.
        trigger_words
            Texts that start it.
        trigger_tokens
            Tokens that start it. Here the text of a control token counts.

        Raises
        ------
        GrammarError
            As for :meth:`grammar`, or if nothing could ever start it.

        Notes
        -----
        As ``llama_sampler_init_grammar_lazy``. A token that would start the grammar with a text that it forbids is not
        chosen; ``accept`` refuses it.
        """
        if isinstance(trigger_words, (str, bytes)):
            raise TypeError(f"trigger_words is {shown(trigger_words)}; it takes a sequence of texts")
        words = [checks.text("trigger_words", word) for word in trigger_words]
        if b"" in words:
            raise GrammarError("trigger_words holds an empty text, which is everywhere")
        return cls._lazy(model, grammar_str, grammar_root, words, [], trigger_tokens)

    @classmethod
    def grammar_lazy_patterns(
        cls,
        model: ModelBase,
        grammar_str: str,
        grammar_root: str,
        trigger_patterns: Iterable[str],
        trigger_tokens: ArrayLike = (),
    ) -> Self:
        r"""Allow everything until the text matches a pattern, or a token comes; then the grammar applies.

        Parameters
        ----------
        model, grammar_str, grammar_root
            As for :meth:`grammar`.
        trigger_patterns
            Regular expressions of C++ (ECMAScript). The grammar applies from the first group that matched something, or
            else from the beginning of the match. A pattern of the form ``^...$`` is first tried on the whole text.
        trigger_tokens
            Tokens that start it. Here the text of a control token counts.

        Raises
        ------
        GrammarError
            As for :meth:`grammar`, or if a pattern is not one of C++'s, has more than 1000 bytes, repeats a group that
            holds a choice or a repetition, or if nothing could ever start the grammar.
        SamplerError
            From ``accept`` and ``sample``, when matching a pattern takes too long.

        Notes
        -----
        As ``llama_sampler_init_grammar_lazy_patterns``. A text is read once, as it grows; only with ``\b``, ``\B``, a
        back-reference, or ``$`` in a lookahead, the whole text so far is searched after each token.
        """
        if isinstance(trigger_patterns, (str, bytes)):
            raise TypeError(f"trigger_patterns is {shown(trigger_patterns)}; it takes a sequence of patterns")
        patterns = list(trigger_patterns)
        for pattern in patterns:
            try:
                check_pattern(pattern)
            except ValueError as error:
                raise GrammarError(f"trigger_patterns: {error}") from None
        return cls._lazy(model, grammar_str, grammar_root, [], [each.encode() for each in patterns], trigger_tokens)

    @classmethod
    def _lazy(
        cls,
        model: ModelBase,
        grammar_str: str,
        grammar_root: str,
        words: list[bytes],
        patterns: list[bytes],
        trigger_tokens: ArrayLike,
    ) -> Self:
        vocabulary(model)
        tokens = checks.int32_array("trigger_tokens", trigger_tokens, 0, model.n_vocab - 1)
        if not words and not patterns and not tokens.size:
            raise GrammarError("there is no trigger: nothing would ever start the grammar")
        if len(words) > TRIGGERS_MAX or len(patterns) > TRIGGERS_MAX:
            raise GrammarError(f"there are {max(len(words), len(patterns))} triggers; at most {TRIGGERS_MAX} are taken")
        sampler = cls._grammar(model, grammar_str, grammar_root)
        texts = [[ffi.new("char[]", text) for text in each] for each in (words, patterns)]
        ids = ffi.new("llama_token[]", tokens.tolist())
        try:
            lib.moebind_grammar_wait(
                sampler._open(), texts[0], len(words), texts[1], len(patterns), ids, int(tokens.size)
            )
        except NativeError as error:
            raise GrammarError(f"trigger_patterns: {error.message}") from None
        return sampler

    @classmethod
    def _grammar(cls, model: ModelBase, grammar_str: str, grammar_root: str) -> Self:
        vocab: CData = vocabulary(model)
        text, root = checks.text("grammar_str", grammar_str), checks.text("grammar_root", grammar_root)
        if len(text) > BYTES_MAX:
            raise GrammarError(f"grammar_str has {len(text)} bytes; at most {BYTES_MAX} are taken")
        try:
            native = own(lib.own_moebind_sampler_grammar, model._open_grammars(), text, root, holds=[vocab])
        except NativeError as error:
            raise GrammarError(f"the grammar is not usable: {error.message}") from None
        sampler = cls._make(native, holds=(vocab,))
        sampler._is_grammar = sampler._is_checked = sampler._is_for_a_text = True
        return sampler
