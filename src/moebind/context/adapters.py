"""LoRA adapters and control vectors at work: the part of ``Context`` that changes what its model computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, SupportsIndex

import numpy as np

from moebind._core import checks, log
from moebind._core.context_base import ContextBase
from moebind._core.native import CData, ffi, lib
from moebind._core.shown import shown
from moebind.errors import LoraError, MoebindError, NativeError
from moebind.model.adapters import LoraAdapter
from moebind.model.hyperparameters import Hyperparameters

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["Adapters"]

_FLOAT_MAX = float(np.finfo(np.float32).max)


class Adapters(ContextBase):
    """The part of a context that uses LoRA adapters and a control vector. :class:`moebind.Context` has it.

    Changes count for what is computed from then on. What the cache holds stays as it was computed; :meth:`generate`
    computes its prompt anew after a change.
    """

    _model: Hyperparameters
    #: The adapters in use. The native context holds them.
    _loras: tuple[tuple[CData, float], ...] = ()

    def set_lora_adapters(self, adapters: Mapping[LoraAdapter, float]) -> None:
        """Use these LoRA adapters, and no others.

        Parameters
        ----------
        adapters
            Each adapter with its scale: 1 as it was trained, 0 not at all, negative to undo it. Several add up.

        Raises
        ------
        LoraError
            If an adapter belongs to another model, or memory is short; the earlier ones then stay in use.
        ClosedError
            If an adapter was closed.

        Notes
        -----
        Uses ``llama_set_adapters_lora``. Graphs and scratch memory are rebuilt here, not in the next ``decode``.
        """
        wanted = self._checked_adapters(adapters)
        with self._exclusive() as native:
            self._use(native, wanted)

    def _checked_adapters(self, adapters: Mapping[LoraAdapter, float]) -> tuple[tuple[CData, float], ...]:
        if not isinstance(adapters, Mapping):
            raise TypeError(f"adapters is {shown(adapters)}; it takes a mapping of adapters to scales")
        wanted: list[tuple[CData, float]] = []
        for adapter, scale in adapters.items():
            if not isinstance(adapter, LoraAdapter):
                raise TypeError(f"adapters has the key {shown(adapter)}; it takes a LoraAdapter")
            factor = checks.number("scale", scale, -_FLOAT_MAX, _FLOAT_MAX)
            if adapter._model is not self._model:
                raise LoraError(f"{adapter!r} is of another model; load it with this context's model")
            wanted.append((adapter._open(), factor))
        return tuple(wanted)

    def clear_lora_adapters(self) -> None:
        """Use no LoRA adapters (``llama_set_adapters_lora``)."""
        with self._exclusive() as native:
            self._use(native, ())

    @log.quoted()
    def _use(self, native: CData, wanted: tuple[tuple[CData, float], ...]) -> None:
        if dict(wanted) == dict(self._loras):
            return
        self._history.clear()
        for pointer, _ in wanted:
            lib.moebind_hold(native, pointer)
        try:
            self._set(native, wanted)
        except NativeError as error:
            self._set(native, self._loras)
            for pointer, _ in wanted:
                lib.moebind_let_go(native, pointer)
            raise LoraError(f"the adapters cannot be used: {error.message}{log.recent_lines(3)}") from error
        before, self._loras = self._loras, wanted
        for pointer, _ in before:
            lib.moebind_let_go(native, pointer)

    def _set(self, native: CData, wanted: tuple[tuple[CData, float], ...]) -> None:
        pointers = ffi.new("struct llama_adapter_lora *[]", [pointer for pointer, _ in wanted])
        scales = ffi.new("float[]", [scale for _, scale in wanted])
        lib.llama_set_adapters_lora(native, pointers, len(wanted), scales)
        lib.moebind_reserve(native)

    def set_control_vector(
        self, data: ArrayLike | None, *, il_start: SupportsIndex = 1, il_end: SupportsIndex | None = None
    ) -> None:
        """Add a vector to the output of layers, from now on.

        Parameters
        ----------
        data
            Numbers of shape ``(n_layer, n_embd)``, a row for each layer, or ``(n_layer - 1, n_embd)``, whose rows begin
            with layer 1, as in llama.cpp. They are copied as float32. Layer 0 has no vector, so its row must be zero.
            None removes the vector.
        il_start, il_end
            The first and the last layer to change, both included. From 1 to ``n_layer - 1``, which is what None means
            for ``il_end``.

        Raises
        ------
        ValueError
            If the shape is wrong, a number is not finite in float32, or a layer is out of range.
        MoebindError
            If llama.cpp has no memory for it.

        Notes
        -----
        Uses ``llama_set_adapter_cvec``. Not every architecture of llama.cpp applies control vectors.
        """
        n_layer, n_embd = self._model.n_layer, self._model.n_embd
        first = last = -1
        values = np.empty(0, np.float32)
        if data is not None:
            if n_layer < 2:
                raise ValueError("this model has one layer, and the first one has no control vector")
            first = checks.integer("il_start", il_start, 1, n_layer - 1)
            last = n_layer - 1 if il_end is None else checks.integer("il_end", il_end, first, n_layer - 1)
            values = _vectors(data, n_layer, n_embd)
        with self._exclusive() as native:
            self._history.clear()
            pointer = ffi.from_buffer("float[]", values) if data is not None else ffi.NULL
            with log.quoted():
                if lib.llama_set_adapter_cvec(native, pointer, values.size, n_embd, first, last) != 0:
                    raise MoebindError(f"llama.cpp did not take the control vector{log.recent_lines(3)}")
            lib.moebind_reserve(native)


def _vectors(data: ArrayLike, n_layer: int, n_embd: int) -> NDArray[np.float32]:
    """Rows for layers 1 and up, contiguous."""
    try:
        given = np.asarray(data)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"data cannot be made into an array: {str(error)[:200]}") from None
    if given.dtype.kind not in "fiu":
        raise TypeError(f"data has dtype {given.dtype}; it takes numbers")
    if given.shape not in {(n_layer, n_embd), (n_layer - 1, n_embd)}:
        raise ValueError(
            f"data has the shape {given.shape}; for this model it takes {(n_layer, n_embd)}, or "
            f"{(n_layer - 1, n_embd)} without layer 0"
        )
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(given, np.float32)
    if not np.isfinite(rows).all():
        raise ValueError("data has numbers that are not finite as float32")
    if len(rows) == n_layer:
        if rows[0].any():
            raise ValueError("data has a row for layer 0 that is not zero; llama.cpp adds nothing to the first layer")
        rows = rows[1:]
    return rows
