"""Names that parameters do not have: what may be meant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moebind._core.arguments import written_field
from moebind._core.shown import shown

__all__ = ["refuse_fields"]


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
        for kind in sorted(kinds, key=lambda each: each is not own):
            field = written_field(kind, name, value, 0.75)
            if field:
                has = "" if kind is own else f": {kind.__name__} has"
                raise TypeError(f"{own.__name__} has no parameter {shown(name)}{has}. Write {field}")
        raise TypeError(f"{own.__name__} has no parameter {shown(name)}")
