"""The documentation tells of everything that there is."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import DOCS, PAGES, ROOT, Member, defining, members_used, names_used, program

import moebind
from moebind import Batch, Context, Model, Sampler

REFERENCE = "\n".join(page.read_text(encoding="utf-8") for page in [*DOCS.glob("api/*.md"), DOCS / "raw.md"])
CLASSES = [name for name in moebind.__all__ if inspect.isclass(getattr(moebind, name))]


def members(kind: type) -> Iterator[tuple[type, str, object]]:
    """Public methods and properties, of moebind's own base classes too: where each is defined, its name, and itself."""
    for base in kind.__mro__:
        if base.__module__.startswith("moebind."):
            for name, value in vars(base).items():
                if not name.startswith("_") and (
                    inspect.isroutine(value) or isinstance(value, (property, classmethod, staticmethod))
                ):
                    yield base, name, value


@pytest.mark.parametrize("name", moebind.__all__)
def test_every_public_name_is_in_the_reference(name: str) -> None:
    directive = rf"^\.\. (auto\w+|py:data):: (moebind\.)?{name}(\(.*\))?$"
    assert re.search(directive, REFERENCE, re.MULTILINE)


@pytest.mark.parametrize("name", sorted({*moebind.__all__} - {"lib", "ffi", "llama_cpp_version"}))
def test_every_public_name_has_a_docstring(name: str) -> None:
    assert inspect.getdoc(getattr(moebind, name))


@pytest.mark.parametrize("kind", CLASSES)
def test_every_public_member_has_a_docstring(kind: str) -> None:
    for base, name, value in members(getattr(moebind, kind)):
        assert getattr(value, "__doc__", None), f"{base.__name__}.{name}"


#: What stands at the margin of a docstring's sections.
ENTRIES = {"Parameters": r"\*{0,2}\w+(, +\*{0,2}\w+)*", "Raises": r"[\w.]+(, +[\w.]+)*"}


def test_sections_of_docstrings_have_entries_and_no_prose() -> None:
    """A sentence there is shown as the name of a parameter, with its markup."""
    found = 0
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            for section, text in re.findall(
                r"^(Parameters|Raises)\n-+\n(.*?)(?=^[^\n]+\n---|\Z)", ast.get_docstring(node) or "", re.M | re.S
            ):
                entries = [line for line in text.splitlines() if line.strip() and not line.startswith(" ")]
                assert entries, f"{path}: {node.name}: {section}"
                for entry in entries:
                    assert re.fullmatch(ENTRIES[section], entry), f"{path}: {node.name}: {entry}"
                found += len(entries)
    assert found > 500


#: What no example shows, and why.
WITHOUT_EXAMPLE: dict[str, str] = {}


@pytest.fixture(scope="module")
def shown() -> set[str]:
    """Public names in the examples of README.md and docs/."""
    return {name for page in PAGES for name in names_used(program(page))}


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> set[Member]:
    """Members in those examples."""
    pytest.importorskip("mypy", reason="needs the extra [dev]")
    return members_used(map(program, PAGES), tmp_path_factory.mktemp("pages"))


@pytest.mark.parametrize("name", sorted({*moebind.__all__} - {*WITHOUT_EXAMPLE}))
def test_every_public_name_has_an_example(name: str, shown: set[str]) -> None:
    assert name in shown


@pytest.mark.timeout(900)  # it waits for mypy
@pytest.mark.parametrize("kind", CLASSES)
def test_every_public_member_has_an_example(kind: str, used: set[Member]) -> None:
    missing = [
        f"{base.__name__}.{name}" for base, name, _ in members(getattr(moebind, kind)) if (base, name) not in used
    ]
    assert not missing


EXAMPLE = """
import numpy as np
from moebind import Batch as Entries, Context, Model, Sampler, bench
import moebind

def of(context: Context, unknown, maybe: Model | None):
    batch = Entries(4)
    n_tokens = f"{batch.n_tokens}" if np.size(batch.pos) else Sampler.greedy
    unknown.n_outputs, np.capacity, n_tokens.close
    if maybe:
        maybe.n_ctx_train
    return [context.n_ctx, context.n_ctx, moebind.plan("x").fits, bench.offload]
"""


@pytest.mark.timeout(900)  # it waits for mypy
def test_an_example_is_one_of_its_class_only(tmp_path: Path) -> None:
    tree = ast.parse(EXAMPLE)
    assert names_used(tree) == {"Batch", "Context", "Model", "Sampler", "bench", "plan"}
    shown = ((Batch, "n_tokens"), (Batch, "pos"), (Context, "n_ctx"), (Model, "n_ctx_train"), (moebind.Plan, "fits"))
    expected = {defining(kind, name) for kind, name in (*shown, (Sampler, "greedy"))}
    assert members_used([tree], tmp_path) == expected


@pytest.mark.parametrize("name", WITHOUT_EXAMPLE)
def test_what_has_no_example_is_there_and_has_none(name: str, shown: set[str]) -> None:
    assert name in moebind.__all__
    assert name not in shown


def test_what_is_reserved_says_so() -> None:
    code = [path for path in (ROOT / "src").rglob("*.py") if path.name != "errors.py"]
    named = {
        node.id for path in code for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Name)
    }
    reserved = {name for name in moebind.errors.__all__ if "nothing raises it" in str(getattr(moebind, name).__doc__)}
    assert {*moebind.errors.__all__} - named == reserved == {*WITHOUT_EXAMPLE}


def test_examples_of_errors_raise_them(folder_with_model: Path) -> None:
    page = program(DOCS / "api" / "errors.md")
    tries = [node for node in ast.walk(page) if isinstance(node, ast.Try)]
    assert tries
    for node in tries:
        node.orelse = ast.parse("raise AssertionError('nothing was raised')").body
    exec(compile(ast.fix_missing_locations(page), "errors.md", "exec"), {})  # noqa: S102  # our own page


#: Files of this repository, in comments and on pages.
NAMED = re.compile(
    r"(?<![\w/.*{-])(?:benchmarks|cmake|docs|examples|native|src/moebind|tests|tools|vendor)/[\w/.-]*\w"
    r"\.(?:cmake|cpp|cu|h|lock|md|py|toml|tsv)\b"
)
NAMING = {"cmake", "cpp", "cu", "h", "md", "py"}
#: What names files of llama.cpp's archive, which has folders of the same names, or makes files up.
OF_OTHERS = {"tests/checkout.py", "tests/native/test_private_uses.py", "tests/project/test_build_options.py"}


def test_files_that_are_named_are_there() -> None:
    folders = ("benchmarks", "cmake", "docs", "src", "native", "tests", "tools")
    sources = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix[1:] in NAMING]
    sources += [
        ROOT / name for name in ("CMakeLists.txt", "CONTRIBUTING.md", "Makefile", "README.md", "pyproject.toml")
    ]
    named = {
        (path.relative_to(ROOT).as_posix(), file)
        for path in sources
        for file in NAMED.findall(path.read_text(encoding="utf-8"))
    }
    assert len(named) > 50
    assert {(path, file) for path, file in named if not (ROOT / file).exists() and path not in OF_OTHERS} == set()


def test_no_list_of_definitions() -> None:
    """Neither the site nor a forge draws them: they become paragraphs with a colon in the middle."""
    assert [page.name for page in PAGES if re.search(r"^: ", page.read_text(encoding="utf-8"), re.MULTILINE)] == []


def test_build_options_are_those_of_cmake() -> None:
    cmake = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    declared = re.findall(
        r'^(?:option\((MOEBIND_\w+) ".*" (\w+)\)|set\((MOEBIND_\w+) (\w+) CACHE)', cmake, re.MULTILINE
    )
    page = (DOCS / "build.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `(MOEBIND_\w+)` \| `(\w+)` \|", page, re.MULTILINE)
    assert sorted(told) == sorted((a or c, b or d) for a, b, c, d in declared)


def test_what_the_configuration_says_is_in_its_sources() -> None:
    """The lines of its summary that docs/build.md shows, but for versions, paths, and what npm says."""
    page = (DOCS / "build.md").read_text(encoding="utf-8")
    sources = "".join(path.read_text("utf-8") for path in [*ROOT.glob("cmake/*.cmake"), ROOT / "vendor/page.py"])
    told = re.findall(r"^(--   \S+(?: \S+)? +)(in|out): (.*)$", page, re.MULTILINE)
    assert len(told) > 6
    for name, state, verdict in told:
        assert f'message(STATUS "{name.removeprefix("-- ")}$' in sources
        assert f'"{state}: ' in sources
        for part in re.split(r"/\S+|[\d.]+(?:-\d+)?|[:;,()]|\b(?:of|package)\b|npm ci failed: .*", verdict):
            assert part.strip() in sources, (name, part)


def test_what_the_readme_says_is_saved_is_what_was_planned() -> None:
    """Its rows are rows of the table that a benchmark prints: the device, the host and what is saved."""
    row = re.compile(r"^\| ([^|]+ (?:Q4_K_M|MXFP4)) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+ %) \| ([\d.]+) \|", re.MULTILINE)
    planned = re.compile(
        r"^\| ([^|]+) \|(?: [^|]+ \| [^|]+ \| [\d.]+ % \|)? ([\d.]+) \| ([\d.]+) \| ([\d.]+ %) \| ([\d.]+) \|",
        re.MULTILINE,
    )
    said = row.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(said) > 4
    assert {*said} <= {*planned.findall((DOCS / "offload.md").read_text(encoding="utf-8"))}


#: What builds the site.
SITE = ("sphinx", "furo", "myst_parser", "numpydoc", "sphinx_copybutton")


@pytest.mark.parametrize("repository", ["", "https://github.com/OWNER/NAME"])
def test_pages_have_a_link_to_edit_them_where_it_is_known_whose_they_are(repository: str, tmp_path: Path) -> None:
    for module in SITE:
        pytest.importorskip(module, reason="needs the extra [docs]")
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages/index.md").write_text("# A page\n\nA text.\n", encoding="utf-8")
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", "-c", DOCS]
    told = {**os.environ, "MOEBIND_REPOSITORY": repository}
    subprocess.run([*command, tmp_path / "pages", tmp_path / "html"], check=True, env=told)
    page = (tmp_path / "html/index.html").read_text(encoding="utf-8")
    assert "A text." in page
    links = re.findall(r'href="([^"]*/edit/[^"]*)"', page)
    assert {*links} == ({f"{repository}/edit/main/docs/index.md"} if repository else set())
    assert ("Edit this page" in page) == bool(repository)


@pytest.mark.thorough  # make docs does it too
@pytest.mark.timeout(900)  # a minute, on a machine that has nothing else to do
def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    for module in SITE:
        pytest.importorskip(module, reason="needs the extra [docs]")
    command = [sys.executable, "-m", "sphinx", "-nW", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*command, "-d", tmp_path / "trees", DOCS, tmp_path / "html"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
