"""Which experts a model's routers choose: counted while it computes."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, SupportsIndex

import numpy as np

from moebind._core import checks
from moebind._core.fork import new_in_child
from moebind._core.native import lib
from moebind._core.pictures import html_of
from moebind._core.shown import shown
from moebind._core.sizes import show_size
from moebind._core.tables import Column, text_table
from moebind.params.observers import EvalTensor, TensorObserver
from moebind.placement import recording
from moebind.placement.cache_curve import CacheCurve
from moebind.placement.chosen_experts import ALIGNMENT, ChosenExperts, Layout, alignment_of, layouts_of
from moebind.placement.heat_map import WIDTH_MIN, heat_map
from moebind.placement.recording import Recording

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from moebind._core.model_base import ModelBase
    from moebind.placement.plan import Plan

__all__ = ["RoutingRecorder"]

#: Every graph chooses its experts in llm_graph_context::build_moe_ffn, which names them so. Groups of experts that are
#: chosen first (ffn_moe_group_topk) are no experts, and shared experts are not chosen.
_CHOSEN = r"^ffn_moe_topk-\d+$"


class RoutingRecorder(TensorObserver):
    """Counts how many tokens each expert of each layer gets: an eval callback, for any number of contexts.

    Pass it to :attr:`ContextParams.eval_callback`. It counts whatever those contexts decode or encode, including
    prompts, and any thread can read it in the meantime. The models of all contexts must have the same number of layers
    and of experts.

    A layer counts the tokens that it computes. The last layer leaves out tokens without outputs: of a prompt it mostly
    computes only the last token, so its ``n_tokens`` is smaller than that of the others. A batch that asks for all
    outputs (``batch.add_sequence(tokens, 0, logits_all=True)``) makes it compute every token. A decode that fails or is
    stopped has counted the layers that it reached.

    Parameters
    ----------
    order
        Keep which experts were chosen in which order too, for :meth:`cache_curve`: 2 bytes for each choice, so about
        400 bytes for a token of a model that uses 8 experts in each of 24 layers.

    Raises
    ------
    ValueError
        From ``Model.new_context``, if it already counts for a model with another number of layers or experts.

    Examples
    --------
    >>> recorder = RoutingRecorder()
    >>> with model.new_context(ContextParams().with_eval_callback(recorder)) as context:
    ...     for piece in context.generate("Once upon a time", max_tokens=32):
    ...         pass
    >>> print(recorder)
    >>> recorder.plot("routing.png")

    Notes
    -----
    Uses ``cb_eval`` of ``llama_context_params`` and reads the tensors ``ffn_moe_topk-<layer>``. That works for
    softmax, sigmoid and grouped routers, and for those that look experts up by token. Reading interrupts llama.cpp once
    per layer; ``benchmarks/routing.py`` measures what that costs.
    """

    __slots__ = ("_alignment", "_counts", "_layouts", "_lock", "_n_tokens", "_order", "_size")

    def __init__(self, *, order: bool = False) -> None:
        #: What was chosen, in order; and how the experts of each layer are stored.
        self._order = ChosenExperts() if checks.boolean("order", order) else None
        self._layouts: dict[int, Layout] = {}
        self._alignment = ALIGNMENT
        self._lock = new_in_child(threading.RLock())
        #: Layers and experts of the models; some have layers for multi-token prediction besides.
        self._size = (0, 0)
        self._counts: NDArray[np.int64] = np.zeros((0, 0), np.int64)
        self._n_tokens: NDArray[np.int64] = np.zeros(0, np.int64)
        super().__init__(_CHOSEN, self._count)

    def _for_model(self, model: ModelBase) -> TensorObserver:
        native = model._open()
        self._fit(int(lib.llama_model_n_layer(native)), int(lib.moebind_model_n_expert(native)))
        if self._order is not None:
            self._layouts, self._alignment = layouts_of(model), alignment_of(model)
        if model._architecture != "grovemoe":
            return self
        # It chooses twice from the same logits, under the same name: experts, then the groups that these are of. The
        # first choice after the logits is the one to count.
        fresh: set[str] = set()

        def count_first(tensor: EvalTensor) -> None:
            kind, _, layer = tensor.name.rpartition("-")
            if kind == "ffn_moe_logits":
                fresh.add(layer)
            elif layer in fresh:
                fresh.remove(layer)
                self._count(tensor)

        return TensorObserver(r"^ffn_moe_(logits|topk)-\d+$", count_first)

    def _fit(self, n_layer: int, n_expert: int) -> None:
        """Make room for a model, or refuse it."""
        with self._lock:
            if not self._counts.size:
                self._size = n_layer, n_expert
                self._counts = np.zeros(self._size, np.int64)
                self._n_tokens = np.zeros(n_layer, np.int64)
            elif self._size != (n_layer, n_expert):
                raise ValueError(
                    f"this RoutingRecorder counts {_shown(self._size)}, the model has {_shown((n_layer, n_expert))}: "
                    "make another one for it"
                )

    def _grow(self, n_layer: int) -> None:
        """Make room for so many layers. The caller holds the lock."""
        more = n_layer - len(self._counts)
        if more > 0:
            self._counts = np.pad(self._counts, ((0, more), (0, 0)))
            self._n_tokens = np.pad(self._n_tokens, (0, more))

    def _count(self, tensor: EvalTensor) -> None:
        layer = int(tensor.name.rpartition("-")[2])
        chosen = tensor.numpy()
        with self._lock:
            self._grow(layer + 1)
            self._counts[layer] += np.bincount(chosen.reshape(-1), minlength=self._counts.shape[1])
            self._n_tokens[layer] += len(chosen)
            if self._order is not None:
                self._order.add(layer, chosen)

    def _read(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Copies of the counts and of the numbers of tokens, of one moment."""
        with self._lock:
            return np.array(self._counts), np.array(self._n_tokens)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Tokens that each expert got: int64 of shape ``(n_layer, n_expert)``, a copy.

        Layers without experts are zeros. A row's sum is :attr:`n_tokens` times the experts that work on each token.
        Before there is a context, the shape is ``(0, 0)``.
        """
        return self._read()[0]

    @property
    def n_tokens(self) -> NDArray[np.int64]:
        """Tokens that were routed in each layer: int64 of shape ``(n_layer,)``, a copy; 0 in layers without experts."""
        return self._read()[1]

    def fractions(self) -> NDArray[np.float64]:
        """Each expert's share of what its layer routed.

        Returns
        -------
        numpy.ndarray
            float64 of shape ``(n_layer, n_expert)``. Rows sum to 1; those of layers that routed nothing are zeros.
        """
        return _fractions(self.counts)

    def entropy(self) -> NDArray[np.float64]:
        """How evenly each layer's experts are used: the entropy of :meth:`fractions`, as a share of the largest one.

        Returns
        -------
        numpy.ndarray
            float64 of shape ``(n_layer,)``: 1 if all experts get equally much, 0 if one gets everything; NaN in layers
            that routed nothing, or have one expert.
        """
        return _entropy(self.fractions())

    def imbalance(self) -> NDArray[np.float64]:
        """The share of each layer's busiest expert, in multiples of an even share.

        Returns
        -------
        numpy.ndarray
            float64 of shape ``(n_layer,)``: 1 if all get equally much, up to ``n_expert / n_expert_used``; NaN in
            layers that routed nothing.
        """
        return _imbalance(self.fractions())

    def reset(self) -> None:
        """Start counting from zero. A decode that is running in another thread is still counted."""
        with self._lock:
            self._counts[:] = 0
            self._n_tokens[:] = 0
            if self._order is not None:
                self._order = ChosenExperts()

    def merge(self, other: RoutingRecorder) -> None:
        """Add what another recorder counted. ``a + b`` makes a new recorder instead.

        The order of ``other`` follows this one's, as if nothing had emptied the cache in between.

        Parameters
        ----------
        other
            A recorder of a model with the same numbers of layers and experts, or one that has counted nothing yet.

        Raises
        ------
        ValueError
            If it counted another number of layers or experts, or only one of the two keeps the order.
        """
        if not isinstance(other, RoutingRecorder):
            raise TypeError(f"other is {shown(other)}; it takes a RoutingRecorder")
        if (self._order is None) != (other._order is None):
            raise ValueError("one of the recorders keeps the order of experts (order=True), the other does not")
        with other._lock:  # one lock at a time: a and b may be merged into each other
            size, counts, n_tokens = other._size, np.array(other._counts), np.array(other._n_tokens)
            layouts, alignment = other._layouts, other._alignment
            order = None if other._order is None else other._order.copy()
        if not counts.size:
            return
        with self._lock:
            if not self._counts.size:
                self._size, self._counts, self._n_tokens = size, counts, n_tokens
                self._layouts, self._alignment, self._order = layouts, alignment, order
                return
            if self._size != size:
                raise ValueError(f"{_shown(size)} cannot be added to {_shown(self._size)}")
            self._grow(len(counts))
            self._counts[: len(counts)] += counts
            self._n_tokens[: len(counts)] += n_tokens
            if self._order is not None and order is not None:
                self._order.extend(order)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what was counted into a file, with the order, if that is kept; :meth:`load` reads it.

        Parameters
        ----------
        path
            The file, such as ``"routing.npz"``; another one that is there is replaced. It is an archive of numpy's.

        Raises
        ------
        ValueError
            If nothing was counted yet.
        OSError
            If it cannot be written.

        Examples
        --------
        >>> recorder.save("routing.npz")
        >>> (RoutingRecorder.load("routing.npz").counts == recorder.counts).all()
        True
        """
        target = checks.path("path", path)
        with self._lock:
            if not self._counts.size:
                raise ValueError("nothing was counted yet: there is nothing to save")
            order = None if self._order is None else self._order.copy()
            found = Recording(
                self._counts.copy(), self._n_tokens.copy(), self._size, dict(self._layouts), self._alignment, order
            )
        recording.write(target, found)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RoutingRecorder:
        """Read what :meth:`save` wrote. The recorder goes on counting for models of the same kind.

        Parameters
        ----------
        path
            The file.

        Raises
        ------
        ValueError
            If it is no such file, or damaged.
        OSError
            If it cannot be read.
        """
        found = recording.read(checks.path("path", path))
        made = cls(order=found.order is not None)
        made._counts, made._n_tokens, made._size = found.counts, found.n_tokens, found.size
        made._layouts, made._alignment, made._order = found.layouts, found.alignment, found.order
        return made

    def __add__(self, other: RoutingRecorder) -> RoutingRecorder:
        if not isinstance(other, RoutingRecorder):
            return NotImplemented
        both = RoutingRecorder(order=self._order is not None)
        both.merge(self)
        both.merge(other)
        return both

    def cache_curve(
        self,
        sizes: Sequence[SupportsIndex | str] | None = None,
        *,
        layers: Iterable[int] | None = None,
        plan: Plan | None = None,
    ) -> CacheCurve:
        """Forecast the hit rate of a device's cache of experts that are kept in host memory, for every size of it.

        It replays what was chosen, with llama.cpp's own rule of what goes first, and so gives what llama.cpp would
        count for the same tokens on one device. A cache takes part in batches of at most 32 tokens; what larger ones
        choose, such as a prompt, is left out.

        Parameters
        ----------
        sizes
            Of the cache, in bytes or as texts such as ``"4GiB"``. None: 32 of them, from the smallest that holds a
            token's experts of one layer to all experts.
        layers
            Those whose experts are in host memory. None: all that have experts.
        plan
            A plan of the same model, in place of ``layers``: which layers have their experts in host memory, which
            devices compute them, and how a cache is divided between these: as ``tensor_split`` says, or else by the
            memory that is free, which is another at each load.

        Returns
        -------
        CacheCurve

        Raises
        ------
        ValueError
            If the recorder does not keep the order, recorded nothing, a layer has no experts, the plan leaves nothing
            to cache or is another model's, or both ``layers`` and ``plan`` are given.
        """
        order = self._order
        if order is None:
            raise ValueError("this recorder keeps no order: make it with RoutingRecorder(order=True)")
        with self._lock:
            order = order.copy()
        known = order, self._size[1], self._layouts, self._alignment, sizes
        if plan is None:
            return CacheCurve._of(*known, layers)
        if layers is not None:
            raise ValueError("layers and plan are both given: the plan says which layers")
        from moebind.placement.plan import Plan

        if not isinstance(plan, Plan):
            raise TypeError(f"plan is {shown(plan)}; it takes a Plan, as moebind.plan(path, ...) makes")
        if not plan._cached:
            raise ValueError(
                "the plan leaves nothing to cache: no layer that a device computes has all of its experts in host "
                "memory, as they are in the file (use_extra_bufts=False)"
            )
        for layer in plan._cached if len(order) else ():
            held = sum(size for name, size in plan._experts[layer].items() if name.endswith("_exps.weight"))
            known_bytes = self._layouts[layer].nbytes if layer in self._layouts else 0
            if held != known_bytes:
                raise ValueError(
                    f"the plan is another model's: its layer {layer} has {show_size(held)} of experts, and that of the "
                    f"model that was recorded {show_size(known_bytes)}"
                )
        return CacheCurve._of(*known, plan._cached, plan._cached, plan._cache_shares)

    def heat_map(self, width: SupportsIndex = 100) -> str:
        """Draw a heat map as text: a line for each layer that routed something, a character for each expert.

        A character stands for the expert's share in multiples of an even one: a blank for none, ``.`` below a half,
        and so on to ``@`` for four times and more.

        Parameters
        ----------
        width
            Columns that it may take, at least 40. Where there are more experts, a character is that of the busiest of
            several that follow each other.

        Raises
        ------
        ValueError
            If nothing was counted yet.
        """
        return heat_map(*self._read(), checks.integer("width", width, WIDTH_MIN))

    def to_dict(self) -> dict[str, object]:
        """The counts as plain values, for JSON: ``counts`` and ``n_tokens`` by layer; what is NaN is None."""
        counts, n_tokens = self._read()
        shares = _fractions(counts)
        return {
            "n_layer": counts.shape[0],
            "n_expert": counts.shape[1],
            "counts": counts.tolist(),
            "n_tokens": n_tokens.tolist(),
            "entropy": [None if np.isnan(each) else float(each) for each in _entropy(shares)],
            "imbalance": [None if np.isnan(each) else float(each) for each in _imbalance(shares)],
        }

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Draw a heat map: layers down, experts across, colours for an expert's share in multiples of an even share.

        Parameters
        ----------
        path
            The file; its ending chooses the format (``.png``, ``.svg``, ``.pdf``). None writes nothing. The background
            is transparent, and the colours suit light and dark pages and colour-blind readers. Layers that routed
            nothing are left empty.

        Returns
        -------
        matplotlib.figure.Figure
            To be changed, shown in a notebook or saved.

        Raises
        ------
        ValueError
            If nothing was counted yet.
        ImportError
            If matplotlib is missing; it comes with the extra ``plot``.
        """
        target = None if path is None else checks.path("path", path)
        from moebind.placement.plot import plot_routing

        return plot_routing(self.fractions(), target)

    def __str__(self) -> str:
        counts, n_tokens = self._read()
        shares = _fractions(counts)
        entropy, imbalance = _entropy(shares), _imbalance(shares)
        columns = [
            Column("layer"),
            Column("tokens"),
            Column("entropy", ".3f"),
            Column("busiest"),
            Column("its share", ".1%"),
            Column("times even", ".2f"),
            Column("never used"),
        ]
        rows: list[list[object]] = []
        for layer in np.flatnonzero(n_tokens).tolist():
            busiest, never = int(counts[layer].argmax()), int((counts[layer] == 0).sum())
            evenness = [entropy[layer], busiest, shares[layer, busiest], imbalance[layer]]
            rows.append([layer, n_tokens[layer], *evenness, never])
        lines = text_table(columns, rows) if rows else []
        return "\n".join([f"{_shown(counts.shape)}, {int(counts.sum())} choices", *lines])

    def _repr_html_(self) -> str:
        """What a notebook shows: the heat map, and the table."""
        return html_of(str(self), draw=self.plot)

    def __repr__(self) -> str:
        counts = self.counts
        return f"<RoutingRecorder, {_shown(counts.shape)}, {int(counts.sum())} choices>"


def _shown(size: tuple[int, ...]) -> str:
    return f"{size[0]} layers of {size[1]} experts"


def _fractions(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return shares


def _entropy(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    n_expert = shares.shape[1]
    logs = np.log(shares, where=shares > 0, out=np.zeros_like(shares))
    # The sum may be a last bit beyond what can be; and adding 0 makes 0 of -0.
    entropy = np.clip(-(shares * logs).sum(axis=1) / np.log(max(n_expert, 2)), 0, 1) + 0.0
    return np.where(shares.any(axis=1) & (n_expert > 1), entropy, np.nan)


def _imbalance(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(shares.any(axis=1), shares.max(axis=1, initial=0) * shares.shape[1], np.nan)
