"""What is behind ``--`` on the command line of ``moebind serve``: arguments for llama-server itself."""

from __future__ import annotations

from typing import Any

from moebind.cli.options import in_options
from moebind.cli.values import OwnCommand
from moebind.cli.words import WrongOptionError, names_of
from moebind.server.extra import Refused, first_refused, option_names, why_not

__all__ = ["WithRest", "rest_of"]

_REST = "moebind.serve.rest"
#: What to give in place of presets, such as those that ``moebind tune`` writes.
_TUNED = "give --tuned, or --params FILE, which moebind tune --save FILE wrote"
#: What to do instead, where a command has another way than Python.
_INSTEAD = {"models-preset": f"moebind writes it; {_TUNED}"}


def rest_of(ctx: Any) -> list[str]:
    """The arguments behind ``--``."""
    found: list[str] = ctx.meta.get(_REST, [])
    return found


class WithRest(OwnCommand):
    """A command that leaves alone what is behind ``--``: arguments of another program's."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take the rest away before the options are read."""
        if "--" in args:
            at = args.index("--")
            ctx.meta[_REST] = args[at + 1 :]
            args = args[:at]
            if not ctx.resilient_parsing:
                self._check(ctx.meta[_REST])
        return super().parse_args(ctx, args)

    def _check(self, rest: list[str]) -> None:
        """Raise where what is behind ``--`` belongs before it, or is not to be given at all."""
        refused = first_refused(rest)
        if refused is None:
            return
        own = {name for each in self.params for name in names_of(each)}
        if refused.argument.split()[0].replace("_", "-") in own:
            told = f"{refused.reason}: give it before --"
        else:
            told = _told(refused)
            told += ", before --" if "--" in told else ""
        raise WrongOptionError(f"{refused.argument} is behind --, {told}")

    def why_not(self, name: str) -> str | None:
        """What is said of an option that it does not have: of llama-server's, that it may be given behind ``--``."""
        if name == "--preset":
            return f"there is no {name} here: a preset is for llama-server itself; {_TUNED}"
        if name not in option_names():
            return super().why_not(name)
        refused = why_not(name)
        example = f"moebind {self.name} MODEL -- {name} ..."
        told = f": give it behind --, as in {example}" if refused is None else f", {_told(refused)}"
        return f"{name} is an option of llama-server's{told}"

    def answered(self) -> list[str]:
        """The options that it does not have, and of which something is said."""
        return [*option_names(), *super().answered()]


def _told(refused: Refused) -> str:
    """Why llama-server must not get an argument, and the option to use."""
    return in_options(f"{refused.reason}: {_INSTEAD.get(refused.option, refused.instead)}")
