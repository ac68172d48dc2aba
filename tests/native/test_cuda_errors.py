"""What CUDA remembers of a computation that failed: a backend that is none fails as ggml-cuda does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from moebind import lib
from moebind._core.native import LIBRARIES

PRETENDED = Path(__file__).resolve().parents[1] / "gpu"
VENDORED = Path(__file__).resolve().parents[2] / "vendor/llama.cpp/ggml"

BACKEND = r"""
#include "ggml-backend-impl.h"
#include "ggml.h"
#include <cstring>

static int asked = 0;

extern "C" __attribute__((visibility("default"))) int cudaDeviceSynchronize(void) { return 0; }

extern "C" __attribute__((visibility("default"))) int cudaGetLastError(void) { asked++; return 2; }

static const char * name(ggml_backend_reg_t) { return "Fake"; }
static size_t count(ggml_backend_reg_t) { return 0; }
static ggml_backend_dev_t none(ggml_backend_reg_t, size_t) { return nullptr; }
static void * address(ggml_backend_reg_t, const char * what) {
    if (strcmp(what, "asked") == 0) {  // each time once to know, and once to forget
        return reinterpret_cast<void *>(static_cast<size_t>(asked));
    }
    ggml_abort("ggml-cuda.cu", 109, "%s", what);
}

static ggml_backend_reg reg = { GGML_BACKEND_API_VERSION, { name, count, none, address }, nullptr };

extern "C" __attribute__((visibility("default"))) ggml_backend_reg_t ggml_backend_init(void) { return &reg; }
"""

PROGRAM = """
import sys
from moebind import NativeError, ffi, lib
import moebind
moebind.init()
reg = lib.ggml_backend_load(sys.argv[1].encode())
asked = lambda: int(ffi.cast("size_t", lib.ggml_backend_reg_get_proc_address(reg, b"asked")))
for said, times in ((b"CUDA error", 2), (b"GGML_ASSERT(false)", 2), (b"CUDA error", 4)):
    try:
        lib.ggml_backend_reg_get_proc_address(reg, said)
    except NativeError as error:
        assert error.message == f"ggml-cuda.cu:109: {said.decode()}", error
    else:
        raise AssertionError("it works")
    assert asked() == times, (said, asked())
print("done")
"""


def test_cuda_is_asked_for_its_last_error_once_it_was_told(tmp_path: Path) -> None:
    source, library = tmp_path / "fake.cpp", tmp_path / "libggml-fake.so"
    source.write_text(BACKEND, encoding="utf-8")
    command = ["g++", "-shared", "-fPIC", "-std=c++17", "-o", library, source]
    command += [
        f"-I{VENDORED}/src",
        f"-I{VENDORED}/include",
        f"-L{LIBRARIES}",
        "-lggml-base",
        f"-Wl,-rpath,{LIBRARIES}",
    ]
    subprocess.run([str(part) for part in command], check=True)
    done = subprocess.run([sys.executable, "-c", PROGRAM, library], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


LOST = """
import gc, sys
sys.path.insert(0, sys.argv[2])
import pretended
pretended.load()
import moebind
from moebind import Batch, ContextParams, Model, ModelParams, MoebindError, NativeError, lib
device = next(each for each in moebind.devices() if each.name == "CUDA0")
params, small = ModelParams(devices=(device,)), ContextParams(n_ctx=256, n_threads=1, n_threads_batch=1)
model = Model.load_from_file(sys.argv[1], params)
context, other = model.new_context(small), model.new_context(small)
context.decode(Batch.get_one([1, 5, 6]))
backend = lib.ggml_backend_dev_backend_reg(lib.ggml_backend_dev_get(device.index))
lib.ggml_backend_reg_get_proc_address(backend, b"break")
for use in (
    lambda: context.decode(Batch.get_one([7])),
    lambda: other.decode(Batch.get_one([7])),
    lambda: Model.load_from_file(sys.argv[1], params),
):
    try:
        use()
    except MoebindError as error:
        assert "CUDA error" in str(error), error
    else:
        raise AssertionError("it works")
context.close()
del other, context
model.close()
gc.collect()
print("alive")
"""


def test_what_is_on_a_device_that_is_lost_is_left_there(tiny_path: Callable[..., Path]) -> None:
    # Freeing it would end the process: ggml-cuda does so in destructors, and they cannot throw.
    command = [sys.executable, "-W", "ignore", "-c", LOST, str(tiny_path(n_expert=4)), str(PRETENDED)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def test_failures_of_others_need_no_cuda() -> None:
    with pytest.raises(Exception, match="GGML_ASSERT"):
        lib.ggml_backend_dev_get(10**6)
