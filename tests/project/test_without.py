"""MOEBIND_WITHOUT: everything of llama.cpp's that moebind replaces can be left as it is, and moebind still computes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: What is replaced; backend-loader is in a build for graphics cards only.
REPLACED = [
    "checked-headers",
    "rpc-connections",
    "schema-log",
    "stb-memory",
    "missing-tensors",
    "server",
    "backend-loader",
]
PATCHES = sorted(path.stem for path in (ROOT / "vendor/patches").glob("*.patch"))

USE = """
import sys
sys.path.insert(0, sys.argv[1])
import tiny
from pathlib import Path
import moebind
from moebind import ContextParams, Model, ModelParams

assert moebind.__file__.startswith(sys.argv[2])
path = tiny.write(Path(sys.argv[2], "tiny.gguf"), tiny.Shape(n_expert=4))
with Model.load_from_file(path, ModelParams(n_gpu_layers=0, devices=())) as model:
    with model.new_context(ContextParams(n_ctx=64, n_threads=1)) as context:
        assert len(list(context.generate([1, 5, 9], max_tokens=4))) == 4
    prompt = model.chat_format([{"role": "user", "content": "Hello"}], template="chatml")
    assert "<|im_start|>user" in prompt.prompt
    assert prompt.parse("Hi")["content"] == "Hi"
moebind.quantize(path, path.with_name("small.gguf"), moebind.Ftype.F16, progress=False)
assert path.with_name("small.gguf").stat().st_size < path.stat().st_size
print("it computes")
"""


def test_the_names_are_those_that_are_read() -> None:
    cmake = "".join(
        path.read_text(encoding="utf-8") for path in [ROOT / "CMakeLists.txt", *(ROOT / "cmake").glob("*.cmake")]
    )
    named = set(re.findall(r'"([a-z-]+)" IN_LIST MOEBIND_WITHOUT', cmake))
    assert named - set(PATCHES) == set(REPLACED)
    readme = (ROOT / "native/replaced/README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in readme for name in REPLACED)


@pytest.mark.thorough
@pytest.mark.timeout(3000)
def test_it_builds_and_computes(tmp_path: Path) -> None:
    source, build, installed = tmp_path / "source", tmp_path / "build", tmp_path / "installed"
    (source / "vendor").mkdir(parents=True)
    for name in (
        "CMakeLists.txt",
        "LICENSE",
        "cmake",
        "licences",
        "native",
        "src",
        "vendor/fetch.py",
        "vendor/llama.cpp.lock",
        "vendor/patches",
    ):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    search = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    cmake, ninja = shutil.which("cmake", path=search), shutil.which("ninja", path=search)
    options = [f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DPython_EXECUTABLE={sys.executable}", "-DCMAKE_BUILD_TYPE=Release"]
    options += ["-DSKBUILD_PROJECT_VERSION=1.2.3", "-DMOEBIND_CUDA=OFF", "-DMOEBIND_VULKAN=OFF"]
    options += [f"-DMOEBIND_WITHOUT={';'.join([*REPLACED, *PATCHES])}"]
    for command in (
        [cmake, "-S", source, "-B", build, "-G", "Ninja", *options],
        [cmake, "--build", build, "--parallel", "2"],
        [cmake, "--install", build, "--prefix", installed, "--component", "moebind"],
    ):
        done = subprocess.run([str(each) for each in command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    for package in ("moebind", "moebind_launcher"):
        shutil.copytree(ROOT / "src" / package, installed / package, dirs_exist_ok=True)
    # -S: an editable install would have the checkout's moebind imported.
    paths = [str(installed), sysconfig.get_path("purelib")]
    code = f"import sys; sys.path[:0] = {paths!r}\n{USE}"
    command = [sys.executable, "-I", "-S", "-c", code, str(ROOT / "tests"), str(tmp_path)]
    used = subprocess.run(command, capture_output=True, text=True, check=False)
    assert used.stdout.endswith("it computes\n"), used.stderr[-3000:]
