"""Have npm make llama-server's web page of the sources in ``vendor/llama.cpp/tools/ui``, and keep it in the cache.

npm brings what ``package-lock.json`` of those sources names, with its hashes. A page that was made once is found again
by the hash of its sources, and needs neither npm nor a network.

CMake runs it at configure time; run it by hand with ``python vendor/page.py``. It writes where the page is. A page
is a folder of files, each of them compressed (``.gz``), with the list of them that llama-server reads
(native/replaced/page/ui.h) and the licences of what is in it.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import mimetypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fetch import VENDOR, FetchError, alone_in, cache_folder, read_lock

SOURCE = VENDOR / "llama.cpp/tools/ui"
#: A line for each file: its name, type and hash.
LIST = "files.tsv"
LICENCES = "licences.txt"
#: Types that Python does not know.
TYPES = {".webmanifest": "application/manifest+json", ".woff2": "font/woff2", ".woff": "font/woff"}
#: All of the lock file, also where npm is set to leave some out; and without a network, give up soon.
INSTALL = ("--include=dev", "--no-audit", "--no-fund", "--prefer-offline")
RETRIES = ("--fetch-retries=2", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=5000")
#: Imports that are gone once types are checked.
ONLY_TYPES = re.compile(r"\bimport type\b[^;]*;")
#: Where sources name a package: imports in scripts, and in style sheets.
IMPORTS = re.compile(r"""(?:\bfrom|\bimport|\bimport\(|@import|@plugin|@use)\s*['"]((?:@[\w.-]+/)?[\w-][\w.-]*)""")
#: What build tools put into a page without being imported.
UNNAMED = ("svelte", "@sveltejs/kit", "workbox-precaching", "workbox-routing", "workbox-strategies", "workbox-window")


class PageError(Exception):
    """There is no page; the message is why, in a few words."""


def digest(source: Path, number: str) -> str:
    """A hash of all that decides what a page is."""
    found = hashlib.sha256(number.encode() + b"\0" + Path(__file__).read_bytes())
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        found.update(file.relative_to(source).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return found.hexdigest()


def page(source: Path = SOURCE, number: str = "") -> Path:
    """The folder of the page, made if it is not in the cache.

    Parameters
    ----------
    source
        llama.cpp's ``tools/ui``.
    number
        The build of llama.cpp that the page names.

    Raises
    ------
    PageError
        If it cannot be made.
    """
    if not (source / "package-lock.json").is_file():
        raise PageError(f"{source} has no package-lock.json")
    cache = cache_folder()
    made = cache / f"page-{digest(source, number)[:16]}"
    if (made / LIST).is_file():
        return made
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        raise PageError("npm is not installed")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with alone_in(cache):
            if (made / LIST).is_file():
                return made  # another process made it meanwhile
            for left in cache.glob("page-build-*"):
                shutil.rmtree(left, ignore_errors=True)  # of one that was ended
            with tempfile.TemporaryDirectory(dir=cache, prefix="page-build-") as folder:
                scratch = Path(folder)
                build(npm, source, number, scratch)
                pack(scratch / "built", scratch / "page")
                (scratch / "page" / LICENCES).write_text(licences(scratch / "source"), encoding="utf-8")
                shutil.rmtree(made, ignore_errors=True)
                (scratch / "page").rename(made)
    except OSError as error:
        raise PageError(f"it could not be written ({error})") from error
    return made


def build(npm: str, source: Path, number: str, scratch: Path) -> None:
    """Have npm make the page of a copy of its sources, in ``scratch/built``."""
    copy = scratch / "source"
    shutil.copytree(source, copy)
    built = scratch / "built"
    environment = {**os.environ, "LLAMA_UI_OUT_DIR": str(built), "LLAMA_BUILD_NUMBER": number, "CI": "1"}
    print("page: having npm make llama-server's web page (two minutes, once)", file=sys.stderr, flush=True)
    for name, arguments in (("ci", [*INSTALL, *RETRIES]), ("run", ["build"])):
        command = [npm, name, *arguments]
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise PageError(f"npm {name} failed: {reason(done)}")
    for name in ("index.html", "build.json"):
        if not (built / name).is_file():
            raise PageError(f"npm made no {name}")


def reason(done: subprocess.CompletedProcess[str]) -> str:
    """Why npm failed, from what it wrote."""
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("npm error").strip() for line in said if line.startswith("npm error")]
    told = [line for line in errors if line and not line.startswith("A complete log")] or said[-2:]
    return "; ".join(told[:3]) or f"exit status {done.returncode}"


def pack(built: Path, target: Path) -> None:
    """Compress each file, and list them."""
    lines = []
    for file in sorted(path for path in built.rglob("*") if path.is_file()):
        name = file.relative_to(built).as_posix()
        data = gzip.compress(file.read_bytes(), mtime=0)
        packed = target / f"{name}.gz"
        packed.parent.mkdir(parents=True, exist_ok=True)
        packed.write_bytes(data)
        kind = TYPES.get(file.suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
        if kind == "text/html":
            kind += "; charset=utf-8"
        lines.append(f"{name}\t{kind}\t{hashlib.sha256(data).hexdigest()}\n")
    (target / LIST).write_text("".join(lines), encoding="utf-8")


def licences(source: Path) -> str:
    """The licences of all packages that may be in the page: those that its sources name, and what these depend on."""
    lock = json.loads((source / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    texts: dict[str, str] = {}
    for path in sorted(needed(source, lock)):
        name, package = path.rpartition("node_modules/")[2], lock[path]
        title = f"{name} {package.get('version', '')} ({package.get('license', 'see below')})"
        texts[title] = "\n".join(licence_texts(source / path))
    for folder in sorted({file.parent for file in (source / "src").rglob("*") if is_licence(file)}):
        texts[folder.name] = "\n".join(licence_texts(folder))
    return "\n".join(f"{'=' * 80}\n{title}\n{'=' * 80}\n{text}" for title, text in texts.items())


def needed(source: Path, lock: dict[str, dict[str, dict[str, str]]]) -> set[str]:
    """Where in the lock file the packages are that the sources name, and those that they depend on."""
    names = {name for file in (source / "src").rglob("*") if file.is_file() for name in imported(file)} | {*UNNAMED}
    waiting = [("", name) for name in names]
    found: set[str] = set()
    while waiting:
        above, name = waiting.pop()
        path = resolved(above, name, lock)
        if path is not None and path not in found:
            found.add(path)
            waiting += [(path, each) for each in lock[path].get("dependencies", {})]
    return found


def imported(file: Path) -> Iterator[str]:
    """The packages that a file names; some are none."""
    if file.suffix in {".ts", ".js", ".svelte", ".css", ".scss"} and not file.name.endswith(".d.ts"):
        yield from IMPORTS.findall(ONLY_TYPES.sub("", file.read_text(encoding="utf-8")))


def resolved(above: str, name: str, lock: dict[str, dict[str, dict[str, str]]]) -> str | None:
    """Where node finds a package for the one at ``above``: in its folder, or in one around it."""
    while True:
        path = f"{above}/node_modules/{name}".lstrip("/")
        if path in lock:
            return path
        if not above:
            return None
        above = above.rpartition("node_modules/")[0].rstrip("/")


def is_licence(file: Path) -> bool:
    """Whether a file is a licence, by its name."""
    return bool(re.match(r"(?i)(licen[cs]e|copying|notice)", file.name)) and file.is_file()


def licence_texts(folder: Path) -> Iterator[str]:
    """The licences in a folder."""
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        if is_licence(file):
            yield file.read_text(encoding="utf-8", errors="replace").strip() + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.parse_args()
    try:
        print(page(number=read_lock().commit))
    except (PageError, FetchError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
