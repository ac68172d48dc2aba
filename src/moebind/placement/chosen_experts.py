"""The experts that routers chose, in order, and how they are stored: what a cache of experts is forecast from."""

from __future__ import annotations

import math
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

    @property
    def nbytes(self) -> int:
        """Bytes of all experts of the layer."""
        return self.n_expert * self.expert_bytes

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
        Of the devices' tensors, in bytes.
    device_of
        By layer, the device that computes it; None: one computes all.
    shares
        By device, how much of a cache's bytes it gets, in any unit.
    """

    def __init__(
        self,
        layouts: Mapping[int, Layout],
        alignment: int = ALIGNMENT,
        device_of: Mapping[int, str] | None = None,
        shares: Mapping[str, float] | None = None,
    ) -> None:
        self.layouts = dict(layouts)
        where = {layer: "" if device_of is None else device_of[layer] for layer in self.layouts}
        keys = list(dict.fromkeys((where[layer], layout) for layer, layout in self.layouts.items()))
        self.kinds = [layout for _, layout in keys]
        self.members = [
            [layer for layer, layout in self.layouts.items() if (where[layer], layout) == key] for key in keys
        ]
        self._alignment = alignment
        self.host_bytes = [len(layers) * kind.nbytes for kind, layers in zip(self.kinds, self.members, strict=True)]
        # Only devices with something to cache get a share; each divides it by the bytes of its groups' experts.
        used = {device: 1.0 if shares is None else shares[device] for device, _ in keys}
        used = used if any(used.values()) else dict.fromkeys(used, 1.0)
        self._split = [(used[device], sum(used.values())) for device, _ in keys]
        self._of_device = [
            sum(own for own, (other, _) in zip(self.host_bytes, keys, strict=True) if other == device)
            for device, _ in keys
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
        return max(
            self._size(group, kind.cache_bytes(count, self._alignment))
            for group, (kind, count) in enumerate(zip(self.kinds, n_slots, strict=True))
            if self._split[group][0]  # who gets nothing of it never has a cache
        )

    def _budget(self, group: int, size: int) -> int:
        """What a group gets of a cache, in llama.cpp's order of operations."""
        share, total = self._split[group]
        return int(float(size) * share / total * self.host_bytes[group] / self._of_device[group])

    def _size(self, group: int, nbytes: int) -> int:
        """The smallest size of a cache of which a group gets so many bytes."""
        share, total = self._split[group]
        size = math.ceil(nbytes * self._of_device[group] * total / (self.host_bytes[group] * share))
        # Floating point may be off by a little, either way.
        while self._budget(group, size) < nbytes:
            size += 1
        return size

    def n_slots(self, size: int, used: int) -> list[int]:
        """How many experts each group's cache holds: 0 where that would be fewer than a token's in one layer."""
        found = []
        for group, (kind, layers) in enumerate(zip(self.kinds, self.members, strict=True)):
            budget = self._budget(group, size)
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

    def arrays(self) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], NDArray[np.uint16]]:
        """For a file: layer, tokens and number of choices of each step, and the experts."""
        parts = (np.array(part, np.int32) for part in (self._layers, self._n_tokens, self._n_ids))
        return (*parts, np.frombuffer(bytes(self._experts), np.uint16))  # type: ignore[return-value]

    @classmethod
    def of(
        cls, layers: NDArray[Any], n_tokens: NDArray[Any], n_ids: NDArray[Any], experts: NDArray[Any]
    ) -> ChosenExperts:
        """From what :meth:`arrays` gave."""
        made = cls()
        for part, values in ((made._layers, layers), (made._n_tokens, n_tokens), (made._n_ids, n_ids)):
            part.frombytes(values.astype(np.int32).tobytes())
        made._experts += experts.astype(np.uint16).tobytes()
        return made

    def check(self, n_layer: int, n_expert: int) -> None:
        """Refuse what does not belong together.

        Raises
        ------
        ValueError
        """
        layers, n_tokens, n_ids, experts = self.arrays()
        if not layers.size == n_tokens.size == n_ids.size or int(n_ids.sum(dtype=np.int64)) != experts.size:
            raise ValueError("an order whose parts have different lengths")
        if layers.size and (min(layers.min(), n_ids.min()) < 0 or layers.max() >= n_layer or n_tokens.min() < 1):
            raise ValueError("an order of other layers")
        if experts.size and experts.max() >= n_expert:
            raise ValueError(f"expert {experts.max()} of {n_expert}")

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
