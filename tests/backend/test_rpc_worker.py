"""Workers started by hand: the command line, two of them for one model, and other network namespaces."""

from __future__ import annotations

import gc
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import moebind
import moebind.backend.rpc_servers
from conftest import CPU, SMALL
from moebind import Device, Model, ModelParams
from moebind.backend import rpc_worker

sys.path.insert(0, str(Path(__file__).parent))
from relay import free_port, worker_process  # beside this file

MakeTiny = Callable[..., Path]


@contextmanager
def added(endpoint: str) -> Iterator[Device]:
    [device] = moebind.add_rpc_server(endpoint)
    try:
        yield device
    finally:
        gc.collect()
        moebind.backend.rpc_servers.forget_server(endpoint)


def text_of(model: Model) -> str:
    with model.new_context(SMALL) as context:
        return "".join(piece.text for piece in context.generate("Once upon a time", max_tokens=24))


# --- two workers ---


def networks(stack: ExitStack, count: int) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """Addresses for workers, how their commands begin, and what more they need to be told.

    Each in a network namespace of its own where this machine allows it, whose traffic stays on this machine; otherwise
    they have loopback addresses.
    """
    made = []
    for number in range(count):
        name, outer, inner = f"moebind-{os.getpid()}-{number}", f"mb{os.getpid() % 10**6}o{number}", f"mb{number}"
        prefix = f"10.213.{(os.getpid() + number) % 256}"
        steps = [
            f"netns add {name}",
            f"link add {outer} type veth peer name {inner} netns {name}",
            f"addr add {prefix}.1/30 dev {outer}",
            f"link set {outer} up",
            f"-n {name} addr add {prefix}.2/30 dev {inner}",
            f"-n {name} link set {inner} up",
            f"-n {name} link set lo up",
        ]
        stack.callback(subprocess.run, ["ip", "netns", "delete", name], check=False, capture_output=True)
        for step in steps:
            try:
                subprocess.run(["ip", *step.split()], check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError):
                return [(f"127.0.0.{number + 2}", (), ()) for number in range(count)]
        made.append((f"{prefix}.2", ("ip", "netns", "exec", name), ("--allow-network",)))
    return made


def test_experts_on_one_machine_and_the_rest_on_another(demo_path: Path) -> None:
    with Model.load_from_file(demo_path, CPU) as model:
        expected = text_of(model)
    with ExitStack() as stack:
        devices = []
        for host, inside, more in networks(stack, 2):
            _, endpoint = stack.enter_context(worker_process(host, inside=inside, more=more))
            devices.append(stack.enter_context(added(endpoint)))
        rest, experts = devices
        params = ModelParams(devices=(rest, experts), tensor_split=(1, 0)).with_tensor_override(r"_exps\.", experts)
        with Model.load_from_file(demo_path, params) as model:
            assert {tensor.device for tensor in model.placement[0].tensors} == {experts.name}
            assert len(model.placement[0].tensors) == 90
            with model.new_context(SMALL) as context:
                told = {each.name: each for each in context.memory_breakdown().devices}
            assert told[experts.name].model > 350 * 2**20
            assert 0 < told[rest.name].model < 100 * 2**20
            assert text_of(model) == expected
        half = ModelParams(devices=(rest, experts), tensor_split=(1, 1))
        with Model.load_from_file(demo_path, half) as model:
            assert text_of(model) == expected


def test_one_worker_for_two_models(tiny_path: MakeTiny) -> None:
    with worker_process() as (_, endpoint), added(endpoint) as device:
        params = ModelParams(devices=(device,))
        with Model.load_from_file(tiny_path(n_expert=4), params) as first:
            # Adding it again while it is in use needs no second connection, which would have to wait.
            assert moebind.add_rpc_server(endpoint) == [device]
            with Model.load_from_file(tiny_path(n_expert=4), params) as second:
                assert text_of(first) == text_of(second)


def test_a_server_is_taken_out_of_the_list(tiny_path: MakeTiny) -> None:
    with worker_process() as (_, endpoint):
        [device] = moebind.add_rpc_server(endpoint)
        with Model.load_from_file(tiny_path(n_expert=4), ModelParams(devices=(device,))):
            with pytest.raises(moebind.MoebindError, match=f"a model uses {device.name}"):
                moebind.remove_rpc_server(endpoint)
            assert device in moebind.devices()
        moebind.remove_rpc_server(endpoint)
        assert device.name not in [each.name for each in moebind.devices()]
        moebind.remove_rpc_server(endpoint)
        assert [each.name for each in moebind.add_rpc_server(endpoint)] == [device.name]
        moebind.remove_rpc_server(endpoint)
    for wrong in ("", "host", None):
        with pytest.raises((TypeError, ValueError), match="endpoint"):
            moebind.remove_rpc_server(wrong)  # type: ignore[arg-type]


def test_a_worker_that_another_process_uses(tiny_path: MakeTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    with worker_process() as (_, endpoint):
        host, port = endpoint.split(":")
        with socket.create_connection((host, int(port))) as other:
            other.sendall(b"\x0e")  # begins to speak
            monkeypatch.setattr("moebind.backend.rpc_servers.CONNECT_TIMEOUT", 0.3)
            with pytest.raises(moebind.RpcServerError, match="another process uses it"):
                moebind.add_rpc_server(endpoint)
        monkeypatch.undo()
        with (
            added(endpoint) as device,
            Model.load_from_file(tiny_path(n_expert=4), ModelParams(devices=(device,))) as model,
        ):
            assert text_of(model)


# --- the command line ---


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "moebind.backend.rpc_worker", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "can be reached from other machines.*no authentication: add --allow-network"),
        (["--host", "192.0.2.1"], "add --allow-network"),
        (["--host", "there.invalid"], "--host is 'there.invalid'; it takes an IPv4 address or a name"),
        (["--host", "a\udc00b"], "--host"),
        (["--port", "0"], "--port is 0; it takes 1 to 65535"),
        (["--port", "65536"], "it takes 1 to 65535"),
        (["--port", "x"], "invalid int value"),
        (["--threads", "0"], "--threads is 0"),
        (["--threads", "9999999"], "--threads is 9999999"),
        (["--device", "CUDA99"], "there is no device 'CUDA99'; there are .*CPU"),
        (["--nonsense"], "unrecognized arguments"),
    ],
)
def test_arguments_that_are_refused(
    arguments: list[str], message: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc_worker, "serve", lambda *_: pytest.fail("it serves"))
    with pytest.raises(SystemExit) as ended:
        rpc_worker.main(arguments)
    assert ended.value.code == 2
    assert re.search(message, " ".join(capfd.readouterr().err.split()))


def test_what_is_served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    served: list[tuple[object, ...]] = []
    monkeypatch.setattr(rpc_worker, "serve", lambda *given: served.append(given))
    monkeypatch.setattr(rpc_worker, "_check_free", lambda *_: None)  # somebody may have these ports
    before = signal.getsignal(signal.SIGINT)
    calls = [
        [],
        ["--host", "localhost", "--port", "50099", "--threads", "3", "--device", "CPU", "--device", "CPU"],
        ["--host", "0.0.0.0", "--allow-network", "--cache", str(tmp_path / "new")],
    ]
    for call in calls:
        with pytest.raises(SystemExit, match="cannot be served"):
            rpc_worker.main(call)
    signal.signal(signal.SIGINT, before)
    assert [each[:2] for each in served] == [("127.0.0.1", 50052), ("localhost", 50099), ("0.0.0.0", 50052)]
    assert served[1][2] == 3
    assert len(served[1][3]) == 1  # type: ignore[arg-type]
    assert served[2][4] == str(tmp_path / "new")
    assert (tmp_path / "new").is_dir()
    said = capfd.readouterr().err
    assert said.count("warning: llama.cpp's RPC has neither authentication nor encryption") == 1


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run("--port", str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert done.stderr.endswith(" is in use: end what listens there, or choose another port\n")
    assert done.stderr.count("\n") == 1


def test_ctrl_c_and_an_end_of_input() -> None:
    with worker_process(port=free_port()) as (process, endpoint):
        with added(endpoint) as device:
            assert device.memory_total > 0
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == -signal.SIGINT
