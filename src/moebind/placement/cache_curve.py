"""How often a cache of experts would hit, for every size of it: a forecast from what was recorded."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, SupportsIndex

import numpy as np

from moebind._core import checks
from moebind._core.pictures import html_of
from moebind._core.sizes import parse_memory, parse_size, show_size
from moebind._core.tables import Column, text_table
from moebind.placement.chosen_experts import N_TOKENS_MAX, ChosenExperts, Groups, Layout, replay

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = ["CacheCurve", "CachePoint"]

#: How many sizes are tried, unless they are given; and how many of them a table shows.
N_SIZES, N_ROWS = 32, 12


@dataclass(frozen=True)
class CachePoint:
    """What a cache of one size does.

    Attributes
    ----------
    size : int
        Bytes of the cache, as for ``ContextParams.with_moe_cache_size``.
    n_slots : int
        How many experts it holds, over all groups of layers.
    hits, misses : int
        Experts that were in the cache when a layer needed them, and that were not: llama.cpp's counters.
    bytes_uploaded : int
        Bytes that were copied to the device for the misses.
    bytes_per_token : float
        The same for one token.
    static_hit_rate : float
        What the best choice of as many experts, kept for good, would have had instead.
    """

    size: int
    n_slots: int
    hits: int
    misses: int
    bytes_uploaded: int
    bytes_per_token: float
    static_hit_rate: float

    @property
    def hit_rate(self) -> float:
        """Hits among all; NaN if there was nothing to look up."""
        return self.hits / (self.hits + self.misses) if self.hits + self.misses else float("nan")


class CacheCurve:
    """Hit rates of a cache of experts, by size. Made by :meth:`RoutingRecorder.cache_curve`.

    Attributes
    ----------
    points : tuple[CachePoint, ...]
        What caches of these sizes do, the smallest first.
    n_tokens : int
        Tokens that could have used the cache: of batches of at most 32.
    token_bytes : int
        Bytes of a cache that holds the experts of one token in all layers. One that is smaller hits rarely: before a
        layer's turn comes again, the other layers have taken its place.
    full_bytes : int
        Bytes of a cache that holds all experts.

    Examples
    --------
    >>> recorder = RoutingRecorder(order=True)
    >>> with model.new_context(ContextParams().with_eval_callback(recorder)) as context:
    ...     for piece in context.generate("Once upon a time", max_tokens=32):
    ...         pass
    >>> curve = recorder.cache_curve()
    >>> curve.at(curve.full_bytes).bytes_uploaded > 0
    True

    Notes
    -----
    It replays the choices through a copy of the rule of ``llama-moe-cache.cpp``: layers whose experts have the same
    types and shapes share one list of the experts used least recently, of as many as their share of the bytes holds.
    """

    points: tuple[CachePoint, ...]
    n_tokens: int
    token_bytes: int
    full_bytes: int

    _chosen: ChosenExperts
    _n_expert: int
    _n_layer: int
    _groups: Groups
    _used: dict[int, int]
    _need: NDArray[np.int64]

    def __init__(self, *_arguments: object, **_keywords: object) -> None:
        raise TypeError("curves are made by RoutingRecorder(order=True).cache_curve()")

    @classmethod
    def _of(
        cls,
        chosen: ChosenExperts,
        n_expert: int,
        layouts: Mapping[int, Layout],
        alignment: int,
        sizes: Sequence[SupportsIndex | str] | None,
        layers: Iterable[SupportsIndex] | None,
        device_of: Mapping[int, str] | None = None,
        shares: Mapping[str, float] | None = None,
    ) -> CacheCurve:
        if not len(chosen):
            raise ValueError(
                "nothing was recorded yet: decode with ContextParams().with_eval_callback(recorder) first, with a "
                "model that has experts"
            )
        if layers is not None:
            wanted = sorted({checks.integer("layers", layer, 0) for layer in layers})
            if missing := [layer for layer in wanted if layer not in layouts]:
                raise ValueError(f"layers has {missing[0]}, which has no experts; those of {_ranges(layouts)} do")
            layouts = {layer: layouts[layer] for layer in wanted}
        if not layouts:
            raise ValueError("no layers: there is nothing to cache")
        curve = cls.__new__(cls)
        curve._chosen, curve._n_expert = chosen, n_expert
        curve._groups = groups = Groups(layouts, alignment, device_of, shares)
        curve._count()
        curve.token_bytes, curve.full_bytes = groups.token_bytes(curve._used), groups.full_bytes()
        if sizes is None:
            least = groups.least_bytes(max(curve._used.values()))
            spread = np.geomspace(least, max(curve.full_bytes, least), N_SIZES).astype(np.int64).tolist()
            found = sorted({*spread, min(max(curve.token_bytes, least), curve.full_bytes), curve.full_bytes})
        else:
            found = list(sizes)
        points = {point.size: point for point in (curve._at("sizes", size) for size in found)}
        curve.points = tuple(points[size] for size in sorted(points))
        return curve

    def _count(self) -> None:
        """Count what does not depend on the size: how often each expert was needed, by how many tokens."""
        layers, n_tokens, begins, experts = self._chosen.steps()
        n_layer = max(int(layers.max()), *self._groups.layouts) + 1
        small = n_tokens <= N_TOKENS_MAX
        #: How many experts a token uses in each layer; the most, if that changed.
        used = np.zeros(n_layer, np.int64)
        np.maximum.at(used, layers, np.diff(begins) // np.maximum(n_tokens, 1))
        self._used = {layer: int(used[layer]) for layer in self._groups.layouts if used[layer]}
        self._n_layer = n_layer
        # Steps of several tokens need each expert once.
        step_of = np.repeat(np.arange(layers.size), np.diff(begins))
        needed = np.unique(step_of * self._n_expert + experts) if experts.size else np.zeros(0, np.int64)
        steps, needed_experts = needed // self._n_expert, needed % self._n_expert
        keep = small[steps]
        self._need = np.zeros((n_layer, self._n_expert), np.int64)
        np.add.at(self._need, (layers[steps[keep]], needed_experts[keep]), 1)
        by_layer = np.zeros(n_layer, np.int64)
        np.add.at(by_layer, layers[small], n_tokens[small])
        self.n_tokens = int(by_layer[list(self._groups.layouts)].max())

    @property
    def _in_all_layers(self) -> bool:
        """Whether something was looked up in all layers; of a long prompt, the last one alone computes few tokens."""
        return bool(self._need[list(self._groups.layouts)].any(axis=1).all())

    @property
    def active_bytes(self) -> int:
        """Bytes of the experts of one token in all layers: what it reads from host memory without a cache."""
        return sum(self._groups.layouts[layer].expert_bytes * count for layer, count in self._used.items())

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Bytes of the caches: int64 of shape ``(n,)``."""
        return np.array([point.size for point in self.points], np.int64)

    @property
    def hit_rate(self) -> NDArray[np.float64]:
        """Hits among all that was looked up, by size: float64 of shape ``(n,)``, from 0 to 1."""
        return np.array([point.hit_rate for point in self.points])

    @property
    def static_hit_rate(self) -> NDArray[np.float64]:
        """What the best choice of as many experts, kept for good, would have had: float64 of shape ``(n,)``."""
        return np.array([point.static_hit_rate for point in self.points])

    @property
    def bytes_per_token(self) -> NDArray[np.float64]:
        """Bytes that are copied to the device for a token, by size: float64 of shape ``(n,)``."""
        return np.array([point.bytes_per_token for point in self.points])

    def at(self, size: SupportsIndex | str) -> CachePoint:
        """What a cache of this size does.

        Parameters
        ----------
        size
            Bytes, or a text such as ``"4GiB"``.

        Raises
        ------
        ValueError
            If it does not hold the experts of one token in one layer.
        """
        return self._at("size", size)

    def _at(self, name: str, size: SupportsIndex | str) -> CachePoint:
        nbytes = parse_size(name, size, 1)
        groups = self._groups
        used = max(self._used.values(), default=0)
        n_slots = groups.n_slots(nbytes, used)
        if not any(n_slots):
            parse_memory(name, size)  # which refuses a number without its unit
            raise ValueError(
                f"{name} is {show_size(nbytes)}; the experts of one token in one layer take "
                f"{show_size(groups.least_bytes(used))}, and those of all layers {show_size(self.token_bytes)}"
            )
        group_of = [-1] * self._n_layer
        for group, members in enumerate(groups.members):
            for layer in members:
                group_of[layer] = group
        counts = replay(self._chosen, self._n_layer, self._n_expert, group_of, n_slots)
        hits, misses = (int(n) for n in counts.sum(axis=0))
        uploaded = sum(int(counts[layer, 1]) * layout.expert_bytes for layer, layout in groups.layouts.items())
        kept = needed = 0
        for members, count in zip(groups.members, n_slots, strict=True):
            if count:
                needs = np.sort(self._need[members].reshape(-1))[::-1]
                kept, needed = kept + int(needs[:count].sum()), needed + int(needs.sum())
        return CachePoint(
            nbytes,
            sum(n_slots),
            hits,
            misses,
            uploaded,
            uploaded / self.n_tokens if self.n_tokens else 0.0,
            kept / needed if needed else float("nan"),
        )

    def to_dict(self) -> dict[str, object]:
        """The curve as plain values, for JSON: bytes, and hit rates from 0 to 1; None where nothing was looked up."""

        def known(rate: float) -> float | None:
            return None if rate != rate else rate

        return {
            "n_tokens": self.n_tokens,
            "token_bytes": self.token_bytes,
            "full_bytes": self.full_bytes,
            "points": [
                {**asdict(point), "static_hit_rate": known(point.static_hit_rate), "hit_rate": known(point.hit_rate)}
                for point in self.points
            ],
        }

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Draw the hit rate over the size, beside that of the best static choice.

        Parameters
        ----------
        path
            As for :meth:`RoutingRecorder.plot`.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        ImportError
            If matplotlib is missing; it comes with the extra ``plot``.
        """
        target = None if path is None else checks.path("path", path)
        from moebind.placement.plot import plot_cache_curve

        return plot_cache_curve(self.sizes, self.hit_rate, self.static_hit_rate, self.token_bytes, target)

    def __str__(self) -> str:
        layers = self._groups.layouts
        columns = [
            Column("cache"),
            Column("experts"),
            Column("hit rate", ".1%"),
            Column("uploaded per token"),
            Column("best static", ".1%"),
        ]
        rows = [
            [
                show_size(point.size),
                str(point.n_slots),
                point.hit_rate,
                show_size(round(point.bytes_per_token)),
                point.static_hit_rate,
            ]
            for point in (self.points if len(self.points) <= N_ROWS else self._sample())
        ]
        total = sum(layout.n_expert for layout in layers.values())
        return "\n".join(
            [
                f"{self.n_tokens} tokens, {total} experts in {len(layers)} layers",
                *text_table(columns, rows),
                f"The experts of one token take {show_size(self.token_bytes)}: a smaller cache hits rarely.",
            ]
        )

    def _sample(self) -> list[CachePoint]:
        """Some of the points, evenly, with the first, the last and the one that holds a token's experts."""
        picked = set(np.linspace(0, len(self.points) - 1, N_ROWS - 1).round().astype(int).tolist())
        return [point for at, point in enumerate(self.points) if at in picked or point.size == self.token_bytes]

    def _repr_html_(self) -> str:
        """What a notebook shows: the curve, and the table."""
        return html_of(str(self), draw=self.plot)

    def __repr__(self) -> str:
        return f"<CacheCurve, {len(self.points)} sizes, {self.n_tokens} tokens>"


def _ranges(layers: Iterable[int]) -> str:
    """Numbers in order, as ``1-23``."""
    parts: list[list[int]] = []
    for layer in sorted(layers):
        if parts and layer == parts[-1][-1] + 1:
            parts[-1][1:] = [layer]
        else:
            parts.append([layer])
    return ", ".join("-".join(str(end) for end in part) for part in parts) or "no layers"
