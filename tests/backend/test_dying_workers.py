"""Workers that are killed or stopped, each in a Python process that has to go on and to end well."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

import moebind
from moebind import ModelLoadError, ModelParams
from moebind.backend.loopback import worker_pids

MakeTiny = Callable[..., Path]

HEAD = """
import os, signal, sys, threading, time
import moebind
from moebind import Batch, ContextParams, Model, ModelLoadError, ModelParams, RpcServerError
from moebind.backend.loopback import worker_pids
from moebind.backend.rpc_servers import _endpoints
path = sys.argv[1]
moebind.set_log(None)  # a failed load logs a few lines
small = ContextParams(n_ctx=256, n_threads=1, n_threads_batch=1)

def others_work():
    with Model.load_from_file(path, ModelParams(n_gpu_layers=0, devices=())) as model:
        with model.new_context(small) as context:
            assert len(list(context.generate("a", max_tokens=3)))

def start(timeout=60):
    global worker, device, pid, endpoint
    worker = moebind.loopback_device()
    device = worker.__enter__()
    pid, [endpoint] = worker_pids[device.name], sorted(_endpoints)
    moebind.add_rpc_server(endpoint, timeout=timeout)

def send(number):
    os.kill(pid, number)
    # Only now: a worker that is well may be slow. Who waits already looks again how long it may.
    moebind.lib.moebind_rpc_timeouts(endpoint.encode(), 60_000, 700)

def loaded():
    global model, context
    model = Model.load_from_file(path, ModelParams(devices=(device,)))
    context = model.new_context(small)
    context.decode(Batch.get_one([1, 2, 3]))
    context.get_logits()

def fails(call, kind=RpcServerError):
    try:
        call()
    except kind as error:
        assert endpoint in str(error), error
    else:
        raise AssertionError("it works")

def waits():
    # Whether a native call of the main thread's lasts, as it does while it waits for a worker that is stopped.
    # By many looks: the whole machine may stand still for a while.
    begun = calls_begun[0]
    for _ in range(25):
        time.sleep(0.02)
        if not calls_begun[0] == begun > calls_ended[0]:
            return False
    return True

calls_begun, calls_ended = [0], [0]

def count(_frame, event, function):
    if getattr(function, "__self__", None) is moebind.lib:
        if event == "c_call":
            calls_begun[0] += 1
        else:
            calls_ended[0] += 1

def compute():
    context.kv_cache_clear()
    list(context.generate("hello there", max_tokens=200))
    list(context.generate("again", max_tokens=200))
"""

TAIL = """
others_work()
print("done", flush=True)
"""


def run(code: str, *arguments: object) -> None:
    """The process must go on to its end, and end by itself, well and in silence."""
    command = [sys.executable, "-W", "ignore", "-c", HEAD + code + TAIL, *map(str, arguments)]
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


@pytest.mark.parametrize("sent", ["SIGKILL", "SIGSTOP"])
def test_between_calls(tiny_path: MakeTiny, sent: str) -> None:
    run(
        f"""
calls = [
    (lambda: (context.decode(Batch.get_one([4])), context.get_logits()), RpcServerError),
    (compute, RpcServerError),
    (lambda: (context.kv_cache_clear(), compute()), RpcServerError),
    (lambda: model.new_context(small), RpcServerError),
    (lambda: Model.load_from_file(path, model.params), ModelLoadError),
]
for call, kind in calls:
    start()
    loaded()
    send(signal.{sent})
    fails(call, kind)
    fails(compute)
    others_work()
    context.close()
    model.close()
    worker.__exit__(None, None, None)
    assert device.name not in [each.name for each in moebind.devices()]
""",
        tiny_path(n_expert=4),
    )


@pytest.mark.parametrize("sent", ["SIGKILL", "SIGSTOP"])
def test_in_the_middle_of_generate(tiny_path: MakeTiny, sent: str) -> None:
    run(
        f"""
start()
loaded()
threading.Timer(0.1, send, [signal.{sent}]).start()

def for_ever():
    while True:
        compute()

fails(for_ever)
worker.__exit__(None, None, None)
assert model.closed and context.closed
""",
        tiny_path(n_expert=4),
    )


@pytest.mark.parametrize("sent", ["SIGKILL", "SIGSTOP"])
def test_in_the_middle_of_loads(tiny_path: MakeTiny, sent: str) -> None:
    run(
        f"""
start()

def load():
    while True:
        Model.load_from_file(path, ModelParams(devices=(device,)).with_progress_callback(progress)).close()

def progress(fraction):
    if fraction > 0.5:
        send(signal.{sent})

fails(load, ModelLoadError)
worker.__exit__(None, None, None)
""",
        tiny_path(n_expert=4, n_layer=4),
    )


@pytest.mark.parametrize("sent", ["SIGKILL", "SIGSTOP"])
def test_before_everything_is_closed_by_the_interpreters_end(tiny_path: MakeTiny, tmp_path: Path, sent: str) -> None:
    run(
        f"""
start()
loaded()
view = context.get_logits()
sys.modules["keep"] = [view, model, context]
open(sys.argv[2], "w").write(str(pid))
send(signal.{sent})
""",
        tiny_path(n_expert=4),
        tmp_path / "pid",
    )
    with suppress(ProcessLookupError):  # a stopped one does not end by itself
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


@pytest.mark.parametrize("sent", ["SIGKILL", "SIGSTOP"])
def test_close_after_it(tiny_path: MakeTiny, sent: str) -> None:
    run(
        f"""
start()
loaded()
view = context.get_logits()
send(signal.{sent})
worker.__exit__(None, None, None)
assert model.closed
view.sum()
del view
""",
        tiny_path(n_expert=4),
    )


def test_a_worker_that_only_paused_is_waited_for(tiny_path: MakeTiny) -> None:
    run(
        """
start()
loaded()
context.kv_cache_clear()
expected = [piece.token for piece in context.generate("hello", max_tokens=5)]
context.kv_cache_clear()
os.kill(pid, signal.SIGSTOP)
threading.Timer(0.5, lambda: os.kill(pid, signal.SIGCONT)).start()
assert [piece.token for piece in context.generate("hello", max_tokens=5)] == expected
worker.__exit__(None, None, None)
""",
        tiny_path(n_expert=4),
    )


def test_ctrl_c_while_a_worker_is_waited_for(tiny_path: MakeTiny) -> None:
    """The first one lets the worker finish; it does not, and the second one gives it up."""
    run(
        """
start(timeout=None)
loaded()
os.kill(pid, signal.SIGSTOP)

def press():
    for _ in range(2):
        while not waits():
            pass
        os.kill(os.getpid(), signal.SIGINT)

sys.setprofile(count)
threading.Thread(target=press).start()
try:
    compute()
except KeyboardInterrupt:
    pass
else:
    raise AssertionError("it works")
fails(compute)
try:
    compute()
except RpcServerError as error:
    assert "interrupted" in str(error)
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
worker.__exit__(None, None, None)
""",
        tiny_path(n_expert=4),
    )


def test_one_ctrl_c_lets_the_worker_finish(tiny_path: MakeTiny) -> None:
    run(
        """
start(timeout=None)
loaded()
context.kv_cache_clear()
expected = [piece.token for piece in context.generate("hello", max_tokens=5)]
os.kill(pid, signal.SIGSTOP)

def press():
    while not waits():
        pass
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.3)
    os.kill(pid, signal.SIGCONT)

sys.setprofile(count)
thread = threading.Thread(target=press)
thread.start()
try:
    compute()
except KeyboardInterrupt:
    pass
else:
    raise AssertionError("it works")
thread.join()
context.kv_cache_clear()
assert [piece.token for piece in context.generate("hello", max_tokens=5)] == expected
worker.__exit__(None, None, None)
""",
        tiny_path(n_expert=4),
    )


def test_a_new_worker_at_the_same_address(tiny_path: MakeTiny) -> None:
    run(
        """
import gc, subprocess
sys.path.insert(0, sys.argv[2])
from relay import free_port, worker_process
port = free_port()
with worker_process(port=port) as (process, endpoint):
    [device] = moebind.add_rpc_server(endpoint)
    loaded()
    expected = list(context.get_logits()[0])
fails(compute)
model.close()
gc.collect()
with worker_process(port=port) as (process, endpoint):
    [again] = moebind.add_rpc_server(endpoint)
    assert again == device or again.name == device.name
    loaded()
    assert list(context.get_logits()[0]) == expected
    model.close()
""",
        tiny_path(n_expert=4),
        Path(__file__).parent,
    )


def test_a_plan_for_a_worker_that_died(tiny_path: MakeTiny) -> None:
    with moebind.loopback_device() as device:
        params = ModelParams(devices=(device,))
        assert moebind.plan(tiny_path(n_expert=4), params).device_bytes
        os.kill(worker_pids[device.name], signal.SIGKILL)
        with pytest.raises(ModelLoadError, match=r"could not be planned: .*127\.0\.0\.1"):
            moebind.plan(tiny_path(n_expert=4), params)
        with pytest.raises(ModelLoadError, match=r"could not be planned: .*127\.0\.0\.1"):
            moebind.fit(tiny_path(n_expert=4), model_params=params)
