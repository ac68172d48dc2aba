"""Make the developers' environment: .venv with everything that builds, tests and documents moebind, and moebind itself.

``make`` runs it. What it installs is downloaded once into the user's cache, so that a second checkout needs no network;
what is there already is left alone. Plain standard library, since nothing is installed yet.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "vendor"))
from fetch import cache_folder  # noqa: E402  # the archive's cache is ours too

VENV = ROOT / ".venv"
PYTHON = VENV / "bin/python"
EXTRAS = ("test", "docs", "dev")
#: Environment variables that choose what is built.
ASKED = ("MOEBIND_CUDA", "MOEBIND_CUDA_ARCHITECTURES", "MOEBIND_VULKAN", "MOEBIND_UI")
#: Changes to these need a new build; other files are used where they are.
BUILT_FROM = (
    "CMakeLists.txt",
    "cmake",
    "licences",
    "native",
    "vendor/fetch.py",
    "vendor/llama.cpp.lock",
    "vendor/page.py",
    "vendor/patches",
    "pyproject.toml",
)

#: How far a build of many files is, as Ninja has it, and what CMake decided before (cmake/Summary.cmake).
BUILT = re.compile(r"\s*\[(\d+)/(\d+)\] ")
MANY = 50
DECIDED = re.compile(r"\s*--   (CUDA|Vulkan|web page) +(in|out)\b")


def requirements() -> list[str]:
    """Requirements of pyproject.toml: dependencies, extras of developers, and a CUDA toolkit if one is wanted."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = text[text.index("[project]") : text.index("[tool.")]
    found: list[str] = []
    for name in ("dependencies", *EXTRAS):
        listed = re.search(rf"^{name} = \[(.*?)\]\s*$", project, re.MULTILINE | re.DOTALL)
        if listed is None:
            raise SystemExit(f"pyproject.toml has no list '{name}'")
        found += re.findall(r'"([^"]+)"', listed[1])
    if os.environ.get("MOEBIND_CUDA", "").upper() == "PIP":
        toolkit = re.search(r"^build\.requires = \[(.*?)\]\s*$", text, re.MULTILINE | re.DOTALL)
        if toolkit is None:
            raise SystemExit("pyproject.toml has no list 'build.requires'")
        found += re.findall(r'"([^"]+)"', toolkit[1])
    return found


def version() -> str:
    """The version of moebind."""
    text = (ROOT / "src/moebind/_core/version.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    if found is None:
        raise SystemExit("src/moebind/_core/version.py has no __version__")
    return found[1]


def run(*command: str | Path, **options: object) -> int:
    """Run a command and give its exit status."""
    return subprocess.run([str(part) for part in command], check=False, **options).returncode  # type: ignore[call-overload]


def say(step: str) -> None:
    """Tell what is done, before it takes its time."""
    print(f"environment: {step}", flush=True)


def install_requirements(wanted: list[str]) -> None:
    """Install from the cached wheels; download those that are missing."""
    wheels = cache_folder() / "wheels" / f"py{sysconfig.get_python_version()}"
    wheels.mkdir(parents=True, exist_ok=True)
    pip = (PYTHON, "-m", "pip", "--disable-pip-version-check", "--quiet")
    say(f"installing what builds and tests moebind, {len(wanted)} requirements, into .venv (a minute or less)")
    offline = (*pip, "install", "--no-index", "--find-links", wheels, *wanted)
    if run(*offline, stderr=subprocess.DEVNULL) == 0:
        return
    say(f"downloading those that are not in {wheels} yet (some minutes)")
    if run(*pip, "download", "--only-binary", ":all:", "--dest", wheels, *wanted) != 0 or run(*offline) != 0:
        raise SystemExit(f"environment: pip could not download the requirements; they are kept in {wheels}")


def build(*command: str | Path) -> int:
    """Run a build, and give its exit status; tell at each tenth how far it is, and of a failure what is about it."""
    log, begun = VENV / "build.log", time.monotonic()
    lines: list[str] = []
    decided: list[str] = []
    tenths = 0
    with (
        open(log, "w", encoding="utf-8") as kept,
        subprocess.Popen(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        ) as process,
    ):
        for line in process.stdout or ():
            kept.write(line)
            lines.append(line.rstrip())
            if choice := DECIDED.match(line):
                decided.append(f"{choice[1]} {choice[2]}")
            step = BUILT.match(line)
            if step is None or int(step[2]) < MANY:
                continue
            if tenths == 0:
                say(f"compiling {step[2]} files ({', '.join(decided)}); all output goes to {log}")
                tenths = 1
            elif 10 * int(step[1]) // int(step[2]) >= tenths:
                tenths = 10 * int(step[1]) // int(step[2]) + 1
                say(f"{step[1]} of {step[2]} after {(time.monotonic() - begun) / 60:.1f} minutes")
    if process.returncode != 0:
        print("\n".join(about_failure(lines)), flush=True)
    return process.returncode


def about_failure(lines: list[str]) -> list[str]:
    """The lines of a build from the first error on, or the last ones."""
    first = next((at for at, line in enumerate(lines) if "FAILED: " in line or "CMake Error" in line), len(lines) - 60)
    return lines[max(first, 0) :][:100]


def to_build() -> str:
    """What will probably be built, and for how long; CMake decides."""
    parts = ["6 CPU minutes for the CPU"]
    off = {name for name in ASKED if os.environ.get(name, "").upper() == "OFF"}
    cuda = os.environ.get("MOEBIND_CUDA", "").upper() in {"ON", "PIP"}
    if "MOEBIND_CUDA" not in off and (cuda or shutil.which("nvcc")):
        parts.append("40 or more for CUDA")
    if "MOEBIND_VULKAN" not in off and shutil.which("glslc"):
        parts.append("4 for Vulkan")
    if "MOEBIND_UI" not in off and shutil.which("npm"):
        parts.append("2 for the web page, the first time")
    cores = len(os.sched_getaffinity(0))
    return f"{', '.join(parts)}; on {cores} core{'s' * (cores != 1)}. Where little has changed, seconds"


def fingerprint(paths: tuple[str, ...]) -> str:
    """A hash of those files and folders."""
    digest = hashlib.sha256(sys.version.encode())
    for name in paths:
        path = ROOT / name
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def once(name: str, state: str) -> bool:
    """Whether a step still has to be done for this state."""
    stamp = VENV / f".moebind-{name}"
    return not (stamp.exists() and stamp.read_text(encoding="utf-8") == state)


def done(name: str, state: str) -> None:
    """Remember that the step was done."""
    (VENV / f".moebind-{name}").write_text(state, encoding="utf-8")


def is_this_checkout() -> bool:
    """Whether the moebind in .venv is this one: ``pip install .`` there puts a copy in its place."""
    for record in VENV.glob("lib/python*/site-packages/moebind-*.dist-info/direct_url.json"):
        told = json.loads(record.read_text(encoding="utf-8"))
        if told.get("dir_info", {}).get("editable") and told["url"] == ROOT.as_uri():
            return True
    return False


def main() -> None:
    """Bring the environment up to date."""
    if sys.version_info < (3, 10):  # noqa: UP036  # whatever python3 is, it begins here
        raise SystemExit(f"environment: {sys.executable} is too old; set PYTHON to Python 3.10 or newer")
    if not PYTHON.exists():
        say("making .venv, an environment of Python's for this checkout (seconds); then two steps that take minutes")
        venv.create(VENV, with_pip=True)
    wanted = requirements()
    if once("requirements", "\n".join(wanted)):
        install_requirements(wanted)
        done("requirements", "\n".join(wanted))
    state = fingerprint(BUILT_FROM) + "".join(f" {name}={os.environ[name]}" for name in ASKED if name in os.environ)
    state += f" version={version()}"  # pip keeps the one that it installed
    # What backends and llama-server's web page are made with, where the build finds it.
    state += "".join(f" {name}={shutil.which(name) is not None}" for name in ("npm", "nvcc", "glslc"))
    outdated = once("build", state)
    if not outdated and not is_this_checkout():
        say("the moebind in .venv is not this checkout: it was installed there in its place, and is replaced")
        outdated = True
    if outdated:
        say(f"building moebind ({to_build()})")
        pip = (PYTHON, "-m", "pip", "--disable-pip-version-check", "install", "--no-deps", "--no-build-isolation")
        if build(*pip, "--no-index", "--editable", ROOT, "-v") != 0:
            raise SystemExit("environment: the build failed; its messages are above")
        done("build", state)


if __name__ == "__main__":
    main()
