"""The number, sizes and bytes of a model's experts, layer by layer."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from moebind._core import checks
from moebind._core.sizes import show_size
from moebind._core.tables import Column, number_ranges, text_table
from moebind.enums import GgmlType
from moebind.files.architecture_facts import NEVER_AHEAD
from moebind.files.tensor_patterns import VALUE_EXPERTS
from moebind.params.misplaced import explained_with_fields
from moebind.params.params import ModelParams
from moebind.placement.header import Header, TensorInfo, read_header

__all__ = ["ExpertSummary", "LayerExperts", "experts"]

_SHARED = re.compile(r"ffn_(?:up|down|gate|gate_up|gate_inp)_shexp")
_DENSE = re.compile(r"ffn_(?:up|down|gate|gate_up)\.")


@dataclass(frozen=True)
class LayerExperts:
    """The experts, or the dense feed-forward network, of one layer.

    Attributes
    ----------
    layer : int
        Which one.
    n_expert, n_expert_used : int
        Experts, and how many of them work on each token; 0 in a dense layer. Experts of attention's values (K2 Horizon)
        have numbers of their own, which are not counted here.
    nbytes : int
        Bytes of the experts' tensors, those of attention included: what ``with_cpu_moe_all`` keeps in host memory.
    active_nbytes : int
        Bytes of experts that work on each token.
    types : tuple[GgmlType, ...]
        The types that they are stored in.
    tensors : tuple[str, ...]
        Their names.
    shared_nbytes : int
        Bytes of shared experts, which work on every token.
    shared_tensors : tuple[str, ...]
        Their names.
    dense_nbytes : int
        Bytes of a feed-forward network without experts, in a dense layer or beside the experts.
    """

    layer: int
    n_expert: int
    n_expert_used: int
    nbytes: int
    active_nbytes: int
    types: tuple[GgmlType, ...]
    tensors: tuple[str, ...]
    shared_nbytes: int = 0
    shared_tensors: tuple[str, ...] = ()
    dense_nbytes: int = 0

    @property
    def is_dense(self) -> bool:
        """Whether it has no experts."""
        return self.n_expert == 0


@dataclass(frozen=True)
class ExpertSummary:
    """A model's experts and how large they are. Made by :func:`experts`; printing it gives a table.

    Attributes
    ----------
    path : str
        The model's file, or the first one.
    layers : tuple[LayerExperts, ...]
        All layers in order, dense ones too.
    total_nbytes : int
        Bytes of all tensors of the model.
    """

    path: str
    layers: tuple[LayerExperts, ...]
    total_nbytes: int

    @property
    def n_expert(self) -> int:
        """Experts in a layer; 0 for a model without experts."""
        return max((layer.n_expert for layer in self.layers), default=0)

    @property
    def n_expert_used(self) -> int:
        """How many of them work on each token, in the layer in which the most do."""
        return max((layer.n_expert_used for layer in self.layers), default=0)

    @property
    def nbytes(self) -> int:
        """Bytes of all experts."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def shared_nbytes(self) -> int:
        """Bytes of all shared experts."""
        return sum(layer.shared_nbytes for layer in self.layers)

    @property
    def active_nbytes(self) -> int:
        """Bytes of experts that work on each token."""
        return sum(layer.active_nbytes for layer in self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[LayerExperts]:
        return iter(self.layers)

    def __getitem__(self, layer: int) -> LayerExperts:
        return self.layers[layer]

    def __str__(self) -> str:
        head = f"{os.path.basename(self.path)}: {self.n_expert} experts, {self.n_expert_used} used"
        columns = [
            Column("MiB per layer", ".1f"),
            Column("types"),
            Column("shared MiB", ".1f"),
            Column("dense MiB", ".1f"),
            Column("layers", left=True),
        ]
        rows = [
            (
                first.nbytes / 2**20,
                ", ".join(kind.name for kind in first.types) or "-",
                first.shared_nbytes / 2**20,
                first.dense_nbytes / 2**20,
                number_ranges(numbers),
            )
            for first, numbers in self._kinds()
        ]
        share = self.nbytes / self.total_nbytes if self.total_nbytes else 0.0
        total = f"experts: {show_size(self.nbytes)}, {share:.1%} of {show_size(self.total_nbytes)}; "
        total += f"{show_size(self.active_nbytes)} of them work on a token"
        return "\n".join([head, *text_table(columns, rows), total])

    def _repr_html_(self) -> str:
        """What a notebook shows: the table."""
        from moebind._core.pictures import html_of

        return html_of(str(self))

    def _kinds(self) -> list[tuple[LayerExperts, list[int]]]:
        """Layers that are alike, as the first of a kind and the numbers of all."""
        kinds: dict[tuple[object, ...], tuple[LayerExperts, list[int]]] = {}
        for each in self.layers:
            key = (each.n_expert, each.nbytes, each.types, each.shared_nbytes, each.dense_nbytes)
            kinds.setdefault(key, (each, []))[1].append(each.layer)
        return list(kinds.values())


@explained_with_fields()
def experts(path: str | os.PathLike[str], *, load_mtp: bool = ModelParams().load_mtp) -> ExpertSummary:
    """Tell what a model's experts are and how large, from the header of its file.

    Parameters
    ----------
    path
        The model's file, or the first one of a split model; or an address on the Hugging Face Hub, as for
        :meth:`Gguf.from_file`.

    load_mtp
        As in :class:`ModelParams`: whether the layers that predict further ahead count, too, if llama.cpp loads them.

    Returns
    -------
    ExpertSummary
        For a model without experts, all layers are dense.

    Raises
    ------
    ModelNotFoundError, ModelLoadError
        If a file does not exist, or is not a model.

    Examples
    --------
    >>> summary = moebind.experts("moe.gguf")
    >>> summary.n_expert, summary.n_expert_used, summary[0].tensors[0]
    (8, 2, 'blk.0.ffn_gate_exps.weight')
    """
    header = read_header(checks.path("path", path))
    loaded = checks.boolean("load_mtp", load_mtp) and header.architecture not in NEVER_AHEAD
    ahead = set() if loaded else header.layers_ahead
    layers: dict[int, list[TensorInfo]] = {
        number: [] for number in range(header.integer("block_count")) if number not in ahead
    }
    counted = [info for info in header.tensors.values() if info.layer not in ahead]
    for info in counted:
        if info.layer is not None:
            layers.setdefault(info.layer, []).append(info)
    return ExpertSummary(
        header.paths[0],
        tuple(_layer(header, number, layers[number]) for number in sorted(layers)),
        sum(info.nbytes for info in counted),
    )


def _layer(header: Header, number: int, tensors: list[TensorInfo]) -> LayerExperts:
    used = header.of_layer("expert_used_count", number)
    used_values = header.of_layer("attention.value_expert_used_count", number)
    own = [info for info in tensors if info.is_expert]
    values = [info for info in own if f".{VALUE_EXPERTS}." in info.name]
    forward = [info for info in own if info not in values]
    shared = [info for info in tensors if _SHARED.search(info.name)]
    return LayerExperts(
        number,
        _count(forward),
        used if forward else 0,
        sum(info.nbytes for info in own),
        _active(forward, used) + _active(values, used_values),
        tuple(dict.fromkeys(GgmlType(info.type) for info in own if info.name.endswith(".weight"))),
        tuple(info.name for info in own),
        sum(info.nbytes for info in shared),
        tuple(info.name for info in shared),
        sum(info.nbytes for info in tensors if _DENSE.search(info.name)),
    )


def _count(tensors: list[TensorInfo]) -> int:
    """How many experts there are: their last dimension; groups of experts (chexps) are fewer."""
    return max((info.ne[2] for info in tensors if info.name.endswith(".weight")), default=0)


def _active(tensors: list[TensorInfo], used: int) -> int:
    """Bytes of so many of them."""
    count = _count(tensors)
    return sum(info.nbytes for info in tensors) * used // count if count else 0
