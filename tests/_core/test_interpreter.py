"""Interpreters, and processes that are started in every way that Python has."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

MakeTiny = Callable[..., Path]
NAME = "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"


def run(folder: Path, code: str, *arguments: object) -> str:
    """What a program prints; a file, since children import it."""
    program = folder / "program.py"
    program.write_text(textwrap.dedent(code))
    command = [sys.executable, "-W", "ignore", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_another_interpreter_is_refused_and_harms_nothing(tmp_path: Path, tiny_path: MakeTiny) -> None:
    said = run(
        tmp_path,
        f"""
        import sys
        import {NAME} as interpreters
        other = interpreters.create()
        interpreters.run_string(other, '''if True:
            import sys
            try:
                import moebind
            except ImportError as error:
                print(error, "numpy" in sys.modules, flush=True)
        ''')
        from moebind import Model, ModelParams
        with Model.load_from_file(sys.argv[1], ModelParams(n_gpu_layers=0, devices=())) as model:
            print(model.n_expert)
        """,
        tiny_path(n_expert=4),
    )
    first, second = said.splitlines()
    assert first.startswith("moebind works in a process's main interpreter")
    assert first.endswith("False")
    assert second == "4"


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_processes_of_a_pool_compute(tmp_path: Path, tiny_path: MakeTiny, method: str) -> None:
    """With a fork, the parent has not used a model: its children could not use that one."""
    said = run(
        tmp_path,
        """
        import multiprocessing, sys

        def work(path):
            from moebind import ContextParams, Model, ModelParams
            with Model.load_from_file(path, ModelParams(n_gpu_layers=0, devices=())) as model:
                with model.new_context(ContextParams(n_ctx=256, n_threads=1, n_threads_batch=1)) as context:
                    return [piece.token for piece in context.generate("hello", max_tokens=4)]

        if __name__ == "__main__":
            import moebind
            path, method = sys.argv[1:]
            with multiprocessing.get_context(method).Pool(2) as pool:
                texts = pool.map(work, [path] * 3)
            print(len(texts), len(texts[0]), texts[0] == texts[1] == texts[2] == work(path))
        """,
        tiny_path(n_expert=4),
        method,
    )
    assert said == "3 4 True\n"


@pytest.mark.parametrize("name", ["darwin", "win32", "freebsd14"])
def test_another_system_is_refused_in_a_sentence(name: str) -> None:
    code = f"""if True:
        import sys
        sys.platform = {name!r}
        try:
            import moebind
        except ImportError as error:
            print(error, "numpy" in sys.modules, "moebind._libllama" in sys.modules, sep="|")
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=180)
    said, *loaded = done.stdout.strip().split("|")
    assert said.startswith(f"moebind works on Linux, and this is {name}. On Windows use it in WSL 2")
    assert loaded == ["False", "False"]
