"""The house: rooms in rows, circles of imports, sizes of files, and tests where the modules are."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import moebind

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import house

#: The only circles, told in docs/design.md: things that name each other.
CIRCLES = [
    {
        "moebind.model.model",
        "moebind.model.adapters",
        "moebind.context.context",
        "moebind.context.adapters",
    },
    {"moebind.sampling.sampler", "moebind.sampling.candidates", "moebind.sampling.python"},
]

#: Modules without a file of tests, and why. A folder's own is a docstring, or what it exports.
UNTESTED = {
    "moebind.__main__": "two lines, which tests/cli/test_processes.py runs",
    "moebind._core.version": "a name, which tests/project/test_packaging.py compares",
    "moebind.bench.placement_process": "another process, which tests/bench/test_runs.py starts",
    "moebind.bench.texts": "texts alone",
    "moebind.tuning.planning_process": "another process, which tests/tuning/test_trials.py starts",
    "moebind.tuning.trial_process": "another process, which tests/tuning/test_trials.py starts",
    "moebind.params._methods": "generated, and compared with its source by tests/params/test_params.py",
}


def test_the_contract_has_at_most_nine_rows_and_every_folder() -> None:
    rows = house.rows()
    assert len(rows) <= 9
    folders = {path.parent.name for path in house.PACKAGE.glob("*/__init__.py")}
    assert sorted(room for row in rows for room in row) == sorted(folders)


def test_folders_are_one_deep() -> None:
    assert not list(house.PACKAGE.glob("*/*/**/*.py"))


def test_no_folder_has_the_name_of_something_public() -> None:
    exported = {*moebind.__all__} - {"bench", "mtmd", "server"}  # folders themselves
    assert not exported & {room for row in house.rows() for room in row}


def test_lower_rooms_never_import_higher_ones() -> None:
    # As the contract says; here without import-linter, and with what it is told to ignore.
    height = {room: number for number, row in enumerate(house.rows()) for room in row}
    upwards = {
        (name, other)
        for name, others in house.imports().items()
        for other in others
        if house.room(name) and house.room(other) and height[house.room(other)] > height[house.room(name)]
    }
    assert upwards == {
        ("moebind.model.model", "moebind.context.context"),
        ("moebind.model.model", "moebind.context.embedding"),
    }


def test_circles_are_those_that_are_told() -> None:
    assert house.circles(house.imports()) == [frozenset(circle) for circle in CIRCLES]
    page = house.PAGE.read_text(encoding="utf-8")
    for circle in CIRCLES:
        for module in circle:
            assert f"{module.removeprefix('moebind.').replace('.', '/')}.py" in page


def test_circles_are_found() -> None:
    graph: dict[str, set[str]] = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": {"d"}, "f": {"a"}}
    assert house.circles(graph) == [frozenset("abc"), frozenset("de")]


def test_imports_for_types_and_in_functions_count() -> None:
    graph = house.imports()
    assert "moebind.context.context" in graph["moebind.model.model"]  # for types, and in new_context
    assert "moebind.files.hub" in graph["moebind.files.download"]  # in a function only


def test_the_table_is_up_to_date() -> None:
    assert house.table() in house.PAGE.read_text(encoding="utf-8")


def test_files_are_rooms_of_one_purpose() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not listed:
        pytest.skip("not a git checkout")
    code = [ROOT / name for name in listed if name.endswith((".py", ".cpp", ".h", ".cmake"))]
    assert {path.name for path in code if len(path.read_text(encoding="utf-8").splitlines()) > 500} == set()


def files_of(module: str) -> list[Path]:
    """Where the tests of a module may be; the second where another room has a module of the same name."""
    *rooms, name = module.split(".")[1:]
    folder = ROOT.joinpath("tests", *rooms)
    return [folder / f"test_{name}.py", *(folder / f"test_{room.strip('_')}_{name}.py" for room in rooms)]


def without_tests(modules: dict[str, Path]) -> set[str]:
    """The modules of which no file of tests has the name."""
    return {
        module
        for module, path in modules.items()
        if path.name != "__init__.py" and not any(file.exists() for file in files_of(module))
    }


def test_every_module_has_its_tests_or_a_reason() -> None:
    assert without_tests(house.modules()) == set(UNTESTED)


def test_a_new_module_without_tests_is_found() -> None:
    known = house.modules()
    new = {"moebind.chat.new": house.PACKAGE / "chat/new.py", "moebind.new": house.PACKAGE / "new.py"}
    assert without_tests({**known, **new}) - without_tests(known) == set(new)
    # A file of this name is another room's.
    assert without_tests({"moebind.chat.kv_cache": house.PACKAGE / "chat/kv_cache.py"}) == {"moebind.chat.kv_cache"}


def test_files_of_tests_have_names_of_their_own() -> None:
    # As pytest's own way of importing them takes, and as "which grammar?" would ask.
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(set(names)) == sorted(names)


def test_paths_in_the_design_exist() -> None:
    page = house.PAGE.read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:native|tests|tools|vendor|cmake)/[\w./-]+|\w+/\w+\.py)`", page))
    assert named
    missing = {name for name in named if not (ROOT / name).exists() and not (house.PACKAGE / name).exists()}
    assert missing == set()
