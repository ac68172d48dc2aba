"""Other distributions in folders, to try a wheel in.

A folder of Debian's is made by debootstrap, from the mirror that this machine's apt uses, and entered with chroot;
both take root. What is mounted in it is mounted for the command alone (unshare): nothing is left behind, and the folder
can be removed or copied at any time. One for another kind of processor is emulated by QEMU, which the kernel calls.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PYTHON", "ROOTS", "Root", "RootError", "enter", "make", "mirrors"]

#: What runs in a root as if it were booted: its own /proc, and no variable of this machine's.
MOUNT = 'mount -t proc proc "$1/proc" && root=$1 && shift && exec chroot "$root" "$@"'
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
STAMP = ".moebind-root"


class RootError(Exception):
    """The distribution cannot be made or entered; the message says why."""


@dataclass(frozen=True)
class Root:
    """A distribution: its name at Debian's, and what is installed besides the least. None has a compiler.

    Parameters
    ----------
    machine
        The kind of processor, as in ``platform.machine()``; empty: this machine's.
    """

    suite: str
    packages: tuple[str, ...] = ("ca-certificates", "python3", "python3-venv")
    machine: str = ""


ROOTS = {
    "debian-12": Root("bookworm"),
    "debian-13": Root("trixie"),
    "debian-12-arm64": Root("bookworm", machine="aarch64"),
}
#: Debian's names of processors.
DEBIAN = {"aarch64": "arm64", "x86_64": "amd64"}
#: Their interpreter.
PYTHON = "/usr/bin/python3"


def mirrors(folder: Path = Path("/etc/apt")) -> tuple[str, str]:
    """The mirrors of Debian that this machine's apt uses: of the distribution, and of its security updates."""
    found: list[tuple[str, str]] = []
    for path in (folder / "sources.list", *sorted((folder / "sources.list.d").glob("*"))):
        if path.suffix in {".list", ".sources"} and path.is_file():
            text = re.sub(r"^#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
            found += re.findall(r"^deb +(?:\[[^]]*\] +)?(\S+) +(\S+)", text, re.MULTILINE)
            for stanza in text.split("\n\n"):
                told = dict(re.findall(r"^(\w[\w-]*): *(.+)$", stanza, re.MULTILINE))
                if "deb" in told.get("Types", "").split():
                    uris, suites = told.get("URIs", "").split(), told.get("Suites", "").split()
                    found += [(uri, suite) for uri in uris for suite in suites]
    debian = [uri for uri, suite in found if re.fullmatch(r"\S+/debian/?", uri) and "-" not in suite]
    security = [uri for uri, suite in found if suite.endswith("-security")]
    if not debian:
        raise RootError(f"{folder} names no mirror of Debian's: these folders are made on Debian")
    return debian[0].rstrip("/"), (security or debian)[0].rstrip("/")


def enter(
    root: Path, command: Sequence[str], environment: Mapping[str, str] | None = None, *, captured: bool = False
) -> str:
    """Run a command in a root, as a login would find it; its output, if that is wanted.

    Raises
    ------
    RootError
        If the command fails.
    """
    clean = {"PATH": PATH, "HOME": "/root", "LC_ALL": "C.UTF-8"}
    words = ["unshare", "--mount", "sh", "-c", MOUNT, "sh", str(root), *command]
    done = subprocess.run(
        words, env=clean | dict(environment or {}), check=False, text=True, stdout=subprocess.PIPE if captured else None
    )
    if done.returncode != 0:
        raise RootError(f"'{' '.join(command)[:200]}' ended with {done.returncode} in {root}")
    return done.stdout or ""


def check_emulated(machine: str, known: Path = Path("/proc/sys/fs/binfmt_misc")) -> None:
    """Whether this machine runs programs for a kind of processor, by itself or by QEMU.

    Raises
    ------
    RootError
        If it does not; the message says what to do.
    """
    if machine in {"", platform.machine()} or (known / f"qemu-{machine}").exists():
        return
    raise RootError(
        f"the kernel does not know what runs programs for {machine}: apt-get install qemu-user-static, and where "
        f"nothing tells it at a start (a container), mount -t binfmt_misc none {known} && "
        f"cat /usr/lib/binfmt.d/qemu-{machine}.conf > {known}/register"
    )


def make(name: str, folder: Path) -> None:
    """Make one of ``ROOTS``, unless it is there."""
    root = ROOTS[name]
    if (folder / STAMP).exists():
        return
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        raise RootError("a distribution in a folder takes root and debootstrap (apt-get install debootstrap)")
    debian, security = mirrors()
    check_emulated(root.machine)
    if not (folder / "etc/debian_version").exists():
        bootstrap = ["debootstrap", "--variant=minbase", root.suite, str(folder), debian]
        if root.machine:
            bootstrap.insert(1, f"--arch={DEBIAN[root.machine]}")
        if subprocess.run(["unshare", "--mount", *bootstrap], check=False).returncode != 0:
            raise RootError(f"debootstrap failed: see {folder}/debootstrap/debootstrap.log, and remove {folder}")
    for file in ("resolv.conf", "hosts"):
        shutil.copy(Path("/etc") / file, folder / "etc" / file)
    sources = [f"deb {debian} {root.suite} main", f"deb {security} {root.suite}-security main"]
    (folder / "etc/apt/sources.list").write_text("\n".join(sources) + "\n", encoding="utf-8")
    enter(folder, ["apt-get", "-qq", "update"])
    install = ["apt-get", "-qq", "install", "-y", "--no-install-recommends", *root.packages]
    enter(folder, install, {"DEBIAN_FRONTEND": "noninteractive"})
    (folder / STAMP).write_text(name + "\n", encoding="utf-8")
