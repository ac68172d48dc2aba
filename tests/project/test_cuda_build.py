"""CUDA, built and loaded without a card: it must neither stop the import nor be missing without a word.

Asked for with ``MOEBIND_TEST_CUDA``: ``smoke`` builds a wheel without kernels (pip brings the toolkit, 630 MB, and
keeps it in its cache; two minutes), anything else is the path of a wheel that was built with CUDA. What computes on a
card is in ``tests/gpu``.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ASKED = os.environ.get("MOEBIND_TEST_CUDA", "")

pytestmark = [
    pytest.mark.cuda_build,
    pytest.mark.thorough,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not ASKED, reason="it takes 630 MB of toolkit: set MOEBIND_TEST_CUDA to smoke, or to a wheel"),
]

#: Every file that is mapped, in the children below.
MAPPED = (
    "import pathlib; lines = pathlib.Path('/proc/self/maps').read_text().splitlines(); "
    "mapped = sorted({line.split(maxsplit=5)[5] for line in lines if '/' in line})"
)
NO_DRIVER = "libcuda.so.1: cannot open shared object file"


def driver_is_there() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command that has to succeed, without what a shell may say on where libraries and packages are."""
    hidden = {"LD_LIBRARY_PATH", "PYTHONPATH", "CUDA_HOME", "CUDA_PATH", "CUDACXX", "CUDA_VISIBLE_DEVICES"}
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    words = [str(word) for word in command]
    done = subprocess.run(words, env=kept | environment, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if ASKED != "smoke":
        return Path(ASKED).resolve()
    folder = tmp_path_factory.mktemp("wheel")
    # By way of a source distribution: the build folder of the checkout is not touched, and ccache hits.
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "-o", folder, ROOT)
    (archive,) = folder.glob("*.tar.gz")
    command = (sys.executable, "-m", "pip", "wheel", "--no-deps", "-C", "cmake.define.MOEBIND_CUDA_SMOKE=ON")
    run(*command, "-w", folder, archive, MOEBIND_CUDA="PIP", MOEBIND_CUDA_ARCHITECTURES="90")
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with ``moebind[cuda13]`` in it."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", folder)
    run(folder / "bin/python", "-m", "pip", "install", f"{wheel}[cuda13]")
    return folder / "bin/python"


@pytest.fixture(scope="module")
def package(python: Path) -> Path:
    return Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('platlib'))").stdout.strip()) / "moebind"


@pytest.fixture(scope="module")
def without_driver() -> None:
    if driver_is_there():
        pytest.skip("there is a driver on this machine")


@pytest.fixture(scope="module")
def stand_in(package: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A driver that has what the backend links to, and says to everything that there is no card."""
    folder = tmp_path_factory.mktemp("driver")
    listed = run("nm", "--dynamic", "--undefined-only", package / "lib/libggml-cuda.so").stdout
    names = re.findall(r" U (cu[A-Z]\w+)$", listed, re.MULTILINE)
    assert "cuMemCreate" in names  # VMM is in
    source = folder / "driver.c"
    source.write_text("".join(f"int {name}(void) {{ return 100; }}\n" for name in names))
    run("cc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", folder / "libcuda.so.1", source)
    return {"LD_LIBRARY_PATH": str(folder)}


def call(python: Path, code: str, *arguments: str | Path, **environment: str) -> tuple[list[str], str]:
    """The lines that a script printed, and what came on stderr. Warnings are errors."""
    done = run(python, "-I", "-W", "error", "-c", f"import sys, moebind\n{code}", *arguments, **environment)
    return done.stdout.splitlines(), done.stderr


# --- the wheel ---


def test_the_wheel_has_the_library(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert "moebind/lib/libggml-cuda.so" in names
    assert {name for name in names if "cublas" in name or "cudart" in name or "libcuda" in name} == set()


def test_nothing_needs_the_library(package: Path) -> None:
    for binary in (*package.rglob("*.so"), package / "bin/llama-server"):
        assert "ggml-cuda" not in "".join(
            line for line in run("readelf", "-dW", binary).stdout.splitlines() if "(NEEDED)" in line
        )


def test_what_the_wheel_needs_besides(wheel: Path) -> None:
    command = (sys.executable, "-m", "auditwheel", "show", "--json", wheel)
    found = set(json.loads(run(*command).stdout)["external_libs"])
    cuda = {name.partition(".so")[0] for name in found - {"libgomp.so.1"}}
    assert cuda == {"libcuda", "libcudart", "libcublas", "libcublasLt"}


def test_cublas_and_cudart_are_found_beside_moebind(package: Path) -> None:
    lines = run("ldd", package / "lib/libggml-cuda.so").stdout.splitlines()
    found = {name.strip(): path.split(" (")[0] for name, _, path in (line.partition(" => ") for line in lines)}
    folder = package.parent / "nvidia/cu13/lib"
    for name in ("libcudart.so.13", "libcublas.so.13", "libcublasLt.so.13"):
        assert Path(found[name]).resolve() == (folder / name).resolve()


def test_no_build_environment_is_searched(package: Path) -> None:
    (path,) = re.findall(r"\(RPATH\).*\[(.*)\]", run("readelf", "-dW", package / "lib/libggml-cuda.so").stdout)
    assert path.split(":")[:2] == ["$ORIGIN", "$ORIGIN/../../nvidia/cu13/lib"]
    assert not [part for part in path.split(":") if "pip-build-env" in part or "site-packages" in part]


# --- without a driver ---


@pytest.mark.usefixtures("without_driver")
def test_import_without_a_driver(python: Path) -> None:
    code = "print([device.name for device in moebind.devices()]); print('CUDA' in moebind.system_info())"
    assert call(python, code) == (["['CPU']", "False"], "")


@pytest.mark.usefixtures("without_driver")
def test_import_alone_does_not_look(python: Path) -> None:
    lines, errors = call(python, f"{MAPPED}; print([path for path in mapped if 'cuda' in path or 'libcu' in path])")
    assert (lines, errors) == (["[]"], "")


@pytest.mark.usefixtures("without_driver")
def test_a_load_without_a_driver_warns(python: Path, tiny_path: Callable[..., Path]) -> None:
    code = """
import warnings
from moebind import ContextParams, Model, ModelParams
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    with Model.load_from_file(sys.argv[1], ModelParams(n_gpu_layers=-1)) as model:
        with model.new_context(ContextParams(n_ctx=64, n_threads=1, n_threads_batch=1)) as context:
            print(len(list(context.generate([1, 2, 3], max_tokens=4))) > 0)
print(*[str(each.message) for each in caught], sep="|")
"""
    lines, errors = call(python, code, tiny_path(n_expert=4))
    assert lines[0] == "True"
    assert "no device can take layers" in lines[1]
    assert re.search(rf"CUDA is not used: {NO_DRIVER}", lines[1])
    assert "|" not in lines[1]
    assert errors == ""


@pytest.mark.usefixtures("without_driver")
def test_plan_without_a_driver(python: Path, tiny_path: Callable[..., Path]) -> None:
    code = "print([each.name for each in moebind.plan(sys.argv[1]).devices])"
    lines, _ = call(python, f"import warnings; warnings.simplefilter('ignore')\n{code}", tiny_path(n_expert=4))
    assert "CUDA" not in lines[0]


@pytest.mark.usefixtures("without_driver")
def test_doctor_without_a_driver(python: Path) -> None:
    lines, errors = call(python, "print(moebind.doctor())")
    report = "\n".join(lines)
    assert re.search(r"^CUDA is in: CUDA \d+\.\d+ of .*, architectures ", report, re.MULTILINE)
    assert "CUDA is built in, but there is no CUDA device" in report
    assert f"there is no driver: {NO_DRIVER}" in report
    assert errors == ""


@pytest.mark.usefixtures("without_driver")
def test_server_without_a_driver(package: Path) -> None:
    assert "CUDA" not in run(package / "bin/llama-server", "--list-devices").stdout


# --- with a driver, but no card, or without cuBLAS ---


@pytest.mark.usefixtures("without_driver")
def test_every_symbol_of_the_library_is_there(python: Path, package: Path, stand_in: dict[str, str]) -> None:
    code = f"""
from moebind.diagnosis.facts import read_facts
print([device.name for device in moebind.devices()])
{MAPPED}
print([path for path in mapped if 'libggml-cuda' in path or 'libcublas.so' in path])
print(read_facts().backends)
"""
    lines, _ = call(python, code, **stand_in)
    assert lines[0] == "['CPU']"
    libraries = (package / "lib/libggml-cuda.so", package.parent / "nvidia/cu13/lib/libcublas.so.13")
    assert lines[1] == repr(sorted(map(str, libraries)))
    assert lines[2].startswith("('CUDA', ")  # before the others, as where it is linked


@pytest.mark.usefixtures("without_driver")
def test_without_cublas(python: Path, package: Path, stand_in: dict[str, str]) -> None:
    hidden = package.parent / "nvidia"
    hidden.rename(package.parent / "hidden")
    try:
        lines, errors = call(python, "print(moebind.doctor())", **stand_in)
    finally:
        (package.parent / "hidden").rename(hidden)
    report = "\n".join(lines)
    assert re.search(r"the library of the CUDA backend cannot be loaded: libcu(blas|dart)\S*: cannot open", report)
    assert "pip install 'moebind[cuda13]'" in report
    # There is a driver, so somebody wants it: not only who asks is told.
    assert re.search(r"CUDA is not used: libcu(blas|dart)", errors)
