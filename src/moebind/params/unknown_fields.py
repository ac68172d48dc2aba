"""Names that parameters do not have: what may be meant."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Mapping, Sequence

__all__ = ["refuse_fields", "written_field"]


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
                raise TypeError(f"{own.__name__} has no parameter {name!r}{has}. Write {field}")
        raise TypeError(f"{own.__name__} has no parameter {name!r}")


def written_field(kind: type, name: str, value: object, alike: float) -> str:
    """Parameters with a field of this name, or of one that is that much alike; empty if there is none."""
    fields = [field.name for field in dataclasses.fields(kind)]
    method = getattr(kind, f"with_{name}", None)
    if name not in fields and method is not None:
        takes = any(
            each.kind is not each.KEYWORD_ONLY for each in list(inspect.signature(method).parameters.values())[1:]
        )
        return f"{kind.__name__}().with_{name}({f'{value!r}' if takes else ''})"
    found = difflib.get_close_matches(name, fields, 1, alike)
    return f"{kind.__name__}({found[0]}={value!r})" if found else ""
