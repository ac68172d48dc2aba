"""Who is measured: processes of moebind and of llama-cpp-python that stay, llama.cpp's own programs, new processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import programs
import speed_llama_cpp_python as other
from speed_settings import COUNTING, Settings

HERE = Path(__file__).resolve().parent
Found = dict[str, float]
#: Times of imports and plans, each for the first time in a process.
IMPORTS = """
import sys, time
marks = [time.process_time()]
def mark(): marks.append(time.process_time())
import numpy; mark()
import moebind; mark()
from moebind import Model; mark()
print(*(1e3 * (then - now) for now, then in zip(marks, marks[1:])))
"""
PLAN = """
import sys, time
marks = [time.process_time()]
import numpy
marks.append(time.process_time())
from moebind import ContextParams, ModelParams, init, plan
init()
marks.append(time.process_time())
plan(sys.argv[1], ModelParams(), ContextParams(n_ctx=4096), devices=[sys.argv[2]])
marks.append(time.process_time())
print(*(1e3 * (then - now) for now, then in zip(marks, marks[1:])))
"""
OTHER_IMPORT = """
import time
import numpy
start = time.process_time()
import llama_cpp
print(1e3 * (time.process_time() - start))
"""


class FailedError(Exception):
    """A measurement that was not possible; the message says why."""


class Process:
    """A process of one side."""

    def __init__(self, side: str, settings: Settings, environment: Mapping[str, str]) -> None:
        command = [sys.executable, str(HERE / "speed_child.py"), side, str(settings)]
        self._log = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # as long as the process
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, env=environment
        )
        self.told = self._answer()

    def ask(self, work: str) -> Found:
        """Have it measure once."""
        assert self._process.stdin is not None  # noqa: S101  # a pipe
        try:
            self._process.stdin.write(work + "\n")
            self._process.stdin.flush()
        except OSError:
            pass  # the answer says that it ended
        found = self._answer()
        if "failure" in found:
            raise FailedError(found["failure"])
        return found

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101  # a pipe
        line = self._process.stdout.readline()
        if not line:
            raise FailedError(f"its process ended with {self._process.wait()}")
        return dict(json.loads(line))

    def close(self) -> None:
        """End it."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait()
        self._log.close()


class Sides:
    """Everything that measures. A side that cannot be started fails whenever it is asked, with the same sentence."""

    def __init__(self, settings: Settings, with_other: bool = True) -> None:
        self.settings = settings
        #: What the results have to tell of llama-cpp-python.
        self.remarks: list[str] = []
        self._ends = ExitStack()
        # OpenBLAS's threads, which numpy starts, spin for 20 ms before they sleep: that is no part of what comes next.
        self._environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
        self._running: dict[str, Process | FailedError] = {}
        self._programs: dict[str, Path] = {}
        self._other_environment: dict[str, str] | None = None
        self._clocked_environment: dict[str, str] | None = None
        self._counting: int | None = None
        if not with_other:
            self._running["other"] = FailedError("llama-cpp-python was left out")

    def __enter__(self) -> Sides:
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def ask(self, side: str, work: str) -> Found:
        """Measure once.

        Raises
        ------
        FailedError
        """
        own: dict[str, Callable[[], Found]] = {
            "llama-bench prompt": self._bench_prompt, "llama-bench decode": self._bench_decode,
            "llama-batched-bench": self._batched_bench, "new imports": self._imports, "new plan": self._plan,
            "new split": self._split_plan, "new other": self._other_import,
        }  # fmt: skip
        if side in {"moebind", "other", "growth"}:
            return self._side(side).ask(work)
        try:
            return own[f"{side} {work}".strip()]()
        except (subprocess.CalledProcessError, ValueError, IndexError) as error:
            said = getattr(error, "stderr", "") or str(error)
            raise FailedError(f"{side} failed: {said.strip().splitlines()[-1]}") from None

    def _side(self, name: str) -> Process:
        if name not in self._running:
            try:
                started = Process(name, self.settings, self._other() if name == "other" else self._clocked())
                self._running[name] = started
                self._ends.callback(started.close)
                if name == "other":
                    self._compare(started.told)
            except (FailedError, other.UnlikeError, other.fetch.FetchError, OSError) as error:
                self._running[name] = FailedError(f"llama-cpp-python: {error}" if name == "other" else str(error))
        found = self._running[name]
        if isinstance(found, FailedError):
            raise found
        return found

    def _clocked(self) -> dict[str, str]:
        """The environment in which llama_decode's time is counted, if there is a compiler to make the clock with."""
        if self._clocked_environment is None:
            self._clocked_environment = self._environment
            if shutil.which("cc") is not None:
                clock = Path(self._ends.enter_context(tempfile.TemporaryDirectory(prefix="moebind-clock-")), "clock.so")
                self._run("cc", "-O1", "-shared", "-fPIC", "-o", clock, HERE / "speed_clock.c", "-ldl")
                self._clocked_environment = self._environment | {"LD_PRELOAD": str(clock)}
        return self._clocked_environment

    def _other(self) -> dict[str, str]:
        """The environment in which llama-cpp-python finds its files and our library."""
        if self._other_environment is None:
            from moebind._core.native import LIBRARIES

            folder, version, added = other.python_files()
            self.remarks.append(f"llama-cpp-python {version}, its Python files")
            self.remarks += added
            self._other_environment = self._environment | {"PYTHONPATH": str(folder), "LLAMA_CPP_LIB_PATH": LIBRARIES}
        return self._other_environment

    def _compare(self, told: Mapping[str, Any]) -> None:
        """Compare where it has the fields of structures with where libllama has them."""
        from moebind import ffi

        for name in other.structures():
            if name in told:
                ours = {field: each.offset for field, each in ffi.typeof(f"struct {name}").fields}
                if told[name] != ours:
                    raise other.UnlikeError(f"{name} is laid out as {told[name]} there, and as {ours} in libllama")

    def _run(self, *command: object) -> str:
        done = subprocess.run(
            [str(part) for part in command], check=True, capture_output=True, text=True, env=self._environment
        )
        return done.stdout

    def _program(self, name: str) -> Path:
        if name not in self._programs:
            self._programs[name] = programs.program(name)
        return self._programs[name]

    def _bench(self, prompt: int, tokens: int, depth: int = 0) -> float:
        options = ["-d", depth, "-t", self.settings.threads, "-r", 1, "-ngl", 0, "-o", "json"]
        told = self._run(self._program("llama-bench"), "-m", self.settings.model, "-p", prompt, "-n", tokens, *options)
        return float(json.loads(told)[0]["avg_ts"])

    def _bench_prompt(self) -> Found:
        return {"bench_prompt": self._bench(self.settings.prompt, 0)}

    def _bench_decode(self) -> Found:
        # From where moebind's text goes on: each token that is in the cache costs its part.
        return {"bench_decode": self._bench(0, self.settings.tokens, self._n_counting())}

    def _n_counting(self) -> int:
        """How many tokens :data:`COUNTING` has for the model."""
        if self._counting is None:
            from moebind import Model, ModelParams

            with Model.load_from_file(self.settings.model, ModelParams(vocab_only=True, devices=())) as model:
                self._counting = len(model.str_to_token(COUNTING))
        return self._counting

    def _batched_bench(self) -> Found:
        each, count = self.settings, self.settings.sequences
        room = count * -(-(16 + each.tokens + 1) // 256) * 256
        sizes = ["-c", room, "-npp", 16, "-ntg", each.tokens, "-npl", count, "-t", each.threads, "-tb", each.threads]
        program = self._program("llama-batched-bench")
        told = self._run(program, "-m", each.dense, *sizes, "-ngl", 0, "--output-format", "jsonl")
        return {
            "batched_bench": float(json.loads(next(x for x in told.splitlines()[::-1] if x[:1] == "{"))["speed_tg"])
        }

    def _imports(self) -> Found:
        times = [float(part) for part in self._run(sys.executable, "-I", "-c", IMPORTS).split()]
        return {"numpy_ms": times[0], "import_ms": times[1], "import_model_ms": times[1] + times[2]}

    def _other_import(self) -> Found:
        done = subprocess.run(
            [sys.executable, "-c", OTHER_IMPORT], check=True, capture_output=True, text=True, env=self._other()
        )
        return {"other_import_ms": float(done.stdout)}

    def _plan(self) -> Found:
        told = self._run(sys.executable, "-I", "-c", PLAN, self.settings.large, "96GiB").split()
        return {"plan_numpy_ms": float(told[0]), "plan_ms": float(told[2])}

    def _split_plan(self) -> Found:
        told = self._run(sys.executable, "-I", "-c", PLAN, self.settings.split, "8TiB").split()
        return {"split_numpy_ms": float(told[0]), "split_ms": float(told[2])}
