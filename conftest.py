"""Runs the Python blocks of README.md and docs/ as tests.

The blocks of a page share their names and run in order, in a folder of their own in which the demo model is
``moe.gguf``. Nothing else is prepared for them: what a page shows is what a reader can type.
"""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.integration.pytest import SybilItem
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

ROOT = Path(__file__).resolve().parent

# Threads of OpenMP's wait by spinning, which takes minutes instead of seconds on a machine that is busy otherwise.
# Some examples compute with several, as their readers will.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# A shell that starts us in the background has us ignore Ctrl-C, which tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "docs/*.md", "docs/api/*.md"],
    excludes=["vendor/*"],
    fixtures=["folder_with_model"],
).pytest()


@pytest.fixture(scope="module")  # a page is a module to pytest
def folder_with_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with ``moe.gguf`` in it."""
    spec = importlib.util.spec_from_file_location("demo_model", ROOT / "examples" / "demo_model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("page")
    (folder / "moe.gguf").symlink_to(module.demo_model())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let a page show how a model is loaded onto a GPU: machines without one say that they have none."""
    for item in items:
        if isinstance(item, SybilItem):
            item.add_marker(pytest.mark.filterwarnings("ignore:n_gpu_layers is"))
