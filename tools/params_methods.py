"""Write ``src/moebind/params/_methods.py``: a ``with_`` method for every field of ``src/moebind/params/params.py``.

``python tools/params_methods.py`` writes it; with ``--check`` it only says whether it is up to date.
"""

from __future__ import annotations

import ast
import itertools
import re
import sys
import textwrap
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "src/moebind/params"
SOURCE = PACKAGE / "params.py"
TARGET = PACKAGE / "_methods.py"

HEAD = '''"""The ``with_`` methods of ``params.py``. Written by tools/params_methods.py: change the fields instead."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from typing_extensions import Self

{imports}


class _Methods:
    def _with(self, **changed: object) -> Self:
        return dataclasses.replace(self, **changed)  # type: ignore[type-var]
'''

#: Methods take more than the field stores: any sequence or mapping will do.
WIDER = {
    "tuple[Device, ...] | None": "Sequence[Device] | None",
    "tuple[TensorOverride, ...]": "Sequence[TensorOverride]",
    "tuple[float, ...] | None": "Sequence[float] | None",
    "KvOverrides": "Mapping[str, bool | int | float | str]",
    "Size": "int | str",
}


def fields(class_: ast.ClassDef) -> list[tuple[str, str, str]]:
    """(name, type, description) of each field that a dataclass declares with option()."""
    found = []
    for node, following in itertools.pairwise(class_.body):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            if not isinstance(following, ast.Expr) or not isinstance(following.value, ast.Constant):
                raise SystemExit(f"{SOURCE.name}: the field {node.target.id} has no description under it")
            found.append((node.target.id, ast.unparse(node.annotation), str(following.value.value)))
    return found


def method(name: str, annotation: str, description: str) -> str:
    """The source of one ``with_`` method."""
    wide = WIDER.get(annotation, annotation)
    text = " ".join(f"Return a copy with another ``{name}``. {description}".split())
    body = textwrap.fill(text, 113, initial_indent=8 * " ", subsequent_indent=8 * " ", break_on_hyphens=False)
    closing = "" if len(body.splitlines()) == 1 else "\n        "
    return f'''
    def with_{name}(self, {name}: {wide}) -> Self:
        """{body.lstrip()}{closing}"""
        return self._with({name}={name})
'''


def imports(tree: ast.Module, used: str) -> str:
    """The imports of params.py whose names the methods use, as source."""
    lines: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("moebind."):
            names = [alias.name for alias in node.names if re.search(rf"\b{alias.name}\b", used)]
            if len(names) > 3:
                lines += [f"    from {node.module} import (", *(f"        {name}," for name in names), "    )"]
            elif names:
                lines.append(f"    from {node.module} import {', '.join(names)}")
    return "\n".join(lines)


def generate() -> str:
    """The whole file."""
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    parts = []
    used = ""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name in {"ModelParams", "ContextParams"}:
            described = f'"""One method for each field of {node.name}."""'
            parts.append(f"\n\nclass {node.name}Methods(_Methods):\n    {described}\n")
            parts += [method(*field) for field in fields(node)]
            used += " ".join(WIDER.get(annotation, annotation) for _, annotation, _ in fields(node))
    return HEAD.format(imports=imports(tree, used)) + "".join(parts)


def main() -> int:
    """Write the file, or check it."""
    text = generate()
    if "--check" in sys.argv:
        current = TARGET.read_text(encoding="utf-8") if TARGET.exists() else ""
        if current != text:
            print(f"{TARGET} is out of date: run python {Path(__file__).name}", file=sys.stderr)
            return 1
        return 0
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
