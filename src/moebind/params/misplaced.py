"""Fields of parameters that were given to a call itself."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Mapping

from moebind.params.params import ContextParams, ModelParams

__all__ = ["refuse_keywords"]

#: How each kind of parameters is given, where nothing else is said.
_CALLS = {ModelParams: "Model.load_from_file(path, {})", ContextParams: "model.new_context({})"}


def refuse_keywords(
    call: str, own: type[ModelParams] | type[ContextParams], written: str, unknown: Mapping[str, object]
) -> None:
    """Raise TypeError for arguments that a call does not have, with what to write instead.

    Parameters
    ----------
    call
        Its name.
    own
        The parameters that it takes.
    written
        The call, with ``{}`` in place of these.
    unknown
        The arguments.
    """
    for name, value in unknown.items():
        for kind in sorted(_CALLS, key=lambda each: each is not own):
            field = _field(kind, name, value)
            if field:
                way = (written if kind is own else _CALLS[kind]).format(field)
                raise TypeError(f"{call}() has no argument {name!r}: {kind.__name__} has. Write {way}")
        raise TypeError(f"{call}() has no argument {name!r}")


def _field(kind: type[ModelParams] | type[ContextParams], name: str, value: object) -> str:
    """Parameters with a field of this name, or of nearly this name; empty if there is none."""
    fields = [field.name for field in dataclasses.fields(kind)]
    method = getattr(kind, f"with_{name}", None)
    if name not in fields and method is not None:
        takes = any(
            each.kind is not each.KEYWORD_ONLY for each in list(inspect.signature(method).parameters.values())[1:]
        )
        return f"{kind.__name__}().with_{name}({f'{value!r}' if takes else ''})"
    alike = difflib.get_close_matches(name, fields, 1, 0.85)
    return f"{kind.__name__}({alike[0]}={value!r})" if alike else ""
