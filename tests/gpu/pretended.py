"""A backend that pretends to be CUDA (pretend.cpp), compiled and loaded."""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import moebind
from moebind._core.native import LIBRARIES

SOURCE = Path(__file__).resolve().with_name("pretend.cpp")
VENDORED = SOURCE.parents[2] / "vendor/llama.cpp/ggml"
#: Bytes of memory that it has.
BYTES = 2 * 2**30
LIBRARY = "MOEBIND_PRETEND_LIBRARY"


def build(library: Path, backend: str = "CUDA") -> None:
    """Compile it, to pretend to be that backend."""
    command = [
        "g++",
        "-shared",
        "-fPIC",
        "-O1",
        "-std=c++17",
        f'-DPRETEND="{backend}"',
        "-o",
        str(library),
        str(SOURCE),
    ]
    command += [f"-I{VENDORED}/src", f"-I{VENDORED}/include", f"-L{LIBRARIES}", "-lggml", "-lggml-base"]
    subprocess.run([*command, f"-Wl,-rpath,{LIBRARIES}"], check=True)


def load() -> None:
    """Compile it, if it is not there, and load it; programs that this process starts find it by their environment."""
    if LIBRARY not in os.environ:
        digest = hashlib.sha256(SOURCE.read_bytes() + LIBRARIES.encode()).hexdigest()[:16]
        folder = Path(tempfile.mkdtemp(prefix="moebind-pretend-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ[LIBRARY] = str(folder / f"libggml-pretend-{digest}.so")
        os.environ["MOEBIND_PRETEND_FILE"] = str(folder / "used")
        os.environ["MOEBIND_PRETEND_BYTES"] = str(BYTES)
        build(Path(os.environ[LIBRARY]))
    moebind.init()
    if not moebind.lib.ggml_backend_load(os.environ[LIBRARY].encode()):
        sys.exit(f"{os.environ[LIBRARY]} could not be loaded")
