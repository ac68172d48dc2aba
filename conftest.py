"""Runs the Python blocks of README.md and docs/ as tests.

The blocks of a page share their names and run in order, in a folder of their own in which the demo model is
``moe.gguf``. Nothing else is prepared: what a page shows is what a reader can type. Pages about other models have
tiny ones, and docs/hub.md has a hub.

A block ``text`` is what the Python block before it printed, or a part of that. Numbers may be others.
"""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType

import pytest
from sybil import Example, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.integration.pytest import SybilItem
from sybil.parsers.markdown import CodeBlockParser, SkipParser

ROOT = Path(__file__).resolve().parent

# Threads of OpenMP's wait by spinning, which takes minutes instead of seconds on a machine that is busy otherwise.
# Some examples compute with several, as their readers will.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# A shell that starts us in the background has us ignore Ctrl-C, which tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)

#: Folders and files that take long, for what few changes touch; or that repeat at random what others do once.
#: ``make test`` leaves them to ``make test-all``, together with single tests that are marked so where they stand.
THOROUGH = (
    "docs/api/bench.md",
    "docs/api/tune.md",
    "docs/bench.md",
    "docs/tune.md",
    "tests/fuzz",
    "tests/project/test_build_options.py",
    "tests/project/test_fetch.py",
    "tests/project/test_gpu_benchmark.py",
    "tests/project/test_packaging.py",
    "tests/project/test_typing.py",
    "tests/project/test_weights.py",
    "tests/sampling/test_grammar_fuzz.py",
)

#: Under which the last Python block of a page keeps what it printed.
PRINTED = "what the block before printed"


def run_python(example: Example) -> None:
    """Run a block, and keep what it prints."""
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            PythonEvaluator()(example)
    finally:
        print(printed.getvalue(), end="")  # for whoever reads of a failure
    example.namespace[PRINTED] = printed.getvalue()


def compare_printed(example: Example) -> None:
    """Compare what a page shows with what came of the block before."""
    transcripts = importlib.import_module("transcripts")
    transcripts.assert_shows(example.parsed, example.namespace.get(PRINTED, ""))


pytest_collect_file = Sybil(
    parsers=[CodeBlockParser("python", run_python), CodeBlockParser("text", compare_printed), SkipParser()],
    patterns=["README.md", "docs/*.md", "docs/api/*.md"],
    excludes=["vendor/*"],
    fixtures=["folder_with_model"],
).pytest()


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")  # a page is a module to pytest
def folder_with_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with ``moe.gguf`` in it."""
    model: Path = _module(ROOT / "examples" / "demo_model.py").demo_model()
    folder = tmp_path_factory.mktemp("page")
    (folder / "moe.gguf").symlink_to(model)
    if request.path.name in {"speculative.md", "engine.md"}:
        (folder / "draft.gguf").symlink_to(_module(ROOT / "examples" / "demo_model.py").dense_model())
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.chdir(folder)
        patch.syspath_prepend(ROOT / "tests")
        if request.path.name == "images.md":
            importlib.import_module("projectors").put_seeing_model(folder)
        if request.path.name == "embeddings.md":
            tiny = importlib.import_module("tiny")
            tiny.write(folder / "reranker.gguf", tiny.Shape(arch="bert", n_head_kv=4, n_ctx_train=64, n_cls_out=1))
            tiny.write(folder / "t5.gguf", tiny.Shape(arch="t5", n_head_kv=4))
        if request.path.name == "hub.md":
            stack.enter_context(hub_with(model, folder, patch))
        yield folder


@contextmanager
def hub_with(model: Path, folder: Path, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Hugging Face Hub on this machine, which has the demo model."""
    from huggingface_hub import constants

    patch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    with _module(ROOT / "tests" / "hub_server.py").serving(
        {"someone/demo-moe-GGUF": {"demo-moe-Q4_1.gguf": model}}
    ) as hub:
        patch.setenv("HF_ENDPOINT", hub.endpoint)
        try:
            yield
        finally:
            shutil.rmtree(folder / "cache", ignore_errors=True)  # pytest would keep it


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what takes long, and let pages show how a model is loaded onto a GPU, also where there is none."""
    long = [ROOT / name for name in THOROUGH]
    for item in items:
        if any(path in {item.path, *item.path.parents} for path in long):
            item.add_marker(pytest.mark.thorough)
        if isinstance(item, SybilItem):
            item.add_marker(pytest.mark.filterwarnings("ignore:n_gpu_layers is"))


#: Under which a run keeps how many tests were not chosen because they take long, also those of xdist's processes.
_LEFT_OUT = "moebind_left_out"


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Count the tests that take long, where they are left out."""
    if items:
        config = items[0].config
        count = sum(item.get_closest_marker("thorough") is not None for item in items)
        setattr(config, _LEFT_OUT, getattr(config, _LEFT_OUT, 0) + count)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell xdist's first process, which chooses no tests itself."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput[_LEFT_OUT] = getattr(session.config, _LEFT_OUT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    """Hear it from xdist's processes, each of which sees all tests."""
    setattr(node.config, _LEFT_OUT, getattr(node, "workeroutput", {}).get(_LEFT_OUT, 0))  # type: ignore[attr-defined]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what was left out, and how to run it."""
    count = getattr(config, _LEFT_OUT, 0)
    if count and config.option.markexpr == "not thorough":
        terminalreporter.write_line(
            f"{count} tests were left out: they take long, or repeat at random what others do once. `make test-all` "
            "runs them too"
        )
