"""The experts that routers chose, in order, and how they are stored: what a cache of experts is forecast from."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moebind._core.native import CData, ffi, lib

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moebind._core.model_base import ModelBase

__all__ = ["ChosenExperts", "Groups", "Layout", "alignment_of", "layouts_of"]

#: The tensors that llama.cpp caches, in its order.
_MATRICES = ("gate_up", "gate", "up", "down")
#: Steps of more tokens do not use the cache: ``max_batch`` in llama-moe-cache.cpp.
N_TOKENS_MAX = 32
#: Where tensors begin in CUDA's memory, in bytes.
ALIGNMENT = 128


@dataclass(frozen=True)
class Layout:
    """How the experts of a layer are stored. Layers with the same one share a cache.

    Attributes
    ----------
    matrices : tuple[tuple[int, ...], ...]
        Type and dimensions of each tensor.
    sizes : tuple[int, ...]
        Bytes of one expert in each tensor.
    n_expert : int
        How many there are.
    """

    matrices: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]
    n_expert: int

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert."""
        return sum(self.sizes)

    def cache_bytes(self, n_slots: int, alignment: int) -> int:
        """Bytes of a cache of so many experts. llama.cpp adds one to each tensor, beyond which kernels may read."""
        return sum(-(-size * (n_slots + 1) // alignment) * alignment for size in self.sizes)


def layouts_of(model: ModelBase) -> dict[int, Layout]:
    """The layouts of the layers with experts."""
    native = model._open()
    weight = ffi.new("struct moebind_weight *")
    found: dict[int, Layout] = {}
    for layer in range(int(lib.llama_model_n_layer(native))):
        matrices: list[tuple[int, ...]] = []
        sizes: list[int] = []
        for name in _MATRICES:
            if lib.moebind_model_weight(native, f"blk.{layer}.ffn_{name}_exps.weight".encode(), weight):
                shape = tuple(int(n) for n in weight.ne)
                matrices.append((int(weight.type), *shape))
                sizes.append(int(lib.ggml_row_size(weight.type, shape[0])) * shape[1])
        if matrices:
            found[layer] = Layout(tuple(matrices), tuple(sizes), matrices[0][3])
    return found


def alignment_of(model: ModelBase) -> int:
    """Where tensors begin in the memory of the model's device, in bytes; as on a card, if it has no device."""
    native = model._open()
    if not lib.moebind_model_n_devices(native):
        return ALIGNMENT
    device = lib.moebind_model_device(native, 0)
    return int(lib.ggml_backend_buft_get_alignment(lib.ggml_backend_dev_buffer_type(device)))


class Groups:
    """Layers that share caches, and how many experts each of these holds.

    Parameters
    ----------
    layouts
        By layer: those whose experts are in host memory.
    alignment
        Of the device's tensors, in bytes.
    """

    def __init__(self, layouts: Mapping[int, Layout], alignment: int = ALIGNMENT) -> None:
        self.layouts = dict(layouts)
        self.kinds = list(dict.fromkeys(self.layouts.values()))
        self.members = [[layer for layer, layout in self.layouts.items() if layout == kind] for kind in self.kinds]
        self._alignment = alignment
        self.host_bytes = [
            len(layers) * kind.n_expert * kind.expert_bytes
            for kind, layers in zip(self.kinds, self.members, strict=True)
        ]

    def full_bytes(self) -> int:
        """The smallest size of a cache that holds all experts."""
        return self._least([len(layers) * kind.n_expert for kind, layers in zip(self.kinds, self.members, strict=True)])

    def token_bytes(self, used: Mapping[int, int]) -> int:
        """The smallest size of a cache that holds the experts of one token in all layers, given how many each uses."""
        return self._least([sum(used.get(layer, 0) for layer in layers) for layers in self.members])

    def least_bytes(self, used: int) -> int:
        """The smallest size of a cache that holds the experts of one token in one layer of each group."""
        return self._least([used] * len(self.kinds))

    def _least(self, n_slots: list[int]) -> int:
        # Each group gets the share that its experts have of all.
        total = sum(self.host_bytes)
        return max(
            -(-kind.cache_bytes(count, self._alignment) * total // own)
            for kind, count, own in zip(self.kinds, n_slots, self.host_bytes, strict=True)
        )

    def n_slots(self, size: int, used: int) -> list[int]:
        """How many experts each group's cache holds: 0 where that would be fewer than a token's in one layer."""
        total = sum(self.host_bytes)
        found = []
        for kind, layers, own in zip(self.kinds, self.members, self.host_bytes, strict=True):
            budget = int(float(size) * own / total)
            most = len(layers) * kind.n_expert
            # Alignment takes less than one slot away.
            count = min(most, max(budget // kind.expert_bytes, 0))
            while count and kind.cache_bytes(count, self._alignment) > budget:
                count -= 1
            found.append(count if count >= used else 0)
        return found


class ChosenExperts:
    """Which experts were chosen, in order: in each step those of one layer, for some tokens."""

    __slots__ = ("_experts", "_layers", "_n_ids", "_n_tokens")

    def __init__(self) -> None:
        self._layers, self._n_tokens, self._n_ids = array("i"), array("i"), array("i")
        self._experts = bytearray()

    def __len__(self) -> int:
        return len(self._layers)

    def add(self, layer: int, chosen: NDArray[Any]) -> None:
        """Add a step: experts of shape ``(n_tokens, n_expert_used)``."""
        self._layers.append(layer)
        self._n_tokens.append(len(chosen))
        self._n_ids.append(chosen.size)
        self._experts += chosen.astype(np.uint16).tobytes()

    def extend(self, other: ChosenExperts) -> None:
        """Add what another one has."""
        self._layers += other._layers
        self._n_tokens += other._n_tokens
        self._n_ids += other._n_ids
        self._experts += other._experts

    def copy(self) -> ChosenExperts:
        """A copy, which stays as it is."""
        made = ChosenExperts()
        made.extend(self)
        return made

    def steps(self) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64], NDArray[np.uint16]]:
        """Layer and number of tokens of each step, where its experts begin (one more), and the experts."""
        begins = np.zeros(len(self) + 1, np.int64)
        np.cumsum(np.frombuffer(self._n_ids, np.int32), out=begins[1:])
        layers, n_tokens = np.frombuffer(self._layers, np.int32), np.frombuffer(self._n_tokens, np.int32)
        return layers, n_tokens, begins, np.frombuffer(self._experts, np.uint16)


def replay(
    chosen: ChosenExperts, n_layer: int, n_expert: int, group_of: Iterable[int], n_slots: list[int]
) -> NDArray[np.int64]:
    """What a cache would have counted: int64 of shape ``(n_layer, 2)``, hits and misses."""
    layers, n_tokens, begins, experts = chosen.steps()
    routed = ffi.new(
        "struct moebind_routed *",
        {
            "n_layer": n_layer,
            "n_expert": n_expert,
            "n_tokens_max": N_TOKENS_MAX,
            "n_steps": layers.size,
            "layers": _pointer("int32_t", layers),
            "n_tokens": _pointer("int32_t", n_tokens),
            "begins": _pointer("int64_t", begins),
            "experts": _pointer("uint16_t", experts),
        },
    )
    counts = np.zeros((n_layer, 2), np.int64)
    groups = ffi.new("int32_t[]", list(group_of))
    slots = ffi.new("int32_t[]", n_slots)
    lib.moebind_replay_expert_cache(
        routed, groups, slots, len(n_slots), ffi.cast("struct moebind_replayed *", counts.ctypes.data)
    )
    return counts


def _pointer(kind: str, values: NDArray[Any]) -> CData:
    return ffi.cast(f"{kind} *", values.ctypes.data)
