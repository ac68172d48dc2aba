"""Generate text from a prompt, with a placement of your choice: a program to start from.

For those who know the Rust crate llama-cpp-2: it does what that one's example `simple` does.

python examples/generate.py MODEL.gguf -p "Once upon a time" -n 64 --cpu-moe
"""

from __future__ import annotations

import argparse
import contextlib
import time
from pathlib import Path

import moebind
from moebind import ContextParams, Model, ModelParams, MoebindError, Sampler


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Generate text from a prompt.")
    parser.add_argument("model", type=Path, help="a GGUF file, or the first of several")
    parser.add_argument("-p", "--prompt", default="Once upon a time", help="what to continue")
    parser.add_argument("-n", "--n-predict", type=int, default=64, metavar="N", help="tokens to generate (%(default)s)")
    parser.add_argument("-c", "--ctx-size", type=int, default=2048, metavar="N", help="tokens of context (%(default)s)")
    parser.add_argument(
        "-t", "--threads", type=int, default=ContextParams().n_threads, metavar="N", help="(%(default)s)"
    )
    parser.add_argument("-s", "--seed", type=int, help="choose at random, with this seed; without it, the likeliest")
    parser.add_argument("--temp", type=float, default=0.8, help="how random, with --seed (%(default)s)")
    placement = parser.add_argument_group("placement")
    placement.add_argument(
        "-ngl", "--n-gpu-layers", type=int, default=-1, metavar="N", help="layers on devices; -1: all"
    )
    placement.add_argument("-dev", "--device", action="append", metavar="NAME", help="a device to use, or 'loopback'")
    placement.add_argument("--cpu-moe", action="store_true", help="all experts in host memory")
    placement.add_argument("--n-cpu-moe", type=int, default=0, metavar="N", help="the first N layers' experts there")
    placement.add_argument(
        "-ot", "--override-tensor", action="append", default=[], metavar="PATTERN=TARGET", help="tensors elsewhere"
    )
    placement.add_argument("--no-mmap", action="store_true", help="read the file instead of mapping it")
    return parser.parse_args()


def model_params(arguments: argparse.Namespace, loopback: moebind.Device | None) -> ModelParams:
    """What the arguments say about loading."""
    params = ModelParams(n_gpu_layers=arguments.n_gpu_layers)
    if arguments.device:
        known = {device.name: device for device in moebind.devices()}
        unknown = [name for name in arguments.device if name not in known and name != "loopback"]
        if unknown:
            raise SystemExit(f"there is no device {unknown[0]}; there are {', '.join(known)}, and loopback")
        chosen = [loopback if name == "loopback" else known[name] for name in arguments.device]
        params = params.with_devices([device for device in chosen if device is not None])
    if arguments.no_mmap:
        params = params.with_use_mmap(False)
    for override in arguments.override_tensor:
        pattern, _, target = override.rpartition("=")
        params = params.with_tensor_override(pattern, target)
    if arguments.n_cpu_moe:
        params = params.with_n_cpu_moe(arguments.n_cpu_moe)
    if arguments.cpu_moe:
        params = params.with_cpu_moe_all()
    return params


def main() -> None:
    """Say in one line what is wrong."""
    arguments = parse_arguments()
    try:
        generate(arguments)
    except (MoebindError, ValueError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None


def generate(arguments: argparse.Namespace) -> None:
    """Load, generate, and tell how long it took."""
    with contextlib.ExitStack() as stack:
        loopback = None
        if "loopback" in (arguments.device or []):
            loopback = stack.enter_context(moebind.loopback_device(n_threads=arguments.threads))
        started = time.perf_counter()
        model = stack.enter_context(Model.load_from_file(arguments.model, model_params(arguments, loopback)))
        load_time = time.perf_counter() - started
        for override in model.placement:
            print(f"[{override}]")
        n = arguments.threads
        context = stack.enter_context(
            model.new_context(ContextParams(n_ctx=arguments.ctx_size, n_threads=n, n_threads_batch=n))
        )
        sampler = None
        if arguments.seed is not None:
            sampler = Sampler.chain_simple([Sampler.temp(arguments.temp), Sampler.dist(arguments.seed)])

        print(arguments.prompt, end="", flush=True)
        started = time.perf_counter()
        n_generated = 0
        for piece in context.generate(arguments.prompt, sampler=sampler, max_tokens=arguments.n_predict):
            print(piece.text, end="", flush=True)
            n_generated += 1
        elapsed = time.perf_counter() - started
        print(f"\n\n{n_generated} tokens in {elapsed:.2f} s; the load took {load_time:.2f} s")
        print(context.timings())
        print(context.memory_breakdown())
        if sampler is not None:
            sampler.close()


if __name__ == "__main__":
    main()
