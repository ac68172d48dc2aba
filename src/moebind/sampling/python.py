"""Samplers that are Python: how they are made, and what native/sampling/python_sampler.cpp calls."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import numpy as np

from moebind._core import checks
from moebind._core.arguments import explained
from moebind._core.native import CData, ffi, handle_of, lib, own
from moebind._core.shown import shown
from moebind.sampling.candidates import TOKEN_DATA, TokenDataArray
from moebind.sampling.grammar import GrammarKinds
from moebind.sampling.kinds import vocabulary

if TYPE_CHECKING:
    from typing_extensions import Self

    from moebind._core.model_base import ModelBase
    from moebind.sampling.guidance import Vocabulary

__all__ = ["PythonKinds", "PythonSampler", "applying"]


class _Current(threading.local):
    """The candidates that this thread's samplers are working on, the innermost last."""

    def __init__(self) -> None:
        self.arrays: list[TokenDataArray] = []


_current = _Current()


@contextmanager
def applying(array: TokenDataArray) -> Iterator[None]:
    """Have samplers in Python get this very object, while samplers are applied to ``array``."""
    _current.arrays.append(array)
    try:
        yield
    finally:
        _current.arrays.pop()


class PythonSampler:
    """A Python function, or an object with more methods, as a sampler.

    Parameters
    ----------
    fn
        Called with the candidates. Its ``accept(token)`` and ``reset()`` are called where it has them; an object that
        has either is copied with ``clone()``, or else ``copy.deepcopy``.
    """

    def __init__(self, fn: Callable[[TokenDataArray], object]) -> None:
        self._fn = fn
        self._accept = _method(fn, "accept")
        self._reset = _method(fn, "reset")
        self._clone = _method(fn, "clone")
        #: The pointer that C++ gives back to the callbacks.
        self.handle = handle_of(self)

    def apply(self, native: CData) -> None:
        """Let the function edit candidates in place."""
        array = _current.arrays[-1] if _current.arrays else None
        if array is not None and array._struct() == native:
            array._take_back()
            self._call(array)
            return
        # Memory of somebody else's, of which a view could outlive it: lib.llama_sampler_sample, or an exotic chain.
        theirs = np.frombuffer(ffi.buffer(native.data, native.size * TOKEN_DATA.itemsize), TOKEN_DATA)
        array = TokenDataArray(theirs.copy(), bool(native.sorted))
        array.selected = int(native.selected) if 0 <= native.selected < native.size else None
        self._call(array)
        theirs[: len(array)] = array.data
        native.size, native.sorted = len(array), array.sorted
        native.selected = -1 if array.selected is None else array.selected

    def _call(self, array: TokenDataArray) -> None:
        result: object = self._fn(array)
        if result is not None:
            raise TypeError(
                f"{shown(self._fn)} returned {shown(result)}; a sampler edits the candidates in place, returns None"
            )
        array._check_sorted()

    def accept(self, token: int) -> None:
        """Tell the object that a token was chosen."""
        if self._accept is not None:
            self._accept(token)

    def reset(self) -> None:
        """Tell the object to begin again."""
        if self._reset is not None:
            self._reset()

    def clone(self) -> PythonSampler:
        """One with a state of its own; functions are shared."""
        if self._clone is not None:
            fn = self._clone()
            if not callable(fn):
                raise TypeError(f"{shown(self._fn)}.clone() returned {shown(fn)}; it takes a callable")
            return PythonSampler(fn)
        stateful = self._accept is not None or self._reset is not None
        return PythonSampler(copy.deepcopy(self._fn) if stateful else self._fn)


def _method(fn: object, name: str) -> Callable[..., object] | None:
    method = getattr(fn, name, None)
    return method if callable(method) else None


class PythonKinds(GrammarKinds):
    """The class methods that make samplers in Python. :class:`moebind.Sampler` has them."""

    @classmethod
    def from_callable(cls, fn: Callable[[TokenDataArray], None], name: str = "python") -> Self:
        """A sampler written in Python.

        Parameters
        ----------
        fn
            Called with the candidates, which it edits in place: ``candidates.data`` is a structured array over the
            memory that the samplers work on, not a copy. It may change logits, narrow and reorder the candidates with
            ``candidates.keep(...)`` and ``candidates.sort()``, and choose with ``candidates.select(token)``. It returns
            None. Its exceptions reach the caller of ``sample``, ``apply`` or ``generate``, and nothing is chosen.

            A callable object may also have ``accept(token)``, ``reset()`` and ``clone()``, which are called together
            with the sampler's own. One without ``clone`` is copied with ``copy.deepcopy`` if it has either of the
            others.
        name
            The sampler's ``name``.

        Notes
        -----
        Uses ``llama_sampler_init``. While the function runs, the sampler and the context are in the middle of a
        call: calling them raises RuntimeError.

        Examples
        --------
        >>> def no_digits(candidates):
        ...     candidates.data["logit"][digits[candidates.data["id"]]] = -np.inf
        >>> sampler = Sampler.chain([Sampler.from_callable(no_digits), Sampler.greedy()])
        """
        if not callable(fn):
            raise TypeError(f"fn is {shown(fn)} ({type(fn).__name__}); it takes something that can be called")
        python = PythonSampler(fn)
        native = own(lib.own_moebind_sampler_python, checks.text("name", name), id(python.handle), python.handle)
        sampler = cls._make(native, keep=(python,), chooses=True)
        sampler._is_checked = True
        return sampler

    @classmethod
    @explained(other_names={"schema": "json_schema", "gbnf": "grammar", "grammar_str": "grammar"})
    def llguidance(
        cls,
        model: ModelBase,
        *,
        grammar: str | None = None,
        json_schema: Mapping[str, object] | str | None = None,
        regex: str | None = None,
        lark: str | None = None,
    ) -> Self:
        r"""Allow only text of a given form, with the package `llguidance <https://github.com/guidance-ai/llguidance>`_.

        It takes a fraction of the time of :meth:`grammar` and :meth:`json_schema` with large vocabularies, and knows
        more of JSON schemas. It needs the extra ``guidance``. Put it first in a chain. One of the forms is given.

        Parameters
        ----------
        model
            The model whose tokens are chosen. Its first such sampler takes longer: llguidance sorts its tokens.
        grammar
            In GBNF, whose root is ``root``.
        json_schema
            A JSON schema. As in the standard, and unlike in :meth:`json_schema`, an object may have more properties
            than it names, unless ``"additionalProperties": false`` says otherwise.
        regex
            A regular expression of Rust's, for the whole text.
        lark
            In llguidance's form of Lark.

        Raises
        ------
        ImportError
            Without llguidance.
        GrammarError
            If llguidance refuses it.
        TokenizeError
            If the model has no vocabulary, or no token that ends a text.
        SamplerError
            When the sampler is used: if no allowed candidate is left, or if it takes more time or memory than
            llguidance grants.

        Notes
        -----
        A sampler in Python (:meth:`from_callable`) around ``llguidance.LLMatcher``.

        Examples
        --------
        >>> date = Sampler.llguidance(model, regex=r"\d{4}-\d{2}-\d{2}")
        >>> sampler = Sampler.chain([date, Sampler.greedy()])
        >>> context.generate("Today is ", sampler=sampler).complete().text
        """
        vocabulary(model)
        from moebind.sampling.guidance import Guidance

        text = Guidance.of(cast("Vocabulary", model), grammar=grammar, json_schema=json_schema, regex=regex, lark=lark)
        sampler = cls.from_callable(text, "llguidance")
        sampler._chooses, sampler._is_for_a_text = False, True
        return sampler
