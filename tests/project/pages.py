"""The examples of README.md and docs/: which names of moebind they use, and which members of which class.

mypy says what class each attribute is looked up in, as it does for a reader's editor: ``x.n_tokens`` stands for
``reveal_type(x).n_tokens``. So an attribute of the same name in another class, or in no class that it knows, is none.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("api/*.md"))]

#: A member: the class that defines it, and its name.
Member = tuple[type, str]


def blocks(page: Path) -> Iterator[str]:
    """The Python blocks of a page that conftest.py runs."""
    found = re.findall(
        r"(<!--- skip: next -->\s*)?^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    return (block for skipped, block in found if not skipped)


def program(page: Path) -> ast.Module:
    """Its blocks, which share their names."""
    return ast.parse("".join(blocks(page)))


def names_used(tree: ast.Module, module: str = "moebind") -> set[str]:
    """The names of the module that the program imports and uses, or looks up in it."""
    looked_in = {module, module.rpartition(".")[2]}
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=origin, names=names) if origin == module:
                found |= {each.name for each in names if (each.asname or each.name) in used}
            case ast.Attribute(value=value, attr=name) if ast.unparse(value) in looked_in:
                found.add(name)
    return found


def defining(kind: type, name: str) -> Member | None:
    """The member that ``kind`` has by that name, wherever it is inherited from."""
    return next(((base, name) for base in kind.__mro__ if name in vars(base)), None)


def members_used(programs: Iterable[ast.Module], folder: Path) -> set[Member]:
    """The members of moebind's classes that the programs look up; mypy works in ``folder``."""
    lookups: dict[tuple[str, int], str] = {}
    for number, tree in enumerate(programs):
        source = _revealing(tree)
        path = folder / f"program_{number}.py"
        path.write_text(source, encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            match node:
                case ast.Attribute(value=ast.Call(func=ast.Name(id="reveal_type"), args=[argument]), attr=name):
                    lookups[path.name, argument.lineno] = name
    command = [sys.executable, "-m", "mypy", "--config-file", "", "--cache-dir", str(folder / "cache")]
    # Pages are no strict programs: what they use a name for may change from block to block.
    command += ["--check-untyped-defs", "--allow-redefinition", *sorted({name for name, _ in lookups})]
    said = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    told = re.findall(r'^(\w+\.py):(\d+): note: Revealed type is "(.*)"$', said.stdout, re.MULTILINE)
    assert told, said.stdout + said.stderr
    found = {
        defining(kind, lookups[path, int(line)])
        for path, line, kinds in told
        if (path, int(line)) in lookups
        for kind in _classes(kinds)
    }
    return {member for member in found if member is not None}


def _revealing(tree: ast.Module) -> str:
    """The program with the type of each object revealed whose attribute is looked up, each in a line of its own."""
    modules = set()
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                modules |= {each.asname or each.name for each in names}
            case ast.ImportFrom(module=str(module), names=names):
                held = importlib.import_module(module)
                modules |= {
                    each.asname or each.name for each in names if inspect.ismodule(getattr(held, each.name, None))
                }
    changed = _Revealing(modules).visit(ast.parse(ast.unparse(tree)))
    # mypy says the same only once a line.
    return ast.unparse(ast.fix_missing_locations(changed)).replace("reveal_type(", "reveal_type(\n")


class _Revealing(ast.NodeTransformer):
    def __init__(self, modules: set[str]) -> None:
        self.modules = modules

    def visit_Attribute(self, node: ast.Attribute) -> ast.Attribute:
        # Revealed, a module is any object with any attributes.
        if isinstance(node.ctx, ast.Load) and ast.unparse(node.value) not in self.modules:
            self.generic_visit(node)
            node.value = ast.Call(ast.Name("reveal_type", ast.Load()), [node.value], [])
        return node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.Tuple:
        """An f-string as its parts: before Python 3.12 it has to be in one line."""
        parts = [part.value for part in node.values if isinstance(part, ast.FormattedValue)]
        return ast.Tuple([self.visit(part) for part in parts], ast.Load())


def _classes(revealed: str) -> Iterator[type]:
    """moebind's classes in a type as mypy writes it: a class, one of several, or what a class makes."""
    made = re.sub(r"^(Overload\()?def .* -> ", "", revealed)
    for name in re.split(r" \| |, ", re.sub(r"^Union\[(.*)\]$", r"\1", made)):
        module, _, kind = name.rpartition(".")
        if re.fullmatch(r"moebind(\.\w+)*", module):
            found = getattr(importlib.import_module(module), kind, None)
            if inspect.isclass(found):
                yield found
