"""llama-cpp-python on moebind's own libllama: only its Python files, from the archive on the package index.

Nothing of it is built, and none of its build's code is run (``vendor/fetch.py``). Its ctypes declarations are those of
the llama.cpp that it was released with. They are compared with the headers that moebind was built from, structure by
structure: fields that only the newer headers have are added to a copy, each of which is told; any other difference is
an error, since its calls would then read and write the wrong places.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "vendor"))
import fetch  # noqa: E402  # vendor/fetch.py

LOCK = Path(__file__).with_name("llama-cpp-python.lock")
#: What its Python files import beyond numpy.
NEEDS = ("diskcache", "jinja2", "typing-extensions")
#: The structures that the measured calls pass, or give.
PASSED = (
    "llama_batch", "llama_chat_message", "llama_context_params", "llama_logit_bias", "llama_model_params",
    "llama_perf_context_data", "llama_sampler_chain_params", "llama_sampler_seq_config", "llama_token_data",
    "llama_token_data_array",
)  # fmt: skip
#: ctypes of the fields that may be added.
KINDS = {
    "bool": "ctypes.c_bool", "float": "ctypes.c_float", "int32_t": "ctypes.c_int32", "uint32_t": "ctypes.c_uint32",
    "size_t": "ctypes.c_size_t", "int64_t": "ctypes.c_int64", "uint64_t": "ctypes.c_uint64",
}  # fmt: skip
#: A structure that is passed: its name and its fields.
STRUCTURE = re.compile(
    r"^class (\w+)\(ctypes\.Structure\):\n(?:(?!^class ).)*?^    _fields_ = \[\n(.*?)^    \]", re.MULTILINE | re.DOTALL
)
FIELD = re.compile(r'^        \("(\w+)",', re.MULTILINE)

#: Names and C types of a structure's fields, in their order.
Fields = Sequence[tuple[str, str]]


class UnlikeError(Exception):
    """The declarations are too unlike libllama's to run; the message says which."""


def pin() -> fetch.Pin:
    """Name, version and hash of the archive."""
    text = LOCK.read_text(encoding="utf-8")
    found = re.search(r"^([\w-]+)==(\S+) --hash=sha256:([0-9a-f]{64})$", text, re.MULTILINE)
    if found is None:
        raise fetch.FetchError(f"{LOCK} has no line 'NAME==VERSION --hash=sha256:...': restore it")
    return fetch.Pin(*found.groups(), folder="llama_cpp", commit="", llama_version="")


def structures() -> dict[str, Fields]:
    """The structures that are compared, as moebind was built with them."""
    from moebind import ffi

    return {
        name: [(field, each.type.cname) for field, each in ffi.typeof(f"struct {name}").fields]
        for name in PASSED
        if ffi.sizeof(f"struct {name}")  # cffi reads the fields when it is asked for the size
    }


def adapted(source: str, ours: Mapping[str, Fields]) -> tuple[str, list[str]]:
    """The declarations with the fields that only ``ours`` has, and a sentence about each.

    Raises
    ------
    UnlikeError
        If they differ in another way.
    """
    added: list[str] = []

    def complete(structure: re.Match[str]) -> str:
        name, body = structure[1], structure[2]
        theirs = FIELD.findall(body)
        if name not in ours or theirs == [field for field, _ in ours[name]]:
            return structure[0]
        names = [field for field, _ in ours[name]]
        if [field for field in names if field in theirs] != theirs:
            raise UnlikeError(f"{name} has the fields {', '.join(theirs)} there, and {', '.join(names)} in libllama")
        lines, behind = body, ""
        for field, kind in ours[name]:
            if field not in theirs:
                if kind not in KINDS or not behind:
                    raise UnlikeError(f"{name} has a field {field} ({kind}) in libllama, and none there")
                declared = re.search(rf'^        \("{behind}",.*\n', lines, re.MULTILINE)
                assert declared is not None  # noqa: S101  # FIELD found it
                new = f'        ("{field}", {KINDS[kind]}),\n'
                lines = lines[: declared.end()] + new + lines[declared.end() :]
                added.append(f"{name} was given {field} ({kind}), which it does not know")
            behind = field
        return structure[0].replace(body, lines)

    return STRUCTURE.sub(complete, source), added


def python_files() -> tuple[Path, str, list[str]]:
    """The folder to import from, the version, and what was added to its declarations.

    Raises
    ------
    UnlikeError
        If its declarations do not fit.
    fetch.FetchError
        If there is no archive, or pip has not what it needs.
    """
    chosen = pin()
    archive = fetch.cached_archive(chosen, LOCK)
    inside = f"{chosen.archive_name.removesuffix('.tar.gz')}/llama_cpp/"
    with tarfile.open(archive, "r:gz") as tar:
        files = {}
        for member in tar:
            name = member.name.removeprefix(inside)
            if member.name.startswith(inside) and member.isfile() and re.fullmatch(r"\w+\.py", name):
                data = tar.extractfile(member)
                assert data is not None  # noqa: S101  # it is a file
                files[name] = data.read().decode("utf-8")
            elif files and "/vendor/" in member.name:
                break  # llama.cpp itself, hundreds of megabytes
    if "llama_cpp.py" not in files:
        raise fetch.FetchError(f"{archive} has no llama_cpp/llama_cpp.py: choose another version in {LOCK}")
    files["llama_cpp.py"], added = adapted(files["llama_cpp.py"], structures())
    key = hashlib.sha256("\n".join([sys.version, *sorted(files.values())]).encode()).hexdigest()[:12]
    folder = fetch.cache_folder() / f"llama-cpp-python-{chosen.version}-{key}"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=fetch.cache_folder(), prefix="llama-cpp-python-") as scratch:
            fresh = Path(scratch) / "new"
            _install(fresh)
            (fresh / "llama_cpp").mkdir()
            for name, text in files.items():
                (fresh / "llama_cpp" / name).write_text(text, encoding="utf-8")
            try:
                fresh.rename(folder)
            except OSError:  # another process was first
                shutil.rmtree(fresh, ignore_errors=True)
    return folder, chosen.version, added


def _install(folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", str(folder)]
    done = subprocess.run([*pip, *NEEDS], capture_output=True, text=True, check=False, env=os.environ)
    if done.returncode != 0:
        raise fetch.FetchError(f"pip could not install {', '.join(NEEDS)}: {done.stderr.strip().splitlines()[-1]}")
