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


#: A function of ggml-cuda.cu and of ggml-vulkan-debug.cpp that native/peek/described_devices.cpp repeats.
BATCH_SIZE = re.compile(r"int64_t \w*batch_size\(const ggml_tensor \* op\) \{(.*?)\n\}\n", re.DOTALL)


@pytest.mark.parametrize(
    ("size", "rule"),
    [
        ("src/ggml-cuda/ggml-cuda.cu", "src/ggml-cuda/ggml-cuda.cu"),
        ("src/ggml-vulkan/ggml-vulkan-debug.cpp", "src/ggml-vulkan/ggml-vulkan.cpp"),
    ],
)
def test_described_devices_take_over_from_the_batch_on_that_real_ones_do(size: str, rule: str) -> None:
    ours = (ROOT / "native/peek/described_devices.cpp").read_text(encoding="utf-8")
    (repeated,) = BATCH_SIZE.findall(ours)
    assert [repeated.split()] == [
        each.split() for each in BATCH_SIZE.findall((GGML / size).read_text(encoding="utf-8"))
    ]
    theirs = (GGML / rule).read_text(encoding="utf-8")
    default = re.findall(r'getenv\("GGML_OP_OFFLOAD_MIN_BATCH"\)\) : (\d+);', theirs)
    assert default == re.findall(r"std::atoi\(least\) : (\d+)\)", ours)
    assert len(default) == 1
    assert re.search(r"return \w*get_op_batch_size\(op\) >= dev_ctx->op_offload_min_batch_size;", theirs)


def test_described_devices_of_vulkan_write_the_types_that_real_ones_do() -> None:
    ours = (ROOT / "native/peek/described_devices.cpp").read_text(encoding="utf-8")
    theirs = (GGML / "src/ggml-vulkan/ggml-vulkan.cpp").read_text(encoding="utf-8")
    supports = theirs[theirs.index("static bool ggml_backend_vk_device_supports_op(") :]
    rows = supports[supports.index("case GGML_OP_SET_ROWS:") :]
    rows = rows[rows.index("switch (op->type)") : rows.index("default:")]
    repeated = ours[ours.index("bool takes_rows(") :]
    repeated = repeated[: repeated.index("default:")]
    assert re.findall(r"case (\w+):", repeated) == re.findall(r"case (\w+):", rows)
    assert "ggml_get_op_params_i32(op, 3) == GGML_PREC_F32" in supports
    assert "(op->src[1]->type == GGML_TYPE_BF16) != (op->src[2]->type == GGML_TYPE_BF16)" in supports
    assert "device->suballocation_block_size = 1024*1024*1024;" in theirs
    assert "tensor_size > device->properties.limits.maxStorageBufferRange" in supports
