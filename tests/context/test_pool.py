"""A pool of contexts, also behind a real server whose clients go away."""

from __future__ import annotations

import asyncio
import random
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn
from generations import Gate, threads
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from conftest import SMALL
from moebind import ClosedError, Context, ContextPool, Model, Sampler

N_TOKENS = 60


@pytest.fixture
def pool(dense: Model) -> Iterator[ContextPool]:
    with ContextPool([dense.new_context(SMALL) for _ in range(2)]) as pool:
        yield pool


def wait_until(true: Callable[[], bool]) -> None:
    """Until pytest's own limit."""
    while not true():
        time.sleep(0.005)


def slow() -> Sampler:
    """Takes a while for each token, so that clients have the time to go away."""
    return Sampler.chain([Sampler.from_callable(lambda _candidates: time.sleep(0.001)), Sampler.greedy()])


def prompt_of(client: int) -> list[int]:
    return [1, *range(3 + client, 12 + client)]


# --- the server ---


def app_of(pool: ContextPool) -> Starlette:
    """The recipe of docs/recipes.md."""

    async def write(request: Request) -> StreamingResponse:
        client = int(request.query_params["client"])

        async def text() -> AsyncIterator[str]:
            async with pool.agenerate(prompt_of(client), sampler=slow(), max_tokens=N_TOKENS) as pieces:
                async for piece in pieces:
                    yield f"{piece.token} "

        return StreamingResponse(text(), media_type="text/plain")

    return Starlette(routes=[Route("/", write)])


class Server(uvicorn.Server):
    loop: asyncio.AbstractEventLoop

    async def startup(self, sockets: Any = None) -> None:
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)

    @property
    def port(self) -> int:
        return int(self.servers[0].sockets[0].getsockname()[1])


@contextmanager
def serving(app: Starlette) -> Iterator[Server]:
    server = Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive())
        yield server
    finally:
        server.should_exit = True
        thread.join()


async def ask(port: int, client: int, n_bytes: int | None) -> list[int]:
    """The tokens of an answer; with ``n_bytes`` the client goes away after so many."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET /?client={client} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n".encode())
        if n_bytes is not None:
            if n_bytes:
                await reader.read(n_bytes)
            return []
        answer = (await reader.read()).decode()
    finally:
        writer.close()
    head, _, body = answer.partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200"), head
    assert body.endswith("0\r\n\r\n"), "the server broke off"  # the last chunk
    lines = body.split("\r\n")
    return [int(token) for token in "".join(lines[1::2]).split()]


@pytest.mark.parametrize("seed", [1, 2])
def test_fifty_clients_of_which_many_go_away(pool: ContextPool, dense: Model, seed: int) -> None:
    chance = random.Random(seed)
    # Some at once, some in the middle of the head, some in the middle of the text.
    leaving = {client: chance.choice([0, 1, 80, 200, 400]) for client in range(50) if chance.random() < 0.5}
    with dense.new_context(SMALL) as context:
        expected = {
            client: [piece.token for piece in context.generate(prompt_of(client), max_tokens=N_TOKENS)]
            for client in range(50)
        }

    async def clients(port: int, ids: range) -> list[list[int]]:
        return await asyncio.gather(*[ask(port, client, leaving.get(client)) for client in ids])

    with serving(app_of(pool)) as server:
        answers = asyncio.run(clients(server.port, range(50)))
        wait_until(lambda: pool.n_free == 2 and pool.n_waiting == 0 and not threads())
        leaving.clear()
        later = asyncio.run(clients(server.port, range(4)))
        assert server.loop._default_executor is None  # type: ignore[attr-defined]  # asyncio's threads are not used
    for client, answer in [*enumerate(answers), *enumerate(later)]:
        assert answer in ([], expected[client])
    assert sum(map(bool, answers)) > 10
    assert all(later)
    wait_until(lambda: not threads())


# --- without a server ---


def test_each_gets_its_own_text(pool: ContextPool, dense: Model) -> None:
    async def one(client: int) -> list[int]:
        return [piece.token async for piece in pool.agenerate(prompt_of(client), max_tokens=8)]

    async def main() -> list[list[int]]:
        return await asyncio.gather(*map(one, range(9)))

    tokens = asyncio.run(main())
    with dense.new_context(SMALL) as context:
        for client in range(9):
            assert tokens[client] == [piece.token for piece in context.generate(prompt_of(client), max_tokens=8)]


def test_who_asks_first_is_first(dense: Model) -> None:
    began: list[int] = []

    async def main(pool: ContextPool) -> None:
        def noting(client: int) -> Sampler:
            return Sampler.chain([Sampler.from_callable(lambda _: began.append(client)), Sampler.greedy()])

        asked = [pool.agenerate([1], sampler=noting(client), max_tokens=1).complete() for client in range(9)]
        await asyncio.gather(*asked)

    with ContextPool([dense.new_context(SMALL)]) as pool:
        asyncio.run(main(pool))
    assert began == [*range(9)]


def test_who_waits_and_goes_away_loses_the_place(pool: ContextPool) -> None:
    async def main() -> None:
        gates = [Gate(), Gate()]
        begun = [asyncio.ensure_future(pool.agenerate([1, 2], sampler=gate.sampler()).complete()) for gate in gates]
        waiting = [asyncio.ensure_future(pool.agenerate([1, n], max_tokens=3).complete()) for n in range(3, 8)]
        while pool.n_waiting < 5:
            await asyncio.sleep(0)
        for gate in gates:
            await gate.is_reached()
        assert repr(pool) == "<ContextPool of 2 contexts, 0 free, 5 waiting>"
        for task in [*waiting[:3], *begun]:
            task.cancel()
        await asyncio.wait(waiting[:3])
        assert pool.n_waiting == 2
        for gate in gates:
            gate.open.set()
        assert [len(each.tokens) for each in await asyncio.gather(*waiting[3:])] == [3, 3]

    asyncio.run(main())
    wait_until(lambda: not threads())
    assert pool.n_free == 2


def test_a_slow_client_keeps_no_context(pool: ContextPool) -> None:
    async def main() -> None:
        slow_ones = [pool.agenerate([1, 2], max_tokens=9) for _ in range(4)]
        for each in slow_ones:
            assert (await anext(each)).index == 0  # the third one has to wait for a context
        while pool.n_free < 2:
            await asyncio.sleep(0)
        assert [len((await each.complete()).tokens) for each in slow_ones] == [9] * 4

    asyncio.run(main())


def test_several_event_loops(pool: ContextPool) -> None:
    results: list[int] = []

    def work() -> None:
        async def main() -> None:
            for _ in range(5):
                results.extend([len((await pool.agenerate([1, 5], max_tokens=4).complete()).tokens)])

        asyncio.run(main())

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert results == [4] * 20
    assert pool.n_free == 2


def test_chats(demo: Model) -> None:
    async def main(pool: ContextPool) -> None:
        replies = [pool.achat([{"role": "user", "content": f"Say {n}"}], max_tokens=4) for n in range(3)]
        for reply in replies:
            assert (await reply.complete())["role"] == "assistant"
        async for delta in pool.achat([{"role": "user", "content": "Hello"}], max_tokens=3).deltas():
            assert delta["content"]

    with ContextPool([demo.new_context(SMALL)]) as pool:
        asyncio.run(main(pool))
        assert pool.n_free == 1


def test_closing(dense: Model) -> None:
    pool = ContextPool([dense.new_context(SMALL)])
    pool.close()
    with pytest.raises(ClosedError):
        asyncio.run(pool.agenerate([1]).complete())
    assert pool.n_free == 1
    with pytest.raises(ClosedError):
        ContextPool(pool.contexts)


def test_an_error_gives_the_context_back(pool: ContextPool) -> None:
    async def main() -> None:
        for _ in range(3):
            with pytest.raises(ValueError, match="larger n_ctx"):
                await pool.agenerate([1] * 999).complete()
            with pytest.raises(ValueError, match="seq_id"):
                await pool.agenerate([1], seq_id=7).complete()
            with pytest.raises(TypeError, match="tokens_max"):
                await pool.agenerate([1], tokens_max=7).complete()  # type: ignore[call-arg]

    asyncio.run(main())
    assert pool.n_free == 2


@pytest.mark.parametrize(
    ("contexts", "error", "message"),
    [
        (lambda context: context, TypeError, "a list of contexts"),
        (lambda _context: 3, TypeError, "a list of contexts"),
        (lambda context: [context, None], TypeError, "holds None"),
        (lambda _context: [], ValueError, "at least one"),
        (lambda context: [context, context], ValueError, "twice"),
    ],
)
def test_bad_arguments(
    context: Context, contexts: Callable[[Context], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ContextPool(contexts(context))


@pytest.mark.parametrize(("name", "instead"), [("generate", "pool.agenerate(prompt)"), ("chat", "pool.achat(")])
def test_pools_are_for_asyncio(pool: ContextPool, name: str, instead: str) -> None:
    with pytest.raises(AttributeError, match=re.escape(instead)):
        getattr(pool, name)
    assert not hasattr(pool, "nonesuch")


def test_what_is_asynchronous_says_how_it_is_read(pool: ContextPool) -> None:
    async def main() -> None:
        with pytest.raises(TypeError, match=r"AsyncPieces is read with async for, or whole: .*await .*complete\(\)$"):
            list(pool.agenerate("a", max_tokens=1))  # type: ignore[call-overload]
        with pytest.raises(TypeError, match=r"AsyncPieces is awaited whole: .*\)\.complete\(\); .* use async for$"):
            await pool.agenerate("a", max_tokens=1)  # type: ignore[misc]

    asyncio.run(main())


def test_what_is_given_by_position_is_named(pool: ContextPool) -> None:
    context = pool.contexts[0]
    with pytest.raises(
        TypeError, match=r"^generate\(\) takes prompt by position, .*: 3 takes its name before it, .*max_tokens"
    ):
        context.generate("a", 3)  # type: ignore[misc]
    with pytest.raises(TypeError, match=r"^ContextPool\(\) takes contexts by position, and no more$"):
        ContextPool([context], 2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^str_to_token\(\) has no argument 'add_bos'; it is 'add_special' here$"):
        context.model.str_to_token("a", add_bos=True)  # type: ignore[call-arg]
