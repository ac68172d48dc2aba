"""NUMA strategies: chosen once, in a process of its own, on a machine that has two memory nodes or seems to."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import moebind
from moebind import MoebindError, NumaStrategy

MakeTiny = Callable[..., Path]

PROGRAM = """
import sys
import moebind
from moebind import Batch, ContextParams, Model, ModelParams, NumaStrategy

moebind.init(NumaStrategy[sys.argv[1]])
with Model.load_from_file(sys.argv[2], ModelParams(n_gpu_layers=0, devices=())) as model:
    with model.new_context(ContextParams(n_ctx=256, n_threads=4, n_threads_batch=4)) as context:
        context.decode(Batch.get_one([1]))
"""
#: Where the four threads of a computation are put, and then its main thread, once the computation is over.
PLACES = {
    NumaStrategy.DISABLED: {},
    NumaStrategy.DISTRIBUTE: {"0 2": 2, "1 3": 2, "0 1 2 3": 1},
    NumaStrategy.ISOLATE: {"1 3": 4, "0 1 2 3": 1},
    NumaStrategy.NUMACTL: {"2": 4, "0 1 2 3": 1},
}


def child(program: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", program, *map(str, arguments)]
    variables = {**os.environ, "OMP_WAIT_POLICY": "passive", **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, env=variables)


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that has a machine with two nodes seen."""
    version = tuple(map(int, platform.libc_ver()[1].split(".")))
    if version < (2, 34):
        pytest.skip("before glibc 2.34, ggml asks the kernel, whose answers nothing can stand in for")
    library = tmp_path_factory.mktemp("numa") / "two_nodes.so"
    source = Path(__file__).with_name("two_nodes.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", library, source], check=True)
    return library


@pytest.mark.parametrize("strategy", PLACES)
def test_threads_are_put_where_the_strategy_says(strategy: NumaStrategy, two_nodes: Path, tiny_path: MakeTiny) -> None:
    done = child(PROGRAM, strategy.name, tiny_path(), LD_PRELOAD=str(two_nodes))
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("put on ")]
    placed = Counter(line.removeprefix("put on ") for line in lines)
    # A decode computes one graph or several.
    graphs = max(placed["0 1 2 3"], 1)
    assert placed == {cpus: graphs * count for cpus, count in PLACES[strategy].items()}
    assert lines or strategy is NumaStrategy.DISABLED


@pytest.mark.parametrize("strategy", PLACES)
def test_every_strategy_computes_the_same(strategy: NumaStrategy, tiny_path: MakeTiny) -> None:
    shown = "with model.new_context(ContextParams(n_ctx=256, n_threads=1)) as context:\n"
    shown += "        context.decode(Batch.get_one([1]))\n        print(context.get_logits_ith(-1).tolist())"
    program = PROGRAM[: PROGRAM.index("with model.new_context")] + shown
    done, plain = (child(program, name, tiny_path()) for name in (strategy.name, "DISABLED"))
    assert (done.returncode, done.stdout) == (0, plain.stdout)
    assert len(plain.stdout) > 1000


CHOSEN_ONCE = """
import moebind
from moebind import MoebindError, NumaStrategy

moebind.init(NumaStrategy.ISOLATE)
moebind.init()  # which chooses nothing
for strategy in (NumaStrategy.ISOLATE, NumaStrategy.DISTRIBUTE):
    try:
        moebind.init(strategy)
    except MoebindError as error:
        assert f"numa={strategy.name} comes too late" in str(error)
    else:
        raise AssertionError(strategy)
"""


def test_a_strategy_is_chosen_once() -> None:
    done = child(CHOSEN_ONCE)
    assert (done.returncode, done.stderr) == (0, "")


def test_whatever_asks_llama_cpp_comes_too_late_for_a_strategy() -> None:
    moebind.devices()
    with pytest.raises(MoebindError, match=r"call moebind\.init\(numa\) before anything else"):
        moebind.init(NumaStrategy.NUMACTL)
    moebind.init()
    moebind.init(NumaStrategy.DISABLED)


@pytest.mark.parametrize(
    ("numa", "error"),
    [("isolate", TypeError), (None, TypeError), (True, TypeError), (17, ValueError), (-1, ValueError)],
)
def test_bad_strategies(numa: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="numa"):
        moebind.init(numa)  # type: ignore[arg-type]


def test_a_strategy_that_ggml_only_reserves() -> None:
    # It is a number like the others, and ggml would take it for none.
    with pytest.raises(ValueError, match="numa"):
        moebind.init(NumaStrategy.MIRROR)
