"""The examples for frameworks of others, which are run by hand: that they are whole, and what the page says of them."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys

import pytest
from pages import DOCS

from conftest import EXAMPLES

FOLDER = EXAMPLES / "frameworks"
PROGRAMS = sorted(FOLDER.glob("with_*.py"))
PAGE = (DOCS / "frameworks.md").read_text(encoding="utf-8")

_spec = importlib.util.spec_from_file_location("frameworks_run", FOLDER / "run.py")
assert _spec is not None and _spec.loader is not None
run = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(run)


def test_there_is_one_for_each() -> None:
    assert sorted(run.FRAMEWORKS) == ["dspy", "haystack", "instructor", "langchain", "llamaindex", "outlines"]


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_a_program_is_whole(path) -> None:  # type: ignore[no-untyped-def]
    source = path.read_text(encoding="utf-8")
    compile(source, str(path), "exec")
    assert run.packages(path)
    assert "sys.argv[1:]" in source
    assert f"{{literalinclude}} ../examples/frameworks/{path.name}" in PAGE
    printed = re.search(rf"\$ python examples/frameworks/{path.name}\n(.*?)```", PAGE, re.DOTALL)
    assert printed is not None and printed[1].strip()


def test_outputs_replace_those_before() -> None:
    page = "a\n```console\n$ python examples/frameworks/with_dspy.py\nold\n```\nb\n"
    assert run.written(page, {"dspy": "new \\1\n"}) == page.replace("old", "new \\1")
    with pytest.raises(SystemExit, match="no block that begins with"):
        run.written("nothing", {"dspy": ""})


def test_a_framework_that_there_is_not() -> None:
    done = subprocess.run(
        [sys.executable, FOLDER / "run.py", "autogen"], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 2
    assert "there is no example for autogen; there are dspy, haystack" in done.stderr
