"""What native/peek and native/replaced count on inside llama.cpp, where no other test would see it change."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny

import moebind
from conftest import CPU, SMALL
from moebind import Batch, Model, StateError, lib
from moebind._core.native import LIBRARIES

ROOT = Path(__file__).resolve().parents[2]
GGML = ROOT / "vendor/llama.cpp/ggml"


def run(code: str, *arguments: object) -> str:
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


LEAVES = """
import sys
sys.path.insert(0, sys.argv[1])
import pretended
pretended.load()
from moebind import ffi, lib

def names():
    devices = [lib.ggml_backend_dev_get(i) for i in range(lib.ggml_backend_dev_count())]
    return [ffi.string(lib.ggml_backend_dev_name(each)).decode() for each in devices]

before = names()
assert "CUDA0" in before
assert lib.moebind_leave_devices(b"CUDA") == 1
assert names() == [name for name in before if name != "CUDA0"]
with open("/proc/self/maps") as maps:
    assert "libggml-pretend" in maps.read()
assert lib.moebind_leave_devices(b"CUDA") == 0
"""


def test_a_backend_that_is_left_keeps_its_code() -> None:
    """ggml_backend_unload alone would unmap it, under objects that were made with it."""
    run(LEAVES, ROOT / "tests/gpu")


TABLES = """
import ctypes, sys
import moebind
from moebind import Model, ModelParams, lib

class Used(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]

mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Used

def allocated_by(call):
    before = mallinfo()
    call()
    after = mallinfo()
    return after.uordblks + after.hblkhd - before.uordblks - before.hblkhd

MIB = 1 << 20
assert allocated_by(lib.moebind_make_tables) > 2 * MIB
assert allocated_by(lib.moebind_make_tables) < MIB
with Model.load_from_file(sys.argv[1], ModelParams(n_gpu_layers=0, devices=(), vocab_only=True)) as model:
    assert allocated_by(lambda: model.str_to_token("It's 3 o'clock, über-früh.")) < MIB
"""


def test_the_first_text_makes_no_tables(demo_path: Path) -> None:
    """While it made them a fork would leave a child that waits for them for ever; moebind.init() makes them before."""
    run(TABLES, demo_path)


CORES = {path.read_text() for path in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology/thread_siblings")}


@pytest.mark.skipif(not CORES, reason="the system does not tell its cores, and llama.cpp guesses")
def test_a_thread_for_each_core() -> None:
    n_threads = lib.moebind_default_n_threads()
    if Path("/sys/devices/cpu_core").exists():  # has slower cores, which are left out
        assert 1 <= n_threads <= len(CORES)
    else:
        assert n_threads == len(CORES)


@pytest.fixture
def everything_logged() -> Iterator[None]:
    moebind.set_log("debug")
    yield
    moebind.set_log()


@pytest.mark.usefixtures("everything_logged")
def test_scratch_memory_is_reserved_by_the_call_that_needs_it(
    tiny_path: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    """llama.cpp would do it in the next computation, which is too late to refuse an adapter."""

    def reserved_by(call: Callable[[], object]) -> bool:
        caplog.clear()
        call()
        return any("reserving" in record.getMessage() for record in caplog.records)

    with Model.load_from_file(tiny_path(n_layer=4), CPU) as model, model.new_context(SMALL) as context:
        assert not reserved_by(lambda: context.decode(Batch.get_one([1])))
        assert reserved_by(lambda: context.set_control_vector(np.ones((3, 64))))
        assert not reserved_by(lambda: context.decode(Batch.get_one([1])))


@pytest.mark.parametrize("factors", [True, False])
def test_a_state_does_not_go_where_positions_are_rotated_otherwise(tmp_path: Path, factors: bool) -> None:
    """llama.cpp chooses by the context's length between a model's two sets of factors."""
    shape = tiny.Shape()
    tensors = tiny._tensors(shape, np.random.default_rng(shape.seed))
    if factors:
        n = shape.n_embd // shape.n_head // 2
        tensors["rope_factors_short.weight"] = np.ones(n, np.float32)
        tensors["rope_factors_long.weight"] = np.full(n, 2, np.float32)
    metadata = {**tiny._metadata(shape), "llama.rope.scaling.original_context_length": 256}
    metadata["llama.rope.scaling.type"] = "longrope"
    path = tmp_path / "model.gguf"
    tiny._write_file(path, shape.arch, metadata, tensors)
    with Model.load_from_file(path, CPU) as model:
        with model.new_context(SMALL.with_n_ctx(256)) as short, model.new_context(SMALL.with_n_ctx(512)) as long:
            short.decode(Batch.get_one([1, 5, 7]))
            state = short.state_get()
            if factors:
                with pytest.raises(StateError, match="positions"):
                    long.state_set(state)
            else:
                long.state_set(state)


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with libggml's part that loads the CUDA backend, as a library of its own."""
    folder = tmp_path_factory.mktemp("loader")
    command = ["g++", "-shared", "-fPIC", "-std=c++17", "-Dggml_backend_cuda_reg=moebind_cuda_backend"]
    command += [f"-I{GGML}/include", f"-I{GGML}/src", "-o", str(folder / "libloader.so")]
    command += [str(ROOT / "native/replaced/cuda_loader.cpp"), f"-L{LIBRARIES}", "-lggml-base", "-ldl"]
    subprocess.run([*command, f"-Wl,-rpath,{LIBRARIES}"], check=True)
    return folder


ASKS = """
import ctypes, sys
driver, loader = sys.argv[1:]
if driver:
    ctypes.CDLL(driver)
loader = ctypes.CDLL(loader)
loader.moebind_cuda_backend.restype = ctypes.c_void_p
loader.moebind_cuda_unloaded.restype = ctypes.c_char_p
print(loader.moebind_cuda_backend())
print(loader.moebind_cuda_unloaded().decode())
"""


def library(path: Path, source: str = "") -> Path:
    command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{path.name}", "-o", str(path), "-x", "c", "-"]
    subprocess.run(command, input=source, text=True, check=True)
    return path


def test_the_cuda_backend_is_the_one_beside_the_loader(loader: Path) -> None:
    driver = library(loader / "libcuda.so.1")
    backend = loader / "libggml-cuda.so"
    answer, reason = run(ASKS, driver, loader / "libloader.so").splitlines()
    assert answer == "None"
    assert str(backend) in reason
    library(backend, "void * ggml_backend_cuda_reg(void) { return (void *) 4096; }")
    assert run(ASKS, driver, loader / "libloader.so") == "4096\n\n"


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="there is a driver")
def test_without_a_driver_the_loader_says_so(loader: Path) -> None:
    answer, reason = run(ASKS, "", loader / "libloader.so").splitlines()
    assert answer == "None"
    assert "libcuda.so.1" in reason


#: The function of ggml-cuda.cu that native/peek/described_devices.cpp repeats, since CUDA's backend is in few builds.
BATCH_SIZE = re.compile(r"int64_t \w*batch_size\(const ggml_tensor \* op\) \{(.*?)\n\}\n", re.DOTALL)


def test_described_devices_take_over_from_the_batch_on_that_cuda_does() -> None:
    ours = (ROOT / "native/peek/described_devices.cpp").read_text(encoding="utf-8")
    theirs = (GGML / "src/ggml-cuda/ggml-cuda.cu").read_text(encoding="utf-8")
    (rule,) = BATCH_SIZE.findall(ours)
    assert [rule.split()] == [each.split() for each in BATCH_SIZE.findall(theirs)]
    default = re.findall(r'getenv\("GGML_OP_OFFLOAD_MIN_BATCH"\)\) : (\d+);', theirs)
    assert default == re.findall(r"std::atoi\(least\) : (\d+)\)", ours)
    assert len(default) == 1
    assert "return get_op_batch_size(op) >= dev_ctx->op_offload_min_batch_size;" in theirs
