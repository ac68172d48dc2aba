"""The system and the interpreter that moebind works in: Linux, and the main one of the process.

Other systems lack what modules use as soon as they are imported, or first when something has gone wrong
(docs/platforms.md). So they are refused here, before anything else is imported.

Callbacks come from threads of llama.cpp's, and Python gives such a thread to the main interpreter, whichever it was
that asked. numpy, too, works in one interpreter only, the first that imports it: so this is looked at before.
"""

from __future__ import annotations

import importlib
import sys

__all__: list[str] = []


def _is_main() -> bool:
    try:
        interpreters = importlib.import_module("_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters")
    except ImportError:
        return True
    return bool(interpreters.get_current() == interpreters.get_main())


if sys.platform != "linux":
    raise ImportError(
        f"moebind works on Linux, and this is {sys.platform}. On Windows use it in WSL 2, on macOS in a virtual "
        "machine or container with Linux; docs/platforms.md tells what else it would take"
    )
if not _is_main():
    raise ImportError(
        "moebind works in a process's main interpreter, and this is another one (of concurrent.interpreters, mod_wsgi "
        "or their like). Import it in the main one, and use threads or processes; for mod_wsgi, set "
        "WSGIApplicationGroup %{GLOBAL}"
    )
