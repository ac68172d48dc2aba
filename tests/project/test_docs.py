"""The documentation tells of everything that there is."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import moebind

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
REFERENCE = "\n".join(page.read_text(encoding="utf-8") for page in [*DOCS.glob("api/*.md"), DOCS / "raw.md"])
PAGES = [ROOT / "README.md", *DOCS.glob("*.md"), *DOCS.glob("api/*.md")]
CLASSES = [name for name in moebind.__all__ if inspect.isclass(getattr(moebind, name))]


def members(kind: type) -> Iterator[tuple[str, object]]:
    """Public methods and properties, of moebind's own base classes too."""
    for base in kind.__mro__:
        if base.__module__.startswith("moebind."):
            for name, value in vars(base).items():
                if not name.startswith("_") and (
                    inspect.isroutine(value) or isinstance(value, (property, classmethod, staticmethod))
                ):
                    yield f"{base.__name__}.{name}", value


@pytest.mark.parametrize("name", moebind.__all__)
def test_every_public_name_is_in_the_reference(name: str) -> None:
    directive = rf"^\.\. (auto\w+|py:data):: (moebind\.)?{name}(\(.*\))?$"
    assert re.search(directive, REFERENCE, re.MULTILINE)


@pytest.mark.parametrize("name", sorted({*moebind.__all__} - {"lib", "ffi", "llama_cpp_version"}))
def test_every_public_name_has_a_docstring(name: str) -> None:
    assert inspect.getdoc(getattr(moebind, name))


@pytest.mark.parametrize("kind", CLASSES)
def test_every_public_member_has_a_docstring(kind: str) -> None:
    for name, value in members(getattr(moebind, kind)):
        assert getattr(value, "__doc__", None), name


#: What no example shows, and why.
WITHOUT_EXAMPLE = {
    "SpeculativeError": "nothing raises it yet: speculative decoding is for a later version",
}


def examples(page: Path) -> Iterator[str]:
    """The Python blocks of a page that conftest.py runs."""
    blocks = re.findall(
        r"(<!--- skip: next -->\s*)?^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    return (block for skipped, block in blocks if not skipped)


@pytest.fixture(scope="module")
def shown() -> set[str]:
    """Names and attributes in the examples of README.md and docs/."""
    found: set[str] = set()
    for page in PAGES:
        for node in ast.walk(ast.parse("".join(examples(page)))):
            match node:
                case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name):
                    found.add(name)
    return found


@pytest.mark.parametrize("name", sorted({*moebind.__all__} - {*WITHOUT_EXAMPLE}))
def test_every_public_name_has_an_example(name: str, shown: set[str]) -> None:
    assert name in shown


@pytest.mark.parametrize("kind", CLASSES)
def test_every_public_member_has_an_example(kind: str, shown: set[str]) -> None:
    missing = [name for name, _ in members(getattr(moebind, kind)) if name.rpartition(".")[2] not in shown]
    assert not missing


@pytest.mark.parametrize("name", WITHOUT_EXAMPLE)
def test_what_has_no_example_is_there_and_has_none(name: str, shown: set[str]) -> None:
    assert name in moebind.__all__
    assert name not in shown


def test_examples_of_errors_raise_them(folder_with_model: Path) -> None:
    page = ast.parse("".join(examples(DOCS / "api" / "errors.md")))
    tries = [node for node in ast.walk(page) if isinstance(node, ast.Try)]
    assert tries
    for node in tries:
        node.orelse = ast.parse("raise AssertionError('nothing was raised')").body
    exec(compile(ast.fix_missing_locations(page), "errors.md", "exec"), {})  # noqa: S102  # our own page


def test_build_options_are_those_of_cmake() -> None:
    cmake = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    declared = re.findall(
        r'^(?:option\((MOEBIND_\w+) ".*" (\w+)\)|set\((MOEBIND_\w+) (\w+) CACHE)', cmake, re.MULTILINE
    )
    page = (DOCS / "build.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `(MOEBIND_\w+)` \| `(\w+)` \|", page, re.MULTILINE)
    assert sorted(told) == sorted((a or c, b or d) for a, b, c, d in declared)


@pytest.mark.thorough  # make docs does it too
def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    for module in ("sphinx", "furo", "myst_parser", "numpydoc"):
        pytest.importorskip(module, reason="needs the extra [docs]")
    command = [sys.executable, "-m", "sphinx", "-nW", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*command, "-d", tmp_path / "trees", DOCS, tmp_path / "html"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
