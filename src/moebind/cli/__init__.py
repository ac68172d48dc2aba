"""The command line: ``moebind``, or ``python -m moebind``; one file a command."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Sequence
from contextlib import suppress

from moebind._core.log import set_log
from moebind._core.native import lib
from moebind.cli.output import say
from moebind.cli.statuses import FAILED, INTERRUPTED, MISUSED, status_of
from moebind.errors import MoebindError

__all__ = ["main"]

#: Commands whose first question is what devices there are.
_ASK_FOR_DEVICES = (["plan"], ["fit"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, do what it says, and end the process.

    Parameters
    ----------
    arguments
        Those of the command line; None: the process's.

    Raises
    ------
    SystemExit
        Always: with 0, with 1 if something failed, with 2 if the command line is wrong, with 130 after Ctrl-C. What
        went wrong is one line on standard error.
    """
    try:
        import typer  # noqa: F401  # whether it is there
    except ImportError:
        say("the command line needs typer: pip install 'moebind[cli]'")
        sys.exit(FAILED)
    sys.exit(_run(sys.argv[1:] if arguments is None else list(arguments)))


def _look_for_devices() -> None:
    """Have llama.cpp look for drivers of graphics cards, which takes a while; an error is met again by who asks."""
    with suppress(MoebindError):
        lib.ggml_backend_dev_count()


def _will_ask_for_devices(arguments: list[str]) -> bool:
    """Whether a command will, and needs nothing else before: a file of parameters may have variables for backends."""
    elsewhere = ("--help", "--params", "--tuned")
    return arguments[:1] in _ASK_FOR_DEVICES and not any(each.startswith(elsewhere) for each in arguments)


def _run(arguments: list[str]) -> int:
    set_log(None)  # what matters of llama.cpp's log is in the error's message; the line would be there twice
    if _will_ask_for_devices(arguments):
        threading.Thread(target=_look_for_devices).start()  # while the command is imported and its options are read

    from moebind.cli.app import app
    from moebind.cli.options import error_in_options, in_options

    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: say(f"warning: {in_options(str(message))}")
            status = app(arguments, prog_name="moebind", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever reads has seen enough; there is nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILED
    except (ValueError, TypeError, IndexError, MoebindError, OSError, ImportError) as error:
        say(error_in_options(error))
        return status_of(error)
    except Exception as error:
        # Usage errors are typer's, or click's, whose classes moved between their versions.
        if type(error).__name__ == "Abort":
            return INTERRUPTED
        if not hasattr(error, "format_message"):
            raise
        from moebind.cli.usage import usage_sentence

        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message(), file=sys.stderr)
        else:
            say(usage_sentence(error))
        return MISUSED
    finally:
        set_log()
