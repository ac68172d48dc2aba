"""What commands print, and what they end with."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Capture, run

import moebind

MakeTiny = Callable[..., Path]


@pytest.fixture
def path(tiny_path: MakeTiny) -> Path:
    return tiny_path(n_expert=4, n_layer=3)


def test_a_reason_is_said_once_and_the_log_comes_back(path: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"junk, not a model")
    code = (
        "import sys, moebind; from moebind.cli import main\n"
        "try:\n    main(['experts', 'bad.gguf'])\n"
        "except SystemExit as ended:\n    assert ended.code == 1\n"
        "print('afterwards', file=sys.stderr)\n"
        # A warning of llama.cpp's, which no exception quotes.
        f"model = moebind.Model.load_from_file({str(path)!r}, moebind.ModelParams(n_gpu_layers=0))\n"
        "model.new_context(moebind.ContextParams(n_ctx=1024)).close()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    command, _, library = done.stderr.partition("afterwards\n")
    assert command.startswith("moebind: bad.gguf is not a GGUF file that this llama.cpp can read: llama.cpp: gguf_init")
    assert (command.count("\n"), command.count("magic")) == (1, 1)
    assert "n_ctx_train" in library


MISUSED: list[list[object]] = [
    ["nothing"],
    ["plan"],
    ["plan", "m.gguf", "--nothing"],
    ["plan", "MODEL", "--device", "24XX"],
    ["plan", "MODEL", "--n-ctx", "-4"],
    ["plan", "MODEL", "--n-ctx", "many"],
    ["plan", "MODEL", "-ctk", "q9"],
    ["plan", "MODEL", "-fa", "maybe"],
    ["plan", "MODEL", "-ngl", "some"],
    ["plan", "MODEL", "-ot", "ffn"],
    ["plan", "MODEL", "-ot", "(=CPU"],
    ["plan", "MODEL", "-ot", "ffn=CUDA9", "--device", "1GiB"],
    ["plan", "MODEL", "-ts", "a,b"],
    ["plan", "MODEL", "-ts", ""],
    ["plan", "MODEL", "--n-cpu-moe", "-1"],
    ["plan", "MODEL", "\ud800"],
    ["plan", "a\0b"],
    ["fit", "MODEL", "--memory", "much"],
    ["fit", "MODEL", "--memory", "1GiB", "--memory", "2GiB"],
    ["fit", "MODEL", "--memory", "CUDA9=1GiB", "--device", "1GiB"],
    ["fit", "MODEL", "--goal", "fame"],
    ["bench"],
    ["bench", "offload", "MODEL", "--device", "nope"],
    ["bench", "offload", "MODEL", "--device", "loopback", "-r", "2"],
    ["bench", "offload", "MODEL", "--device", "loopback", "--placement", "everywhere"],
    ["bench", "offload", "MODEL", "--device", "loopback", "--json", "--markdown"],
    ["bench", "offload", "MODEL", "--device", "loopback", "--timeout", "nan"],
    ["rpc-worker", "--host", "0.0.0.0"],
    ["rpc-worker", "--port", "0"],
    ["rpc-worker", "--device", "CUDA9"],
    ["rpc-worker", "--threads", "0"],
]


@pytest.mark.parametrize("arguments", MISUSED, ids=lambda arguments: ascii(" ".join(map(str, arguments))))
def test_misuse_is_one_line_and_ends_with_2(path: Path, capsys: Capture, arguments: list[object]) -> None:
    assert run(*[path if each == "MODEL" else each for each in arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "Traceback" not in said.err
    if arguments != ["bench"]:  # which shows what there is
        assert said.err.startswith("moebind: ")
        assert said.err.count("\n") == 1


def test_failures_end_with_1(tmp_path: Path, capsys: Capture, path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF, or so it says")
    folder = tmp_path / "folder.svg"
    folder.mkdir()
    for arguments in (
        ["plan", tmp_path / "none.gguf"],
        ["plan", tmp_path / "bad.gguf"],
        ["experts", tmp_path],
        ["bench", "offload", tmp_path / "none.gguf"],
        ["doctor", tmp_path / "none.gguf"],
        ["plan", path, "-ot", "nothing=CPU", "--device", "1GiB"],
        ["plan", path, "--device", "1GiB", "--plot", tmp_path / "none" / "x.svg"],
        ["plan", path, "--device", "1GiB", "--plot", folder],
        ["bench", "offload", path, "--device", "loopback", "--plot", tmp_path / "none" / "x.svg"],
    ):
        assert run(*arguments) == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("moebind: ")
        assert said.err.count("\n") == 1, said.err


def test_drivers_are_looked_for_meanwhile(path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[threading.Thread] = []
    begun = threading.Event()

    class Looking:
        def ggml_backend_dev_count(self) -> int:
            asked.append(threading.current_thread())
            begun.set()
            raise moebind.NativeError("no driver answers")

    monkeypatch.setattr("moebind.cli.lib", Looking())
    assert run("plan", path) == 0  # who asks for devices meets the error, if there is still one
    assert begun.wait(60)
    asked[0].join()
    assert capsys.readouterr().err == ""
    assert threading.main_thread() not in asked
    for others in (["inspect", path], ["plan", "--help"], ["plan", path, "--params", "none.json"]):
        run(*others)
    assert len(asked) == 1
