"""What clients see of a server that dies while they read, and what is left of it."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from serving import PATIENCE, complete, is_there, until

#: Tokens of an answer that takes longer than it takes to kill whoever gives it.
LONG = 30_000
#: Serves a folder of models as two clients need it, and stays.
SERVES = f"""
import sys
from moebind import ContextParams, ModelParams
from moebind.server import Server, supervisor
supervisor.DELAYS = (0.01, 0.01)
context = ContextParams(n_threads=1, n_threads_batch=1, n_ubatch=64, swa_full=False, kv_unified=True)
params = ModelParams(devices=())
with Server(models_dir=sys.argv[1], model_params=params, context_params=context, n_ctx={2 * LONG}) as server:
    print(server.url, server.pid, server._folder.path, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def folder(tiny_path: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("models")
    (found / "a.gguf").write_bytes(tiny_path(n_expert=4, n_ctx_train=2 * LONG).read_bytes())
    return found


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, psutil.Process, Path, psutil.Process]]:
    """Where it is, its router, its folder of temporary files, and the program that started it."""
    command = [sys.executable, "-c", SERVES, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        try:
            url, pid, files = program.stdout.readline().split()
            yield url, psutil.Process(int(pid)), Path(files), psutil.Process(program.pid)
        finally:
            program.kill()


@contextmanager
def reading(url: str) -> Iterator[Iterator[bytes]]:
    """An answer of which the first lines have come."""
    there = urlsplit(url)
    connection = http.client.HTTPConnection(str(there.hostname), int(there.port or 0), timeout=PATIENCE)
    asked = {"model": "a", "prompt": "it is", "n_predict": LONG, "ignore_eos": True, "stream": True}
    try:
        connection.request("POST", "/completion", json.dumps(asked))
        answer = connection.getresponse()
        assert answer.status == 200
        lines = iter(answer)
        assert next(lines).startswith(b"data: ")
        yield lines
    finally:
        connection.close()


def ended_whole(lines: Iterator[bytes]) -> bool:
    """Read to the end: whether it was the answer's."""
    last = b""
    try:
        for line in lines:
            last = line if line.startswith(b"data: {") and line.endswith(b"\n") else last  # one may be cut off
    except (OSError, http.client.HTTPException):
        return False
    return bool(last) and json.loads(last[6:]).get("stop") is True


@pytest.mark.parametrize("dies", ["model", "router", "parent"])
def test_a_client_sees_that_its_answer_broke_off(dies: str, folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with serving(folder) as (url, router, files, program):
        with reading(url) as lines:
            keeper = router.parent()
            assert keeper is not None
            [model] = router.children()
            processes = [program, keeper, router, model]
            {"model": model, "router": router, "parent": program}[dies].send_signal(signal.SIGKILL)
            assert not ended_whole(lines)
        if dies == "parent":
            until(lambda: not any(map(is_there, processes)))
            until(lambda: not files.exists())
        else:
            until(lambda: not is_there(model))
            until(lambda: answers(url))
            assert is_there(program)
            assert is_there(router) == (dies == "model")
    until(lambda: not any(map(is_there, processes)))
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def answers(url: str) -> bool:
    try:
        return complete(url, "a").status == 200
    except (OSError, http.client.HTTPException, json.JSONDecodeError):  # a router says 500, in words that it calls JSON
        return False


def test_an_answer_that_is_whole_is_told_from_one_that_is_not() -> None:
    assert ended_whole(iter([b'data: {"stop": false}\n', b'data: {"stop": true}\n', b"\n"]))
    for lines in ([], [b'data: {"stop": false}\n'], [b'data: {"stop": false}\n', b'data: {"sto']):
        assert not ended_whole(iter(lines))
