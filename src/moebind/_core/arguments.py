"""Keyword arguments that a function does not have: what to write instead."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn, ParamSpec, TypeVar, cast

from moebind._core.other_names import elsewhere
from moebind._core.shown import shown

__all__ = ["alike", "explained", "spelled", "written_field"]

P = ParamSpec("P")
R = TypeVar("R")
#: How much a field's name must be like a name that is given to a function, which has arguments of its own.
FIELD_ALIKE = 0.85
#: Fields as llama.cpp's programs, and other libraries, spell them.
_SPELLED = {
    "ctx_size": "n_ctx",
    "context_length": "n_ctx",
    "max_seq_len": "n_ctx",
    "gpu_layers": "n_gpu_layers",
    "ngl": "n_gpu_layers",
    "threads": "n_threads",
    "batch_size": "n_batch",
    "ubatch_size": "n_ubatch",
    "cache_type_k": "type_k",
    "cache_type_v": "type_v",
    "parallel": "n_seq_max",
    "n_parallel": "n_seq_max",
    "num_gpu": "n_gpu_layers",
    "num_ctx": "n_ctx",
    "num_thread": "n_threads",
    "num_batch": "n_batch",
    "flash_attn": "flash_attn_type",
    "moe_cache": "moe_cache_size",
    "cpu_moe": "cpu_moe_all",
    "mlock": "use_mlock",
    "mmap": "use_mmap",
}
#: Values of such a field, as they spell them.
_MEANT = {
    "flash_attn_type": {
        **dict.fromkeys((True, "on"), "FlashAttnType.ENABLED"),
        **dict.fromkeys((False, "off"), "FlashAttnType.DISABLED"),
        "auto": "FlashAttnType.AUTO",
    }
}


def explained(
    fields: Mapping[type, str] = MappingProxyType({}), other_names: Mapping[str, str] = MappingProxyType({})
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function say what to write in place of a keyword argument that it does not have.

    Its signature stays as it is, so type checkers refuse such arguments, too.

    Parameters
    ----------
    fields
        Classes of parameters whose fields may be meant, and a call that takes such parameters, with ``{}`` in place of
        them.
    other_names
        Names for its arguments that other libraries and programs have; or, of what is no argument, a sentence.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        code = cast("Any", function).__code__
        taken = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        own = [name for name in taken if name not in {"self", "cls"}]
        names = frozenset(own)
        most = code.co_argcount
        has_more, has_others = bool(code.co_flags & inspect.CO_VARARGS), bool(code.co_flags & inspect.CO_VARKEYWORDS)

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            if len(args) > most and not has_more:
                _refuse_positional(_called(function), taken, most, args[most])
            if not has_others and not names.issuperset(kwargs):
                name = next(each for each in kwargs if each not in names)
                _refuse(_called(function), name, kwargs[name], own, fields, other_names)
            return function(*args, **kwargs)

        return checked

    return decorate


def _called(function: Callable[..., object]) -> str:
    """Its name; of a constructor, the class's."""
    owner, _, name = function.__qualname__.rpartition(".")
    return owner if name == "__init__" else name


def _refuse_positional(call: str, taken: Sequence[str], most: int, value: object) -> NoReturn:
    by_position = [name for name in taken[:most] if name not in {"self", "cls"}]
    named = taken[most:]
    hint = f": {shown(value)} takes its name before it, one of {', '.join(named)}" if named else ""
    raise TypeError(f"{call}() takes {', '.join(by_position) or 'nothing'} by position, and no more{hint}")


def _refuse(
    call: str,
    name: str,
    value: object,
    own: list[str],
    fields: Mapping[type, str],
    other_names: Mapping[str, str],
) -> NoReturn:
    begin = f"{call}() has no argument {shown(name)}"
    answer = other_names.get(name)
    if answer is not None:
        raise TypeError(f"{begin}; it is {shown(answer)} here" if answer in own else f"{begin}: {answer}")
    if _SPELLED.get(name) in own:
        raise TypeError(f"{begin}; it is {shown(_SPELLED[name])} here")
    if fields and elsewhere(name):
        raise TypeError(f"{begin}{elsewhere(name)}")
    meant = alike(name, own)
    for closeness in (1.0, FIELD_ALIKE):
        for kind, written in fields.items():
            field = written_field(kind, name, value, closeness)
            if field and not (meant and closeness < 1):
                params, wrong = field
                raise TypeError(f"{begin}: {kind.__name__} has. Write {written.format(params)}{wrong}")
    if meant:
        raise TypeError(f"{begin}; did you mean {meant!r}?")
    raise TypeError(f"{begin}: it takes {', '.join(own)}")


def alike(name: str, known: list[str], closeness: float = 0.75) -> str | None:
    """The known name that is most like this one, if it is that much like it."""
    import difflib  # rarely needed

    found = difflib.get_close_matches(name.lower(), known, 1, closeness)
    return found[0] if found else None


def written_field(kind: type, name: str, value: object, closeness: float) -> tuple[str, str] | None:
    """Parameters with a field of this name, or of one that is that much alike, and what is wrong with the value."""
    import dataclasses

    fields = {field.name: field for field in dataclasses.fields(kind)}
    name = spelled(kind, name)
    method = getattr(kind, f"with_{name}", None)
    if name not in fields and method is not None:
        takes = any(
            each.kind is not each.KEYWORD_ONLY for each in list(inspect.signature(method).parameters.values())[1:]
        )
        return f"{kind.__name__}().with_{name}({shown(value) if takes else ''})", ""
    found = alike(name, list(fields), closeness)
    if found is None:
        return None
    known = _MEANT.get(found, {})
    if isinstance(value, (bool, str)) and value in known:
        return f"{kind.__name__}({found}={known[value]})", ""
    try:
        fields[found].metadata["check"](found, value)
    except (TypeError, ValueError) as error:
        return f"{kind.__name__}({found}=...)", f": {error}"
    return f"{kind.__name__}({found}={shown(value)})", ""


def spelled(kind: type, name: str) -> str:
    """What these parameters call a field, or what is set by a method, that other programs call ``name``."""
    here = _SPELLED.get(name, name)
    return here if hasattr(kind, f"with_{here}") else name
