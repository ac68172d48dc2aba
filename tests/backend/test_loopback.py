"""Another process as a device."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import moebind
import moebind.backend.loopback
from conftest import SMALL
from moebind import Batch, DeviceType, Model, ModelParams, MoebindError
from moebind.backend.loopback import worker_pids

MakeTiny = Callable[..., Path]


def test_a_loopback_device_comes_and_goes(tiny_path: MakeTiny) -> None:
    before = [each.name for each in moebind.devices()]
    with moebind.loopback_device(memory=123 * 2**20) as device:
        assert device.type is DeviceType.GPU
        assert device.capacity == 123 * 2**20 < device.memory_total
        assert [each.name for each in moebind.devices()] == [*before, device.name]
        assert moebind.devices()[device.index] == device
        worker = psutil.Process(worker_pids[device.name])
        model = Model.load_from_file(tiny_path(n_expert=4), ModelParams(devices=(device,)))
        context = model.new_context(SMALL)
        list(context.generate("a", max_tokens=2))
    assert model.closed
    assert context.closed
    assert not worker.is_running()
    assert [each.name for each in moebind.devices()] == before
    with moebind.loopback_device() as first, moebind.loopback_device() as second:
        assert first.name != second.name
        assert first.capacity == first.memory_total


def test_without_a_block_there_is_no_device() -> None:
    told = "before its block begins, which starts the worker: write with moebind.loopback_device() as device: ..."
    made = moebind.loopback_device()
    for name in ("name", "memory_total", "capacity"):
        with pytest.raises(AttributeError) as raised:
            getattr(made, name)
        assert str(raised.value) == f"loopback_device() has no {name} {told}"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'$"):
        made.nothing  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(TypeError, match=r"devices holds <loopback_device\(\), before its block: with moebind"):
        ModelParams(devices=[made])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="n_threads is 0"):
        moebind.loopback_device(n_threads=0)
    with made as device:
        assert device.name
    with pytest.raises(AttributeError):
        made.name  # type: ignore[attr-defined]  # noqa: B018


def test_one_of_two_goes(tiny_path: MakeTiny) -> None:
    with moebind.loopback_device() as stays:
        with moebind.loopback_device() as goes:
            params = ModelParams(devices=(stays, goes), tensor_split=(1, 1))
            with Model.load_from_file(tiny_path(n_expert=4), params) as model:
                assert [each.name for each in model.devices] == [stays.name, goes.name]
        with Model.load_from_file(tiny_path(n_expert=4), ModelParams(devices=(stays,))) as model:
            with model.new_context(SMALL) as context:
                assert len(list(context.generate("a", max_tokens=2)))
        with pytest.raises(ValueError, match=f"no device '{goes.name}'"):
            Model.load_from_file(tiny_path(n_expert=4), ModelParams(devices=(goes,)))


def test_the_bytes_are_in_the_worker(demo_path: Path) -> None:
    with moebind.loopback_device() as device:
        worker = psutil.Process(worker_pids[device.name])
        empty = worker.memory_info().rss
        with (
            Model.load_from_file(demo_path, ModelParams(devices=(device,))) as model,
            model.new_context(SMALL) as context,
        ):
            told = context.memory_breakdown().devices[0]
            held = worker.memory_info().rss - empty
        assert told.name == device.name
        assert held > 0.95 * told.model


def test_a_view_that_somebody_holds_keeps_the_worker(tiny_path: MakeTiny) -> None:
    with moebind.loopback_device() as device:
        worker = psutil.Process(worker_pids[device.name])
        model = Model.load_from_file(tiny_path(n_expert=4), ModelParams(devices=(device,)))
        context = model.new_context(SMALL)
        context.decode(Batch.get_one([1, 2, 3]))
        view = context.get_logits_ith(-1)
        kept = view.copy()
    assert context.closed
    assert worker.is_running()
    assert (view == kept).all()
    del view
    assert not worker.is_running()


def test_a_model_with_only_an_override_on_the_device_is_closed_too(tiny_path: MakeTiny) -> None:
    with moebind.loopback_device() as device:
        params = ModelParams(devices=(), n_gpu_layers=0).with_tensor_override("ffn_down_exps", device)
        model = Model.load_from_file(tiny_path(n_expert=4), params)
        assert {tensor.device for tensor in model.placement[0].tensors} == {device.name}
    assert model.closed


def test_an_interpreter_that_ends_in_the_middle(tiny_path: MakeTiny) -> None:
    code = (
        "import sys, moebind\n"
        "worker = moebind.loopback_device()\n"
        "device = worker.__enter__()\n"
        "model = moebind.Model.load_from_file(sys.argv[1], moebind.ModelParams(devices=(device,)))\n"
        "context = model.new_context(moebind.ContextParams(n_ctx=64))\n"
        "context.decode(moebind.Batch.get_one([1, 2]))\n"
        "held = context.get_logits()"
    )
    done = subprocess.run([sys.executable, "-c", code, tiny_path()], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_exception_ends_the_worker() -> None:
    with pytest.raises(ZeroDivisionError):
        with moebind.loopback_device() as device:
            pid = worker_pids[device.name]
            raise ZeroDivisionError
    assert not psutil.pid_exists(pid)


def test_a_worker_finds_moebind_where_we_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "moebind").mkdir()
    (tmp_path / "moebind/__init__.py").write_text("raise ImportError('the wrong one')")
    monkeypatch.chdir(tmp_path)
    with moebind.loopback_device() as device:
        assert device.type is DeviceType.GPU


def test_a_worker_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moebind.backend.loopback._WORKER", "raise SystemExit('no such luck')")
    before = set(psutil.Process().children())
    with pytest.raises(MoebindError, match="could not be started: no such luck"):
        with moebind.loopback_device():
            pass
    assert set(psutil.Process().children()) <= before


def test_a_device_is_its_own_worker() -> None:
    with moebind.loopback_device() as first, moebind.loopback_device() as second:
        for device in (first, second):
            (address,) = [each.laddr for each in psutil.Process(worker_pids[device.name]).net_connections()[:1]]
            assert device.description.endswith(f"{address.ip}:{address.port}")


def test_no_worker_is_taken_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not say where it listens is not looked for: whoever listens there may be a stranger."""
    monkeypatch.setattr("moebind.backend.loopback.add_rpc_server", lambda endpoint: pytest.fail(endpoint))
    monkeypatch.setattr("moebind.backend.loopback.START_TIMEOUT", 0.5)
    monkeypatch.setattr("moebind.backend.loopback._WORKER", "import time; time.sleep(60)")
    before = set(psutil.Process().children())
    with pytest.raises(MoebindError, match="did not begin to serve"):
        with moebind.loopback_device():
            pass
    assert set(psutil.Process().children()) <= before


def test_a_port_that_was_used_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    worker = moebind.backend.loopback._worker

    def start(n_threads: int) -> tuple[subprocess.Popen[bytes], int]:
        process, port = worker(n_threads)
        started.append(port)
        if len(started) == 1:
            monkeypatch.setattr("moebind.backend.loopback._used_ports", {port})
        return process, port

    monkeypatch.setattr("moebind.backend.loopback._worker", start)
    with moebind.loopback_device() as device:
        assert len(started) == 2
        assert device.description.endswith(f":{started[1]}")


def test_a_worker_does_not_outlive_who_started_it(tmp_path: Path) -> None:
    code = (
        "import moebind, time; from moebind.backend.loopback import worker_pids\n"
        "with moebind.loopback_device() as d:\n"
        "    print(worker_pids[d.name], flush=True)\n    time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert psutil.pid_exists(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    give_up = time.monotonic() + 60
    while psutil.pid_exists(pid):
        assert time.monotonic() < give_up
        time.sleep(0.02)


def test_ctrl_c_leaves_the_worker_alone() -> None:
    with moebind.loopback_device() as device:
        os.kill(worker_pids[device.name], signal.SIGINT)
        time.sleep(0.1)
        assert moebind.devices()[device.index].memory_total > 0


@pytest.mark.parametrize("memory", [0, -1, 1.5, "1"])
def test_bad_memory(memory: object) -> None:
    with pytest.raises((TypeError, ValueError), match="memory"):
        with moebind.loopback_device(memory=memory):  # type: ignore[arg-type]
            pass
