"""The type that quantising gives each tensor: known before anything is written."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from moebind._core import log
from moebind._core.native import CData, Hooks, ffi, lib
from moebind._core.shown import shown
from moebind._core.tables import Column, text_table
from moebind.enums import Ftype, GgmlType
from moebind.errors import NativeError, QuantizeError
from moebind.files.gguf import Gguf

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["QuantizeResult", "QuantizedTensor"]

#: Types that ggml quantises to. Asked for another one, it divides by zero or fails an assertion.
TARGETS = tuple(
    kind
    for kind in GgmlType.__members__.values()
    if kind not in {GgmlType.Q8_1, GgmlType.Q8_K, GgmlType.F64}
    and kind not in {GgmlType.I8, GgmlType.I16, GgmlType.I32, GgmlType.I64}
)
#: llama.cpp refuses to make garbage of these; of the first three, ggml asserts it.
_NEED_IMATRIX = {
    GgmlType.IQ1_S,
    GgmlType.IQ2_XXS,
    GgmlType.IQ2_XS,
    GgmlType.IQ1_M,
    GgmlType.IQ2_S,
    GgmlType.IQ3_XXS,
}
EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
OUTPUT = "output.weight"


@dataclass(frozen=True)
class QuantizedTensor:
    """One tensor before and after quantising; after a dry run, as it would be.

    Attributes
    ----------
    name : str
        Its name in the new file.
    shape : tuple[int, ...]
        Its dimensions, the length of a row first.
    source_type, type : GgmlType
        Its type before and after.
    source_nbytes, nbytes : int
        Bytes of its data, before and after.
    """

    name: str
    shape: tuple[int, ...]
    source_type: GgmlType
    type: GgmlType
    source_nbytes: int
    nbytes: int

    @property
    def n_elements(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class QuantizeResult:
    """The files and tensors that :func:`quantize` wrote, or would write.

    Attributes
    ----------
    paths : tuple[str, ...]
        The files that were written; none after a dry run.
    ftype : Ftype
        The type of most of its tensors, as the file says.
    tensors : tuple[QuantizedTensor, ...]
        All tensors of the new file, in its order.
    needs_imatrix : tuple[str, ...]
        Tensors that have no importance matrix but whose new type needs one. A dry run lists them, a real run refuses.
    """

    paths: tuple[str, ...]
    ftype: Ftype
    tensors: tuple[QuantizedTensor, ...]
    needs_imatrix: tuple[str, ...]

    @property
    def source_nbytes(self) -> int:
        """Bytes of the tensors before."""
        return sum(tensor.source_nbytes for tensor in self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors afterwards; the file's header and padding come on top."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight, on average."""
        return 8 * self.nbytes / max(sum(tensor.n_elements for tensor in self.tensors), 1)

    def to_dict(self) -> dict[str, object]:
        """The result as plain values, for JSON; sizes are bytes."""
        return {
            "paths": list(self.paths),
            "ftype": self.ftype.name,
            "source_nbytes": self.source_nbytes,
            "nbytes": self.nbytes,
            "bits_per_weight": self.bits_per_weight,
            "needs_imatrix": list(self.needs_imatrix),
            "tensors": [
                {**asdict(each), "source_type": each.source_type.name, "type": each.type.name} for each in self.tensors
            ],
        }

    def __str__(self) -> str:
        kinds: dict[tuple[str, str], list[QuantizedTensor]] = {}
        for tensor in self.tensors:
            kinds.setdefault((tensor.source_type.name, tensor.type.name), []).append(tensor)
        columns = [
            Column("from", width=8),
            Column("", width=2),
            Column("to", left=True, width=8),
            Column("tensors", width=8),
            Column("MiB", ".1f", width=10),
            Column("MiB", ".1f", width=10),
        ]
        rows: list[list[object]] = []
        for (source, target), same in kinds.items():
            sizes = [sum(getattr(each, name) for each in same) / 2**20 for name in ("source_nbytes", "nbytes")]
            rows.append([source, "->", target, len(same), *sizes])
        rows.append(["all", None, None, len(self.tensors), self.source_nbytes / 2**20, self.nbytes / 2**20])
        *lines, total = text_table(columns, rows, separator=" ")
        return "\n".join([*lines, f"{total}  {self.bits_per_weight:.2f} bits per weight"])


@log.quoted()
def run(source: Gguf, target: str, native: CData, hooks: Hooks) -> None:
    """llama_model_quantize, with its failures as exceptions."""
    try:
        outcome = lib.moebind_quantize(os.fsencode(source.path), os.fsencode(target), native, hooks.pointer)
    except NativeError as error:
        raise QuantizeError(f"{source.path} could not be quantised: {error.message}{log.recent_lines()}") from error
    if outcome == 2:
        raise QuantizeError(f"{source.path}: the progress callback stopped it")
    if outcome:
        raise QuantizeError(f"{source.path} could not be quantised{log.recent_lines()}")


def plan(
    source: Gguf,
    native: CData,
    ftype: Ftype,
    renamed: Mapping[str, str],
    weights: Mapping[str, NDArray[np.float32]],
) -> QuantizeResult:
    """The exact result of a quantisation, from a dry run of llama.cpp's; ``weights`` is the importance matrix."""
    native.dry_run = True
    run(source, "", native, Hooks())
    native.dry_run = False
    buffer = ffi.new("char[]", max(lib.moebind_quantize_rows(ffi.NULL, 0), 1))
    used = lib.moebind_quantize_rows(buffer, len(buffer))
    listed = bytes(ffi.buffer(buffer, used)).decode("utf-8", "replace").split("\0")[:-1]
    kinds = {bytes(ffi.string(lib.ggml_type_name(kind))).decode(): kind for kind in GgmlType.__members__.values()}
    tensors, missing = [], []
    for name, kind in zip(listed[::2], listed[1::2], strict=True):
        if name not in renamed:
            raise QuantizeError(f"{source.path}: the tensor {shown(name)} cannot be told from others: rename it")
        old = source.tensors[renamed[name]]
        new = kinds[kind] if kind else old.type
        rows = old.n_elements // old.shape[0]
        nbytes = rows * int(lib.ggml_row_size(new, old.shape[0])) if kind else old.nbytes
        tensors.append(QuantizedTensor(name, old.shape, old.type, new, old.nbytes, nbytes))
        if new != old.type and renamed[name] not in weights and needs_imatrix(name, new, ftype):
            missing.append(name)
    return QuantizeResult((), ftype, tuple(tensors), tuple(missing))


def needs_imatrix(name: str, kind: GgmlType, ftype: Ftype) -> bool:
    if lib.ggml_quantize_requires_imatrix(kind):
        return True
    if name in (*EMBEDDINGS, OUTPUT):
        return False
    return kind in _NEED_IMATRIX or (kind == GgmlType.Q2_K and ftype == Ftype.Q2_K_S)


def check_plan(
    planned: QuantizeResult,
    renamed: Mapping[str, str],
    weights: Mapping[str, NDArray[np.float32]],
    allow_requantize: bool,
) -> None:
    """Refuse tensors that would fail in the middle of the run, or in a thread whose failure nobody could catch."""
    for tensor in planned.tensors:
        if tensor.type == tensor.source_type:
            continue
        if not allow_requantize and lib.ggml_is_quantized(tensor.source_type):
            raise QuantizeError(
                f"{tensor.name} is {tensor.source_type.name}, quantised already: start from F32, F16 or BF16, or "
                "pass allow_requantize=True"
            )
        if tensor.source_type not in TARGETS:
            raise QuantizeError(f"{tensor.name} is {tensor.source_type.name}, which llama.cpp cannot convert")
        values = weights.get(renamed[tensor.name])
        if values is None:
            continue  # planned.needs_imatrix has it, if it takes one
        expected = tensor.shape[0] * (tensor.shape[2] if len(tensor.shape) > 2 else 1)
        if values.size != expected:
            raise QuantizeError(
                f"imatrix[{shown(renamed[tensor.name])}] has {values.size} numbers; the tensor takes {expected}: one "
                "per column, for each expert"
            )
