"""Settings of the offload benchmark: what is the same for all placements, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moebind._core import checks
from moebind._core.native import decoded, lib
from moebind._core.shown import shown
from moebind._core.sizes import parse_size
from moebind.backend.devices import Device, capacities, local_gpus
from moebind.backend.loopback import worker_pids
from moebind.bench.texts import AGREEMENT
from moebind.enums import DeviceType
from moebind.files.gguf import Gguf
from moebind.params.params import N_CTX, ContextParams

__all__ = ["OTHER_NAMES", "Settings", "checked_context", "checked_devices", "checked_prompts", "gpu_names"]

#: llama-bench's names for arguments.
OTHER_NAMES = {"repetitions": "repeats", "reps": "repeats", "n_gen": "n_generate"}


@dataclass(frozen=True)
class Settings:
    """Context, counts, prompts and devices: the same for all placements."""

    context: ContextParams
    repeats: int
    warmup: int
    n_prompt: int
    n_generate: int
    prompts: tuple[str, ...]
    devices: tuple[dict[str, Any], ...]
    timeout: float | None

    @property
    def steps(self) -> int:
        """Parts of the work on one placement."""
        return 1 + self.warmup + self.repeats + len(self.prompts)

    def step_name(self, at: int) -> str:
        """A word for the part that comes after so many, and which of its kind it is."""
        for name, count in (("loading", 1), ("warm-up", self.warmup), ("run", self.repeats)):
            if at < count:
                return name if count == 1 else f"{name} {at + 1} of {count}"
            at -= count
        return f"comparing {min(at + 1, len(self.prompts))} of {len(self.prompts)}"

    def context_record(self) -> dict[str, Any]:
        """The context as plain values; threads also where they are the default, which depends on the machine."""
        threads = {"n_threads": self.context.n_threads, "n_threads_batch": self.context.n_threads_batch}
        return {**self.context.to_dict(), **threads}

    def record(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "context_params": {**self.context_record(), "n_ubatch": self.context.n_ubatch},
            "repeats": self.repeats,
            "warmup": self.warmup,
            "n_prompt": self.n_prompt,
            "n_generate": self.n_generate,
            "prompts": list(self.prompts),
            "devices": list(self.devices),
        }


def checked_context(params: ContextParams | None, header: Gguf) -> ContextParams:
    """The context that was asked for, with a number of tokens."""
    if params is None:
        return ContextParams(n_ctx=N_CTX)
    if not isinstance(params, ContextParams):
        raise TypeError(f"context_params is {shown(params)}; it takes ContextParams")
    if params.embeddings:
        raise ValueError("context_params has embeddings: such a context has no logits")
    if params.n_ctx:
        return params
    trained = header.get(f"{header.get('general.architecture', '')}.context_length", N_CTX)
    return params.with_n_ctx(int(trained) if isinstance(trained, int) else N_CTX)


def checked_prompts(prompts: Sequence[str] | None) -> tuple[str, ...]:
    """The texts that were asked for, or our own."""
    if prompts is None:
        return AGREEMENT
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        raise TypeError(f"prompts is {shown(prompts)}; it takes a list of texts")
    for at, each in enumerate(prompts):
        if not checks.utf8(f"prompts[{at}]", each):
            raise ValueError(f"prompts[{at}] is empty")
    if not prompts:
        raise ValueError("prompts is empty; it takes at least one text, or None")
    return tuple(prompts)


def gpu_names() -> list[str]:
    """Names of this machine's GPUs, of which nothing else is asked."""
    return [decoded(lib.ggml_backend_dev_name(native)) for native in local_gpus()]


def checked_devices(devices: Sequence[Device | str] | None, n_threads: int) -> tuple[dict[str, Any], ...]:
    """Devices for a child to open; nothing is asked of a device here, since that would take memory on it."""
    gpus = gpu_names()
    if devices is None:
        if not gpus:
            raise ValueError(
                "this machine has no GPU, or the build has no backend for it (moebind.doctor() says why): "
                "devices=['loopback'] takes a worker process for one"
            )
        return tuple({"kind": "local", "name": name} for name in gpus)
    if isinstance(devices, (str, Device)) or not isinstance(devices, Sequence):
        raise TypeError(f"devices is {shown(devices)}; it takes a list, such as ['loopback']")
    if not devices:
        raise ValueError("devices is empty; it takes at least one, or None for this machine's GPUs")
    return tuple(_device(at, each, n_threads, gpus) for at, each in enumerate(devices))


def _device(at: int, given: Device | str, n_threads: int, gpus: Sequence[str]) -> dict[str, Any]:
    if isinstance(given, Device):
        if given.name in worker_pids:  # one like it: it serves one process at a time, and that is this one
            return {"kind": "loopback", "memory": capacities.get(given.name), "n_threads": n_threads}
        if given.backend == "RPC":
            raise ValueError(
                f"devices[{at}] is the RPC server {given.description}, which serves one process at a time: "
                "remove_rpc_server it here, and give its address as a text"
            )
        if given.type == DeviceType.CPU:
            raise ValueError(f"devices[{at}] is the CPU, which takes what the others do not")
        return {"kind": "local", "name": given.name}
    text = checks.text(f"devices[{at}]", given).decode()
    if text == "loopback":
        return {"kind": "loopback", "memory": None, "n_threads": n_threads}
    if text in gpus:
        return {"kind": "local", "name": text}
    host, colon, port = text.rpartition(":")
    if colon and host and port.isdecimal():
        return {"kind": "server", "endpoint": text}
    try:
        size = parse_size(f"devices[{at}]", text, low=1)
    except ValueError:
        raise ValueError(
            f"devices[{at}] is {shown(text)}; it takes 'loopback', a size such as '24GiB', 'HOST:PORT', or the name of "
            f"a device: {', '.join(gpus) or 'this machine has none'}"
        ) from None
    return {"kind": "loopback", "memory": size, "n_threads": n_threads}
