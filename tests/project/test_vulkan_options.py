"""Whether Vulkan is built: what CMake finds, what it says is missing, and the cache of shaders. Nothing is compiled."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from configured import NOTHING_ELSE, ROOT, configure, line, refusal

#: Each part of an SDK: a file of it, and what it is called when it is missing.
PARTS = {
    "bin/glslc": "the compiler of shaders glslc (package glslc)",
    "include/vulkan/vulkan.hpp": "the headers of Vulkan (package libvulkan-dev)",
    "lib/libvulkan.so": "the library of Vulkan's loader (package libvulkan-dev)",
    "share/cmake/SPIRV-Headers/SPIRV-HeadersConfig.cmake": "the headers of SPIR-V (package spirv-headers)",
}
CORE = """
#define VK_HEADER_VERSION {patch}
#define VK_HEADER_VERSION_COMPLETE VK_MAKE_API_VERSION(0, 1, {minor}, VK_HEADER_VERSION)
"""
#: Says its version, supports no extension, and copies its source.
GLSLC = """#!/bin/sh
[ "$1" = --version ] && { echo "shaderc v2024.1 v2024.1-dirty"; exit; }
echo "$*" >> "$(dirname "$0")/called"
for each in "$@"; do [ "$before" = -o ] && out=$each; before=$each; done
[ "$out" = - ] && { echo "error: extension not supported: of any name" >&2; exit 1; }
case "$*" in *broken*) echo "broken.comp:1: error" >&2; exit 1;; esac
echo "$*" > "$out"
"""


def sdk(folder: Path, *without: str, version: tuple[int, int] = (3, 280), glslc: str = GLSLC) -> dict[str, str]:
    """A folder with an SDK's files, and the variable that names it."""
    for name in {*PARTS, "include/vulkan/vulkan_core.h"} - set(without):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "include/vulkan").mkdir(parents=True, exist_ok=True)
    (folder / "include/vulkan/vulkan_core.h").write_text(CORE.format(minor=version[0], patch=version[1]))
    if "bin/glslc" not in without:
        (folder / "bin/glslc").write_text(glslc)
        (folder / "bin/glslc").chmod(0o755)
    return {"VULKAN_SDK": str(folder)}


def vulkan(folder: Path, value: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return configure(folder, "-DMOEBIND_CUDA=OFF", f"-DMOEBIND_VULKAN={value}", *NOTHING_ELSE, **environment)


@pytest.mark.parametrize("part", PARTS)
def test_on_names_each_missing_part(tmp_path: Path, part: str) -> None:
    said = refusal(vulkan(tmp_path / "build", "ON", sdk(tmp_path / "sdk", part)), "MOEBIND_VULKAN")
    assert (
        said == f"MOEBIND_VULKAN=ON, but not found: {PARTS[part]}. Install it, point VULKAN_SDK at an SDK that has it"
    )


def test_auto_says_what_is_missing(tmp_path: Path) -> None:
    done = vulkan(tmp_path, "auto", {})
    assert done.returncode == 0, done.stderr
    assert line(done.stdout, "Vulkan") == f"out: not found: {'; '.join(PARTS.values())}"
    assert line(done.stdout, "backends") == "cpu, rpc"


def test_auto_takes_what_is_there(tmp_path: Path) -> None:
    done = vulkan(tmp_path / "build", "AUTO", sdk(tmp_path / "sdk"))
    assert done.returncode == 0, done.stderr
    assert line(done.stdout, "Vulkan") == "in: headers 1.3.280, glslc 2024.1"
    assert line(done.stdout, "backends") == "cpu, rpc, vulkan"
    # Nothing links it, and it lies where libggml looks for it.
    ninja = (tmp_path / "build/build.ninja").read_text(encoding="utf-8")
    linking = [each.splitlines()[0] for each in ninja.split("\nbuild ") if "SHARED_LIBRARY_LINKER" in each]
    assert not [each for each in linking if "libggml-vulkan" in each.partition(" | ")[2].partition(" || ")[0]]
    assert [each for each in linking if each.startswith("bin/libggml-vulkan.so:")]
    assert [each for each in linking if each.startswith("bin/libggml.so:")]


@pytest.mark.parametrize(
    ("version", "glslc", "says"),
    [
        ((3, 238), GLSLC, "are of version 1.3.238, and 1.3.239 is the oldest that will do"),
        ((2, 300), GLSLC, "are of version 1.2.300, and"),
        ((3, 239), "#!/bin/sh\nexit 3\n", "does not say its version (3)"),
        ((3, 239), "#!/bin/sh\necho hello\n", "does not say its version (0)"),
    ],
)
def test_parts_that_will_not_do(tmp_path: Path, version: tuple[int, int], glslc: str, says: str) -> None:
    found = sdk(tmp_path / "sdk", version=version, glslc=glslc)
    done = vulkan(tmp_path / "build", "AUTO", found)
    assert done.returncode == 0, done.stderr
    verdict = line(done.stdout, "Vulkan")
    assert verdict.startswith("out: ")
    assert says in verdict
    assert says in refusal(vulkan(tmp_path / "on", "ON", found), "MOEBIND_VULKAN")


def test_vulkan_takes_three_words(tmp_path: Path) -> None:
    failed = vulkan(tmp_path, "PIP", {})
    assert failed.returncode != 0
    assert "MOEBIND_VULKAN is 'PIP'; it takes AUTO, ON or OFF" in " ".join(failed.stderr.split())


# --- the cache of shaders ---


@pytest.fixture
def shaders(tmp_path: Path) -> Path:
    """A folder with a shader and what it includes, glslc and a cache."""
    sdk(tmp_path)
    for name in ("add.comp", "types.glsl", "broken.comp"):
        (tmp_path / name).touch()
    return tmp_path


def compiled(
    shaders: Path, *arguments: str, seed: str = "seed", source: str = "add.comp", out: str = "add.spv"
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "cmake/cached_glslc.py"), str(shaders / "bin/glslc"), seed, *arguments]
    command += [str(shaders / source), "-o", str(shaders / out)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={"MOEBIND_CACHE": str(shaders / "cache"), "PATH": "/bin"},
    )


def calls(shaders: Path) -> int:
    called = shaders / "bin/called"
    return len(called.read_text().splitlines()) if called.exists() else 0


def test_a_shader_is_compiled_once(shaders: Path) -> None:
    assert compiled(shaders, "-DA=1").returncode == 0
    first = (shaders / "add.spv").read_bytes()
    assert compiled(shaders, "-DA=1", out="again.spv").returncode == 0
    assert (shaders / "again.spv").read_bytes() == first
    assert calls(shaders) == 1


@pytest.mark.parametrize("other", [{"arguments": ("-DA=2",)}, {"seed": "other"}, {"source": "types.comp"}])
def test_another_one_is_another(shaders: Path, other: dict[str, object]) -> None:
    (shaders / "types.comp").touch()
    compiled(shaders, "-DA=1")
    compiled(shaders, *other.pop("arguments", ("-DA=1",)), **other)  # type: ignore[misc, arg-type]
    assert calls(shaders) == 2


def test_one_that_fails_is_not_kept(shaders: Path) -> None:
    for count in (1, 2):
        failed = compiled(shaders, source="broken.comp")
        assert failed.returncode == 1
        assert "broken.comp:1: error" in failed.stderr
        assert calls(shaders) == count


def test_ninja_learns_what_it_depends_on(shaders: Path) -> None:
    depends = shaders / "add.d"
    compiled(shaders, "-MD", "-MF", str(depends))
    assert not depends.exists()  # is glslc's to write
    compiled(shaders, "-MD", "-MF", str(depends))
    assert calls(shaders) == 1
    target, _, files = depends.read_text().partition(": ")
    assert target == str(shaders / "add.spv")
    assert set(files.split()) == {str(shaders / name) for name in ("add.comp", "types.glsl", "broken.comp")}


def test_a_cache_that_cannot_be_written(shaders: Path) -> None:
    (shaders / "cache").touch()
    assert compiled(shaders).returncode == 0
    assert (shaders / "add.spv").exists()
