"""Parameters as JSON, on their way to another process and into a report."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, TypeAlias

from moebind import enums
from moebind.backend.devices import Device, describe, native_device, native_devices
from moebind.files.metadata_overrides import KvOverrides
from moebind.params.params import ContextParams, ModelParams
from moebind.params.tensor_overrides import TensorOverride

__all__ = ["Json", "carried", "context_params", "device_of", "model_params"]

#: Types that JSON has.
Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"

_CALLBACKS = ("progress_callback", "eval_callback", "abort_callback")


def carried(params: ModelParams | ContextParams) -> dict[str, Json]:
    """The fields that differ from their defaults; devices by name, enumerators by name.

    Raises
    ------
    ValueError
        If there is a callback among them.
    """
    changed = {
        field.name: getattr(params, field.name)
        for field in dataclasses.fields(params)
        if getattr(params, field.name) != field.default
    }
    for name in _CALLBACKS:
        if name in changed:
            raise ValueError(f"{name} is set: a function cannot go to the process that measures; leave it out")
    return {name: _plain(value) for name, value in changed.items()}


def _plain(value: Any) -> Json:
    if isinstance(value, IntEnum):
        return value.name
    if isinstance(value, KvOverrides):
        return dict(value)
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, TensorOverride):
        return {"pattern": value.pattern, "target": value.target, "strict": value.strict}
    if isinstance(value, Device):
        return value.name
    plain: Json = value
    return plain


def model_params(fields: Mapping[str, Any]) -> ModelParams:
    """Make parameters from the fields that :func:`carried` returned; this process has devices of the same names."""
    values = _with_members(ModelParams, fields)
    if "devices" in values:
        values["devices"] = tuple(device_of(name) for name in values["devices"])
    if "tensor_overrides" in values:
        values["tensor_overrides"] = tuple(TensorOverride(**each) for each in values["tensor_overrides"])
    return ModelParams(**values)


def context_params(fields: Mapping[str, Any]) -> ContextParams:
    """Make parameters from the fields that :func:`carried` returned."""
    return ContextParams(**_with_members(ContextParams, fields))


def device_of(name: str) -> Device:
    """The device of this name, in this process.

    Raises
    ------
    ValueError
        If there is none.
    """
    wanted = native_device(name)
    at = native_devices().index(wanted)
    return describe(at, wanted)


def _with_members(kind: type[ModelParams] | type[ContextParams], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The values, with members of enumerations for their names; a field's annotation names the class."""
    classes = {field.name: getattr(enums, str(field.type), None) for field in dataclasses.fields(kind)}
    found: dict[str, Any] = {}
    for name, value in fields.items():
        members = classes.get(name)
        found[name] = value if members is None else members[value]
    return found
