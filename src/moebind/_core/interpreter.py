"""The interpreter that moebind works in: the main one of the process.

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


if not _is_main():
    raise ImportError(
        "moebind works in a process's main interpreter, and this is another one (of concurrent.interpreters, mod_wsgi "
        "or their like). Import it in the main one, and use threads or processes; for mod_wsgi, set "
        "WSGIApplicationGroup %{GLOBAL}"
    )
