"""LoRA files, looked at before llama.cpp does: some of what is in them it asserts, the rest it trusts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moebind._core.native import CData, decoded, ffi, lib
from moebind.enums import GgmlType, GgufType
from moebind.errors import LoraError, LoraNotFoundError, ModelLoadError, ModelNotFoundError
from moebind.files import gguf

if TYPE_CHECKING:
    from moebind._core.model_base import ModelBase

__all__ = ["check"]

#: Metadata that llama.cpp reads, with the type that it takes for granted.
_TYPES = {
    "general.type": GgufType.STRING,
    "general.architecture": GgufType.STRING,
    "adapter.type": GgufType.STRING,
    "adapter.lora.alpha": GgufType.FLOAT32,
}
_INVOCATION = "adapter.alora.invocation_tokens"
#: Types that matrices of an adapter can have, besides quantised ones.
_FLOATS = {GgmlType.F32, GgmlType.F16, GgmlType.BF16}
#: Quantised, but only ever the other side of a multiplication.
_INTERMEDIATE = {GgmlType.Q8_1, GgmlType.Q8_K}
_EMBEDDINGS = "token_embd.weight"


@dataclass(frozen=True)
class _Matrix:
    """One tensor of an adapter; ``shape`` is ggml's, the innermost dimension first."""

    name: str
    type: GgmlType
    shape: tuple[int, ...]


def check(path: str, model: ModelBase) -> None:
    """Raise unless the file is an adapter that this model can use.

    Raises
    ------
    LoraNotFoundError
        If there is no such file.
    LoraError
        If it is something else, belongs to another model, or something in it would end the process.
    """
    try:
        header = gguf.open_header(path)
    except ModelNotFoundError as error:
        raise LoraNotFoundError(str(error)) from None
    except ModelLoadError as error:
        raise LoraError(str(error)) from None
    _check_metadata(path, header, model)
    pairs = _pairs(path, header)
    if not pairs:
        raise LoraError(f"{path} has no matrices: an adapter has pairs of tensors NAME.lora_a and NAME.lora_b")
    for name, pair in pairs.items():
        for part in ("a", "b"):
            if part not in pair:
                raise LoraError(f"{path}: {name} has no lora_{part}")
        _check_pair(path, name, pair["a"], pair["b"], model)


def _check_metadata(path: str, header: CData, model: ModelBase) -> None:
    found: dict[str, object] = {}
    for key, kind in _TYPES.items():
        index = lib.gguf_find_key(header, key.encode())
        if index < 0:
            continue
        actual = GgufType(lib.gguf_get_kv_type(header, index))
        if actual != kind:
            raise LoraError(f"{path}: the metadata {key} has the type {actual.name}; it must be {kind.name}")
        if kind is GgufType.STRING:
            found[key] = decoded(lib.gguf_get_val_str(header, index))
        else:
            found[key] = lib.gguf_get_val_f32(header, index)
    for key, wanted in (("general.type", "adapter"), ("adapter.type", "lora")):
        if found.get(key) != wanted:
            raise LoraError(f"{path} is no LoRA adapter: its metadata {key} is {found.get(key)!r}, not {wanted!r}")
    architecture = model._architecture
    if found.get("general.architecture") != architecture:
        raise LoraError(
            f"{path} is an adapter for another model: its general.architecture is "
            f"{found.get('general.architecture')!r}, the model's {architecture!r}"
        )
    alpha = found.get("adapter.lora.alpha", 0.0)
    if not math.isfinite(float(str(alpha))):
        raise LoraError(f"{path}: the metadata adapter.lora.alpha is {alpha}; it must be finite")
    index = lib.gguf_find_key(header, _INVOCATION.encode())
    if index < 0:
        return
    if lib.gguf_get_kv_type(header, index) != GgufType.ARRAY or lib.gguf_get_arr_type(header, index) != GgufType.UINT32:
        raise LoraError(f"{path}: the metadata {_INVOCATION} must be an array of UINT32")
    tokens = ffi.unpack(ffi.cast("uint32_t *", lib.gguf_get_arr_data(header, index)), lib.gguf_get_arr_n(header, index))
    if any(token >= model.n_vocab for token in tokens):
        raise LoraError(f"{path}: the metadata {_INVOCATION} has a token outside the vocabulary of {model.n_vocab}")


def _pairs(path: str, header: CData) -> dict[str, dict[str, _Matrix]]:
    """The adapter's tensors, by the name of what they change."""
    pairs: dict[str, dict[str, _Matrix]] = {}
    for index in range(lib.gguf_get_n_tensors(header)):
        name = decoded(lib.gguf_get_tensor_name(header, index))
        base, dot, part = name.rpartition(".lora_")
        if dot and part in {"a", "b"} and ".lora_" not in base:
            shape = lib.gguf_get_tensor_ne(header, index)
            kind = GgmlType(lib.gguf_get_tensor_type(header, index))
            pairs.setdefault(base, {})[part] = _Matrix(name, kind, tuple(shape[i] for i in range(4)))
        elif not name.endswith("_norm.weight"):  # llama.cpp leaves those out
            raise LoraError(f"{path}: {name} is neither NAME.lora_a nor NAME.lora_b")
    return pairs


def _check_pair(path: str, name: str, a: _Matrix, b: _Matrix, model: ModelBase) -> None:
    weight = ffi.new("struct moebind_weight *")
    if not lib.moebind_model_weight(model._open(), name.encode("utf-8", "surrogateescape"), weight):
        raise LoraError(f"{path} is an adapter for another model: this one has no tensor {name}")
    if not weight.allocated:
        raise LoraError(f"{path}: the model's {name} was not loaded")
    if weight.type == GgmlType.NVFP4:
        raise LoraError(f"{path}: the model's {name} is NVFP4, which llama.cpp cannot combine with an adapter")
    for matrix in (a, b):
        if matrix.type not in _FLOATS and (matrix.type in _INTERMEDIATE or not lib.ggml_is_quantized(matrix.type)):
            raise LoraError(f"{path}: {matrix.name} is {matrix.type.name}; llama.cpp takes floats and quantised types")
    n_in, n_out, n_expert = weight.ne[0], weight.ne[1], weight.ne[2]
    if name == _EMBEDDINGS:
        if lib.moebind_model_ties_output(model._open()):
            raise LoraError(
                f"{path} changes {name}, which is this model's output matrix too: llama.cpp cannot apply that; leave "
                "the embeddings out of the adapter"
            )
        # Rows of A are looked up here, so the roles are exchanged.
        rank = a.shape[0]
        expected_a, expected_b = (rank, n_out, 1, 1), (rank, n_in, 1, 1)
    else:
        rank = a.shape[1]
        expected_a, expected_b = (n_in, rank, n_expert, weight.ne[3]), (rank, n_out, n_expert, weight.ne[3])
    for matrix, expected in ((a, expected_a), (b, expected_b)):
        if matrix.shape != expected or rank < 1:
            shape = " x ".join(map(str, expected))
            raise LoraError(
                f"{path} is an adapter for another model, or damaged: {matrix.name} is "
                f"{' x '.join(map(str, matrix.shape))}; for this model's {name} it must be {shape}"
            )
