"""Memory of large models, planned from their headers, beside what others measured; and how long a plan takes.

python benchmarks/plans.py             # the tables of docs/offload.md
python benchmarks/plans.py --time      # milliseconds for a fit of a 25 GB model; speed.py times plans
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import shapes  # beside this file

import moebind
from moebind import ContextParams, LoadMode, ModelParams
from moebind._core.tables import Column, markdown_table

CONTEXT = ContextParams(n_ctx=4096)
EVERYTHING = ModelParams(load_mode=LoadMode.NONE)
EXPERTS = EVERYTHING.with_cpu_moe_all()
#: Measured by others in 2025 with llama.cpp b6686 on one GPU of 96 GB: GB with everything there, GB with the experts in
#: host memory.
PUBLISHED = {
    "phi-3.5-moe-q4_k_m": ("24.14", "1.72"),
    "phi-3.5-moe-q2_k": ("", "1.3"),
    "phi-3.5-moe-q8_0": ("", "2.5"),
}
COLUMNS = [
    Column("file"),
    Column("on the device", ".2f"),
    Column("experts in host memory", ".2f"),
    Column("saved", ".1%"),
    Column("host", ".2f"),
    Column("published"),
    Column("without op_offload"),
]
#: Large models that came out since.
RECENT = {
    "gpt-oss-20b-mxfp4": "gpt-oss-20b MXFP4",
    "gemma-4-26b-a4b-q4_k_m": "Gemma 4 26B-A4B Q4_K_M",
    "nemotron-3-nano-q4_k_m": "Nemotron 3 Nano Q4_K_M",
    "granite-4-h-small-q4_k_m": "Granite 4 H-Small Q4_K_M",
    "qwen3.5-35b-a3b-q4_k_m": "Qwen3.5-35B-A3B, Qwen3.6-35B-A3B Q4_K_M",
    "glm-4.5-air-q4_k_m": "GLM-4.5-Air Q4_K_M",
    "llama-4-scout-q4_k_m": "Llama 4 Scout Q4_K_M",
    "minimax-m2-q4_k_m": "MiniMax-M2 Q4_K_M",
    "glm-4.6-q4_k_m": "GLM-4.6 Q4_K_M",
    "kimi-k2-q4_k_m": "Kimi-K2 Q4_K_M",
}
RECENT_COLUMNS = [
    Column("model"),
    Column("parameters"),
    Column("tensors", ".2f"),
    Column("experts", ".1%"),
    Column("all on the device", ".2f"),
    Column("experts in host memory", ".2f"),
    Column("saved", ".1%"),
    Column("host", ".2f"),
    Column("a token reads, device", ".2f"),
    Column("host", ".2f"),
]


def main() -> None:
    """Print the tables, or the time."""
    parser = argparse.ArgumentParser(description="Large models, planned.")
    parser.add_argument("--time", action="store_true", help="how long a fit takes, instead")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.time:
            _time(shapes.write(Path(folder) / "phi.gguf", shapes.SHAPES["phi-3.5-moe-q4_k_m"]))
            return
        for line in markdown_table(COLUMNS, _rows(Path(folder))):
            print(line, flush=True)
        print()
        for line in markdown_table(RECENT_COLUMNS, _recent_rows(Path(folder))):
            print(line, flush=True)


def _recent_rows(folder: Path) -> Iterator[list[object]]:
    for name, title in RECENT.items():
        path = shapes.write(folder / f"{name}.gguf", shapes.SHAPES[name])
        whole, offloaded = (moebind.plan(path, params, CONTEXT, devices=["8TiB"]) for params in (EVERYTHING, EXPERTS))
        experts = moebind.experts(path)
        total, active = (count / 1e9 for count in shapes.parameters(shapes.SHAPES[name]))
        sizes = (plan.device_bytes / 2**30 for plan in (whole, offloaded))
        reads = (offloaded.weights_per_token[device] / 2**30 for device in ("GPU0", "Host"))
        share, saved = experts.nbytes / experts.total_nbytes, offloaded.reduction_vs(whole)
        numbers = f"{total:.1f}, {active:.1f}"
        yield [title, numbers, experts.total_nbytes / 2**30, share, *sizes, saved, offloaded.host_bytes / 2**30, *reads]
        path.unlink()


def _rows(folder: Path) -> Iterator[list[object]]:
    for name, shape in shapes.SHAPES.items():
        if name in RECENT:
            continue
        path = shapes.write(folder / f"{name}.gguf", shape)
        whole, offloaded, without = (
            moebind.plan(path, params, context, devices=["8TiB"])
            for params, context in [
                (EVERYTHING, CONTEXT),
                (EXPERTS, CONTEXT),
                (EXPERTS, CONTEXT.with_op_offload(False)),
            ]
        )
        published = " and ".join(filter(None, PUBLISHED.get(name, ())))
        sizes = [plan.device_bytes / 2**30 for plan in (whole, offloaded)]
        smaller = f"{without.device_bytes / 2**30:.2f}, {without.reduction_vs(whole):.1%}"
        yield [name, *sizes, offloaded.reduction_vs(whole), offloaded.host_bytes / 2**30, published, smaller]


def _time(path: Path) -> None:
    moebind.fit(path, devices=["24GiB"], n_ctx=4096)  # the header is read, and modules are imported
    start = time.process_time()
    moebind.fit(path, devices=["24GiB"], n_ctx=4096)
    print(f"a fit into 24 GiB: {1e3 * (time.process_time() - start):.0f} ms of the processor")


if __name__ == "__main__":
    main()
