"""What is given to commands, as they get it: text as it is, and numbers as moebind's own parsers read them.

Some versions of typer make an adapter of pydantic's for each option of a command, given or not. That takes longer than
all else that a command does before it begins, and finds nothing in texts. So such a version gets readers from here, and
its own is asked where it does more: for paths, and whatever else commands may come to take.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from typer.core import TyperCommand

from moebind.cli.words import names_of, read_words

__all__ = ["OwnCommand", "read_plainly"]


class OwnCommand(TyperCommand):
    """A command of moebind's own."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Its options and arguments, which read plainly."""
        return read_plainly(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the options; the error for one that there is not says what to do instead."""
        if ctx.resilient_parsing:  # a shell completes what is not whole yet
            return super().parse_args(ctx, args)
        known = self.get_params(ctx)

        def why_not(name: str) -> str:
            from moebind.cli.usage import no_such_option  # for what is wrong only, as all that says so

            flags = [flag for each in known for flag in names_of(each)]
            return self.why_not(name) or no_such_option(name, flags, self.answered(), self.why_not, ctx.command_path)

        try:
            return super().parse_args(ctx, read_words(args, known, str(self.name), why_not))
        except Exception as error:
            # Of an unknown option, whose class moved between versions of typer.
            if type(error).__name__ == "NoSuchOption":
                error.message = why_not(error.option_name)  # type: ignore[attr-defined]
            if type(error).__name__ == "BadOptionUsage" and getattr(error, "ctx", ctx) is None:
                error.ctx = ctx  # type: ignore[attr-defined]  # its sentence names the option's values
            raise

    def why_not(self, name: str) -> str | None:
        """What is said of an option that it does not have; None: nothing but that."""
        from moebind.cli.other_programs import instead_of
        from moebind.cli.refused import why_refused

        known = {flag for each in self.params for flag in names_of(each)}
        return (why_refused(name) if self._drafts() else None) or instead_of(name, known)

    def answered(self) -> list[str]:
        """The options that it does not have, and of which something is said."""
        from moebind.cli.other_programs import INSTEAD
        from moebind.cli.refused import REFUSED

        return [*INSTEAD, *(REFUSED if self._drafts() else ())]

    def _drafts(self) -> bool:
        return any("--spec-type" in each.opts for each in self.params)


def read_plainly(params: list[Any]) -> list[Any]:
    """Have options and arguments of typer's read texts and numbers without adapters; they are changed, and returned.

    Parameters
    ----------
    params
        Those of one of moebind's own commands, whose parsers raise no ValueError.
    """
    for each in params:
        # These names are not private, but not documented either: where there are none, nothing is to be replaced.
        typers, descriptor = getattr(each, "get_runtime_param", None), getattr(each, "type_descriptor", None)
        if typers is not None and descriptor is not None and not isinstance(typers, _Reader):
            each.get_runtime_param = _Reader(descriptor, typers)
    return params


class _Reader:
    """Reads the values of one option or argument."""

    def __init__(self, descriptor: Any, typers: Callable[[], Any]) -> None:
        self._kind = descriptor.annotation
        self._parser = descriptor.parameter_info.parser
        #: Makes typer's own reader.
        self._typers = typers

    def __call__(self) -> _Reader:
        return self

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """The value that a command gets, as typer's readers have this method."""
        several = param.multiple or param.nargs == -1
        if value is None:
            return () if several else None
        if not several and self._parser is not None:
            return self._parser(value)
        if self._kind is str and isinstance(value, str):
            return value
        if several and self._kind == list[str] and not isinstance(value, str):
            return list(value)
        return self._typers().coerce(value, param=param, ctx=ctx)
