"""The source distribution and the wheel, built from each other without a network and used outside the checkout."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import stat
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest
from checkout import ROOT, SOURCES, Checkout, contents, fetch, offline

import moebind

pytestmark = pytest.mark.timeout(3600)  # half a minute with ccache, many without

LIBRARIES = {"ggml-base", "ggml", "ggml-cpu", "ggml-rpc", "llama", "llama-common", "mtmd", "llama-server-impl"}
TOP_LEVEL = {
    *("CHANGELOG.md", "CMakeLists.txt", "CONTRIBUTING.md", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"),
    *("cmake", "examples", "licences", "native", "src", "vendor"),
}


def run(command: list[str], **environment: str) -> str:
    """The output of a command that has to succeed, run outside the checkout and offline."""
    done = subprocess.run(command, env=offline() | environment, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def own_files(*folders: str) -> set[str]:
    """The files of these folders, as the checkout has them."""
    return {
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so"
    }


def package_files() -> set[str]:
    """The files of the package, as an installation has them."""
    return {name.removeprefix("src/") for name in own_files("src")}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    run([sys.executable, "-m", "build", "--sdist", "--no-isolation", "-o", str(folder), str(ROOT)])
    (archive,) = folder.iterdir()
    return archive


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that pip builds from the source distribution, which has to bring everything: the cache is empty."""
    folder, cache = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("cache")
    command = [sys.executable, "-m", "pip", "wheel", "--no-cache-dir", "--no-build-isolation", "--no-deps"]
    # What a machine has of CUDA and npm changes what is in the wheel.
    command += ["-C", "cmake.define.MOEBIND_CUDA=OFF", "-C", "cmake.define.MOEBIND_UI=OFF"]
    command += ["-w", str(folder), str(sdist)]
    run(command, MOEBIND_CACHE=str(cache))
    assert not list(cache.iterdir())
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def files(wheel: Path) -> dict[str, zipfile.ZipInfo]:
    with zipfile.ZipFile(wheel) as archive:
        return {info.filename: info for info in archive.infolist()}


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An environment with the wheel and what it depends on, and nothing else; the path of its interpreter."""
    folder = tmp_path_factory.mktemp("environment")
    run([sys.executable, "-m", "venv", "--without-pip", str(folder)])
    python = folder / "bin" / "python"
    run([sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", str(wheel)])
    packages = Path(run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('platlib'))"]).strip())
    for name in ("numpy", "cffi", "_cffi_backend", "lazy_loader", "packaging", "pycparser"):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        found = Path(spec.origin)
        found = found.parent if spec.submodule_search_locations else found
        (packages / found.name).symlink_to(found)
        if (found.parent / f"{name}.libs").is_dir():  # the libraries of a wheel that auditwheel repaired
            (packages / f"{name}.libs").symlink_to(found.parent / f"{name}.libs")
    return python


# --- the source distribution ---


def test_sdist_holds_what_the_build_reads(sdist: Path) -> None:
    with tarfile.open(sdist) as tar:
        members = tar.getmembers()
    assert all(member.isfile() for member in members)
    names = {member.name.partition("/")[2] for member in members}
    assert {name.partition("/")[0] for name in names} == TOP_LEVEL
    wanted = own_files("cmake", "src", "native", "vendor/llama.cpp", "vendor/patches")
    wanted |= {"vendor/fetch.py", "vendor/llama.cpp.lock", "vendor/page.py"}
    assert {name for name in names if name.startswith(("cmake/", "src/", "native/", "vendor/"))} == wanted
    assert {"vendor/llama.cpp/.pin", "vendor/llama.cpp/tools/server/server.cpp", "src/moebind/py.typed"} <= names


def test_sdist_has_the_pinned_tree(sdist: Path) -> None:
    with tarfile.open(sdist) as tar:
        stamp = tar.extractfile(f"{sdist.name.removesuffix('.tar.gz')}/vendor/llama.cpp/.pin")
        assert stamp is not None
        assert stamp.read().decode() == fetch.read_lock().stamp


def test_the_version_is_that_of_the_module(sdist: Path) -> None:
    assert sdist.name == f"moebind-{moebind.__version__}.tar.gz"
    assert importlib.metadata.version("moebind") == moebind.__version__  # of the editable install


def test_sdist_is_small(sdist: Path) -> None:
    assert sdist.stat().st_size < 12 << 20


def test_sdist_of_a_fresh_checkout_has_the_source(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path / "fresh")
    checkout.add_build_files()
    checkout.fill_cache()
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "-o", str(tmp_path), str(checkout.folder)]
    run(command, MOEBIND_CACHE=str(checkout.cache))
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/vendor/llama.cpp/")[2] for name in tar.getnames()}
    assert names == {"", ".pin", *SOURCES}


# --- the wheel ---


def test_wheel_tag(wheel: Path) -> None:
    name, version, python, abi, platform = wheel.stem.split("-")
    assert (name, version) == ("moebind", moebind.__version__)
    assert (python, abi) == ("cp310", "abi3")
    assert platform.startswith("linux_")


def test_wheel_holds_this_and_no_more(files: dict[str, zipfile.ZipInfo]) -> None:
    version = moebind.__version__
    info = {
        f"moebind-{version}.dist-info/{name}"
        for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "sboms/moebind.cdx.json")
    }
    info |= {f"moebind-{version}.dist-info/licenses/{name}" for name in own_files("licences")}
    native = {"moebind/_libllama.abi3.so", "moebind/bin/llama-server"}
    native |= {f"moebind/lib/lib{name}.so" for name in LIBRARIES}
    assert files.keys() == info | native | package_files()


def test_wheel_has_the_types(files: dict[str, zipfile.ZipInfo]) -> None:
    assert {"moebind/py.typed", "moebind/_libllama.pyi"} <= files.keys()


def test_modes_in_the_wheel(files: dict[str, zipfile.ZipInfo]) -> None:
    for name, info in files.items():
        mode = info.external_attr >> 16
        assert stat.S_ISREG(mode), name
        assert bool(mode & stat.S_IXUSR) == (name == "moebind/bin/llama-server"), name
        assert mode & stat.S_IRGRP, name


def test_the_list_of_what_is_bundled(files: dict[str, zipfile.ZipInfo], wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        listed = json.loads(archive.read(f"moebind-{moebind.__version__}.dist-info/sboms/moebind.cdx.json"))
    about = listed["metadata"]["component"]
    assert about["version"] == moebind.__version__
    built = {each["value"] for each in about["properties"]}
    assert {f"lib{name}.so" for name in built - {"llama-server"}} == {
        PurePosixPath(name).name for name in files if name.startswith("moebind/lib/")
    }
    assert "llama-server" in built


def test_wheel_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size < 12 << 20


def dynamic(path: Path, tag: str) -> list[str]:
    """The values of a tag in the dynamic section of a library or program."""
    lines = run(["readelf", "-dW", str(path)], LC_ALL="C").splitlines()
    return [line.partition("[")[2].rstrip("]") for line in lines if f"({tag})" in line]


def test_libraries_find_each_other_wherever_the_wheel_lies(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    package = tmp_path / "moebind"
    places = {package: "$ORIGIN/lib", package / "lib": "$ORIGIN", package / "bin": "$ORIGIN/../lib"}
    binaries = [package / "bin/llama-server", *package.rglob("*.so")]
    assert len(binaries) == len(LIBRARIES) + 2
    bundled = {f"lib{name}.so" for name in LIBRARIES}
    for path in binaries:
        assert dynamic(path, "RUNPATH") == [places[path.parent]], path
        assert dynamic(path, "RPATH") == [], path
        assert {
            name for name in dynamic(path, "NEEDED") if "ggml" in name or "llama" in name or "mtmd" in name
        } <= bundled
    for name in LIBRARIES:
        assert dynamic(package / f"lib/lib{name}.so", "SONAME") == [f"lib{name}.so"]


def test_no_path_of_the_build_machine_is_in_the_libraries(wheel: Path) -> None:
    # Failed assertions name their source file, which is to be "vendor/llama.cpp/..." or "../../vendor/llama.cpp/...".
    named = 0
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith(".so") or "/bin/" in name:
                data = archive.read(name)
                named += len(re.findall(rb"vendor/llama\.cpp/[\w/-]+\.cpp", data))
                assert not re.findall(rb"(?<![.\w])/[\w./-]*vendor/llama\.cpp/[\w./-]*", data), name
                assert str(ROOT).encode() not in data, name
    assert named > 100


def test_wheel_needs_only_libgomp_besides_the_system(wheel: Path) -> None:
    command = [sys.executable, "-m", "auditwheel", "show", "--json", str(wheel)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ).stdout)
    assert list(found["external_libs"]) == ["libgomp.so.1"]
    # With that bundled, it is a manylinux wheel of the compiler's age: nothing else stands in the way.
    assert found["sym_tag"].startswith("manylinux_2_")
    assert found["policy_upgrades"][found["sym_tag"]]["libs_to_eliminate"] == ["libgomp.so.1"]


def test_metadata(wheel: Path) -> None:
    (metadata,) = importlib.metadata.distributions(name="moebind", path=[str(wheel)])
    fields = metadata.metadata
    assert fields["License-Expression"] == "MIT"
    assert set(fields.get_all("License-File", [])) == {"LICENSE", *own_files("licences")}
    assert fields["Requires-Python"] == ">=3.10"
    assert {(point.group, point.name) for point in metadata.entry_points} == {
        ("console_scripts", "moebind"),
        ("llm", "moebind"),
        ("lm_eval.models", "moebind"),
    }
    unconditional = {line for line in metadata.requires or () if "extra" not in line}
    assert {line.partition(">")[0] for line in unconditional} == {"cffi", "lazy-loader", "numpy"}


# --- the wheel, installed ---


def test_import_with_the_dependencies_only(installed: Path) -> None:
    code = (
        "import moebind, sys; print(moebind.__file__); print(moebind.lib.llama_time_us() > 0); "
        "print(moebind._core.native.LIBRARIES)"
    )
    package = installed.parent.parent
    out = run([str(installed), "-I", "-W", "error", "-c", code]).splitlines()
    assert Path(out[0]).is_relative_to(package)
    assert out[1] == "True"
    assert Path(out[2]).is_relative_to(package)


def test_in_the_checkout_too_it_is_the_installed_one(installed: Path) -> None:
    # Python looks into the folder that it is started in first, and the checkout has the sources in src.
    code = "import moebind; print(moebind.__file__)"
    out = subprocess.run([str(installed), "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert Path(out.strip()).is_relative_to(installed.parent.parent)


def test_every_module_imports(installed: Path) -> None:
    names = sorted(name.removesuffix(".py").replace("/", ".") for name in package_files() if name.endswith(".py"))
    modules = [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]
    modules.remove("moebind.integrations.lm_eval")  # the harness is in no environment of ours
    more = [
        name for name in modules if name.startswith("moebind.cli.") or name.endswith((".llm_engine", ".llm_plugin"))
    ]
    assert len(modules) > 10
    assert more
    bare = [name for name in modules if name not in more]
    run([str(installed), "-I", "-W", "error", "-c", f"import {', '.join(bare)}"])
    # These need the extras cli and llm, which this environment has; what was installed still comes first.
    extras = f"import sys; sys.path.append({sysconfig.get_path('purelib')!r}); import moebind, {', '.join(more)}; "
    out = run([str(installed), "-I", "-W", "error", "-c", extras + "print(moebind.cli.app.__file__)"])
    assert Path(out.strip()).is_relative_to(installed.parent.parent)


def test_installed_libraries_come_from_the_wheel(installed: Path) -> None:
    code = "import moebind; print(open('/proc/self/maps').read())"
    maps = run([str(installed), "-I", "-c", code])
    loaded = {line.split(maxsplit=5)[5] for line in maps.splitlines() if "ggml" in line or "llama" in line}
    assert {Path(path).name for path in loaded} >= {"libggml-cpu.so", "libllama.so", "_libllama.abi3.so"}
    assert all(Path(path).is_relative_to(installed.parent.parent) for path in loaded), loaded


def test_bundled_server_runs(installed: Path) -> None:
    code = "import moebind, pathlib; print(pathlib.Path(moebind.__file__).parent / 'bin' / 'llama-server')"
    server = run([str(installed), "-I", "-c", code]).strip()
    assert f"commit {fetch.read_lock().commit})" in run([server, "--version"])


def test_nothing_is_left_in_the_checkout(installed: Path) -> None:
    # Building ran in temporary folders: the developer's build folder is not touched, and none is added.
    assert not [name for name in contents(ROOT / "src") if name.endswith(".so")]
    assert not (ROOT / "build" / "sdist").exists()
