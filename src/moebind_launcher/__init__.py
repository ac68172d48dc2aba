"""The program ``moebind``. It answers ``--version`` by itself, since importing moebind takes longer than the answer."""

from __future__ import annotations

import gc
import importlib.util
import sys

__all__ = ["main", "versions"]


def main() -> None:
    """Answer ``--version``, or else do what :func:`moebind.cli.main` does with the command line."""
    if sys.argv[1:] == ["--version"]:
        print(versions())
        return
    # What is imported stays until the end. Looking for garbage in it takes a fifth of the time until a command begins;
    # so the collector starts when it does (moebind.cli.lazy).
    gc.disable()
    from moebind.cli import main as command_line

    command_line()


def versions() -> str:
    """The versions of moebind and of llama.cpp, in a line."""
    if "moebind" not in sys.modules and (spec := importlib.util.find_spec("moebind")) is not None:
        # The package without what it imports: enough to find its modules by. Nobody else will import it.
        sys.modules["moebind"] = importlib.util.module_from_spec(spec)
    from moebind._core.version import __version__
    from moebind._libllama import ffi, lib

    return f"moebind {__version__}, llama.cpp {ffi.string(lib.llama_version()).decode()}"
