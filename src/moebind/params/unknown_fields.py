"""Names that parameters do not have: what may be meant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moebind._core.arguments import spelled, written_field
from moebind._core.other_names import elsewhere
from moebind._core.shown import shown

__all__ = ["missing_of", "refuse_fields"]


def refuse_fields(own: type, kinds: Sequence[type], unknown: Mapping[str, object]) -> None:
    """Raise TypeError for fields that parameters do not have, with what to write instead.

    Parameters
    ----------
    own
        The class of the parameters.
    kinds
        All such classes: another one may have the field.
    unknown
        The fields.

    Raises
    ------
    TypeError
    """
    for name, value in unknown.items():
        begin = f"{own.__name__} has no parameter {shown(name)}"
        if elsewhere(name):
            raise TypeError(f"{begin}{elsewhere(name)}")
        for kind in _first(own, kinds):
            field = written_field(kind, name, value, 0.75)
            if field is not None:
                has = "" if kind is own else f": {kind.__name__} has"
                raise TypeError(f"{begin}{has}. Write {field[0]}{field[1]}")
        raise TypeError(begin)


def missing_of(owner: object, kinds: Sequence[type], name: str) -> AttributeError:
    """The error for an attribute, or a method, that parameters do not have, with what to write if that is known."""
    own = type(owner)
    hint = elsewhere(name.removeprefix("with_"))
    for kind in _first(own, kinds) if name.startswith("with_") else ():
        here = f"with_{spelled(kind, name.removeprefix('with_'))}"
        if here != name and not hint:
            hint = f". Here it is {here}(){'' if kind is own else f' of {kind.__name__}'}"
    return AttributeError(f"{own.__name__!r} object has no attribute {name!r}{hint}", name=name, obj=owner)


def _first(own: type, kinds: Sequence[type]) -> list[type]:
    return sorted(kinds, key=lambda each: each is not own)
