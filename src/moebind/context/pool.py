"""A few contexts for many clients."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from moebind._core.arguments import explained
from moebind._core.other_names import missing, uncallable
from moebind._core.shown import shown
from moebind.context.async_generation import AsyncChatReply, AsyncGeneration, AsyncPieces, with_arguments_of
from moebind.context.asynchronous import Leave
from moebind.context.context import Context
from moebind.context.conversation import Conversation
from moebind.context.generate import Generation
from moebind.context.turns import Turns

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["ContextPool"]


class ContextPool:
    """A few contexts that many asyncio clients share: each generation takes one that is free, in the order of asking.

    A context is back when its generation ends, and a generation ends at the latest with its text: no client that goes
    away, or fetches nothing, keeps one.

    Parameters
    ----------
    contexts
        At least one. They belong to the pool, which closes them; nothing else may generate in them meanwhile.

    Examples
    --------
    >>> pool = ContextPool(model.new_context(params) for _ in range(2))
    >>> async for piece in pool.agenerate("Once upon a time", max_tokens=32):
    ...     print(piece.text, end="", flush=True)
    """

    @explained()
    def __init__(self, contexts: Iterable[Context]) -> None:
        if isinstance(contexts, Context) or not isinstance(contexts, Iterable):
            raise TypeError(f"contexts is {shown(contexts)}; it takes a list of contexts")
        self._contexts = tuple(contexts)
        for context in self._contexts:
            if not isinstance(context, Context):
                raise TypeError(f"contexts holds {shown(context)}; it takes contexts, which Model.new_context makes")
            context._open()
        if not self._contexts:
            raise ValueError("contexts is empty; a pool takes at least one")
        if len({*map(id, self._contexts)}) != len(self._contexts):
            raise ValueError("contexts has one of them twice; each generation needs a context of its own")
        self._turns = Turns(self._contexts)

    if not TYPE_CHECKING:  # type checkers would take it for any attribute

        def __getattr__(self, name: str) -> object:
            raise missing(self, name)

        def __call__(self, *args: object, **kwargs: object) -> object:
            """Refuse, and say what to write: the object of llama-cpp-python is called."""
            raise uncallable(self)

    @property
    def contexts(self) -> tuple[Context, ...]:
        """Its contexts."""
        return self._contexts

    @property
    def n_free(self) -> int:
        """How many contexts no generation uses."""
        return self._turns.n_free

    @property
    def n_waiting(self) -> int:
        """How many generations wait for a context: a server that has too many can refuse more."""
        return self._turns.n_waiting

    @with_arguments_of(Generation.generate)
    def agenerate(self, prompt: Any, **options: Any) -> AsyncPieces:
        """Generate text in the first context that is free: ``Context.agenerate``."""
        self._contexts[0]._check_agenerate(prompt, options)
        return AsyncPieces(partial(self._enter, options), lambda context: context.generate(prompt, **options))

    @with_arguments_of(Conversation.chat)
    def achat(self, messages: Any, **options: Any) -> AsyncChatReply:
        """Answer messages in the first context that is free: ``Context.achat``."""
        self._contexts[0]._check_achat(messages, options)
        return AsyncChatReply(partial(self._enter, options), lambda context: context.chat(messages, **options))

    async def _enter(self, options: dict[str, Any]) -> tuple[AsyncGeneration, Leave]:
        context = await self._turns.take()
        try:
            _, leave = await context._enter(options)
        except BaseException:
            self._turns.give(context)
            raise
        return context, partial(self._leave, context, leave)

    def _leave(self, context: Context, leave: Leave) -> None:
        leave()
        self._turns.give(context)

    def close(self) -> None:
        """Close the contexts: generations in them, and those that wait, raise :class:`ClosedError`."""
        for context in self._contexts:
            context.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ContextPool of {len(self._contexts)} contexts, {self.n_free} free, {self.n_waiting} waiting>"
