"""Tensors of a graph, as eval callbacks see them while they are computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from moebind._core import checks
from moebind._core.native import CData, decoded, ffi, lib
from moebind._core.owner import OfThisProcess
from moebind._core.shown import shown
from moebind.enums import GgmlType
from moebind.errors import ClosedError
from moebind.files import tensor_patterns

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moebind._core.model_base import ModelBase

__all__ = ["EvalCallback", "EvalTensor", "TensorObserver"]

#: Types that numpy has too; the others are turned into float32.
_DTYPES: dict[GgmlType, np.dtype[Any]] = {
    GgmlType.F32: np.dtype(np.float32),
    GgmlType.F16: np.dtype(np.float16),
    GgmlType.F64: np.dtype(np.float64),
    GgmlType.I8: np.dtype(np.int8),
    GgmlType.I16: np.dtype(np.int16),
    GgmlType.I32: np.dtype(np.int32),
    GgmlType.I64: np.dtype(np.int64),
}


class EvalTensor(OfThisProcess):
    """A tensor of a graph that is being computed, as an eval callback sees it.

    It can be used only during the call; afterwards everything but its ``repr`` raises :class:`ClosedError`. Arrays that
    :meth:`numpy` returned remain valid.
    """

    __slots__ = ("_computed", "_pointer")

    def __init__(self, *_arguments: object, **_keywords: object) -> None:
        raise TypeError("eval tensors are made for eval callbacks: see ContextParams.with_eval_callback")

    @classmethod
    def _of(cls, pointer: CData, computed: bool) -> EvalTensor:
        tensor = cls.__new__(cls)
        tensor._pointer = pointer
        tensor._computed = computed
        return tensor

    _pointer: CData | None
    _computed: bool

    def _open(self) -> CData:
        if self._pointer is None:
            raise ClosedError("this EvalTensor cannot be used: the call that it was made for is over")
        return self._pointer

    @property
    def native(self) -> CData:
        """The ``struct ggml_tensor *`` of ``moebind.ffi``, valid during the call."""
        return self._open()

    @property
    def name(self) -> str:
        """llama.cpp's name for it, such as ``"ffn_moe_topk-0"`` in layer 0 or ``"result_output"``."""
        return decoded(self._open().name)

    @property
    def op(self) -> str:
        """The operation that computes it, such as ``"MUL_MAT"`` (``ggml_op_desc``)."""
        return decoded(lib.ggml_op_desc(self._open()))

    @property
    def type(self) -> GgmlType:
        """The type of its elements."""
        return GgmlType(self._open().type)

    @property
    def shape(self) -> tuple[int, ...]:
        """Its size in each dimension in numpy's order, the slowest first: mostly ``(n_tokens, width)``.

        There are at least two dimensions, so that a single token is a row too.
        """
        sizes = [int(size) for size in self._open().ne]
        while len(sizes) > 2 and sizes[-1] == 1:
            sizes.pop()
        return tuple(reversed(sizes))

    @property
    def nbytes(self) -> int:
        """Bytes of its elements (``ggml_nbytes``)."""
        return int(lib.ggml_nbytes(self._open()))

    @property
    def is_host(self) -> bool:
        """Whether it is in host memory (``ggml_backend_buffer_is_host``)."""
        buffer = self._open().buffer
        return bool(buffer) and bool(lib.ggml_backend_buffer_is_host(buffer))

    def numpy(self) -> NDArray[np.generic]:
        """Its elements.

        Returns
        -------
        numpy.ndarray
            A copy with the dimensions of :attr:`shape`, because the graph uses the memory again for what comes next.
            Integers, F16, F32 and F64 keep their type; others (BF16, quantised ones) become float32.

        Raises
        ------
        RuntimeError
            If it is not computed yet: the callback was only asked whether it wants it.
        ClosedError
            If the call is over.

        Notes
        -----
        Uses ``ggml_backend_tensor_get``, which copies from any device.
        """
        tensor = self._open()
        if not self._computed:
            raise RuntimeError(f"{self.name} is not computed yet: answer True, and read it when ask is False")
        if not tensor.buffer:
            raise RuntimeError(f"{self.name} has no memory: nothing was computed for it")
        n = int(lib.ggml_nbytes(tensor))
        data = np.empty(n, np.uint8)
        if n:
            lib.ggml_backend_tensor_get(tensor, ffi.from_buffer(data), 0, n)
        shape = self.shape
        strides = tuple(reversed([int(stride) for stride in tensor.nb][: len(shape)]))
        dtype = _DTYPES.get(GgmlType(tensor.type))
        if dtype is None:
            return _dequantized(GgmlType(tensor.type), data, shape, strides)
        if 0 in shape:
            return np.empty(shape, dtype)
        # A view of another tensor may be transposed, or have gaps.
        strided: NDArray[np.generic] = np.ndarray(shape, dtype, data, 0, strides)
        return np.ascontiguousarray(strided)

    def __repr__(self) -> str:
        if self._pointer is None:
            return "<EvalTensor, over>"
        return f"<EvalTensor {self.name} = {self.op}, {self.type.name} {self.shape}>"


def _dequantized(
    kind: GgmlType, data: NDArray[np.uint8], shape: tuple[int, ...], strides: tuple[int, ...]
) -> NDArray[np.generic]:
    """Rows of a type that numpy has not, as float32."""
    to_float = lib.ggml_get_type_traits(kind).to_float
    width = shape[-1]
    if not to_float or strides[-1] != lib.ggml_type_size(kind):
        raise TypeError(f"elements of type {kind.name} in this order cannot be read as numbers")
    result = np.empty(shape, np.float32)
    for index in np.ndindex(shape[:-1]):
        at = sum(i * stride for i, stride in zip(index, strides[:-1], strict=True))
        to_float(ffi.from_buffer(data[at:]), ffi.from_buffer("float[]", result[index]), width)
    return result


class TensorObserver:
    """An eval callback for certain tensors only, chosen by name without asking Python.

    Parameters
    ----------
    tensors
        A regular expression (C++'s ``std::regex``) that is searched for in tensors' names, or the names themselves.
    fn
        Called as ``fn(tensor)`` with an :class:`EvalTensor` when one is computed. Returning False stops the
        computation (:class:`AbortedError`); ``decode`` raises its exceptions.

    Raises
    ------
    ValueError
        If the pattern is invalid, or there are no names.

    Examples
    --------
    >>> def count(tensor):
    ...     print(tensor.name, tensor.numpy())
    >>> observer = TensorObserver("^ffn_moe_topk-", count)
    >>> params = ContextParams().with_eval_callback(observer)
    """

    __slots__ = ("_fn", "_names", "_pattern")

    def __init__(self, tensors: str | Iterable[str], fn: Callable[[EvalTensor], bool | None]) -> None:
        if not callable(fn):
            raise TypeError(f"fn is {shown(fn)}; it takes a function")
        self._fn = fn
        self._pattern: str | None = None
        self._names: tuple[str, ...] = ()
        if isinstance(tensors, str):
            self._pattern = tensor_patterns.check_pattern(tensors)
            return
        if isinstance(tensors, bytes) or not isinstance(tensors, Iterable):
            raise TypeError(f"tensors is {shown(tensors)}; it takes a pattern, or names of tensors")
        self._names = tuple(tensors)
        for name in self._names:
            checks.text("tensors", name)
        if not self._names:
            raise ValueError("tensors is empty; it takes a pattern, or names of tensors")

    @property
    def tensors(self) -> str | tuple[str, ...]:
        """The pattern, or the names, of the tensors."""
        return self._names if self._pattern is None else self._pattern

    @property
    def fn(self) -> Callable[[EvalTensor], bool | None]:
        """The function that is called."""
        return self._fn

    def _for_model(self, model: ModelBase) -> TensorObserver:
        """The observer for a context of this model."""
        return self

    def _register(self, hooks: CData) -> None:
        """Tell the native hooks which tensors to call for."""
        names = [ffi.new("char[]", name.encode()) for name in self._names]
        pattern = ffi.NULL if self._pattern is None else self._pattern.encode()
        lib.moebind_hooks_observe(hooks, pattern, names, len(names))

    def __repr__(self) -> str:
        return f"TensorObserver({self.tensors!r}, {self._fn!r})"


EvalCallback: TypeAlias = "Callable[[EvalTensor, bool], bool | None] | TensorObserver"


def eval_hook(callback: EvalCallback | None) -> Callable[[CData, bool], bool] | None:
    """The function that the native hook calls: with a pointer to a tensor, and whether to ask if it is wanted."""
    if callback is None:
        return None

    def on_eval(pointer: CData, ask: bool) -> bool:
        tensor = EvalTensor._of(pointer, not ask)
        try:
            answer = callback.fn(tensor) if isinstance(callback, TensorObserver) else callback(tensor, ask)
        finally:
            tensor._pointer = None
        # Wanting a tensor is said; going on is what everybody means.
        return bool(answer) if ask else answer is not False

    return on_eval
