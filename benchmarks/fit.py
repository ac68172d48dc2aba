"""moebind.fit beside llama.cpp's own fit (common/fit.cpp) on the same budgets: what a token reads from the host.

    python benchmarks/fit.py [--budgets 20] [--devices 1] [SHAPE ...]    # shapes of benchmarks/shapes.py

Budgets go from what the model takes without its experts to what all of it takes. The plan is the judge of both.
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import shapes  # beside this file

import moebind
from moebind import ContextParams, Device, FitError, ModelParams, TensorOverride, ffi, lib
from moebind._core.native import LIBRARIES
from moebind._core.tables import Column, markdown_table
from moebind.placement.described_devices import described_device
from moebind.placement.fit import Fit
from moebind.placement.header import read_header
from moebind.placement.plan import Plan

CONTEXT = ContextParams(n_ctx=4096)
COLUMNS = [
    Column("shape"),
    Column("budget, GiB", ".2f"),
    Column("llama.cpp: from the host, GiB per token"),
    Column("moebind: from the host, GiB per token"),
    Column("llama.cpp, s", ".2f"),
    Column("moebind, s", ".2f"),
]
DEFAULT = ["phi-3.5-moe-q4_k_m", "mixtral-8x7b-q4_k_m", "qwen3-30b-a3b-q4_k_m", "deepseek-v3-q4_k_m"]


@cache
def llama_fit() -> ctypes.CDLL:
    """llama.cpp's own fit, which is not in the extension: compiled from ``common_fit.cpp``."""
    source = Path(__file__).with_name("common_fit.cpp")
    vendored = source.parents[1] / "vendor/llama.cpp"
    with tempfile.TemporaryDirectory() as folder:
        library = f"{folder}/libcommon-fit.so"
        command = ["g++", "-shared", "-fPIC", "-O1", "-std=c++17", "-o", library, str(source)]
        command += [f"-I{vendored / each}" for each in ("common", "include", "ggml/include")]
        command += [f"-L{LIBRARIES}", f"-Wl,-rpath,{LIBRARIES}", "-lllama-common", "-lllama", "-lggml", "-lggml-base"]
        subprocess.run(command, check=True)
        return ctypes.CDLL(library)


def address(pointer: object) -> ctypes.c_void_p:
    """A pointer of cffi's for ctypes."""
    return ctypes.c_void_p(int(ffi.cast("uintptr_t", pointer)))


def common_fit(
    path: Path,
    sizes: list[int],
    context: ContextParams = CONTEXT,
    n_ctx_min: int = 4096,
    there: list[Device] | None = None,
) -> Plan | None:
    """The plan of what llama.cpp's fit chooses, or None if it finds nothing.

    With ``there``, for devices that are there; what is free of them beyond ``sizes`` is the margin.
    """
    model = ffi.new("struct llama_model_params *", lib.llama_model_default_params())
    native = ffi.new("struct llama_context_params *", lib.llama_context_default_params())
    native.n_ctx, native.n_batch, native.n_ubatch = context.n_ctx, context.n_batch, context.n_ubatch
    if there is None:
        devices = [described_device(at, size) for at, size in enumerate(sizes)]
    else:
        devices = [lib.ggml_backend_dev_get(device.index) for device in there]
    model.devices = listed = ffi.new("ggml_backend_dev_t[]", [*devices, ffi.NULL])
    split = ffi.new("float[]", lib.llama_max_devices())
    overrides = ffi.new("struct llama_model_tensor_buft_override[]", lib.llama_max_tensor_buft_overrides())
    margins = ffi.new("size_t[]", lib.llama_max_devices())
    if there is not None:
        listed_now = moebind.devices()
        margins[0 : len(there)] = [
            max(listed_now[device.index].memory_free - size, 0) for device, size in zip(there, sizes, strict=True)
        ]
    # The copy of the header without its vocabulary: llama.cpp's fit would read the vocabulary for each of its plans.
    file = read_header(str(path)).path.encode()
    lib.moebind_log_quiet(True)
    pointers = [address(each) for each in (model, native, split, overrides, margins)]
    status = llama_fit().common_fit(file, *pointers, ctypes.c_uint32(n_ctx_min))
    lib.moebind_log_quiet(False)
    del listed
    if status != 0:
        return None
    rules: list[TensorOverride] = []
    while model.tensor_buft_overrides and overrides[len(rules)].pattern:
        rule = overrides[len(rules)]
        target = ffi.string(lib.ggml_backend_buft_name(rule.buft)).decode()
        rules.append(TensorOverride(ffi.string(rule.pattern).decode(), target, strict=False))
    chosen = ModelParams(n_gpu_layers=max(model.n_gpu_layers, -1), tensor_overrides=rules)
    if len(sizes) > 1 and any(split[0 : len(sizes)]):
        chosen = chosen.with_tensor_split([split[at] for at in range(len(sizes))])
    return moebind.plan(path, chosen, context.with_n_ctx(native.n_ctx), devices=there or sizes)


def our_fit(path: Path, sizes: list[int], context: ContextParams = CONTEXT) -> Fit | None:
    """Our choice for the same devices, without a margin."""
    try:
        return moebind.fit(path, margin=0, context_params=context, devices=sizes, swa_full=context.swa_full)
    except FitError:
        return None


def budgets(path: Path, count: int, n_devices: int = 1) -> list[list[int]]:
    """From a little less than the model takes without its experts to a little more than all of it."""
    least = moebind.plan(path, ModelParams().with_cpu_moe_all(), CONTEXT, devices=["8TiB"] * n_devices).device_bytes
    most = moebind.plan(path, ModelParams(), CONTEXT, devices=["8TiB"] * n_devices).device_bytes
    steps = [0.9 * least + (1.02 * most - 0.9 * least) * at / max(count - 1, 1) for at in range(count)]
    return [[int(step / n_devices)] * n_devices for step in steps]


def from_host(plan: Plan) -> int:
    """Bytes that a token reads from host memory, with a full cache."""
    return plan.bytes_per_token[plan.host.name]


def rows(folder: Path, arguments: argparse.Namespace, worse: list[bool], better: list[bool]) -> Iterator[list[object]]:
    """A row for each budget; whether ours was worse, or better, is added to ``worse`` and ``better``."""
    for name in arguments.shapes:
        path = shapes.write(folder / f"{name}.gguf", shapes.SHAPES[name])
        for sizes in budgets(path, arguments.budgets, arguments.devices):
            start = time.perf_counter()
            theirs = common_fit(path, sizes)
            middle = time.perf_counter()
            ours = our_fit(path, sizes)
            end = time.perf_counter()
            over = theirs is not None and any(d.total > size for d, size in zip(theirs.devices, sizes, strict=False))
            their_bytes = "none" if theirs is None else f"{from_host(theirs) / 2**30:.2f}{' (exceeds)' * over}"
            our_bytes = "none" if ours is None else f"{from_host(ours.plan) / 2**30:.2f}"
            valid = theirs is not None and not over
            worse.append(valid and (ours is None or from_host(ours.plan) > from_host(theirs)))
            better.append(valid and ours is not None and from_host(ours.plan) < from_host(theirs))
            yield [name, sum(sizes) / 2**30, their_bytes, our_bytes, middle - start, end - middle]


def main() -> None:
    """Compare, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--budgets", type=int, default=20)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("shapes", nargs="*", default=DEFAULT)
    arguments = parser.parse_args()
    worse: list[bool] = []
    better: list[bool] = []
    with tempfile.TemporaryDirectory() as folder:
        for line in markdown_table(COLUMNS, rows(Path(folder), arguments, worse, better)):
            print(line, flush=True)
    print(f"\nworse than llama.cpp: {sum(worse)}, better: {sum(better)}, of {len(worse)}")


if __name__ == "__main__":
    main()
