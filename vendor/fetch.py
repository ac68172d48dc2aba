"""Bring the pinned llama.cpp source into ``vendor/llama.cpp``.

``vendor/llama.cpp.lock`` names one archive by version and SHA-256. This script asks pip for it,
verifies it, keeps it in the user's cache, unpacks the parts that moebind builds and applies
``vendor/patches``. It does nothing when the right tree is already there, and needs no network when
the archive is in the cache.

CMake runs it at configure time; run it by hand with ``python vendor/fetch.py``.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

VENDOR = Path(__file__).resolve().parent
LOCK = VENDOR / "llama.cpp.lock"
#: Changes of llama.cpp: unified diffs, each with its reason and what would make it needless above the diff.
PATCHES = VENDOR / "patches"

#: What is built, relative to llama.cpp's root. Everything else stays in the archive.
WANTED = (
    "CMakeLists.txt",
    "LICENSE",
    "cmake/",
    "common/",
    "ggml/",
    "include/",
    "licenses/",
    "src/",
    "tools/batched-bench/",
    "tools/llama-bench/",
    "tools/mtmd/",
    "tools/server/",
    "tools/ui/",
    "vendor/",
)
#: Parts of the wanted folders that nothing here builds.
UNWANTED = (
    "tools/mtmd/tests/",
    "tools/server/bench/",
    "tools/server/tests/",
    "tools/ui/.storybook/",
    "tools/ui/tests/",
)

#: Build backends that archives with llama.cpp name; in their place comes one that builds nothing.
BACKENDS = ("setuptools/build_meta.py", "scikit_build_core/build.py")


class FetchError(Exception):
    """The source could not be brought; the message is one sentence that says what to do."""


@dataclass(frozen=True)
class Pin:
    """What ``llama.cpp.lock`` says."""

    project: str
    version: str
    sha256: str
    folder: str
    commit: str
    llama_version: str
    patches: tuple[Path, ...] = ()

    @property
    def archive_name(self) -> str:
        return f"{self.project.replace('-', '_')}-{self.version}.tar.gz"

    @property
    def stamp(self) -> str:
        """Text that changes when the unpacked tree has to."""
        patches = (f"{sha256_of(patch)} {patch.name}" for patch in self.patches)
        return "\n".join((self.sha256, *WANTED, *UNWANTED, *patches)) + "\n"


def read_lock(path: Path = LOCK, without: Collection[str] = ()) -> Pin:
    """Parse the lock file, and find the patches beside it, but for those whose names are in ``without``."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        text = ""
    requirement = re.search(r"^([\w-]+)==(\S+) --hash=sha256:([0-9a-f]{64})$", text, re.MULTILINE)
    told = dict(re.findall(r"^# llama\.cpp-(folder|commit|version): (\S+)$", text, re.MULTILINE))
    if requirement is None or len(told) < 3:
        raise FetchError(
            f"{path} is missing or not a lock file: it needs a line 'NAME==VERSION --hash=sha256:...' and the "
            "comments llama.cpp-folder, llama.cpp-commit and llama.cpp-version; restore it from version control."
        )
    patches = sorted(patch for patch in (path.parent / PATCHES.name).glob("*.patch") if patch.stem not in without)
    return Pin(*requirement.groups(), told["folder"], told["commit"], told["version"], tuple(patches))


def cache_folder() -> Path:
    """Where archives are kept: ``$MOEBIND_CACHE``, else ``moebind`` in the user's cache folder."""
    chosen = os.environ.get("MOEBIND_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moebind"


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write_build_backends(pin: Pin, folder: Path) -> None:
    """Write what pip asks for an archive's metadata, which it does even if it only downloads it."""
    info, metadata = pin.archive_name.replace(".tar.gz", ".dist-info"), f"Name: {pin.project}\nVersion: {pin.version}\n"
    code = (
        "from pathlib import Path\n\n\ndef prepare_metadata_for_build_wheel(folder, config_settings=None):\n"
        f"    info = Path(folder, {info!r})\n    info.mkdir()\n"
        f"    info.joinpath('METADATA').write_text('Metadata-Version: 2.1\\n' + {metadata!r})\n    return info.name\n"
    )
    for name in BACKENDS:
        module = folder / name
        module.parent.mkdir(parents=True)
        module.with_name("__init__.py").touch()
        module.write_text(code, encoding="utf-8")


def download(pin: Pin, lock: Path, folder: Path, hashed: bool = True) -> Path:
    """Have pip bring the archive into ``folder``, and nothing else; no code of the archive is run.

    ``lock`` is the file with the requirement; with ``hashed``, pip checks the hash that it gives.
    """
    # -I: inside an isolated build PYTHONPATH hides the interpreter's own pip.
    pip = [sys.executable, "-I", "-m", "pip"]
    if subprocess.run([*pip, "--version"], capture_output=True, check=False).returncode != 0:
        raise FetchError(
            f"{sys.executable} has no pip to bring {pin.archive_name} with: run "
            f"'{sys.executable} -m ensurepip', or put that archive into {folder.parent}."
        )
    command = [*pip, "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation"]
    command += ["--no-binary", pin.project, "-r", str(lock), "-d", str(folder)]
    command += ["--require-hashes"] if hashed else []
    # -I is not for the process in which pip asks for metadata, so there ours stands before the archive's real backend.
    write_build_backends(pin, folder / "backend")
    environment = os.environ | {"PYTHONPATH": str(folder / "backend")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    archive = folder / pin.archive_name
    if done.returncode == 0 and archive.is_file():
        return archive
    said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    reason = said[-1].removeprefix("ERROR: ") if said else f"pip ended with {done.returncode}"
    if "No space left" in done.stderr:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))
    if "DO NOT MATCH THE HASHES" in done.stderr:
        raise FetchError(
            f"the package index offers a {pin.archive_name} whose SHA-256 is not the pinned "
            f"{pin.sha256[:12]}...: do not use it, and check your index settings (pip config list)."
        )
    raise FetchError(
        f"pip could not download {pin.project}=={pin.version} ({reason}): check the network, or put "
        f"{pin.archive_name} into {folder.parent} by hand."
    )


def cached_archive(pin: Pin, lock: Path) -> Path:
    """The verified archive in the cache, downloaded if it is not there."""
    folder = cache_folder()
    archive = folder / pin.archive_name
    if archive.is_file():
        if sha256_of(archive) == pin.sha256:
            return archive
        print(f"fetch: {archive} is damaged or of another pin; downloading it again", flush=True)
        archive.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    print(f"fetch: downloading {pin.archive_name} with pip", flush=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="download-") as scratch:
        fresh = download(pin, lock, Path(scratch))
        found = sha256_of(fresh)
        if found != pin.sha256:
            raise FetchError(
                f"the downloaded {pin.archive_name} has SHA-256 {found}, the lock says "
                f"{pin.sha256}: do not use it, and check your index settings (pip config list)."
            )
        fresh.replace(archive)
    return archive


def wanted_files(tar: tarfile.TarFile, folder: str) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """The files to unpack, with their paths relative to llama.cpp's root, which is ``folder`` in the archive."""
    for member in tar:
        _, found, path = member.name.partition(f"/{folder}/")
        if not found or not member.isfile() or ".." in path.split("/"):
            continue
        if path.startswith(WANTED) and not path.startswith(UNWANTED):
            yield path, member


def apply_patch(patch: Path, tree: Path) -> None:
    """Apply a unified diff. Each hunk's old lines must be in their file exactly once, wherever they have moved to."""
    _, *named = re.split(r"^--- a/(\S+)\n\+\+\+ .*\n", patch.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for name, hunks in zip(named[::2], named[1::2], strict=True):
        file = tree / name
        source = "\n" + (file.read_text(encoding="utf-8") if file.is_file() else "")
        for hunk in re.split(r"^@@ .*\n", hunks, flags=re.MULTILINE)[1:]:
            lines = [line or " " for line in hunk.splitlines()]
            old, new = ("\n".join(["", *(line[1:] for line in lines if line[0] != sign), ""]) for sign in "+-")
            if len(re.findall(f"(?={re.escape(old)})", source)) != 1:
                raise FetchError(
                    f"{patch.name} does not fit {name} of this llama.cpp: see what became of the lines after "
                    f"'{lines[0][1:].strip()}', and change the patch, or delete it if llama.cpp no longer needs it."
                )
            source = source.replace(old, new)
        file.write_text(source[1:], encoding="utf-8")


def unpack(archive: Path, pin: Pin, tree: Path) -> None:
    """Replace ``tree`` with the wanted parts of ``archive``, in one rename."""
    with tempfile.TemporaryDirectory(dir=tree.parent, prefix=".llama.cpp-") as scratch:
        fresh, old = Path(scratch) / "new", Path(scratch) / "old"
        fresh.mkdir()
        try:
            with tarfile.open(archive, "r:gz") as tar:
                for path, member in wanted_files(tar, pin.folder):
                    # Files get the time of unpacking. The archive's own times are the same for every pin, and
                    # a build folder would take another pin's sources for those that it has compiled.
                    target = fresh / path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with tar.extractfile(member) as source, target.open("wb") as copy:
                        shutil.copyfileobj(source, copy)
        except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk's fault, not the archive's
            raise FetchError(
                f"{archive} cannot be unpacked ({error}): delete it and run {Path(__file__).name} again."
            ) from error
        if not (fresh / "include/llama.h").is_file():
            raise FetchError(f"{archive} does not contain llama.cpp: delete it and run fetch.py again.")
        for patch in pin.patches:
            apply_patch(patch, fresh)
        (fresh / ".pin").write_text(pin.stamp, encoding="utf-8")
        if tree.exists():
            tree.rename(old)
        try:
            fresh.rename(tree)
        except BaseException:
            if old.exists():
                old.rename(tree)
            raise


def is_right(tree: Path, pin: Pin) -> bool:
    """Whether ``tree`` is what ``pin`` says."""
    stamp = tree / ".pin"
    return stamp.is_file() and stamp.read_bytes() == pin.stamp.encode()


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Let one process at a time work in ``folder``. The lock is on the folder itself, so no file is left behind."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def fetch(tree: Path = VENDOR / "llama.cpp", lock: Path = LOCK, without: Collection[str] = ()) -> bool:
    """Make ``tree`` the pinned source, with all patches but those in ``without``.

    Returns
    -------
    bool
        True if something had to be done, False if the tree was already right.

    Raises
    ------
    FetchError
        With one sentence that says what is missing and what to do.
    """
    pin = read_lock(lock, without)
    if is_right(tree, pin):
        return False
    try:
        tree.parent.mkdir(parents=True, exist_ok=True)
        with alone_in(tree.parent):
            if is_right(tree, pin):
                return False  # another process brought it meanwhile
            archive = cached_archive(pin, lock)
            print(f"fetch: unpacking llama.cpp {pin.llama_version} ({pin.commit}) into {tree}", flush=True)
            unpack(archive, pin, tree)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            free = shutil.disk_usage(tree.parent).free >> 20
            raise FetchError(
                f"no space is left for llama.cpp's source ({free} MB free at {tree.parent}; 120 MB are "
                f"needed there and 40 MB in {cache_folder()}): make room, or set MOEBIND_CACHE."
            ) from error
        raise FetchError(f"llama.cpp's source could not be written ({error}): check that folder.") from error
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--print", choices=("commit", "version"), help="print a field of the lock and stop")
    parser.add_argument("--without", nargs="*", default=(), metavar="NAME", help="leave these of vendor/patches out")
    arguments = parser.parse_args()
    try:
        if arguments.print:
            pin = read_lock()
            print(pin.commit if arguments.print == "commit" else pin.llama_version)
        elif not fetch(without=arguments.without):
            print("fetch: vendor/llama.cpp is up to date")
    except FetchError as error:
        print(f"fetch: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
