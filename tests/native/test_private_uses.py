"""What native/ uses of llama.cpp's inside is what the tables of native/peek and native/replaced say."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VENDORED = ROOT / "vendor/llama.cpp"
#: Rooms of which every file has a row; files of others have one if they include a private header.
LISTED = ("peek", "replaced")
#: What llama.cpp installs.
PUBLIC = ("include", "ggml/include")
#: libmtmd's, which it installs, too, from a folder with others.
MTMD = {"mtmd.h", "mtmd-helper.h"}
#: Where headers are looked for, in the order in which the compiler does.
PRIVATE = ("src", "ggml/src", "ggml/src/ggml-rpc", "common")
#: Written by the build.
GENERATED = {"build_info.h", "guards.h"}

#: The second, what is used, and the fourth, the tests that notice a change, are read here.
COLUMNS = ["file", "uses", "why", "tests", "needless with"]


def sources(native: Path) -> Iterator[Path]:
    """The C++ files of native/."""
    return (path for path in sorted(native.rglob("*")) if path.suffix in {".h", ".cpp"})


def included(path: Path, native: Path) -> set[str]:
    """The private files of llama.cpp that a file includes, by their path in the vendored tree."""
    own = {other.name for other in sources(native)} | GENERATED
    found: set[str] = set()
    for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(encoding="utf-8"), re.MULTILINE):
        if name in own | MTMD or any((VENDORED / folder / name).exists() for folder in PUBLIC):
            continue
        inside = [f"{folder}/{name}" for folder in PRIVATE if (VENDORED / folder / name).exists()]
        assert inside, f"{path} includes {name}, which is neither ours nor found in llama.cpp"
        found.add(inside[0])
    return found


def rows(native: Path) -> dict[str, list[str]]:
    """The rows of both tables, by the path of their file in native/."""
    found: dict[str, list[str]] = {}
    for room in LISTED:
        lines = (native / room / "README.md").read_text(encoding="utf-8").splitlines()
        table = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines if line.startswith("|")]
        assert table[0] == COLUMNS
        for cells in table[2:]:
            assert len(cells) == len(COLUMNS), cells[0]
            assert all(cells), cells[0]
            assert cells[0] not in found, f"{cells[0]} has two rows"
            found[cells[0].strip("`")] = cells
    return found


def what_is_wrong(native: Path) -> list[str]:
    """How the tables differ from the code."""
    table = rows(native)
    files = {str(path.relative_to(native)): included(path, native) for path in sources(native)}
    files |= {f"vendor/patches/{patch.name}": set() for patch in native.parent.glob("vendor/patches/*.patch")}
    wrong = [f"{name}: there is no such file" for name in table.keys() - files.keys()]
    for name, headers in files.items():
        if name not in table:
            if headers or name.split("/")[0] in {*LISTED, "vendor"}:
                wrong.append(f"{name}: it has no row, and includes {sorted(headers)}")
            continue
        _, uses, _, tests, _ = table[name]
        listed = set(re.findall(rf"`((?:{'|'.join(PRIVATE)})/[^`]+)`", uses))
        wrong += [f"{name}: its row lacks {header}" for header in headers - listed]
        wrong += [f"{name}: it does not include {header}" for header in listed - headers]
        named = re.findall(r"`(tests/[^`]+)::(\w+)`", tests)
        if not named:
            wrong.append(f"{name}: its row names no test")
        wrong += [f"{name}: there is no test {path}::{test}" for path, test in named if not exists(path, test)]
    return wrong


def exists(path: str, test: str) -> bool:
    if not (ROOT / path).exists():
        return False
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return any(isinstance(node, ast.FunctionDef) and node.name == test for node in tree.body)


def test_the_tables_are_right() -> None:
    assert what_is_wrong(ROOT / "native") == []


HEAD = "| " + " | ".join(COLUMNS) + " |\n| --- | --- | --- | --- | --- |\n"
GOOD = "`tests/native/test_private_uses.py::test_the_tables_are_right`"


@pytest.mark.parametrize(
    ("path", "source", "row", "wrong"),
    [
        ("peek/a.cpp", "", f"`peek/a.cpp` | nothing | - | {GOOD} | -", ""),
        ("core/a.cpp", '#include "llama.h"\n#include "a.h"', "", ""),
        ("core/a.cpp", '  #  include "llama-model.h"', f"`core/a.cpp` | `src/llama-model.h` | - | {GOOD} | -", ""),
        ("core/a.cpp", '#include "llama-model.h"', "", "no row"),
        ("peek/a.cpp", "", "", "no row"),
        ("peek/a.cpp", '#include "log.h"', f"`peek/a.cpp` | `src/log.h` | - | {GOOD} | -", "lacks common/log.h"),
        ("peek/a.cpp", "", f"`peek/a.cpp` | `src/llama-model.h` | - | {GOOD} | -", "does not include"),
        ("peek/a.cpp", "", f"`peek/b.cpp` | nothing | - | {GOOD} | -", "no such file"),
        ("peek/a.cpp", "", "`peek/a.cpp` | nothing | - | none | -", "names no test"),
        (
            "peek/a.cpp",
            "",
            "`peek/a.cpp` | nothing | - | `tests/native/test_peek.py::test_gone` | -",
            "no test",
        ),
        ("peek/a.cpp", "", "`peek/a.cpp` | nothing | - | `tests/gone.py::test_gone` | -", "no test"),
    ],
)
def test_what_is_wrong_is_found(tmp_path: Path, path: str, source: str, row: str, wrong: str) -> None:
    for room in ("core", *LISTED):
        (tmp_path / room).mkdir()
    (tmp_path / "core/a.h").touch()
    (tmp_path / path).write_text(source, encoding="utf-8")
    (tmp_path / "peek/README.md").write_text(HEAD + (f"| {row} |\n" if row else ""), encoding="utf-8")
    (tmp_path / "replaced/README.md").write_text(HEAD, encoding="utf-8")
    found = "; ".join(what_is_wrong(tmp_path))
    assert wrong in found
    assert bool(wrong) == bool(found)


def test_a_header_that_is_nowhere_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.cpp").write_text('#include "gone.h"', encoding="utf-8")
    with pytest.raises(AssertionError, match=r"gone\.h, which is neither"):
        included(tmp_path / "a.cpp", tmp_path)


@pytest.mark.parametrize("header", ["shim.h", "drafts.h", "grammars.h"])
def test_the_shim_has_a_section_for_each_file_in_the_order_of_the_rooms(header: str) -> None:
    native = ROOT / "native"
    shim = (native / "core" / header).read_text(encoding="utf-8")
    titles = re.findall(r"^// --- .* \((\S+)\) ---$", shim, re.MULTILINE)
    assert len(titles) == shim.count("\n// --- ")
    order = ["core", "peek", "sampling", "chat"]
    assert [title.split("/")[0] for title in titles] == sorted((t.split("/")[0] for t in titles), key=order.index)
    sections = dict(zip(titles, re.split(r"^// --- .* ---$", shim, flags=re.MULTILINE)[1:], strict=True))
    for title, section in sections.items():
        defined = "".join(path.read_text(encoding="utf-8") for path in native.glob(title))
        declared = re.findall(r"^(?!//).*?\b(moebind_\w+)\(", section, re.MULTILINE)
        assert declared, title
        for name in declared:
            assert re.search(rf"^[^/\s].*\b{name}\(", defined, re.MULTILINE), f"{name} is not in {title}"
