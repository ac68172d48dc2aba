"""Many requests over time, computed together."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeVar

from moebind._core import checks
from moebind._core.arguments import explained
from moebind._core.other_names import missing, uncallable
from moebind._core.owner import OfThisProcess, warn_unclosed
from moebind._core.shown import shown
from moebind.context.asynchronous import in_thread
from moebind.context.context import Context
from moebind.context.conversation import Conversation
from moebind.context.deliveries import Asked, Reader, ToTask, ToThread
from moebind.context.engine_drafts import MODELS, check_kind, drafts_for
from moebind.context.engine_options import check_names
from moebind.context.engine_streams import EngineChatReply, EnginePieces
from moebind.context.engine_thread import EngineThread
from moebind.context.generate import Generation
from moebind.context.speculative import Speculative
from moebind.context.stepping import Steps
from moebind.errors import BatchError, ClosedError, SpeculativeError
from moebind.params.params import ContextParams

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import ArrayLike
    from typing_extensions import Self, Unpack

    from moebind.backend.timings import Timings
    from moebind.context.async_generation import AsyncChatReply, AsyncPieces
    from moebind.context.asynchronous import Leave
    from moebind.context.engine_options import ChatOptions, GenerateOptions
    from moebind.context.engine_streams import Prepared
    from moebind.context.pieces import Piece, Pieces, Record, Stream
    from moebind.context.prepare import Request
    from moebind.context.replies import ChatReply
    from moebind.enums import SpeculativeType
    from moebind.model.adapters import LoraAdapter
    from moebind.model.model import Model
    from moebind.params.draft import Draft

__all__ = ["Engine"]

S = TypeVar("S", bound="Stream")

#: A level of priority is worth so many places in the queue.
PLACES = 64
#: Names of other calls for arguments of its constructor.
_ELSEWHERE = {"params": "context_params", "draft": "speculative", "draft_model": "speculative"}


class _Prepared(Iterator["Piece"]):
    """In the place of pieces: the request that they are to be the answer to."""

    def __init__(self, run: Asked) -> None:
        self.run = run

    def __next__(self) -> Piece:
        raise AssertionError("the request was not submitted")


class _EngineContext(Context):
    """The context of an engine: it checks requests, and leaves them to be computed."""

    _numbers: Iterator[int]
    #: What drafts for texts that do not say what else does.
    _usual: Speculative | None = None

    def _request(self, *arguments: Any, **options: Any) -> Request:
        # Whoever asks may go on using a sampler, or ask with it twice.
        return super()._request(*arguments, **{**options, "copies": True})

    def _generate(
        self,
        request: Request,
        seq_id: SupportsIndex,
        reuse_prefix: bool,
        speculative: Speculative | SpeculativeType | str | None,
    ) -> tuple[Iterator[Piece], Record]:
        run = Asked.of(next(self._numbers), request, self, self._drafting_with(speculative))
        return _Prepared(run), run.record

    def _check_drafting(self, speculative: Speculative | SpeculativeType | str | None) -> None:
        usual = self._usual
        if isinstance(speculative, Speculative):
            if speculative.target_context is not self:
                raise SpeculativeError(f"{speculative!r} drafts for another context: {MODELS}")
        elif speculative is not None:
            check_kind(speculative)
        super()._check_drafting(speculative)
        if usual is not None and usual._drafting.follows and speculative is not None and speculative is not usual:
            raise SpeculativeError(
                f"speculative is {shown(speculative)}; this engine drafts from hidden states ({usual!r}), and follows "
                "all that is computed, which other drafts would disturb: leave it out, or give None for a text without "
                "drafts"
            )


class Engine(OfThisProcess):
    """Answers requests that come when they like, many at a time: continuous batching.

    It has a context, and a thread that computes. All texts that go on are computed in the same batches, one token of
    each; a request that comes joins them with the next batch, and a long prompt is computed in parts between them. When
    there are more requests than sequences, they wait.

    Parameters
    ----------
    model
        What answers.
    context_params
        Of its context: ``n_seq_max`` is how many texts are computed at a time, and ``n_ctx`` is for all of them
        together. None: one text at a time, of at most 512 tokens with its prompt, and the others wait. With
        ``kv_unified`` texts share ``n_ctx``, so that a long one can use what short ones leave.
    prompt_chunk
        How many tokens of prompts are computed together with a token of each text that goes on. Fewer stall running
        texts less, more have new ones begin sooner.
    n_ahead
        How many pieces are computed for a reader who does not read them. Its text is paused then, and gives its
        sequence to a request that waits for one.
    max_waiting
        How many requests may wait besides as many as there are sequences; more are refused with
        :class:`EngineFullError`. None: any number.
    speculative
        What drafts tokens for texts whose request does not say: a kind of n-grams such as ``"ngram-simple"``, or
        ``"auto"``, as for ``Context.generate``; a :class:`Draft`, which is loaded, and closed with the engine; a
        function that is given the engine's context, and makes a :class:`Speculative` for it, which is closed with the
        engine; None: nothing.

    Raises
    ------
    ContextCreationError
        As ``Model.new_context``.
    BatchError
        If the model writes no text, or encodes what it is asked first, as T5 does.
    ValueError
        If ``n_batch`` is smaller than ``n_seq_max``.
    SpeculativeError, ModelLoadError
        If what is to draft cannot draft for this model, or cannot be loaded.

    Notes
    -----
    Closing it, with ``close()`` or as a context manager (``with`` or ``async with``), ends what is not written yet.

    Examples
    --------
    >>> with Engine(model, ContextParams(n_ctx=8 * 1024, n_seq_max=8)) as engine:
    ...     stories = [engine.generate(prompt, max_tokens=64) for prompt in prompts]
    ...     for story in stories:  # all are being written
    ...         print(story.complete().text)
    """

    _thread: EngineThread
    _elsewhere = "load the model there again, and make one with Engine(model, params)"

    @explained({ContextParams: "Engine(model, {})"}, _ELSEWHERE)
    def __init__(
        self,
        model: Model,
        context_params: ContextParams | None = None,
        *,
        prompt_chunk: SupportsIndex = 64,
        n_ahead: SupportsIndex = 64,
        max_waiting: SupportsIndex | None = None,
        speculative: SpeculativeType | str | Draft | Callable[[Context], Speculative] | None = None,
    ) -> None:
        from moebind.model.model import Model

        if not isinstance(model, Model):
            raise TypeError(f"model is {shown(model)}; it takes a Model, such as Model.load_from_file(path)")
        params = ContextParams() if context_params is None else context_params
        chunk = checks.integer("prompt_chunk", prompt_chunk, 1)
        ahead = checks.integer("n_ahead", n_ahead, 1)
        waiting = None if max_waiting is None else checks.integer("max_waiting", max_waiting, 0)
        context, opened = _EngineContext._of(model, params, None, None), ExitStack()
        try:
            context._check_generates()
            if context._has_cross_attention:
                raise BatchError("this model decodes what was encoded for each text, which an engine cannot do")
            if context._n_batch < context._n_seq_max:
                raise ValueError(
                    f"n_batch is {context._n_batch} and n_seq_max is {context._n_seq_max}; a batch of an engine has a "
                    "token of each sequence: make n_batch at least as large"
                )
            context._numbers = count()
            context._usual = usual = drafts_for(context, speculative, opened)
            steps = Steps(context, iter(()), usual, keeps=True, n_prompt=chunk, use=context._use)
            n_open_max = None if waiting is None else waiting + context._n_seq_max
            self._context: _EngineContext = context
            self._thread = EngineThread(context, steps, ahead, n_open_max, opened)
        except BaseException:
            with opened:
                context.close()
            raise

    if not TYPE_CHECKING:  # type checkers would take it for any attribute

        def __getattr__(self, name: str) -> object:
            raise missing(self, name)

        def __call__(self, *args: object, **kwargs: object) -> object:
            """Refuse, and say what to write: the object of llama-cpp-python is called."""
            raise uncallable(self)

    # --- requests ---

    def generate(
        self,
        prompt: str | ArrayLike | Sequence[Mapping[str, object]],
        /,
        *,
        priority: SupportsIndex = 0,
        adapters: Mapping[LoraAdapter, float] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Pieces:
        """Ask for a text. It is computed from now on, whether its pieces are read or not.

        Parameters
        ----------
        prompt
            As for ``Context.generate``.
        priority
            Any integer. Higher ones go before lower ones, where requests wait for a sequence: with each level as if it
            had come 64 requests earlier, so that nobody waits forever.
        adapters
            LoRA adapters with their scales, for this text: as for ``Context.set_lora_adapters``; None: none. What is
            computed together has the same ones, so a request with others waits until the running texts have ended, and
            those that come later wait for it.
        options
            As for ``Context.generate``: ``sampler``, of which each request gets a clone, or its short forms,
            ``json_schema``, ``max_tokens``, ``stop``, ``logprobs``. ``speculative`` is a kind of n-grams or ``"auto"``
            for this text; None: no drafts; left out: as the engine was made. There is no ``seq_id``, ``reuse_prefix``
            or ``mtmd``.

        Returns
        -------
        Pieces
            An iterator of :class:`Piece`; ``complete()`` waits for the whole. Closing it, in any thread, leaving its
            ``with`` block, or dropping it cancels the request.

        Raises
        ------
        TypeError, ValueError, SamplerError, GrammarError
            As ``Context.generate``, for what is wrong with the request, such as a prompt that does not fit a sequence.
        EngineFullError
            If too many requests wait.
        AbortedError, ClosedError
            While it is read, if :meth:`abort` or :meth:`close` was called.

        Notes
        -----
        An exception of the request's own parts, such as a callback of its sampler, is raised where it is read, and ends
        this request alone. Where a computation fails, those that were computed together end with it.

        Examples
        --------
        >>> for piece in engine.generate("Once upon a time", temperature=0.8):
        ...     print(piece.text, end="", flush=True)
        """
        check_names("generate", Generation.generate, options)
        place = self._place(priority, adapters)
        return self._read(self._open().generate(prompt, **self._with_usual(options)), place)

    def chat(
        self,
        messages: Sequence[Mapping[str, object]],
        /,
        *,
        priority: SupportsIndex = 0,
        adapters: Mapping[LoraAdapter, float] | None = None,
        **options: Unpack[ChatOptions],
    ) -> ChatReply:
        """Ask for the answer to messages: ``Context.chat``. For all else, see :meth:`generate`.

        Returns
        -------
        ChatReply
            An iterator of :class:`Piece`; ``complete()`` gives the message, and ``deltas()`` gives it bit by bit.

        Examples
        --------
        >>> reply = engine.chat([{"role": "user", "content": "Hello"}], max_tokens=32)
        >>> print(reply.complete()["content"])
        """
        check_names("chat", Conversation.chat, options)
        place = self._place(priority, adapters)
        return self._read(self._open().chat(messages, **self._with_usual(options)), place)

    def agenerate(
        self,
        prompt: str | ArrayLike | Sequence[Mapping[str, object]],
        /,
        *,
        priority: SupportsIndex = 0,
        adapters: Mapping[LoraAdapter, float] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncPieces:
        """Ask for a text with asyncio, when the first piece is awaited. For all else, see :meth:`generate`.

        Returns
        -------
        AsyncPieces
            An asynchronous iterator of :class:`Piece`; its ``complete()``, awaited, gives the whole. The
            request is cancelled when its task is, or when it is closed or dropped.

        Examples
        --------
        >>> async with engine.agenerate("Once upon a time", max_tokens=32) as pieces:
        ...     async for piece in pieces:
        ...         print(piece.text, end="", flush=True)
        """
        check_names("agenerate", Generation.generate, options)
        context, given = self._open(), self._with_usual(options)
        context._check_agenerate(prompt, dict(given))
        make = partial(context.generate, prompt, **given)
        return EnginePieces(partial(self._prepare, make, self._place(priority, adapters)), _itself)

    def achat(
        self,
        messages: Sequence[Mapping[str, object]],
        /,
        *,
        priority: SupportsIndex = 0,
        adapters: Mapping[LoraAdapter, float] | None = None,
        **options: Unpack[ChatOptions],
    ) -> AsyncChatReply:
        """Ask for the answer to messages with asyncio: :meth:`chat`, as :meth:`agenerate`.

        Returns
        -------
        AsyncChatReply
            An asynchronous iterator of :class:`Piece`; ``await reply.complete()`` is the message, and ``deltas()``
            gives it bit by bit.

        Examples
        --------
        >>> reply = engine.achat([{"role": "user", "content": "Hello"}], max_tokens=32)
        >>> print((await reply.complete())["content"])
        """
        check_names("achat", Conversation.chat, options)
        context, given = self._open(), self._with_usual(options)
        context._check_achat(messages, dict(given))
        make = partial(context.chat, messages, **given)
        return EngineChatReply(partial(self._prepare, make, self._place(priority, adapters)), _itself)

    def _with_usual(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options of a request, with what drafts for it."""
        return {"speculative": self._context._usual, **options}

    def _place(self, priority: SupportsIndex, adapters: Mapping[LoraAdapter, float] | None) -> tuple[int, Any]:
        """Before how many in the queue a request goes, and what it is computed with, checked."""
        level = checks.integer("priority", priority, -checks.INT32_MAX)
        return level * PLACES, () if adapters is None else self._context._checked_adapters(adapters)

    def _prepared(self, stream: Stream, place: tuple[int, Any]) -> Asked:
        """The request whose pieces a stream is to give."""
        assert isinstance(stream._pieces, _Prepared)  # noqa: S101
        run = stream._pieces.run
        run.rank, run.loras = run.index - place[0], place[1]
        return run

    def _read(self, stream: S, place: tuple[int, Any]) -> S:
        """Submit the request of a stream, and have it read the pieces."""
        run = self._prepared(stream, place)
        # First the reader: when Ctrl-C comes now, it is dropped, which cancels the request.
        stream._pieces = Reader(ToThread(self._thread, run, self._thread.n_ahead), self)
        self._thread.submit(run)
        return stream

    async def _prepare(self, make: Callable[[], Stream], place: tuple[int, Any]) -> tuple[Prepared, Leave]:
        """The stream of a request, which rendering and reading take a while to make, and what submits it."""
        stream = await in_thread(make)
        return (stream, partial(self._submit, self._prepared(stream, place))), _nothing

    def _submit(self, run: Asked) -> ToTask:
        """Submit a request of the task that is running."""
        delivery = ToTask(self._thread, run, self._thread.n_ahead)
        try:
            self._thread.submit(run)
        except BaseException:  # also Ctrl-C
            delivery.leave()
            raise
        return delivery

    def abort(self) -> None:
        """End all requests that there are with :class:`AbortedError`, soon; later ones are computed. For any thread."""
        self._open()
        self._thread.abort()

    # --- what it is ---

    @property
    def model(self) -> Model:
        """The model that answers."""
        return self._context.model

    @property
    def params(self) -> ContextParams:
        """The parameters that its context was made with."""
        return self._context.params

    @property
    def n_ctx_seq(self) -> int:
        """Tokens that one text can have, with its prompt (``llama_n_ctx_seq``)."""
        return self._open().n_ctx_seq

    @property
    def n_seq_max(self) -> int:
        """How many texts are computed at a time."""
        return self._open().n_seq_max

    @property
    def n_running(self) -> int:
        """How many requests are computed now, those included whose readers are waited for."""
        return self._thread.n_running

    @property
    def n_waiting(self) -> int:
        """How many requests wait for a sequence: a server that has too many can refuse more."""
        return max(0, self._thread.n_open - self._thread.n_running)

    def timings(self) -> Timings:
        """How long computing has taken so far (``llama_perf_context``); waits for the batch that is computed."""
        return self._open().timings()

    @property
    def closed(self) -> bool:
        """Whether it was closed, or its model."""
        return self._context.closed

    def close(self) -> None:
        """End it: what is not written yet raises :class:`ClosedError`. Closing twice does nothing."""
        self._thread.stop()
        self._thread.join()

    def _open(self) -> _EngineContext:
        """Its context.

        Raises
        ------
        ClosedError
        """
        if self._thread.over is not None:
            raise ClosedError(self._thread.over)
        if self._context.closed:
            raise ClosedError(f"this Engine cannot be used: {self._context._why_closed}")
        return self._context

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def aclose(self) -> None:
        """:meth:`close`, while the event loop goes on."""
        await in_thread(self.close)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self, _ending: Callable[[], bool] = sys.is_finalizing) -> None:
        thread: EngineThread | None = self.__dict__.get("_thread")  # it may have been refused
        if thread is None or thread.over is not None:
            return
        try:
            if not _ending():
                warn_unclosed(self)
        finally:
            thread.stop()  # it closes the context

    def __repr__(self) -> str:
        if self.closed:
            return "<Engine, closed>"
        drafts = "" if self._context._usual is None else f", drafts: {self._context._usual!r}"
        texts = f"{self.n_seq_max} sequences, {self.n_running} running, {self.n_waiting} waiting"
        return f"<Engine of {self.model!r}, {texts}{drafts}>"


def _itself(stream: Stream) -> Stream:
    return stream


def _nothing() -> None:
    """Give nothing back: the engine takes care of it."""
