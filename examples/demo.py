"""What experts in host memory save: one prompt, three placements, a table.

    make demo            # or: python examples/demo.py, once moebind is installed with its extra `test`

The device is the first GPU, or the one that --device names. Without one it is a worker process on this machine, seen
through llama.cpp's RPC backend: what goes to the device really goes to another process's memory, which the table shows
as the system sees it. `GGML_VK_VISIBLE_DEVICES=0 make demo DEVICE=Vulkan0 TOKENS=16` takes Mesa's software driver.
"""

from __future__ import annotations

import argparse
import contextlib
from dataclasses import dataclass

from demo_model import demo_model

try:
    import psutil
except ImportError:
    raise SystemExit("psutil is missing, with which the demo looks at the worker: pip install psutil") from None

import moebind
from moebind import ContextParams, Device, DeviceType, MemoryBreakdown, Model, ModelParams
from moebind._core.tables import Column, text_table
from moebind.backend.loopback import worker_pids

PROMPT = "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n"
MIB = 2**20


@dataclass
class Row:
    """What one placement gave."""

    name: str
    memory: MemoryBreakdown
    resident: int | None
    tokens_per_second: float
    text: str


def run(name: str, params: ModelParams, device: Device, path: str, n_tokens: int) -> Row:
    """Load the model, generate, and look at the memory."""
    worker = psutil.Process(worker_pids[device.name]) if device.name in worker_pids else None
    with Model.load_from_file(path, params) as model:
        n_threads = ContextParams().n_threads if worker is None else 1  # a worker computes on the same processor
        context_params = ContextParams(n_ctx=1024, n_threads=n_threads, n_threads_batch=n_threads)
        with model.new_context(context_params) as context:
            print(f"\n{name}")
            for placed in model.placement:
                print(f"  [{placed}]")
            print("  ", end="")
            text = ""
            for piece in context.generate(PROMPT, max_tokens=n_tokens):
                print(piece.text.replace("\n", "\n  "), end="", flush=True)
                text += piece.text
            print()
            resident = worker.memory_info().rss if worker else None
            return Row(name, context.memory_breakdown(), resident, context.timings().tokens_per_second, text)


def table(rows: list[Row], device: Device) -> str:
    """The table, in the form of the published one."""
    first = rows[0].memory
    sizes = ("model", "KV", "compute", device.name)
    columns = [Column("configuration", left=True), *(Column(name, ".1f") for name in sizes)]
    columns += [Column("saved"), Column("tokens/s", ".1f")]
    if rows[0].resident is not None:
        columns.append(Column("worker RSS", ".1f"))
    lines = []
    for row in rows:
        on_device = row.memory.devices[0]
        sizes_of_row = [on_device.model, on_device.context, on_device.compute, on_device.total]
        line = [row.name, *(size / MIB for size in sizes_of_row)]
        line += [f"{100 * row.memory.reduction_vs(first):.1f} %", row.tokens_per_second]
        if row.resident is not None:
            line.append(row.resident / MIB)
        lines.append(line)
    return "\n".join(text_table(columns, lines, rule=True))


def asked() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="What experts in host memory save: three placements, and a table.")
    parser.add_argument("--device", help="the device, such as Vulkan0; otherwise the first GPU, or a worker process")
    parser.add_argument("--tokens", type=int, default=48, help="how many each placement generates (48)")
    return parser.parse_args()


def chosen_gpus(name: str | None) -> list[Device]:
    """The GPUs of this machine, or only the one of this name."""
    gpus = [device for device in moebind.devices() if device.type in {DeviceType.GPU, DeviceType.IGPU}]
    chosen = [device for device in gpus if name in {None, device.name}]
    if name is not None and not chosen:
        there = ", ".join(device.name for device in gpus) or "none"
        raise SystemExit(f"there is no GPU {name!r} (there are: {there}); `moebind doctor` says what is missing")
    return chosen


def main() -> None:
    """Run the three placements and print the table."""
    arguments = asked()
    gpus = chosen_gpus(arguments.device)
    path = str(demo_model())
    with contextlib.ExitStack() as stack:
        device = gpus[0] if gpus else stack.enter_context(moebind.loopback_device())
        print(f"device: {device.name} ({device.description}){'' if gpus else ', a worker process on this machine'}")
        # Read instead of mapped, as llama.cpp advises with overrides: weights in host memory can be laid out for speed.
        params = ModelParams(n_gpu_layers=-1).with_devices([device]).with_use_mmap(False)
        rows = [
            run("all on the device", params, device, path, arguments.tokens),
            run("with_n_cpu_moe(15)", params.with_n_cpu_moe(15), device, path, arguments.tokens),
            run("with_cpu_moe_all()", params.with_cpu_moe_all(), device, path, arguments.tokens),
        ]
    print(f"\n{path}: device memory in MiB\n\n{table(rows, device)}\n")
    same = len({row.text for row in rows}) == 1
    print("The text is the same three times." if same else "The texts differ.")
    share = rows[2].memory.devices[0].model / rows[0].memory.devices[0].model
    print(f"With all experts in host memory the device holds {100 * share:.1f} % of the model's bytes.")
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
