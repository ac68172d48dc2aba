"""The examples for frameworks of others: that they are whole, what the page says of them, and that two of them run."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packages import packages
from pages import DOCS
from transcripts import transcripts

from conftest import EXAMPLES
from moebind import ContextParams
from moebind.server import Server

FOLDER = EXAMPLES / "frameworks"
PROGRAMS = sorted(FOLDER.glob("with_*.py"))
PAGE = (DOCS / "frameworks.md").read_text(encoding="utf-8")

#: What some of them print, whatever the model says.
FORMS = {
    "instructor": r"name='.*' inhabitants=\d+\n",
    "outlines": r"name='.*' country=<Country\.(france|italy): '(France|Italy)'>\n",
}

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


@pytest.mark.thorough
@pytest.mark.timeout(1800)
def test_the_light_ones_run(demo_path: Path) -> None:
    """The others bring hundreds of megabytes. What a reply says is the model's; its form is enforced."""
    wanted = [each for name in FORMS for each in run.packages(run.FRAMEWORKS[name])]
    environment, shown = packages(*wanted), dict(transcripts("frameworks.md"))
    threads = ContextParams(n_threads=1, n_threads_batch=1)
    with Server(demo_path, n_ctx=2048, context_params=threads, extra=["--chat-template", "chatml"]) as server:
        for name, form in FORMS.items():
            program = [sys.executable, run.FRAMEWORKS[name], server.url, server.models[0].name]
            done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            assert re.fullmatch(form, done.stdout), done.stdout
            assert re.fullmatch(form, shown[f"python examples/frameworks/with_{name}.py"])
