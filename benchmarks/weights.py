"""Random weights for a file that has a header only: real quantised blocks, with which the model computes sane numbers.

    python benchmarks/weights.py FILE.gguf [SHAPE]     # writes the header of benchmarks/shapes.py first, given a SHAPE
    python benchmarks/weights.py phi.gguf phi-3.5-moe-q4_k_m          # 25 GB, within a minute or two

Speed and memory do not depend on what the weights say, so a table of both needs no download. The numbers are chosen as
a network is initialised: hidden states neither die nor explode over the layers, and logits spread enough for one token
to stand out. Each type is quantised by ggml itself, once, into a pool of blocks; matrices are drawn from it block by
block, so that no two rows are alike, as fast as memory and disk allow. The same seed writes the same file, with any
number of threads.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import shapes  # beside this file

from moebind import GgmlType, Gguf, GgufTensor, ffi, lib

#: Numbers that are drawn together: one block of the K-quants, several of smaller ones.
UNIT = 256
#: Units in a pool. A row of 4096 is one of 2^192.
POOL = 4096
#: Bytes that are made and written at once.
CHUNK = 16 * 2**20
#: The spread of the logits. llama.cpp's rounding moves them by some hundredths: the greedy token stays the same.
LOGITS = 3.0
#: Pools by role, type, standard deviation and numbers in a unit.
Pools = dict[tuple[str, GgmlType, float, int], np.ndarray]


def spread(name: str, n_in: int, n_layer: int) -> float | None:
    """The standard deviation of a tensor's numbers; None: they are all 1, for norms and factors.

    A matrix keeps the size of what goes through it. What is added to the hidden state, twice a layer, is so much
    smaller that all of it together is no larger than the embedding that it began with.
    """
    kind = name.removesuffix(".weight")
    if name.endswith(".bias") or kind.endswith("attn_sinks"):
        return 0.02
    if kind.endswith("norm") or kind.startswith("rope_factors"):
        return None
    if kind == "token_embd":
        return 1.0
    if kind == "output":
        return LOGITS / math.sqrt(n_in)
    if "attn_output" in kind or "ffn_down" in kind:
        return 1.0 / math.sqrt(n_in * 2 * n_layer)
    return 1.0 / math.sqrt(n_in)


def pool(role: str, kind: GgmlType, deviation: float, unit: int, seed: int) -> np.ndarray:
    """Blocks that ggml quantised, ``unit`` numbers in each row of bytes.

    Each role has a pool of its own: were rows of the embedding and of the output alike, the model would repeat what it
    read.
    """
    random = np.random.default_rng([seed, zlib.crc32(role.encode())])
    numbers = random.standard_normal((POOL, unit), np.float32) * np.float32(deviation)
    blocks = np.empty((POOL, lib.ggml_row_size(kind, unit)), np.uint8)
    # Types of less than two bits have to be told what matters: everything.
    important = ffi.new("float[]", [1.0] * unit) if lib.ggml_quantize_requires_imatrix(kind) else ffi.NULL
    source, target = ffi.from_buffer("float[]", numbers), ffi.from_buffer("char[]", blocks, require_writable=True)
    size = lib.ggml_quantize_chunk(kind, source, target, 0, POOL, unit, important)
    if size != blocks.nbytes:
        raise ValueError(f"{kind.name} took {size} bytes instead of {blocks.nbytes}")
    return blocks


def fill(path: Path, seed: int = 1, threads: int | None = None, progress: Callable[[int], None] | None = None) -> int:
    """Fill the tensors of a file that :func:`shapes.write` wrote, and say how many bytes that were.

    ``progress`` is called from several threads with the bytes that one of them has written.
    """
    file = Gguf.from_file(path)
    n_layer = int(file[f"{file['general.architecture']}.block_count"])  # type: ignore[call-overload]
    total = sum(tensor.nbytes for tensor in file.tensors.values())
    room = shutil.disk_usage(path.parent).free + path.stat().st_blocks * 512
    if room < total:
        raise OSError(f"{path.parent} has {room / 1e9:.1f} GB free; the weights of {path.name} take {total / 1e9:.1f}")
    pools: Pools = {}
    descriptor = os.open(path, os.O_WRONLY)
    try:
        with ThreadPoolExecutor(threads or os.cpu_count()) as workers:
            jobs = [
                workers.submit(_write, descriptor, offset, make, progress)
                for tensor in file.tensors.values()
                for offset, make in _chunks(tensor, n_layer, seed, pools)
            ]
            size = sum(job.result() for job in jobs)
        _mute(descriptor, file)
        return size
    finally:
        os.close(descriptor)


def _mute(descriptor: int, file: Gguf) -> None:
    """Logits of 0 for what is no text: a greedy choice never is the end of the text, and never nothing."""
    tensor = file.tensors["output.weight"]
    row = int(lib.ggml_row_size(tensor.type, tensor.shape[0]))
    for token in np.flatnonzero(np.asarray(file["tokenizer.ggml.token_type"]) != 1):
        os.pwrite(descriptor, bytes(row), tensor.offset + int(token) * row)


def _chunks(
    tensor: GgufTensor, n_layer: int, seed: int, pools: Pools
) -> Iterator[tuple[int, Callable[[], np.ndarray]]]:
    """Where each part of a tensor goes, and what makes it. Its random numbers depend on its name and place only."""
    deviation = spread(tensor.name, tensor.shape[0], n_layer)
    if deviation is None:
        yield tensor.offset, partial(np.ones, tensor.n_elements, np.float32)
        return
    key = [seed, zlib.crc32(tensor.name.encode())]
    if tensor.type == GgmlType.F32:
        yield tensor.offset, partial(_plain, tensor.n_elements, deviation, key)
        return
    # The largest piece of a row that all types of this length of row have whole blocks of.
    unit = UNIT if tensor.shape[0] % UNIT == 0 else int(lib.ggml_blck_size(tensor.type))
    role = tensor.name.split(".", 2)[-1] if tensor.name.startswith("blk.") else tensor.name
    wanted = (role, tensor.type, deviation, unit)
    if wanted not in pools:
        pools[wanted] = pool(*wanted, seed)
    blocks = pools[wanted]
    at_once = CHUNK // blocks.shape[1]
    n_units = tensor.n_elements // unit
    for start in range(0, n_units, at_once):
        count = min(at_once, n_units - start)
        yield tensor.offset + start * blocks.shape[1], partial(_drawn, blocks, count, [*key, start])


def _plain(count: int, deviation: float, key: list[int]) -> np.ndarray:
    return np.random.default_rng(key).standard_normal(count, np.float32) * np.float32(deviation)


def _drawn(blocks: np.ndarray, count: int, key: list[int]) -> np.ndarray:
    chosen = np.random.default_rng(key).integers(0, POOL, count, np.uint16)
    return blocks.take(chosen, axis=0, mode="wrap")  # the fastest of the modes, and there is nothing to wrap


def _write(descriptor: int, offset: int, make: Callable[[], np.ndarray], progress: Callable[[int], None] | None) -> int:
    data = memoryview(make()).cast("B")
    for start in range(0, len(data), CHUNK):  # one call writes at most 2 GiB, and may write less
        part = data[start : start + CHUNK]
        while part:
            written = os.pwrite(descriptor, part, offset)
            offset, part = offset + written, part[written:]
    if progress is not None:
        progress(len(data))
    return len(data)


def write(path: Path, shape: shapes.Shape, seed: int = 1, progress: Callable[[int], None] | None = None) -> Path:
    """Write header and weights. The file has its name once it is whole."""
    unfinished = path.with_name(path.name + ".unfinished")
    shapes.write(unfinished, shape)
    fill(unfinished, seed, progress=progress)
    unfinished.replace(path)
    return path


def main() -> None:
    """Fill a file and say how fast."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("shape", nargs="?", choices=sorted(shapes.SHAPES))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, help="without it, as many as there are cores")
    arguments = parser.parse_args()
    if arguments.shape is not None:
        shapes.write(arguments.file, shapes.SHAPES[arguments.shape])
    start = time.perf_counter()
    size = fill(arguments.file, arguments.seed, arguments.threads)
    seconds = time.perf_counter() - start
    print(f"{arguments.file}: {size / 1e9:.2f} GB in {seconds:.1f} s, {size / 1e6 / seconds:.0f} MB/s")


if __name__ == "__main__":
    main()
