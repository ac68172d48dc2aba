"""A process that measures one side of benchmarks/speed.py, as often as it is asked to: models are loaded once.

It reads names of functions, one a line, and answers each with a line of JSON: what was found, or why nothing was.
Before that, it says in a line that it has begun; for llama-cpp-python, with the layout of its structures.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import sys
from pathlib import Path

from speed_settings import Settings


def main() -> None:
    """Answer until the input ends."""
    side, settings = sys.argv[1], Settings(**json.loads(sys.argv[2]))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    module = importlib.import_module(f"speed_{side}")

    def tell(found: object) -> None:
        print(json.dumps(found), file=answers, flush=True)

    tell(sizes() if side == "other" else {})
    for line in sys.stdin:
        try:
            tell(module.WORK[line.strip()](settings))
        except Exception as error:
            tell({"failure": f"{type(error).__name__}: {error}"})


def sizes() -> dict[str, object]:
    """Where llama-cpp-python has the fields of llama.h's structures, in bytes."""
    import llama_cpp

    found: dict[str, object] = {"file": str(Path(llama_cpp.__file__).parent)}
    for name, kind in vars(llama_cpp).items():
        if name.startswith("llama_") and isinstance(kind, type) and issubclass(kind, ctypes.Structure):
            fields = getattr(kind, "_fields_", ())
            found[name] = {field[0]: getattr(kind, field[0]).offset for field in fields}
    return found


if __name__ == "__main__":
    main()
