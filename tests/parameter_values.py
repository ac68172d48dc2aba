"""Values that fields of parameters may have, for hypothesis, from the fields' own declarations."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from enum import IntEnum
from typing import Any

from hypothesis import strategies as st

from moebind import ContextParams, ModelParams, TensorOverride
from moebind.params import serialize

Params = ModelParams | ContextParams
NAMES = st.text("abc._", min_size=1, max_size=9)
KV_VALUES = st.booleans() | st.integers(-(2**60), 2**60) | st.floats(-9, 9) | st.text("xyz é", max_size=9)
RULES = st.builds(
    TensorOverride, st.sampled_from(["ffn_up", r"blk\.\d{1,2}\."]), st.text("CPU0_", min_size=1), st.booleans()
)
#: Values by the form that a field is declared with; the others go by the type of the default.
BY_FORM: dict[serialize.Form, st.SearchStrategy[Any]] = {
    serialize.DEVICES: st.none() | st.just(()),
    serialize.OVERRIDES: st.lists(RULES, max_size=3),
    serialize.MAPPING: st.dictionaries(NAMES, KV_VALUES, max_size=4),
    serialize.CALLBACK: st.none(),
}


def is_taken(field: dataclasses.Field[Any], value: object) -> bool:
    try:
        field.metadata["check"](field.name, value)
    except (TypeError, ValueError):
        return False
    return True


def values(field: dataclasses.Field[Any]) -> st.SearchStrategy[Any]:
    form, default = field.metadata["form"], field.default
    if form in BY_FORM:
        return BY_FORM[form]
    if isinstance(default, IntEnum):
        return st.sampled_from([each for each in type(default).__members__.values() if is_taken(field, each)])
    if default is None:
        return st.none() | st.lists(st.floats(0, 9), min_size=1, max_size=4)
    numbers = {bool: st.booleans(), int: st.integers(-1, 9) | st.integers(0, 2**20), float: st.floats(-9, 1e6)}
    return numbers[type(default)].filter(lambda value: is_taken(field, value))


def made(kind: type[Params], only: Collection[str] | None = None) -> st.SearchStrategy[Params]:
    """Parameters of which any fields, or any of these, are set."""
    fields = {field.name: values(field) for field in dataclasses.fields(kind) if only is None or field.name in only}
    return st.fixed_dictionaries({}, optional=fields).map(lambda chosen: kind(**chosen))
