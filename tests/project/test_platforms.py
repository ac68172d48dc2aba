"""docs/platforms.md: its table of what in Python is Linux only names the files that use such a thing, and no others."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "src/moebind"
#: Files out of ``SOURCES``, as the page calls them.
OTHERS = ["vendor/fetch.py", "vendor/page.py"]
PAGE = (ROOT / "docs/platforms.md").read_text(encoding="utf-8")
#: What the table has to have rows of, besides what mypy finds: these are there on other systems, but do another thing.
WANTED = {"/proc", "/proc/self/fd", "/sys", "import select", "import fcntl", "import resource", "os.fork", "prctl"}


def rows() -> list[tuple[list[str], list[str]]]:
    """Of each row of the table: the names in it, and the files."""
    table = PAGE.partition("\nIn Python, ")[2].partition("\n\nSo macOS")[0].splitlines()[4:]
    cells = [[re.findall(r"`([^`]+)`", cell) for cell in line.split("|")[1:3]] for line in table]
    return [(names, files) for names, files in cells]


def used(path: Path) -> Iterator[tuple[str, int]]:
    """What a file uses, and in which lines: attributes, imports, named arguments and paths of the system."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Attribute(value=ast.Name(id=module), attr=name):
                yield f"{module}.{name}", node.lineno
            case ast.Attribute(attr=name):
                yield name, node.lineno
            case ast.Import(names=names):
                yield from ((f"import {each.name}", node.lineno) for each in names)
            case ast.ImportFrom(module=module, names=names):
                yield from ((f"{module}.{each.name}", node.lineno) for each in names)
            case ast.keyword(arg=str(name)):
                yield name, node.lineno
            case ast.Constant(value=str(text)) if found := re.match(r"/proc/self/fd|/(proc|sys)(?![^/])", text):
                yield found[0], node.lineno


def files() -> dict[str, Path]:
    """The files that are looked through, by the names that the page has."""
    found = {path.relative_to(SOURCES).as_posix(): path for path in SOURCES.rglob("*.py")}
    return found | {name: ROOT / name for name in OTHERS}


def test_every_file_is_named() -> None:
    where: dict[str, set[str]] = {}
    for name, path in files().items():
        for use, _ in used(path):
            where.setdefault(use, set()).add(name)
    assert len(rows()) > 10
    for names, named in rows():
        assert names, named
        assert set(named) == {file for name in names for file in where.get(name, ())}, names
        assert [name for name in names if name not in where] == []


def test_what_looks_through_finds_it(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text(
        '"""Of /proc."""\nimport fcntl, os\nfrom os import fork\nos.getloadavg()\nf(1).prctl(pass_fds=[2])\n'
        'open("/proc/x")\nopen(f"/proc/self/fd/{3}")\np = Path("/sys"), "/system"\n',
        encoding="utf-8",
    )
    assert set(used(path)) == {
        *(("import fcntl", 2), ("import os", 2), ("os.fork", 3), ("os.getloadavg", 4), ("prctl", 5), ("pass_fds", 5)),
        *(("/proc", 6), ("/proc/self/fd", 7), ("/sys", 8)),
    }


@pytest.mark.thorough
@pytest.mark.timeout(300)
def test_every_name_that_windows_lacks_is_there(tmp_path: Path) -> None:
    """mypy knows them."""
    names = {name for each, _ in rows() for name in each}
    assert names >= WANTED
    command = [sys.executable, "-m", "mypy", "--platform", "win32", "--cache-dir", str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT).stdout
    lacking = re.findall(r'^(src/moebind/\S+):(\d+): error: Module has no attribute "(\w+)"', said, re.MULTILINE)
    assert len(lacking) > 40, said
    for file, line, name in lacking:
        at_line = {use for use, number in used(ROOT / file) if number == int(line) and use.endswith(f".{name}")}
        modules = {f"import {use.partition('.')[0]}" for use in at_line}
        assert (at_line | modules) & names, f"{file}:{line} uses {name}: docs/platforms.md has no row for it"
