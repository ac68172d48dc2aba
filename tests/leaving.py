"""Ways in which a coroutine goes away from what is generated for it."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from moebind import AsyncPieces

__all__ = ["WAYS_TO_LEAVE"]


async def cancelled(stream: AsyncPieces) -> None:
    task = asyncio.ensure_future(stream.complete())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def timed_out(stream: AsyncPieces) -> None:
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(stream.complete(), 0.01)


async def left(stream: AsyncPieces) -> None:
    with pytest.raises(ZeroDivisionError):
        async with stream:
            1 / 0  # noqa: B018


async def closed(stream: AsyncPieces) -> None:
    await stream.aclose()
    await stream.aclose()


async def closed_by_contextlib(stream: AsyncPieces) -> None:
    async with aclosing(stream):
        pass


WAYS_TO_LEAVE = [cancelled, timed_out, left, closed, closed_by_contextlib]
