"""Fields of parameters that were given to a call itself."""

from __future__ import annotations

from collections.abc import Mapping

from moebind.params.params import ContextParams, ModelParams
from moebind.params.unknown_fields import written_field

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
            field = written_field(kind, name, value, 0.85)
            if field:
                way = (written if kind is own else _CALLS[kind]).format(field)
                raise TypeError(f"{call}() has no argument {name!r}: {kind.__name__} has. Write {way}")
        raise TypeError(f"{call}() has no argument {name!r}")
