"""Parameters as JSON: for files, for another process, for a report.

Each field is written as its declaration says (:func:`moebind.params.params.option`); nothing here lists fields.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple, NoReturn, TypeAlias

from moebind._core.native import llama_cpp_version
from moebind._core.shown import shown
from moebind._core.version import __version__
from moebind.backend.devices import Device, describe, native_device, native_devices
from moebind.params.tensor_overrides import TensorOverride

__all__ = [
    "AS_IT_IS",
    "CALLBACK",
    "DEVICES",
    "MAPPING",
    "OVERRIDES",
    "Form",
    "Json",
    "device_of",
    "form_of",
    "read",
    "write",
]

#: Types that JSON has.
Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"


class Form(NamedTuple):
    """How a field's value is written as JSON, and read again; both are given the field's name, for messages.

    What ``read`` returns is checked as any value of the field.
    """

    write: Callable[[str, Any], Json]
    read: Callable[[str, Any], Any]


def write(params: Any, *, callbacks: bool = True) -> dict[str, Json]:
    """The fields that differ from their defaults, in the order of their declaration.

    Without ``callbacks``, such fields are left out: they change nothing that is planned.

    Raises
    ------
    ValueError
        If there is a callback among them.
    """
    return {
        field.name: field.metadata["form"].write(field.name, getattr(params, field.name))
        for field in dataclasses.fields(params)
        if getattr(params, field.name) != field.default and (callbacks or field.metadata["form"] is not CALLBACK)
    }


def read(kind: type, fields: Any) -> dict[str, Any]:
    """The arguments of a class from what :func:`write` made; values are not checked yet.

    Raises
    ------
    TypeError
        If it is no mapping.
    ValueError
        If a name or a value is unknown.
    """
    check_names(kind, fields)
    forms = {field.name: field.metadata["form"] for field in dataclasses.fields(kind)}
    return {name: forms[name].read(name, value) for name, value in fields.items()}


def check_names(kind: type, fields: Any) -> None:
    """Raise unless all is for fields of a class, as with :func:`read`."""
    if not isinstance(fields, Mapping):
        raise TypeError(f"{kind.__name__} is read from {shown(fields)}; it takes a mapping of names to values")
    known = {field.name: field for field in dataclasses.fields(kind)}
    for name in fields:
        if name not in known:
            raise ValueError(_unknown(kind, name, known))


def form_of(default: object) -> Form:
    """The form of a field with this default: enumerators by name, the rest as it is."""
    return _enumerator(type(default)) if isinstance(default, IntEnum) else AS_IT_IS


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


def _unknown(kind: type, name: object, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(str(name), known, n=1)
    if near:
        return f"{kind.__name__} has no {shown(name)}; did you mean {near[0]!r}?"
    return (
        f"{kind.__name__} has no {shown(name)} in moebind {__version__} with llama.cpp {llama_cpp_version}: if a "
        "newer version wrote it, read it with that one; otherwise leave it out"
    )


def _enumerator(kind: type[IntEnum]) -> Form:
    def read_name(name: str, value: object) -> IntEnum:
        if not isinstance(value, str):
            raise TypeError(f"{name} is {shown(value)}; it takes the name of a member of {kind.__name__}")
        if value not in kind.__members__:
            near = difflib.get_close_matches(value.upper(), kind.__members__, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes one of {', '.join(kind.__members__)}"
            raise ValueError(f"{name} is {shown(value)}; {hint}")
        return kind.__members__[value]

    return Form(lambda name, value: str(value.name), read_name)


def _refuse(name: str, value: object) -> NoReturn:
    raise ValueError(
        f"{name} is set: a function can be neither written down nor sent to another process; leave it out, and set it "
        "again afterwards"
    )


def _items(name: str, value: object) -> Sequence[Any]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{name} is {shown(value)}; it takes a list")
    return value


def _mapping(name: str, value: object) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} is {shown(value)}; it takes a mapping")
    return value


def _override(name: str, value: object) -> TensorOverride:
    known = {field.name: field for field in dataclasses.fields(TensorOverride)}
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} holds {shown(value)}; it takes mappings with pattern, target and strict")
    for each in value:
        if each not in known:
            raise ValueError(_unknown(TensorOverride, each, known))
    lacking = [each for each, field in known.items() if field.default is dataclasses.MISSING and each not in value]
    if lacking:
        raise ValueError(f"{name} holds {shown(dict(value))}, which lacks {' and '.join(lacking)}")
    return TensorOverride(**value)


#: What JSON has, too; sequences become lists.
AS_IT_IS = Form(lambda name, value: list(value) if isinstance(value, tuple) else value, lambda name, value: value)
#: Devices by name: the process that reads them has some of the same names.
DEVICES = Form(
    lambda name, value: [device.name for device in value],
    lambda name, value: None if value is None else tuple(map(device_of, _items(name, value))),
)
OVERRIDES = Form(
    lambda name, value: [dataclasses.asdict(rule) for rule in value],
    lambda name, value: tuple(_override(name, each) for each in _items(name, value)),
)
#: A mapping of its own class.
MAPPING = Form(lambda name, value: dict(value), lambda name, value: _mapping(name, value))
#: A function: only its absence can be written; True is a progress bar.
CALLBACK = Form(lambda name, value: True if value is True else _refuse(name, value), lambda name, value: value)
