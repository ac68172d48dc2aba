"""Whether a model that is read into memory fits there: else the system would kill the process."""

from __future__ import annotations

import re

from moebind._core.sizes import show_size
from moebind.backend.devices import default_devices
from moebind.backend.host_memory import host_memory
from moebind.errors import ModelLoadError
from moebind.files.gguf import Gguf
from moebind.params.params import ModelParams

__all__ = ["check_room"]

#: What llama.cpp maps by itself, however the rest of the file is read.
_LOOKED_UP = "per_layer_token_embd.weight"
_LAYER = re.compile(r"blk\.(\d+)\.")


def check_room(file: Gguf, params: ModelParams) -> None:
    """Refuse to read more weights than the machine, or a control group, lets this process have.

    Only where all weights are the host's is that known without placing them. A mapped file needs no memory of its own.

    Raises
    ------
    ModelLoadError
        If the weights could not be held whatever else were free.
    """
    if params.use_mmap or params.vocab_only or params.no_alloc or _others_hold_some(params):
        return
    memory, needed = host_memory(), _least(file, params)
    # What is read can be swapped out, however slow that makes it.
    if needed > memory.capacity + memory.swap:
        whose = f"{memory.limit} lets this process have" if memory.limit else "this machine has"
        swap = f", and {show_size(memory.swap)} of swap" if memory.swap else ""
        raise ModelLoadError(
            f"{file.path} could not be loaded: its weights take {show_size(needed)} of memory, and {whose} "
            f"{show_size(memory.capacity)}{swap}; load_mode is {params.load_mode.name}, which reads all of them: with "
            "LoadMode.MMAP they need no memory of their own"
        )


def _others_hold_some(params: ModelParams) -> bool:
    """Whether a device may hold some of the weights."""
    if any(override.target != "CPU" for override in params.tensor_overrides):
        return True
    if params.devices is not None:
        return bool(params.devices)
    return params.n_gpu_layers != 0 and bool(default_devices())


def _least(file: Gguf, params: ModelParams) -> int:
    """Bytes that are read in any case: layers that predict further tokens are not, unless they are asked for."""
    keys = [f"{file.get('general.architecture')}.{name}" for name in ("block_count", "nextn_predict_layers")]
    n_layer, n_further = (params.kv_overrides.get(key, file.get(key, 0)) for key in keys)
    end = n_layer - n_further if isinstance(n_layer, int) and isinstance(n_further, int) else 0
    return sum(
        tensor.nbytes
        for name, tensor in file.tensors.items()
        if name != _LOOKED_UP and not ((layer := _LAYER.match(name)) and int(layer[1]) >= end)
    )
