"""A small checkout of moebind: vendor/fetch.py, a lock, a package index and a cache, all of it made here."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
VENDOR = ROOT / "vendor"
NOWHERE = "http://127.0.0.1:1"  # nobody listens there
ARCHIVE = "tiny_llama-1.0.tar.gz"
PREFIX = "tiny_llama-1.0/thirdparty/llama.cpp/"

SOURCES = {
    "include/llama.h": "// the API\n",
    "src/llama.cpp": "int main() {}\n",
    "src/models/deep.cpp": "\n",
    "tools/server/server.cpp": "// server\n",
    "LICENSE": "MIT\n",
}
NOT_WANTED = {
    "docs/build.md": "# no\n",
    "tools/server/tests/test.py": "\n",
    "tools/run/run.cpp": "\n",
    "README.md": "\n",
}

# pip prepares an sdist's metadata even if it only downloads it. Nothing but the archive is to be downloaded, and none
# of its code to be run: what it says to require is on no index, and its setup.py fails.
PACKAGE = {
    "PKG-INFO": "Metadata-Version: 2.1\nName: tiny-llama\nVersion: 1.0\n",
    "pyproject.toml": '[build-system]\nrequires = ["on-no-index"]\nbuild-backend = "setuptools.build_meta"\n',
    "setup.py": 'raise SystemExit("setup.py was run")\n',
}


def load(name: str) -> ModuleType:
    """A module of ``vendor/``, as the others there import it."""
    spec = importlib.util.spec_from_file_location(name, VENDOR / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


fetch = load("fetch")
page = load("page")


def offline() -> dict[str, str]:
    """The environment for a process that is to reach no network, and that takes nothing from pip's settings."""
    dropped = {"NO_PROXY", "no_proxy", "PYTHONPATH"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_") and name not in dropped}
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"), NOWHERE)
    return kept | proxies | {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_RETRIES": "0"}


def member(name: str, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def write_archive(
    path: Path,
    files: dict[str, str],
    extra: Iterable[tuple[tarfile.TarInfo, str]] = (),
    package: dict[str, str] = PACKAGE,
) -> Path:
    """A source distribution with these files of llama.cpp; ``extra`` is put in as it is."""
    with tarfile.open(path, "w:gz") as tar:
        members = [(member(f"tiny_llama-1.0/{name}"), text) for name, text in package.items()]
        members += [(member(PREFIX + name), text) for name, text in files.items()]
        for info, text in (*members, *extra):
            data = text.encode()
            info.size = len(data) if info.isfile() else 0
            tar.addfile(info, io.BytesIO(data))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder``; broken and other links count too."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }


class Checkout:
    """A folder ``vendor`` with fetch.py and a lock in it, a package index and a cache."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.vendor = folder / "vendor"
        self.tree = self.vendor / "llama.cpp"
        self.lock = self.vendor / "llama.cpp.lock"
        self.index = folder / "index"
        self.cache = folder / "cache"
        for made in (self.vendor, self.index, self.cache):
            made.mkdir(parents=True)
        shutil.copy(VENDOR / "fetch.py", self.vendor)
        self.pin(write_archive(self.index / ARCHIVE, SOURCES | NOT_WANTED))

    def pin(self, archive: Path, commit: str = "abc123456") -> None:
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        self.lock.write_text(
            f"tiny-llama==1.0 --hash=sha256:{digest}\n# llama.cpp-folder: thirdparty/llama.cpp\n"
            f"# llama.cpp-commit: {commit}\n# llama.cpp-version: 0.1.0\n"
        )

    def patch(self, name: str, text: str) -> None:
        """Add a file to ``vendor/patches``."""
        (self.vendor / "patches").mkdir(exist_ok=True)
        (self.vendor / "patches" / name).write_text(text)

    def fill_cache(self) -> None:
        shutil.copy(self.index / ARCHIVE, self.cache)

    def add_build_files(self) -> None:
        """What CMake and a source distribution need besides."""
        for name in ("CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml"):
            shutil.copy(ROOT / name, self.folder)
        for name in ("cmake", "licences", "native", "src"):
            shutil.copytree(ROOT / name, self.folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))

    def start(self, *arguments: str, python: str = sys.executable, online: bool = True) -> subprocess.Popen[str]:
        environment = offline() | {"MOEBIND_CACHE": str(self.cache)}
        if online:
            environment["PIP_FIND_LINKS"] = str(self.index)
        else:
            del environment["PIP_NO_INDEX"]
            environment["PIP_INDEX_URL"] = f"{NOWHERE}/simple"
        return subprocess.Popen(
            [python, "-W", "error", str(self.vendor / "fetch.py"), *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, python: str = sys.executable, online: bool = True) -> tuple[int, str, str]:
        """fetch.py's exit code, output and errors."""
        process = self.start(*arguments, python=python, online=online)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def fetch(self) -> bool:
        """The same without a process of its own; the archive has to be in the cache."""
        return bool(fetch.fetch(self.tree, self.lock))

    def assert_right(self) -> None:
        assert {name: text.encode() for name, text in SOURCES.items()} == {
            name: data for name, data in contents(self.tree).items() if name != ".pin"
        }
        self.assert_tidy()

    def assert_tidy(self) -> None:
        """Nothing is left behind, neither here nor in the cache."""
        assert {path.name for path in self.vendor.iterdir()} - {
            "fetch.py",
            "llama.cpp.lock",
            "llama.cpp",
            "patches",
        } == set()
        assert {path.name for path in self.cache.iterdir()} - {ARCHIVE} == set()
