"""Tests as other processors would run them: with ggml's kernels for fewer instructions than this machine has.

    python tests/processors.py [PROCESSOR ...] -- tests/context tests/numerics

Builds ggml-cpu for each, a minute or two, keeps it in the folder build/processors, and runs pytest with the rest of the
arguments. What such a library computes is what the processor would; bounds of tests have to hold for all of them
(tests/bounds.py). x86 only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "vendor" / "llama.cpp" / "ggml"
FOLDER = ROOT / "build" / "processors"
OPTIONS = ("SSE42", "AVX", "F16C", "FMA", "AVX2", "BMI2", "AVX512", "AVX512_VNNI", "AVX512_BF16")
#: What each has of the options. They have kernels of their own, or registers of another width.
PROCESSORS = {
    "x64": (),
    "nehalem": OPTIONS[:1],
    "sandybridge": OPTIONS[:2],
    "haswell": OPTIONS[:6],
    "skylake-server": OPTIONS[:7],
    "zen4": OPTIONS,
}
PROJECT = """
cmake_minimum_required(VERSION 3.26)
project(processor LANGUAGES C CXX)
set(BUILD_SHARED_LIBS ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
add_compile_options($<$<COMPILE_LANGUAGE:C>:-fexceptions>) # as CMakeLists.txt of moebind has it
add_subdirectory(${GGML_SOURCE} ggml EXCLUDE_FROM_ALL SYSTEM)
foreach(library ggml-base ggml-cpu)
  set_property(TARGET ${library} PROPERTY VERSION)
  set_property(TARGET ${library} PROPERTY SOVERSION)
  set_target_properties(${library} PROPERTIES BUILD_WITH_INSTALL_RPATH ON INSTALL_RPATH "$ORIGIN")
endforeach()
"""


def library_of(processor: str) -> Path:
    """The folder with ``libggml-cpu.so`` for that processor, and nothing else."""
    folder, found = FOLDER / processor, FOLDER / f"{processor}-library"
    folder.mkdir(parents=True, exist_ok=True)
    found.mkdir(exist_ok=True)
    (folder / "CMakeLists.txt").write_text(PROJECT, encoding="utf-8")
    here = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = [shutil.which("cmake", path=here) or "cmake", "-S", folder, "-B", folder / "build", "-G", "Ninja"]
    command += [f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja', path=here)}", "-DCMAKE_BUILD_TYPE=Release"]
    command += [f"-DGGML_SOURCE={SOURCE}", "-DGGML_NATIVE=OFF", "-DGGML_LLAMAFILE=ON", "-DGGML_CCACHE=ON"]
    command += [f"-DGGML_{name}={'ON' if name in PROCESSORS[processor] else 'OFF'}" for name in OPTIONS]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    subprocess.run([command[0], "--build", folder / "build", "--target", "ggml-cpu"], check=True)
    (library,) = (folder / "build").rglob("libggml-cpu.so")
    shutil.copy(library, found)
    return found


def main() -> None:
    """Run the tests as each of the processors."""
    words = sys.argv[1:]
    split = words.index("--") if "--" in words else len(words)
    failed = []
    for processor in words[:split] or PROCESSORS:
        # The libraries of moebind look for each other where this says first.
        environment = {**os.environ, "LD_LIBRARY_PATH": str(library_of(processor))}
        print(f"--- {processor}", flush=True)
        command = [sys.executable, "-m", "pytest", "-q", *words[split + 1 :]]
        if subprocess.run(command, check=False, cwd=ROOT, env=environment).returncode != 0:
            failed.append(processor)
    if failed:
        raise SystemExit(f"failed as {', '.join(failed)}")


if __name__ == "__main__":
    main()
