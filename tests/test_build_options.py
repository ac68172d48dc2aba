"""What CMake says when it configures: the summary, the options, and what is missing. Nothing is compiled."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LOCK = (ROOT / "vendor/llama.cpp.lock").read_text(encoding="utf-8")
#: Only what is hinted at is found: a machine's own CUDA toolkit must not decide what a test sees.
NOTHING_ELSE = ("-DCMAKE_FIND_USE_CMAKE_SYSTEM_PATH=OFF", "-DCMAKE_FIND_USE_SYSTEM_ENVIRONMENT_PATH=OFF")


def configure(folder: Path, *options: str, source: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    ninja = shutil.which("ninja", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert cmake
    assert ninja
    command = [cmake, "-S", str(source), "-B", str(folder), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    command += [
        f"-DPython_EXECUTABLE={sys.executable}",
        "-DSKBUILD_PROJECT_VERSION=0.1.0",
        "-DCMAKE_BUILD_TYPE=Release",
    ]
    command += [f"-DCMAKE_{kind}_COMPILER={shutil.which(name)}" for kind, name in (("C", "cc"), ("CXX", "c++"))]
    hidden = {"CUDA_HOME": "", "CUDA_PATH": "", "CUDACXX": ""}
    return subprocess.run(
        [*command, *options], capture_output=True, text=True, check=False, env={**os.environ, **hidden, **environment}
    )


def line(output: str, name: str) -> str:
    found = re.search(rf"^--   {name} +(.*)$", output, re.MULTILINE)
    assert found is not None, output
    return found[1]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    return configure(tmp_path_factory.mktemp("plain"), "-DMOEBIND_CUDA=OFF")


def test_summary(plain: subprocess.CompletedProcess[str]) -> None:
    assert plain.returncode == 0, plain.stderr
    version, commit = re.findall(r"^# llama\.cpp-(?:version|commit): (\S+)", LOCK, re.MULTILINE)[::-1]
    assert line(plain.stdout, r"llama\.cpp") == f"{version}, commit {commit}"
    assert line(plain.stdout, "CPU flags").startswith("-m")
    assert line(plain.stdout, "backends") == "cpu, rpc"
    assert line(plain.stdout, "CUDA") == "out: MOEBIND_CUDA=OFF"


def test_our_own_files_give_no_warnings(plain: subprocess.CompletedProcess[str]) -> None:
    warnings = re.findall(r"CMake (?:\w+ )?Warning.*? at (\S+?):\d+", plain.stderr)
    assert not [file for file in warnings if not file.startswith("vendor/llama.cpp")]


def test_cuda_on_names_what_is_missing(tmp_path: Path) -> None:
    failed = configure(tmp_path / "build", "-DMOEBIND_CUDA=ON", *NOTHING_ELSE)
    assert failed.returncode != 0
    said = " ".join(failed.stderr.split())
    assert "MOEBIND_CUDA=ON, but this was not found:" in said
    assert "cuBLAS and its headers (package nvidia-cublas)" in said
    assert "set MOEBIND_CUDA=OFF" in said


def test_cuda_on_with_half_a_toolkit(tmp_path: Path) -> None:
    toolkit = tmp_path / "toolkit"
    for name in ("bin/nvcc", "include/cuda_runtime.h", "lib64/libcudart.so"):
        (toolkit / name).parent.mkdir(parents=True, exist_ok=True)
        (toolkit / name).touch(mode=0o755)
    failed = configure(tmp_path / "build", "-DMOEBIND_CUDA=ON", *NOTHING_ELSE, CUDA_HOME=str(toolkit))
    said = " ".join(failed.stderr.split())
    assert failed.returncode != 0
    assert "not found: cuBLAS and its headers (package nvidia-cublas)." in said
    assert "nvcc" not in said.partition("not found:")[2].partition("Install it")[0]


def test_cuda_auto_says_what_is_missing(tmp_path: Path) -> None:
    done = configure(tmp_path / "build", *NOTHING_ELSE)
    assert done.returncode == 0, done.stderr
    assert re.match("out: not found: .*cuBLAS", line(done.stdout, "CUDA"))


def test_cuda_takes_three_words(tmp_path: Path) -> None:
    failed = configure(tmp_path / "build", "-DMOEBIND_CUDA=maybe")
    assert failed.returncode != 0
    assert "MOEBIND_CUDA is 'MAYBE'; it takes AUTO, ON or OFF" in " ".join(failed.stderr.split())


def test_portable(tmp_path: Path) -> None:
    done = configure(tmp_path / "build", "-DMOEBIND_CUDA=OFF", "-DMOEBIND_PORTABLE=ON")
    assert done.returncode == 0, done.stderr
    assert "chosen when it is loaded" in line(done.stdout, "CPU flags")
    backends = line(done.stdout, "backends").split(", ")
    assert "rpc" in backends
    assert len([name for name in backends if name.startswith("cpu-")]) > 5
    assert "-march=native" not in (tmp_path / "build/build.ninja").read_text(encoding="utf-8")


def test_a_source_that_cannot_be_fetched(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "vendor").mkdir(parents=True)
    for name in ("CMakeLists.txt", "cmake", "native", "moebind"):
        (source / name).symlink_to(ROOT / name)
    for name in ("fetch.py", "llama.cpp.lock"):
        shutil.copy(ROOT / "vendor" / name, source / "vendor")
    nowhere = "http://127.0.0.1:9"
    failed = configure(
        tmp_path / "build", source=source, MOEBIND_CACHE=str(tmp_path / "cache"), PIP_NO_INDEX="1",
        PIP_FIND_LINKS=str(tmp_path), HTTPS_PROXY=nowhere, HTTP_PROXY=nowhere,
    )  # fmt: skip
    assert failed.returncode != 0
    said = " ".join(failed.stderr.split())
    assert "pip could not download llama-cpp-python" in said
    assert "check the network, or put llama_cpp_python-" in said
    assert not (source / "vendor/llama.cpp").exists()
