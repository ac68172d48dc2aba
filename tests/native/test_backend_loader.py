"""libggml's part that loads the backends of graphics cards, alone, beside drivers that only pretend."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from moebind._core.native import LIBRARIES
from moebind.diagnosis.facts import VULKAN

ROOT = Path(__file__).resolve().parents[2]
GGML = ROOT / "vendor/llama.cpp/ggml"
#: The driver, the library and the function of each.
BACKENDS = {
    "CUDA": ("libcuda.so.1", "libggml-cuda.so", "ggml_backend_cuda_reg"),
    "Vulkan": ("libvulkan.so.1", "libggml-vulkan.so", "ggml_backend_vk_reg"),
}
SOURCE = ROOT / "native/replaced/backend_loader.cpp"
#: Variables with which drivers are looked for where there is no card.
CHOOSING = re.findall(r'"((?:GGML_)?VK_[A-Z_]+)"', SOURCE.read_text(encoding="utf-8"))


@pytest.fixture
def loader(built: Path, tmp_path: Path) -> Path:
    """A folder with the loader, and nothing beside it."""
    (tmp_path / "libloader.so").write_bytes(built.read_bytes())
    return tmp_path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("loader") / "libloader.so"
    command = ["g++", "-shared", "-fPIC", "-std=c++17", "-Dggml_backend_cuda_reg=moebind_cuda_backend"]
    command += ["-Dggml_backend_vk_reg=moebind_vulkan_backend", f"-I{GGML}/include", f"-I{GGML}/src"]
    command += ["-o", str(library), str(SOURCE), f"-L{LIBRARIES}", "-lggml-base"]
    subprocess.run([*command, "-ldl", f"-Wl,-rpath,{LIBRARIES}"], check=True)
    return library


ASKS = """
import ctypes, sys
backend, driver, loader = sys.argv[1:]
if driver:
    ctypes.CDLL(driver)
loader = ctypes.CDLL(loader)
load = loader[f"moebind_{backend.lower()}_backend"]
load.restype = ctypes.c_void_p
loader.moebind_unloaded.restype = ctypes.c_char_p
print(load())
print(loader.moebind_unloaded(backend.encode()).decode())
print(loader.moebind_unloaded(b"SYCL").decode())
"""


#: Drivers are looked for, whether there is a card or not.
LOOKS = {"GGML_VK_VISIBLE_DEVICES": "0"}


def ask(
    loader: Path, backend: str, driver: Path | str = "", variables: Mapping[str, str] = MappingProxyType(LOOKS)
) -> list[str]:
    """What the registry gets, and why."""
    command = [sys.executable, "-c", ASKS, backend, str(driver), str(loader / "libloader.so")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("VK_", "GGML_VK_"))}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment | variables)
    assert done.returncode == 0, done.stderr
    answer, reason, other = done.stdout.splitlines()
    assert not other
    return [answer, reason]


def library(path: Path, source: str = "", language: str = "c") -> Path:
    command = ["g++", "-shared", "-fPIC", f"-Wl,-soname,{path.name}", f"-I{GGML}/include", f"-I{GGML}/src"]
    subprocess.run([*command, "-o", str(path), "-x", language, "-"], input=source, text=True, check=True)
    return path


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_backend_is_the_one_beside_the_loader(loader: Path, backend: str) -> None:
    driver, name, function = BACKENDS[backend]
    here = library(loader / driver)
    answer, reason = ask(loader, backend, here)
    assert answer == "None"
    assert str(loader / name) in reason
    library(loader / name, "")
    assert ask(loader, backend, here)[0] == "None"
    library(
        loader / name,
        """
        #include "ggml-backend-impl.h"
        static size_t none(ggml_backend_reg_t reg) { return 0; }
        static struct ggml_backend_reg reg = { .api_version = 1, .iface = { .get_device_count = none } };
        """
        f"void * {function}(void) {{ return &reg; }}",
    )
    answer, reason = ask(loader, backend, here)
    assert int(answer) > 0
    assert reason == ""


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_a_driver_the_loader_says_so(loader: Path, backend: str) -> None:
    driver = BACKENDS[backend][0]
    try:
        ctypes.CDLL(driver)
    except OSError:
        answer, reason = ask(loader, backend)
        assert answer == "None"
        assert driver in reason
    else:
        pytest.skip(f"there is a {driver}")


BROKEN = """
#include "ggml-backend-impl.h"
#include <stdexcept>
static size_t one(ggml_backend_reg_t) { return 1; }
static ggml_backend_dev_t device(ggml_backend_reg_t, size_t) { %s }
static ggml_backend_reg reg = { GGML_BACKEND_API_VERSION, { nullptr, one, device, nullptr }, nullptr };
extern "C" int ggml_backend_vk_get_device_count(void) { %s }
extern "C" ggml_backend_reg_t ggml_backend_vk_reg(void) { return %s; }
"""


@pytest.mark.parametrize(
    ("count", "device", "registry", "reason"),
    [
        ('throw std::runtime_error("no instance");', "return nullptr;", "nullptr", "no instance"),
        ("return 1;", 'throw std::runtime_error("no properties");', "&reg", "no properties"),
        ("throw 1;", "return nullptr;", "nullptr", "unknown"),
        ("return 0;", "return nullptr;", "nullptr", "it gave no reason"),
    ],
)
def test_a_broken_driver_of_vulkans_is_no_driver(
    loader: Path, count: str, device: str, registry: str, reason: str
) -> None:
    """What it throws is not thrown through ggml's registry, which would not be made."""
    here = library(loader / "libvulkan.so.1")
    library(loader / "libggml-vulkan.so", BROKEN % (device, count, registry), "c++")
    answer, said = ask(loader, "Vulkan", here)
    assert answer == "None"
    assert reason in said


CARDS = re.findall(r'"(/dev/[\w/-]+)"', SOURCE.read_text(encoding="utf-8"))


@pytest.mark.skipif(any(map(os.path.exists, CARDS)), reason="there is a graphics card")
def test_without_a_card_no_driver_of_vulkans_is_loaded(loader: Path) -> None:
    here = library(loader / "libvulkan.so.1")
    library(loader / "libggml-vulkan.so", BROKEN % ("return nullptr;", "throw 1;", "nullptr"), "c++")
    answer, said = ask(loader, "Vulkan", here, {})
    assert (answer, said.partition(" (")[0]) == ("None", "there are no device files of graphics cards")
    for variable in CHOOSING:
        assert ask(loader, "Vulkan", here, {variable: "some.json"})[1] == "unknown error"


def test_variables_that_choose_drivers_are_told_of_where_none_is_found() -> None:
    assert len(CHOOSING) > 3
    # These two only take drivers away.
    assert set(VULKAN) - set(CHOOSING) == {"GGML_DISABLE_VULKAN", "VK_LOADER_DRIVERS_SELECT"}
    assert set(CHOOSING) <= set(VULKAN)
    page = (ROOT / "docs/build.md").read_text(encoding="utf-8")
    assert [name for name in [*CHOOSING, "GGML_DISABLE_VULKAN"] if f"`{name}" not in page] == []
