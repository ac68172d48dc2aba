"""Whether an installed moebind works: imported, asked what is wrong with it, and set to write, in a process of its own.

``python smoke.py MODEL`` writes with a model, and prints what came of it as JSON. It takes moebind and nothing else, so
that it can run where a wheel was just installed: in another distribution, on another processor.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
from typing import Any

__all__ = ["check", "write"]

PROMPT = [1, 3, 5, 8, 13, 21, 34]
N_TOKENS = 16


def write(model: str) -> list[int]:
    """The tokens that the model finds most likely, one after another."""
    from moebind import ContextParams, Model, ModelParams, Sampler

    with (
        Model.load_from_file(model, ModelParams(n_gpu_layers=0, devices=())) as loaded,
        loaded.new_context(ContextParams(n_ctx=64, n_threads=1, n_threads_batch=1)) as context,
    ):
        ends = {token: -math.inf for token in range(loaded.n_vocab) if loaded.is_eog_token(token)}
        sampler = Sampler.chain([Sampler.logit_bias(ends), Sampler.greedy()])
        return [piece.token for piece in context.generate(PROMPT, max_tokens=N_TOKENS, sampler=sampler)]


def check(model: str) -> dict[str, Any]:
    """What came of it; raises if something is wrong."""
    import moebind

    tokens = write(model)
    if len(tokens) != N_TOKENS:
        raise SystemExit(f"{len(tokens)} tokens were written instead of {N_TOKENS}")
    said = [subprocess.run(command, capture_output=True, text=True, check=True) for command in _programs()]
    return {
        "moebind": moebind.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "libc": " ".join(platform.libc_ver()),
        "processor": _processor(),
        "doctor": str(moebind.doctor()).splitlines()[0],
        "programs": [(done.stdout + done.stderr).strip().splitlines()[-1] for done in said],
        "tokens": tokens,
    }


def _programs() -> list[list[str]]:
    """Commands that have to succeed."""
    from moebind.server.process import program

    return [
        [sys.executable, "-m", "moebind", "--version"],
        [program(), "--version"],
        # The backend of this processor, found from another folder than the libraries'.
        [program(), "--list-devices"],
    ]


def _processor() -> str:
    """The library that was chosen for this processor."""
    try:
        with open("/proc/self/maps", encoding="utf-8") as file:
            mapped = {line.split(maxsplit=5)[5].strip() for line in file if "/" in line}
    except OSError:
        return "unknown"
    chosen = {os.path.basename(path) for path in mapped if "ggml-cpu" in path}
    return ", ".join(sorted(chosen))


if __name__ == "__main__":
    print(json.dumps(check(sys.argv[1])))
