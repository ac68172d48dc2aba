"""Build moebind and llama.cpp with the compiler's sanitizers, and run Python with them.

    python tools/sanitize.py address tests/fuzz/calls.py --calls 20000 --seed 3
    python tools/sanitize.py address -m pytest tests/state -n 2 -o timeout=1200
    python tools/sanitize.py thread tests/soak/soak.py threads --minutes 10

``address`` is AddressSanitizer with UndefinedBehaviorSanitizer, ``thread`` is ThreadSanitizer. The rest is given to a
Python that has them loaded. Reports of all its processes go to files; each kind of them is told once, at the end, and
the exit status is then 1. UBSan's are on standard error, and end their process. What is known, and why it stays, is in
tools/suppressions.

A build takes GCC and some minutes; cmake/Sanitize.cmake says what is instrumented. It has a folder and a virtual
environment of its own, in build/sanitizers, on top of .venv (``make environment``), and is made again when what it is
built from changes. Left out are llama-server, and backends other than the CPU's and RPC's.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from environment import BUILT_FROM, PYTHON, ROOT, fingerprint, run

FOLDER = ROOT / "build" / "sanitizers"
SUPPRESSIONS = Path(__file__).resolve().parent / "suppressions"
WITHOUT = {"MOEBIND_WITHOUT": "server", "MOEBIND_CUDA": "OFF", "MOEBIND_VULKAN": "OFF", "MOEBIND_UI": "OFF"}
#: Where a report begins: at a line of signs, or with the place in the source.
BEGINNING = re.compile(r"^(?:={10,}$|(?=\S+:\d+:\d+: runtime error: ))", re.MULTILINE)
#: What tells its kind: its last line, or the place and what is wrong there.
KIND = re.compile(r"^(?:SUMMARY: \w+Sanitizer: )?(.*: runtime error: .*|(?<=Sanitizer: ).*)$", re.MULTILINE)


@dataclass(frozen=True)
class Sanitizer:
    """How to run with one; cmake/Sanitize.cmake has how to compile."""

    #: What has to be loaded before everything else: its own library first.
    libraries: tuple[str, ...]
    #: Options by the variable of each runtime; {log} and {suppressions} are filled in.
    options: dict[str, str]
    #: What the program is started with.
    prefix: tuple[str, ...] = ()


SANITIZERS = {
    "address": Sanitizer(
        ("libasan.so", "libstdc++.so"),
        {
            # The interpreter itself leaves memory to the end of the process, and too much is asked for on purpose.
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:log_path={log}",
            # Beside AddressSanitizer it reports to standard error only, which tests capture: so it ends the process.
            "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1:abort_on_error=1"
            ":suppressions={suppressions}/undefined.txt",
        },
    ),
    "thread": Sanitizer(
        ("libtsan.so", "libstdc++.so"),
        {
            # The interpreter is not instrumented: its locks are seen, what it does with memory is not. Of a thread's
            # variables in a library, GCC 12 looks for the size as in glibc 2.19 where their block is 16 bytes behind
            # a page's beginning, and dies of what it finds: one thread in 256 does.
            "TSAN_OPTIONS": "ignore_noninstrumented_modules=1:die_after_fork=0:history_size=4:log_path={log}"
            ":intercept_tls_get_addr=0"
            ":suppressions={suppressions}/thread.txt",
        },
        ("setarch", "--addr-no-randomize"),  # some kernels map memory where ThreadSanitizer wants to
    ),
}


def library(name: str) -> str:
    """Where the compiler has a library."""
    found = subprocess.run(
        ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not os.path.isabs(found):
        raise SystemExit(f"sanitize: this GCC has no {name}; Debian has it in libgcc-*-dev and libstdc++-*-dev")
    return os.path.realpath(found)


def build(kind: str) -> Path:
    """Build and install, if that has to be; the environment's Python."""
    folder = FOLDER / kind
    python, stamp = folder / "venv/bin/python", folder / "built"
    state = fingerprint((*BUILT_FROM, "tools/sanitize.py"))
    if stamp.exists() and stamp.read_text(encoding="utf-8") == state:
        return python
    if not PYTHON.exists():
        raise SystemExit("sanitize: there is no .venv yet: run `make environment` first")
    if not python.exists() and run(PYTHON, "-m", "venv", "--without-pip", folder / "venv") != 0:
        raise SystemExit("sanitize: no virtual environment could be made")
    version = f"python{sysconfig.get_python_version()}"
    below = ROOT / ".venv/lib" / version / "site-packages"
    (folder / "venv/lib" / version / "site-packages/below.pth").write_text(f"{below}\n", encoding="utf-8")
    defines = {**WITHOUT, "MOEBIND_SANITIZE": kind}
    command = [python, "-m", "pip", "--disable-pip-version-check", "install", "-v", "--no-deps", "--no-build-isolation"]
    command += ["--no-index", "--ignore-installed", f"-Cbuild-dir={folder / 'cmake'}", "--editable", ROOT]
    command += ["-Cinstall.strip=false"]  # reports tell lines of the source, and suppressions find functions
    command += [f"-Ccmake.define.{name}={value}" for name, value in defines.items()]
    print(f"sanitize: building for {kind}, in {folder} (as many minutes as llama.cpp takes)", flush=True)
    path = f"{PYTHON.parent}:{os.environ['PATH']}"
    if run(*command, env={**os.environ, "PATH": path}) != 0:
        raise SystemExit("sanitize: the build failed; its messages are above")
    stamp.write_text(state, encoding="utf-8")
    return python


def environment(sanitizer: Sanitizer, log: Path) -> dict[str, str]:
    """Variables that a sanitized Python is started with; its children inherit them."""
    options = {name: value.format(log=log, suppressions=SUPPRESSIONS) for name, value in sanitizer.options.items()}
    preloaded = ":".join(library(each) for each in sanitizer.libraries)
    # Each of Python's own blocks is one of malloc's, which the sanitizer knows.
    return {**os.environ, **options, "LD_PRELOAD": preloaded, "PYTHONMALLOC": "malloc", "PYTHONFAULTHANDLER": "1"}


def reports(folder: Path) -> dict[str, tuple[int, str]]:
    """Each kind of report, how often it came, and the first of them in full."""
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for file in sorted(folder.iterdir()):
        for text in BEGINNING.split(file.read_text(encoding="utf-8", errors="replace")):
            if text.strip() and not text.strip().startswith("ThreadSanitizer: reported "):  # how many there were
                found = KIND.search(text)
                kind = found[1] if found else f"in {file.name}"
                counts[kind] += 1
                first.setdefault(kind, text.strip())
    return {kind: (count, first[kind]) for kind, count in counts.most_common()}


def main() -> int:
    """Build, run, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=SANITIZERS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="what Python gets; nothing: only build")
    chosen = parser.parse_args()
    sanitizer = SANITIZERS[chosen.kind]
    python = build(chosen.kind)
    if not chosen.arguments:
        return 0
    found = FOLDER / chosen.kind / "reports" / str(os.getpid())
    shutil.rmtree(found, ignore_errors=True)
    found.mkdir(parents=True)
    try:
        status = run(*sanitizer.prefix, python, *chosen.arguments, env=environment(sanitizer, found / "report"))
    except KeyboardInterrupt:  # long runs are ended so; what they found is told all the same
        status = 130
    kinds = reports(found)
    for kind, (count, text) in kinds.items():
        print(f"\n=== {count} x {kind}\n{text}")
    print(f"\nsanitize: {chosen.kind}: exit status {status}; {len(kinds)} kinds of reports; all of them: {found}")
    return 1 if kinds else status


if __name__ == "__main__":
    sys.exit(main())
