"""Tensor overrides: which tensors go where instead of where their layer goes.

Patterns are matched against the model's real tensor names before anything is loaded, so that a typing mistake is an
error with names that would have matched, not a model that silently fills the GPU.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from moebind._core import checks
from moebind._core.native import CData, decoded, ffi, lib
from moebind._core.shown import shown
from moebind.backend.devices import native_devices
from moebind.errors import ModelLoadError
from moebind.files import tensor_patterns

__all__ = ["PlacedOverride", "PlacedOverrides", "PlacedTensor", "TensorOverride"]

#: The end of a rule in a text of several: a name of a device or of a buffer type, such as ``RPC0[127.0.0.1:50052]``.
_TARGET = re.compile(r"=\s*([\w.:\[\] -]+?)\s*$")
#: Layers by number, which is no regular expression that a tensor's name could match: these have no colon.
_RANGE = re.compile(r"(layers|experts):(\d{1,4})(-(\d{1,4})?)?", re.ASCII)
#: No model has so many layers.
_LAST = 9999


@dataclass(frozen=True)
class TensorOverride:
    """One rule: tensors whose name contains ``pattern`` go to ``target``.

    Attributes
    ----------
    pattern : str
        A regular expression of C++'s ``std::regex`` (ECMAScript), searched anywhere in the name.
    target : str
        The name of a device or of a buffer type, such as ``"CPU"``, ``"CUDA1"`` or ``"CUDA_Host"``.
    strict : bool
        Whether to refuse a model that has no such tensor.
    """

    pattern: str
    target: str
    strict: bool = True


def written_rules(name: str, text: str) -> tuple[TensorOverride, ...]:
    """Rules as command lines have them: ``PATTERN=TARGET``, several with commas between them.

    A pattern may have commas, too: a rule ends where a name follows the ``=``. Instead of a pattern, ``experts:0-11``
    are the experts of layers 0 to 11, ``layers:12-`` all of the layers from 12 on, ``experts:3`` those of one layer.
    Layers that a model does not have are passed over, as with llama.cpp's ``--n-cpu-moe``.

    Raises
    ------
    ValueError
        If a rule lacks its pattern or target, or its layers are in the wrong order; it begins with ``name``.
    """
    rules: list[TensorOverride] = []
    rest = ""
    for part in checks.text(name, text).decode().split(","):
        rest = f"{rest},{part}" if rest else part
        found = _TARGET.search(rest)
        if found is None:
            continue
        pattern = rest[: found.start()].strip()
        if not pattern:
            break
        rules.append(TensorOverride(_pattern(name, pattern), found[1]))
        rest = ""
    if rest or not rules:
        raise ValueError(
            f"{name} is {shown(text)}; it takes PATTERN=TARGET, such as ffn_up_exps=CPU or experts:0-11=CPU, and "
            "several with commas between them"
        )
    return tuple(rules)


def _pattern(name: str, written: str) -> str:
    """The regular expression that is meant."""
    layers = _RANGE.fullmatch(written)
    if layers is None:
        if re.match(r"(layers|experts):", written):
            raise ValueError(f"{name} has {shown(written)}; layers have numbers: experts:0-11, layers:12- or layers:3")
        return written
    first = int(layers[2])
    last = first if not layers[3] else int(layers[4]) if layers[4] else _LAST
    if last < first:
        raise ValueError(f"{name} has {shown(written)}; the first layer comes first, as in {layers[1]}:{last}-{first}")
    numbers = tensor_patterns.numbers(first, last)
    ending = tensor_patterns.experts_pattern() if layers[1] == "experts" else r"\."
    return rf"blk\.({numbers}){ending}"


@dataclass(frozen=True)
class PlacedTensor:
    """A tensor that an override moved: its name, its size in bytes, the device and the buffer type that hold it."""

    name: str
    nbytes: int
    device: str
    buffer_type: str


@dataclass(frozen=True)
class PlacedOverride:
    """The tensors of a loaded model that one override moved.

    Attributes
    ----------
    override : TensorOverride
        The rule.
    tensors : tuple[PlacedTensor, ...]
        The tensors that it moved; a tensor belongs to the first override that matches it.
    """

    override: TensorOverride
    tensors: tuple[PlacedTensor, ...]

    @property
    def nbytes(self) -> int:
        """How many bytes it moved."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def buffer_types(self) -> tuple[str, ...]:
        """Where they went. Host memory can be several types: ``CPU``, and ``CPU_REPACK`` for a faster layout."""
        return tuple(dict.fromkeys(tensor.buffer_type for tensor in self.tensors))

    def __str__(self) -> str:
        where = ", ".join(self.buffer_types) or self.override.target
        return f"{self.override.pattern}: {len(self.tensors)} tensors, {self.nbytes / 2**20:.1f} MiB to {where}"

    def __repr__(self) -> str:
        return f"<PlacedOverride {self}>"


class PlacedOverrides(tuple[PlacedOverride, ...]):
    """What all overrides of a model moved: a tuple that is shown as a line for each."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "\n".join(map(str, self)) or "no tensor overrides"


def buffer_types() -> dict[str, CData]:
    """Everything that a target can name: each device's memory, its host memory and its extra buffer types."""
    by_name: dict[str, CData] = {}
    devices: dict[str, CData] = {}
    for device in native_devices():
        memory = lib.ggml_backend_dev_buffer_type(device)
        devices[decoded(lib.ggml_backend_dev_name(device))] = memory
        extra = [memory, lib.ggml_backend_dev_host_buffer_type(device), *_extra_buffer_types(device)]
        for buffer_type in extra:
            if buffer_type:
                by_name.setdefault(decoded(lib.ggml_backend_buft_name(buffer_type)), buffer_type)
    return {**devices, **by_name}


def _extra_buffer_types(device: CData) -> list[CData]:
    backend = lib.ggml_backend_dev_backend_reg(device)
    address = lib.ggml_backend_reg_get_proc_address(backend, b"ggml_backend_dev_get_extra_bufts")
    if not address:
        return []
    listed = ffi.cast("ggml_backend_dev_get_extra_bufts_t", address)(device)
    found: list[CData] = []
    while listed and listed[len(found)]:
        found.append(listed[len(found)])
    return found


class Resolved(NamedTuple):
    """Overrides, matched against a model's tensors.

    ``native`` is the NULL-terminated array for ``llama_model_params``; it lives as long as this object.
    """

    native: CData
    keep: tuple[CData, ...]
    matches: tuple[tuple[TensorOverride, tuple[str, ...]], ...]

    def devices(self) -> list[CData]:
        """The devices that tensors are sent to; host memory can be nobody's."""
        targets = [lib.ggml_backend_buft_get_device(self.native[at].buft) for at in range(len(self.matches))]
        return [device for device in targets if device]


def resolve(
    overrides: Sequence[TensorOverride], names: Sequence[str], model: str, described: Mapping[str, CData] | None = None
) -> Resolved:
    """Match overrides against the tensors of a model; ``described`` are buffer types that only a plan knows.

    Raises
    ------
    ModelLoadError
        If a strict one matches nothing, with names that would match.
    ValueError
        If a target is neither a device nor a buffer type of this machine.
    """
    known = {**buffer_types(), **(described or {})}
    most = lib.llama_max_tensor_buft_overrides() - 1
    if len(overrides) > most:
        raise ValueError(f"there are {len(overrides)} tensor overrides; llama.cpp takes {most}: join their patterns")
    native = ffi.new("struct llama_model_tensor_buft_override[]", len(overrides) + 1)
    keep: list[CData] = [native]
    matches: list[tuple[TensorOverride, tuple[str, ...]]] = []
    matched: set[str] = set()
    for entry, override in zip(native, overrides, strict=False):
        if override.target not in known:
            raise ValueError(
                f"the target {shown(override.target)} of {shown(override.pattern)} is neither a device nor a buffer "
                f"type; there are {', '.join(known)}"
            )
        found = tensor_patterns.matching(override.pattern, names)
        if not found and override.strict:
            raise ModelLoadError(_nothing_matched(override, names, model))
        entry.pattern = text = ffi.new("char[]", override.pattern.encode())
        entry.buft = known[override.target]
        keep.append(text)
        matches.append((override, tuple(name for name in found if name not in matched)))
        matched.update(found)
    return Resolved(native, tuple(keep), tuple(matches))


def _nothing_matched(override: TensorOverride, names: Sequence[str], model: str) -> str:
    experts = tensor_patterns.experts_pattern()
    if override.pattern.endswith(experts) and not tensor_patterns.matching(experts, names):
        return (
            f"{model} has no experts: none of its {len(names)} tensors matches {shown(override.pattern)}. It is not a "
            "mixture-of-experts model; load it without, or pass strict=False"
        )
    similar = tensor_patterns.similar_names(override.pattern, names)
    return (
        f"the tensor override {shown(override.pattern)} matches none of the {len(names)} tensors of {model}. Names "
        f"that it could match: {', '.join(similar)}"
    )
