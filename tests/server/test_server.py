"""Servers: what they answer, and what becomes of them."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hub_server import Hub
from serving import CONTEXT, PATIENCE, SMALL_SERVER, ask, complete, family, gone_afterwards, is_there, until

import moebind
from conftest import CPU
from moebind import (
    ClosedError,
    ContextParams,
    FitError,
    Model,
    ModelNotFoundError,
    ModelParams,
    ServerError,
)
from moebind.backend import breakdown
from moebind.backend.host_memory import HostMemory
from moebind.placement.device_budgets import MARGIN_SHARE
from moebind.server import Server, supervisor
from moebind.server.folders import of_file
from moebind.server.placed import Wishes, place, server_context
from moebind.server.supervisor import Supervisor

MakeTiny = Callable[..., Path]


@pytest.fixture(scope="module")
def path(tiny_path: MakeTiny) -> Path:
    return tiny_path(n_expert=4)


@pytest.fixture(scope="module")
def folder(tiny_path: MakeTiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models, one of which is none."""
    found = tmp_path_factory.mktemp("models")
    for name, seed in (("a", 1), ("b", 2)):
        (found / f"{name}.gguf").symlink_to(tiny_path(n_expert=4, seed=seed))
    (found / "bad.gguf").write_bytes(b"GGUF, or so it says")
    return found


@pytest.fixture(scope="module")
def server(path: Path) -> Iterator[Server]:
    with start(path, api_key="sesame") as server:
        yield server


@pytest.fixture(scope="module")
def router(folder: Path) -> Iterator[Server]:
    with Server(models_dir=folder, **SMALL_SERVER) as server:
        yield server


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "DELAYS", (0.01, 0.01))


def start(path: Path, **arguments: Any) -> Server:
    return Server(path, **SMALL_SERVER, **arguments)


def test_moebind_server_is_there_when_it_is_asked_for() -> None:
    code = "import sys, moebind; print('moebind.server' in sys.modules, moebind.server.Server.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False Server\n"


def test_a_draft_by_another_name() -> None:
    with pytest.raises(TypeError, match="no argument 'model_draft'; it is 'draft' here"):
        Server("moe.gguf", model_draft="draft.gguf")  # type: ignore[call-arg]


def test_it_gives_the_tokens_that_the_library_gives(server: Server, path: Path) -> None:
    with Model.load_from_file(path, CPU) as model, model.new_context(CONTEXT) as context:
        tokens = [piece.token for piece in context.generate("it is", max_tokens=8)]
    answer = complete(server.url, n_predict=8, Authorization="Bearer sesame")
    assert (answer.status, answer.said["tokens"]) == (200, tokens)


def test_several_models_by_their_names(router: Server, folder: Path) -> None:
    assert [(model.name, model.offered) for model in router.models] == [("a", True), ("b", True), ("bad", False)]
    assert "not a GGUF file" in str(router.models[2].reason)
    assert [each["id"] for each in ask(router.url, "/v1/models").said["data"]] == ["a", "b"]
    for name in ("a", "b", "a"):
        with Model.load_from_file(folder / f"{name}.gguf", CPU) as model, model.new_context(CONTEXT) as context:
            tokens = [piece.token for piece in context.generate("it is", max_tokens=4)]
        assert complete(router.url, name).said["tokens"] == tokens
    for missing in ("bad", "none"):
        answer = complete(router.url, missing)
        assert answer.status in {400, 404}
        assert f"'{missing}' not found" in answer.said["error"]["message"]


def loaded(server: Server) -> list[str]:
    listed = ask(server.url, "/models").said["data"]
    return [each["id"] for each in listed if each["status"]["value"] != "unloaded"]


def test_as_many_as_fit_stay_in_memory(router: Server) -> None:
    for name in ("a", "b"):
        assert complete(router.url, name).status == 200
    assert loaded(router) == ["a", "b"]


def test_no_more_than_fit_are_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wishes = Wishes(CPU, server_context(CONTEXT, None))
    needs = place(of_file(folder / "a.gguf"), wishes, alone=False).needs["Host"]
    for count in (1, 2):
        size = round((count + 0.5) * needs) * MARGIN_SHARE // (MARGIN_SHARE - 1)  # one more would not fit
        monkeypatch.setattr(breakdown, "host_memory", lambda size=size: HostMemory(size, size))
        with Server(models_dir=folder, **SMALL_SERVER) as server:
            assert server.at_once == count
            for name, before in (("a", []), ("b", ["a"] if count == 2 else [])):
                assert complete(server.url, name).status == 200
                assert loaded(server) == [*before, name]


def option(name: str, process: psutil.Process) -> list[str]:
    """The values that an option has on a command line."""
    words = process.cmdline()
    return [words[at + 1] for at, word in enumerate(words) if word == name]


def test_llama_servers_own_fit_is_off(server: Server, router: Server) -> None:
    _, single = family(server)
    assert option("--fit", single) == ["off"]
    assert complete(router.url, "a").status == 200
    _, several, *models = family(router)
    assert models
    assert [option("--fit", each) for each in models] == [["off"]] * len(models)
    assert option("--models-preset", several)  # by which they have it, and not from the router's own command line
    assert option("--fit", several) == []


def test_one_at_a_time(folder: Path) -> None:
    with Server(models_dir=folder, **SMALL_SERVER, one_at_a_time=True) as server:
        for name in ("a", "b", "a"):
            assert complete(server.url, name).status == 200
            assert loaded(server) == [name]
        assert server.at_once == 1


def test_several_files_are_as_a_folder(folder: Path) -> None:
    files = [folder / "a.gguf", str(folder / "b.gguf")]
    with Server(files, **SMALL_SERVER) as server:
        assert [each["id"] for each in ask(server.url, "/v1/models").said["data"]] == ["a", "b"]
        assert repr(server) == f"<Server {server.url} of a, b>"
        assert str(server).splitlines()[0] == server.url
        assert "In memory at once: 2 of 2." in str(server).splitlines()
        models = [model.to_dict() for model in server.models]
        assert server.to_dict() == {"url": server.url, "page": server.page, "at_once": 2, "models": models}
        open_ = str(server)
    assert repr(server) == f"<Server {server.url} of a, b, closed>"
    closed = str(server)
    assert closed.splitlines()[0] == f"{server.url}, which is closed"
    assert set(closed.splitlines()[1:]) < set(open_.splitlines())
    assert "browser" not in closed and "In memory" not in closed


def test_threads_may_be_among_the_arguments_for_llama_server(folder: Path) -> None:
    for given in ({"model": folder / "a.gguf"}, {"models_dir": folder}):
        with Server(**{**SMALL_SERVER, "extra": ["--no-warmup", "-t", "2"]}, **given) as server:
            assert complete(server.url, "a").status == 200
            pids = [each for each in family(server)[1:] if "--model" in each.cmdline()]
            [threads] = [each.cmdline() for each in pids]
            at = [number for number, each in enumerate(threads) if each in {"-t", "--threads"}]
            assert [threads[number + 1] for number in at] == ["2"]
            assert "multiple times" not in server.log


def test_a_model_of_the_hub_is_downloaded_if_it_fits(hub: Hub, tiny_path: MakeTiny, tmp_path: Path) -> None:
    with pytest.raises(FitError):
        Server("hf://someone/tiny/Q4_K_M", **SMALL_SERVER, margin=2**50)
    assert not list(tmp_path.rglob("*.gguf"))
    with Server("hf://someone/tiny/Q4_K_M", **SMALL_SERVER) as server:
        assert ask(server.url, "/v1/models").said["data"][0]["id"] == "tiny-Q4_K_M"
        assert Path(server.models[0].path).read_bytes() == tiny_path(n_expert=4, seed=2).read_bytes()


def test_where_none_can_be_served_it_says_why(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"junk")
    (tmp_path / "y.gguf").write_bytes(b"junk")
    with pytest.raises(ServerError, match=r"(?s)^none of 2 models can be served: x: .*not a GGUF file.*; y: "):
        Server(models_dir=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"model": "/no/such.gguf"}, ModelNotFoundError, "such.gguf does not exist"),
        ({"models_dir": "/no/such"}, ModelNotFoundError, "the folder /no/such does not exist"),
        ({"model": None}, ValueError, "there is no model"),
        ({"host": "0.0.0.0"}, ValueError, "which other machines can reach, and there is no key"),
        ({"host": "no such host"}, ValueError, "^host is"),
        ({"port": 70000}, ValueError, "^port is"),
        ({"port": "80"}, TypeError, "^port is"),
        ({"parallel": 0}, ValueError, "^parallel is"),
        ({"n_ctx": 0}, ValueError, "^n_ctx is"),
        ({"parallel": 1000}, ValueError, "^n_seq_max is"),
        ({"margin": "much"}, ValueError, "^margin is"),
        ({"margin": 2**50}, FitError, "does not fit"),
        ({"fit": 1}, TypeError, "^fit is"),
        ({"one_at_a_time": "yes"}, TypeError, "^one_at_a_time is"),
        ({"allow_network": None}, TypeError, "^allow_network is"),
        ({"model_params": CONTEXT}, TypeError, "^model_params is"),
        ({"context_params": CPU}, TypeError, "^context_params is"),
        ({"model_params": ModelParams(vocab_only=True)}, ValueError, "^vocab_only is True"),
        ({"context_params": ContextParams(n_rs_seq=1)}, ValueError, "^n_rs_seq is 1"),
        ({"model_params": ModelParams().with_cpu_override("a=b", strict=False)}, ValueError, "has the pattern 'a=b'"),
        ({"extra": "--temp 0"}, TypeError, "^extra is the text"),
        ({"extra": ["--port", "1"]}, ValueError, "^--port is among the arguments"),
        ({"model": 3.5}, TypeError, "^model is 3.5 .float.; it takes the path of a file, or a list of paths"),
        ({"api_key": ""}, ValueError, "^api_key is empty"),
        ({"api_key": []}, ValueError, "^api_key has no key"),
        ({"api_key": ["a", "b\n"]}, ValueError, "^api_key is empty, begins with #"),
        ({"api_key": "#a"}, ValueError, "^api_key is empty, begins with #"),
        ({"api_key": "ä"}, ValueError, "^api_key is empty, begins with #"),
        ({"api_key": [1]}, TypeError, "^api_key holds a int"),
        ({"mmproj": "/no/such.gguf"}, ModelNotFoundError, "such.gguf does not exist"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_bad_arguments(arguments: dict[str, Any], kind: type[Exception], message: str, path: Path) -> None:
    given = {"model": path, "model_params": CPU, **({"model": None} if "models_dir" in arguments else {}), **arguments}
    with pytest.raises(kind, match=message):
        Server(**given)


def test_a_port_in_use(path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ServerError, match=f"127.0.0.1:{port} is in use"):
            start(path, port=port)


def test_beyond_this_machine_with_a_key_or_a_word(path: Path) -> None:
    for given in ({"api_key": "sesame"}, {"allow_network": True}):
        with start(path, host="0.0.0.0", **given) as server:
            assert server.url.startswith("http://127.0.0.1:")
            assert ask(server.url, "/health").status == 200


def test_llama_server_says_what_it_does_not_like(path: Path) -> None:
    with pytest.raises(ServerError, match=r"ended with status 1\nllama-server: error: invalid argument: --nonsense"):
        with Server(path, model_params=CPU, extra=["--nonsense"]):
            pass


def test_it_ends_with_its_block(path: Path) -> None:
    with start(path) as server:
        files = Path(server._folder.path)
        assert files.exists()
        with gone_afterwards(server):
            server.close()
        server.close()
        assert server.pid is None
        assert server.wait_ended(0)
        for use in (server.restart, lambda: server.wait_ready(0)):
            with pytest.raises(ClosedError):
                use()
    assert not files.exists()
    assert "listening on" in server.log


def test_without_a_block_it_is_waited_for(path: Path) -> None:
    server = start(path)
    try:
        server.wait_ready(PATIENCE)
        assert complete(server.url).status == 200
        with pytest.raises(ValueError, match="^timeout is"):
            server.wait_ready(-1)
    finally:
        server.close()


def test_asynchronously(path: Path) -> None:
    async def main() -> psutil.Process:
        async with start(path) as server:
            answer = await asyncio.to_thread(complete, server.url)
            assert answer.status == 200
            return psutil.Process(server.pid)

    assert not asyncio.run(main()).is_running()


def test_waiting_asynchronously_can_be_cancelled(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Supervisor, "_answers", lambda self: False)

    async def main() -> Server:
        server = start(path)

        async def enter() -> None:
            async with server:
                raise AssertionError("it is not ready")

        task = asyncio.create_task(enter())
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return server

    assert asyncio.run(main()).wait_ended(0)


def server_pid(server: Server) -> int:
    until(lambda: server.pid)
    assert server.pid is not None
    return server.pid


def test_it_ends_when_nobody_has_it_any_more(path: Path) -> None:
    server = start(path)
    server.wait_ready(PATIENCE)
    with gone_afterwards(server):
        files = Path(server._folder.path)
        del server
        gc.collect()
    until(lambda: not files.exists())


def test_a_restart_keeps_the_address(path: Path) -> None:
    with start(path) as server:
        url, first = server.url, server.pid
        server.restart()
        server.wait_ready(PATIENCE)
        assert (server.url, server.pid != first) == (url, True)
        assert complete(url).status == 200


def test_kill_9_of_the_server(path: Path, quick: None, caplog: pytest.LogCaptureFixture) -> None:
    with start(path) as server, caplog.at_level(logging.WARNING, "moebind.server"):
        with gone_afterwards(server) as processes:
            first = server_pid(server)
            os.kill(first, signal.SIGKILL)
        until(lambda: server.pid not in {first, None})
        server.wait_ready(PATIENCE)
        assert complete(server.url).status == 200
        assert len(processes) == 2
    assert "because memory ran out; it is started again" in caplog.text


def test_kill_9_of_the_keeper(folder: Path, quick: None) -> None:
    with Server(models_dir=folder, **SMALL_SERVER) as server:
        assert complete(server.url, "a").status == 200
        with gone_afterwards(server) as processes:
            assert len(processes) == 3
            processes[0].kill()
        until(lambda: server.pid not in {processes[1].pid, None})
        server.wait_ready(PATIENCE)
        assert complete(server.url, "a").status == 200


def test_kill_9_of_the_router(folder: Path, quick: None) -> None:
    with Server(models_dir=folder, **SMALL_SERVER) as server:
        assert complete(server.url, "a").status == 200
        with gone_afterwards(server) as processes:
            assert len(processes) == 3
            processes[1].kill()
        until(lambda: server.pid not in {processes[1].pid, None})
        server.wait_ready(PATIENCE)
        assert complete(server.url, "a").status == 200


def test_kill_9_of_a_model_of_the_router(folder: Path) -> None:
    with Server(models_dir=folder, **SMALL_SERVER) as server:
        assert complete(server.url, "a").status == 200
        pid = server.pid
        model = family(server)[2]
        model.kill()
        until(lambda: loaded(server) == [])
        assert complete(server.url, "a").status == 200
        assert server.pid == pid


#: Serves a folder, says where, and stays; in a thread that ends, since that must not end the server.
SERVES = """
import os, sys, threading, time
from moebind import ContextParams, ModelParams
from moebind.server import Server
def serve():
    global server
    context = ContextParams(n_ctx=256, n_threads=1, n_threads_batch=1)
    server = Server(models_dir=sys.argv[1], model_params=ModelParams(devices=()), context_params=context)
    server.wait_ready()
thread = threading.Thread(target=serve)
thread.start()
thread.join()
print(server.url, server.pid, server._folder.path, flush=True)
if sys.argv[2] == "forks" and os.fork() == 0:
    server.close()
    os._exit(0)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["killed", "terminated", "ends"])
def test_nothing_is_left_of_a_server_whose_program(how: str, folder: Path) -> None:
    command = [sys.executable, "-c", SERVES, str(folder), "stays"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        url, pid, files = program.stdout.readline().split()
        assert Path(files).exists()
        assert complete(url, "a").status == 200
        main = psutil.Process(int(pid))
        keeper = main.parent()
        assert keeper is not None
        processes = [keeper, main, *main.children(recursive=True)]
        assert len(processes) == 3
        if how == "killed":
            program.kill()
        elif how == "terminated":
            program.terminate()
        else:
            assert program.stdin is not None
            program.stdin.close()
        program.wait(PATIENCE)
        until(lambda: not any(map(is_there, processes)))
        assert not Path(files).exists()


def test_the_child_of_a_fork_leaves_it_alone(folder: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", SERVES, str(folder), "forks"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        url, *_ = program.stdout.readline().split()
        children = psutil.Process(program.pid)
        until(lambda: any(each.status() == psutil.STATUS_ZOMBIE for each in children.children()))
        assert complete(url, "a").status == 200
        program.communicate("", PATIENCE)
        assert program.returncode == 0


def test_clients_that_come_and_go(server: Server) -> None:
    body = json.dumps({"prompt": "it is", "n_predict": 200, "stream": True}).encode()
    head = (
        f"POST /completion HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sesame\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    where = ("127.0.0.1", int(server.url.rpartition(":")[2]))
    pid = server.pid
    for at in range(60):
        with socket.create_connection(where) as connection:
            connection.sendall((head + body)[: at % 3 * 100_000])  # nothing, and all of it
    silent = [socket.create_connection(where) for _ in range(4)]  # they ask, and never read
    for each in silent:
        each.sendall(head + body)
    assert complete(server.url, Authorization="Bearer sesame").status == 200
    for each in silent:
        each.close()
    assert server.pid == pid


def test_many_at_once(server: Server) -> None:
    answers: list[int] = []

    def one() -> None:
        answers.append(complete(server.url, Authorization="Bearer sesame").status)

    threads = [threading.Thread(target=one) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 16


def test_it_is_exported() -> None:
    assert moebind.server.Server is Server
    assert "server" in dir(moebind)
