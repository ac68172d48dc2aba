"""Write the table of the house into ``docs/design.md``: its rooms, what is in them, and what each stands on.

``python tools/house.py`` writes it, from the import contract in ``pyproject.toml``, the folders' docstrings and the
imports in the source; with ``--check`` it only says whether it is up to date. ``tests/project/test_house.py`` uses its
functions.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src/moebind"
PAGE = ROOT / "docs/design.md"
BEGIN, END = "<!-- The table is written by tools/house.py. -->", "<!-- End of the table. -->"
#: Modules that are no room: the names that users import, which every room may use.
ENTRANCE = {"errors", "enums"}


def modules() -> dict[str, Path]:
    """Every module of the package, by its name; a folder is its ``__init__``."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports() -> dict[str, set[str]]:
    """The modules that each module imports: at once, later in a function, or for its types only."""
    known = modules()
    return {name: set(_imported(path, known)) - {name} for name, path in known.items()}


def _imported(path: Path, known: dict[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in known:
                    yield inner
                elif node.module in known:
                    yield node.module


def circles(graph: dict[str, set[str]]) -> list[frozenset[str]]:
    """Groups of modules that import each other, directly or through others, the largest first."""
    reachable = {}
    for start in graph:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            fresh = graph[waiting.pop()] - seen
            seen |= fresh
            waiting += fresh
        reachable[start] = seen
    groups = {frozenset({name} | {other for other in reachable[name] if name in reachable[other]}) for name in graph}
    return sorted((group for group in groups if len(group) > 1), key=lambda group: (-len(group), sorted(group)))


def rows() -> list[list[str]]:
    """The rooms in the rows of the import contract, the lowest first; those of one layer stand side by side."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    layers = text[text.index("[[tool.importlinter.contracts]]") :].partition("layers = [")[2].partition("]")[0]
    found = [re.findall(r"moebind\.(\w+)", line) for line in layers.splitlines()]
    return [[room for room in row if room not in ENTRANCE] for row in reversed(found) if row]


def room(module: str) -> str:
    """The folder that a module is in; empty for those at the root."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else ""


def table() -> str:
    """The table, as Markdown."""
    known, graph = modules(), imports()
    lines = ["| layer | room | what it is for | what is in it | stands on |", "| --- | --- | --- | --- | --- |"]
    for number, row in reversed(list(enumerate(rows(), 1))):
        for name in row:
            text = ast.get_docstring(ast.parse(known[f"moebind.{name}"].read_text(encoding="utf-8"))) or ""
            purpose = text.splitlines()[0].rstrip(".").replace("``", "`")
            inside = [module.rpartition(".")[2] for module in known if module.startswith(f"moebind.{name}.")]
            below = {room(other) for module in graph if room(module) == name for other in graph[module]} - {name, ""}
            order = [each for line in rows() for each in line if each in below]
            lines.append(f"| {number} | `{name}/` | {purpose} | {', '.join(inside)} | {', '.join(order)} |")
    return "\n".join(lines)


def main() -> None:
    """Write the table, or check it."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    wanted = f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}"
    if "--check" in sys.argv:
        if page != wanted:
            print(f"{PAGE} is out of date: run python {Path(__file__).name}", file=sys.stderr)
            sys.exit(1)
        return
    PAGE.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
