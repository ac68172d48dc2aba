"""Enumerations of llama.cpp's headers."""

from __future__ import annotations

import copy
import pickle
from enum import IntEnum, IntFlag

import pytest

import moebind
from moebind import GgmlType, StateSeqFlags, TokenAttr, enums

KINDS = [getattr(enums, name) for name in enums.__all__]


def test_all_are_exported() -> None:
    assert {
        kind.__name__ for kind in vars(enums).values() if isinstance(kind, type) and issubclass(kind, enums._Open)
    } < {
        "_Open",
        *enums.__all__,
    }
    for kind in KINDS:
        assert getattr(moebind, kind.__name__) is kind
        assert issubclass(kind, (IntEnum, IntFlag))
        assert kind.__doc__


@pytest.mark.parametrize("kind", [kind for kind in KINDS if issubclass(kind, IntEnum)])
def test_numbers_of_a_newer_llama_cpp_pass_through(kind: type[IntEnum]) -> None:
    unknown = kind(987)
    assert (unknown, unknown.value, unknown.name) == (987, 987, "UNKNOWN_987")
    assert isinstance(unknown, kind)
    assert unknown not in list(kind)
    assert unknown == kind(987)
    assert hash(unknown) == hash(kind(987))
    for other in (pickle.loads(pickle.dumps(unknown)), copy.deepcopy(unknown)):  # noqa: S301
        assert (type(other), other, other.name) == (kind, 987, "UNKNOWN_987")


@pytest.mark.parametrize("value", ["F16", None, 1.5])
def test_what_is_no_number_is_no_member(value: object) -> None:
    with pytest.raises(ValueError, match="not a valid GgmlType"):
        GgmlType(value)


def test_flags_are_put_together() -> None:
    both = TokenAttr.CONTROL | TokenAttr.LSTRIP
    assert TokenAttr.CONTROL in both
    assert TokenAttr.BYTE not in both
    assert TokenAttr(int(both)) == both
    assert StateSeqFlags(0) is StateSeqFlags.NONE
    assert StateSeqFlags.PARTIAL_ONLY | StateSeqFlags.ON_DEVICE == 3
