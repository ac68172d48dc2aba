"""llama.cpp's own llama-bench, with the placement that moebind has."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moebind import ContextParams, FlashAttnType, GgmlType, LoadMode, ModelParams


def llama_bench_options(params: ModelParams, context: ContextParams) -> list[str]:
    """Options that give llama-bench this placement and context."""
    flash = {FlashAttnType.AUTO: "auto", FlashAttnType.ENABLED: "on", FlashAttnType.DISABLED: "off"}
    options = ["-ngl", str(params.n_gpu_layers), "-lm", LoadMode(params.load_mode).name.lower().replace("_", "+")]
    options += ["-b", str(context.n_batch), "-ub", str(context.n_ubatch), "-fa", flash[context.flash_attn_type]]
    options += ["-ctk", GgmlType(context.type_k).name.lower(), "-ctv", GgmlType(context.type_v).name.lower()]
    options += ["-nopo", str(int(not context.op_offload)), "--no-host", str(int(params.no_host))]
    options += ["--repack", str(int(params.use_extra_bufts)), "-nkvo", str(int(not context.offload_kqv))]
    rules = [(rule.pattern, rule.target) for rule in params.tensor_overrides]
    if any(set(";,=") & set(pattern) for pattern, _ in rules):
        raise ValueError(f"llama-bench takes no pattern with a semicolon, a comma or an equals sign: {rules}")
    if rules:
        options += ["-ot", ";".join(f"{pattern}={target}" for pattern, target in rules)]
    return options


def llama_bench(
    bench: Path, path: Path, params: ModelParams, context: ContextParams, counts: Mapping[str, int], device: str
) -> dict[str, Any]:
    """Its samples, in tokens a second, for prompts and for single tokens."""
    command = [str(bench), "-m", str(path), "-p", str(counts["n_prompt"]), "-n", str(counts["n_generate"])]
    command += ["-r", str(counts["repeats"]), "-t", str(context.n_threads), "-o", "json"]
    command += llama_bench_options(params, context)
    if device == "loopback":
        with _worker(context.n_threads) as endpoint:
            return _read([*command, "-rpc", endpoint])
    return _read([*command, "-dev", device])


def _read(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode != 0:
        raise RuntimeError(f"llama-bench ended with {done.returncode}: {(done.stdout + done.stderr)[-500:]}")
    rows = json.loads(done.stdout)
    return {
        "prompt": next(row["samples_ts"] for row in rows if row["n_prompt"]),
        "decode": next(row["samples_ts"] for row in rows if row["n_gen"]),
        "backends": rows[0]["backends"],
        "build": rows[0]["build_commit"],
        "command": command,
    }


@contextmanager
def _worker(threads: int) -> Iterator[str]:
    """A worker process, and where it listens: a loopback device serves the process that began it only."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moebind.backend.rpc_worker", "--port", str(port), "--threads", str(threads)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as worker:
        try:
            for _ in range(600):
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    if worker.poll() is not None:
                        raise RuntimeError(f"the worker ended with {worker.returncode}") from None
                    time.sleep(0.05)
            yield f"127.0.0.1:{port}"
        finally:
            worker.kill()
