"""Groups of commands that are imported when they are asked for, and commands of other packages."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from moebind.cli.output import say
from moebind.cli.signatures import completed
from moebind.cli.values import OwnCommand, read_plainly
from moebind.cli.words import names_of

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["PLUGINS", "lazy_group"]

#: The group of entry points through which other packages add commands.
PLUGINS = "moebind.commands"


def lazy_group(modules: Mapping[str, str], plugins: str | None = None) -> type[TyperGroup]:
    """A class of groups, as ``typer.Typer(cls=...)`` takes it.

    Parameters
    ----------
    modules
        The module of each command, in the order of the help. It has a function ``command``, or ``app`` for a group.
    plugins
        The group of entry points with commands of other packages; None: there are none.
    """

    class Lazy(TyperGroup):
        def list_commands(self, ctx: Any) -> list[str]:
            return [*modules, *sorted(_entry_points(plugins).keys() - modules)]

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            if cmd_name in self.commands:
                return self.commands[cmd_name]
            if cmd_name in modules:
                made = _own(cmd_name, modules[cmd_name])
            elif cmd_name in _entry_points(plugins):
                made = _others(cmd_name, _entry_points(plugins)[cmd_name])
            else:
                return None
            self.commands[cmd_name] = made
            return made

        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            known = [name for each in self.get_params(ctx) for name in names_of(each)]
            first = args[0] if args else ""
            wrong = first.startswith("-") and first not in {"-", "--"} and first.partition("=")[0] not in known
            if wrong and not ctx.resilient_parsing:
                from moebind.cli.usage import check_first  # for what is wrong only

                check_first(first, known)
            return super().parse_args(ctx, args)

        def resolve_command(self, ctx: Any, args: list[str]) -> Any:
            found = super().resolve_command(ctx, args)
            _collect_from_here()
            return found

        def get_params(self, ctx: Any) -> list[Any]:
            return read_plainly(super().get_params(ctx))

        def format_commands(self, ctx: Any, formatter: Any) -> None:
            super().format_commands(ctx, formatter)
            more = _entry_points(plugins)
            for name in sorted(more.keys() & modules):
                say(f"warning: {_source(more[name])} has a command {name!r}, which is one of moebind's own")

    return Lazy


def _collect_from_here() -> None:
    """Start the garbage collector, if the program began without it; it leaves alone what is there by now."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


@cache
def _entry_points(group: str | None) -> dict[str, EntryPoint]:
    if group is None:
        return {}
    from importlib.metadata import entry_points

    found: dict[str, EntryPoint] = {}
    for each in entry_points(group=group):
        found.setdefault(each.name, each)
    return found


def _own(name: str, module: str) -> Any:
    imported = importlib.import_module(module)
    app = getattr(imported, "app", None)
    if app is not None:
        return _group(name, app)
    return _command(name, completed(imported.command), getattr(imported, "CLASS", OwnCommand))


def _others(name: str, entry: EntryPoint) -> Any:
    """The command of another package; one that says why if that cannot be loaded."""
    try:
        found = entry.load()
        if isinstance(found, typer.Typer):
            return _group(name, found)
        if not callable(found):
            raise TypeError(f"{entry.value} is a {type(found).__name__}; it takes a function, or a typer.Typer")
        return _command(name, found)
    except Exception as error:  # whatever other people's code does, moebind's own commands work
        return _broken(name, f"moebind {name} is from {_source(entry)}, which cannot be loaded: ", error)


def _command(name: str, function: Callable[..., Any], kind: Any = None) -> Any:
    holder = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    holder.command(name, cls=kind)(function)
    return typer.main.get_command(holder)


def _group(name: str, app: typer.Typer) -> Any:
    made = typer.main.get_command(app)
    made.name = name
    made.params = [each for each in made.params if each.name not in {"install_completion", "show_completion"}]
    return made


def _broken(name: str, message: str, error: Exception) -> Any:
    reason = " ".join(f"{type(error).__name__}: {error}".split())

    def command(ctx: typer.Context) -> None:
        say(message + reason)
        raise typer.Exit(1)

    holder = typer.Typer(add_completion=False, rich_markup_mode=None)
    settings = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
    holder.command(name, help=f"Cannot be loaded: {reason}", context_settings=settings)(command)
    return typer.main.get_command(holder)


def _source(entry: EntryPoint) -> str:
    dist = getattr(entry, "dist", None)
    return "another package" if dist is None else f"the package {dist.name}"
