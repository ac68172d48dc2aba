"""What somebody types in a chat: questions, and commands that begin with a slash."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from moebind.cli.conversation import Conversation, read_messages
from moebind.cli.options import error_in_options
from moebind.cli.output import say, show
from moebind.cli.statuses import status_of
from moebind.cli.terminal import Terminal
from moebind.errors import MoebindError

__all__ = ["COMMANDS", "talk"]


class Command(NamedTuple):
    """What it takes, what it does, and how."""

    takes: str
    help: str
    run: Callable[[Conversation, str], object]


def _system(chat: Conversation, text: str) -> None:
    if text:
        chat.system = text
    else:
        show(chat.system or "there is no system prompt")


def _load(chat: Conversation, path: str) -> None:
    chat.messages = read_messages(path)


def _help(chat: Conversation, text: str) -> None:
    for name, command in COMMANDS.items():
        show(f"{f'{name} {command.takes}':16} {command.help}")
    show('A line that ends with \\ goes on in the next; """ before and after several lines makes one text of them.')


#: By name; a question that begins with a slash begins with two.
COMMANDS = {
    "/help": Command("", "Show this.", _help),
    "/clear": Command("", "Forget everything but the system prompt.", lambda chat, text: chat.clear()),
    "/system": Command("[TEXT]", "Show the system prompt, or set it.", _system),
    "/undo": Command("", "Take the last question back, with its reply.", lambda chat, text: chat.undo()),
    "/retry": Command("", "Have the last reply written again.", lambda chat, text: chat.retry()),
    "/save": Command("FILE", "Write the chat into a file, as JSON.", lambda chat, text: chat.save(text)),
    "/load": Command("FILE", "Go on with the chat of a file.", _load),
    "/image": Command("FILE", "Show a picture with the next question.", lambda chat, text: chat.attach(text)),
    "/audio": Command("FILE", "Play a sound with the next question.", lambda chat, text: chat.attach(text)),
    "/timings": Command("", "Tell how long the last reply took.", lambda chat, text: show(chat.timings())),
    "/quit": Command("", "End; so does Ctrl-D.", lambda chat, text: None),
}
#: As other programs have them.
OTHER_NAMES = {"/exit": "/quit", "/bye": "/quit", "/?": "/help"}


def talk(chat: Conversation, terminal: Terminal, first: str | None = None, *, single: bool = False) -> int:
    """Read, and answer, until the input ends.

    What fails is told, and the chat goes on. Where nobody types, such as with lines from a pipe, its status tells at
    the end that something did. Ctrl-C stops a reply; while nothing is written, the second in a row ends the chat.

    Parameters
    ----------
    chat, terminal
        What answers, and where.
    first
        The first question.
    single
        Whether it is the only one.

    Returns
    -------
    int
        0; or, where nobody types, the status of the first error.

    Raises
    ------
    BrokenPipeError
        If nobody reads any more.
    KeyboardInterrupt
        At the second Ctrl-C, or the first where nobody types.
    """
    line, stopped, status = first, False, 0
    while not (single and line is None):
        try:
            line = terminal.read() if line is None else line
            if line is None or OTHER_NAMES.get(line.strip(), line.strip()) == "/quit":
                break
            stopped = False
            stopped = _answer(chat, line)
        except KeyboardInterrupt:
            if stopped or not terminal.interactive:
                raise
            stopped = True
            terminal.note("\n(Ctrl-C again, or /quit, ends the chat)")
        except BrokenPipeError:
            raise
        except (MoebindError, ValueError, OSError) as error:
            say(error_in_options(error))
            status = status or status_of(error)
        line = None
    return 0 if terminal.interactive else status


def _answer(chat: Conversation, line: str) -> bool:
    """Do what a line says; whether Ctrl-C stopped it."""
    if not line.strip():
        return False
    if not line.startswith("/") or line.startswith("//"):
        return chat.ask(line.removeprefix("/") if line.startswith("//") else line)
    name, _, rest = line.partition(" ")
    command = COMMANDS.get(OTHER_NAMES.get(name, name))
    if command is None:
        raise ValueError(f"there is no command {name}; there are {', '.join(COMMANDS)}")
    rest = rest.strip()
    if bool(rest) != bool(command.takes) and command.takes != "[TEXT]":
        raise ValueError(f"{name} takes {command.takes or 'nothing'}; it is {line.strip()!r}")
    return bool(command.run(chat, rest))
