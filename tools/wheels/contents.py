"""Whether a wheel is whole: the libraries that are loaded by their names, who finds whom, licences, the list of all.

What repairs a wheel may rename libraries, copy them and change where they look for others. llama.cpp opens its backends
by the names of their files, so that neither would be noticed before somebody loads a model.
"""

from __future__ import annotations

import json
import posixpath
import re
import stat
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from flavours import BROUGHT

__all__ = ["Binary", "binaries", "problems", "put_in"]

#: Where those of the package look for llama.cpp's libraries first, by their folders.
FIRST = {"moebind": "$ORIGIN/lib", "moebind/lib": "$ORIGIN", "moebind/bin": "$ORIGIN/../lib"}
#: llama.cpp's libraries, by the beginning of their names.
OURS = re.compile(r"lib(ggml|llama|mtmd)")
#: What auditwheel put in: its name before the hashes that auditwheel gives it, and before its version.
ADDED = re.compile(r"moebind\.libs/(lib.+?)(?:-[\da-f]{8})*\.so\b")
#: What they export.
SYMBOLS = re.compile(r"(ggml|gguf|llama|mtmd)_")
WANTED = {
    "moebind/_libllama.abi3.so",
    "moebind/bin/llama-server",
    *(f"moebind/lib/lib{name}.so" for name in ("ggml-base", "ggml", "ggml-rpc", "llama", "llama-common", "mtmd")),
}
#: What ggml asks of a backend that it opens, and of one of several for the same device.
ENTRIES = {"ggml_backend_init", "ggml_backend_score"}

#: The page for browsers in the list of what is bundled, and the licences of what is in it.
PAGE = "llama-ui"
PAGE_LICENCES = "moebind/ui/licences.txt"


@dataclass(frozen=True)
class Binary:
    """What is told of itself by a library or program in a wheel."""

    name: str
    soname: str
    needed: tuple[str, ...]
    folders: tuple[str, ...]
    symbols: frozenset[str]
    undefined: frozenset[str]

    def finds(self, library: str, names: set[str]) -> bool:
        """Whether it finds a library of the wheel, by the folders it looks in."""
        here = posixpath.dirname(self.name)
        places = (folder.replace("$ORIGIN", here) for folder in self.folders)
        return any(posixpath.normpath(posixpath.join(place, library)) in names for place in places)


def put_in(names: Iterable[str]) -> set[str]:
    """The libraries that auditwheel put in, such as ``libgomp``."""
    found = {match[1] for name in names if (match := ADDED.match(name))}
    return {name for name in found if not OURS.match(name)}


def binaries(archive: zipfile.ZipFile) -> Iterator[Binary]:
    """The libraries and programs of a wheel."""
    for name in archive.namelist():
        data = archive.read(name) if ".so" in name or "/bin/" in name else b""
        if not data.startswith(b"\x7fELF"):
            continue
        try:
            section = ELFFile(BytesIO(data)).get_section_by_name(".dynamic")
            table = ELFFile(BytesIO(data)).get_section_by_name(".dynsym")
        except ELFError:
            section = table = None
        if not isinstance(section, DynamicSection) or table is None:
            continue
        told: dict[str, list[str]] = {}
        for tag in section.iter_tags():
            kind = tag.entry.d_tag.removeprefix("DT_")
            told.setdefault(kind, []).append(getattr(tag, kind.lower(), ""))
        folders = [folder for path in (*told.get("RPATH", ()), *told.get("RUNPATH", ())) for folder in path.split(":")]
        defined = {each.name for each in table.iter_symbols() if each.entry.st_shndx != "SHN_UNDEF"}
        undefined = {each.name for each in table.iter_symbols()} - defined
        names = "".join(told.get("SONAME", ())), tuple(told.get("NEEDED", ()))
        yield Binary(name, *names, tuple(folders), frozenset(defined), frozenset(undefined))


def problems(wheel: Path) -> list[str]:
    """What is wrong with a wheel that is to be given to others; nothing if all is well."""
    with zipfile.ZipFile(wheel) as archive:
        found = list(binaries(archive))
        names = set(archive.namelist())
        modes = {info.filename: info.external_attr >> 16 for info in archive.infolist()}
        said = [f"{name} is missing" for name in sorted(WANTED - names)]
        said += [each for binary in found for each in _of_binary(binary, names)]
        said += _of_processors(found)
        said += _of_symbols(found)
        said += _of_metadata(archive, names)
    for name, mode in modes.items():
        if name.startswith("moebind/bin/") and not mode & stat.S_IXUSR:
            said.append(f"{name} cannot be executed")
    said += _of_tag(wheel)
    return said


def _of_tag(wheel: Path) -> Iterator[str]:
    parts = wheel.stem.split("-")
    if len(parts) < 5 or parts[-3:-1] != ["cp310", "abi3"]:
        yield f"{wheel.name} is not for every Python from 3.10: its tag must have cp310-abi3"
    elif not re.match(r"(manylinux|musllinux)_\d+_\d+_\w+", parts[-1]):
        yield f"{wheel.name} says for no C library that it fits: repair it first"


def _of_binary(binary: Binary, names: set[str]) -> Iterator[str]:
    folder, _, file = binary.name.rpartition("/")
    if OURS.match(file):
        if folder != "moebind/lib":
            yield f"{binary.name} is a library of llama.cpp's outside moebind/lib"
        if binary.soname and binary.soname != file:
            yield f"{binary.name} calls itself {binary.soname}"
    if folder in FIRST and (not binary.folders or binary.folders[0] != FIRST[folder]):
        yield f"{binary.name} looks in {':'.join(binary.folders) or 'no folder'}, which must begin with {FIRST[folder]}"
    if outside := [each for each in binary.folders if not each.startswith("$ORIGIN")]:
        yield f"{binary.name} looks in {outside[0]}, a folder of the machine that built it"
    for library in binary.needed:
        bundled = any(name.endswith(f"/{library}") for name in names)
        if (OURS.match(library) or bundled) and not binary.finds(library, names):
            yield f"{binary.name} needs {library}, which it does not find"
    if bundled := sorted(library for library in BROUGHT if f"moebind.libs/{library}" in names):
        yield f"{bundled[0]} is bundled, which the driver or another package brings"


def _of_processors(found: list[Binary]) -> Iterator[str]:
    kinds = [binary for binary in found if binary.name.startswith("moebind/lib/libggml-cpu")]
    if len(kinds) < 2:
        yield (
            f"it is for {'one kind' if kinds else 'no kind'} of processor: tools/wheels build makes one for all "
            "(MOEBIND_PORTABLE=ON)"
        )
        return
    for binary in kinds:
        if lacking := ENTRIES - binary.symbols:
            yield f"{binary.name} has no {' and no '.join(sorted(lacking))}: ggml passes it by"


def _of_symbols(found: list[Binary]) -> Iterator[str]:
    """What is used of llama.cpp's and is in no library but such as are opened at run time."""
    linked = {name for binary in found if not binary.symbols >= ENTRIES for name in binary.symbols}
    for binary in found:
        lacking = sorted(name for name in binary.undefined - linked if SYMBOLS.match(name))
        if lacking:
            yield f"{binary.name} uses {lacking[0]}, which no library that is linked has: it cannot be loaded"


def _of_metadata(archive: zipfile.ZipFile, names: set[str]) -> Iterator[str]:
    (info,) = {name.partition("/")[0] for name in names if name.partition("/")[0].endswith(".dist-info")}
    licences = {name for name in names if name.startswith(f"{info}/licenses/") and not name.endswith("/")}
    metadata = archive.read(f"{info}/METADATA").decode()
    named = set(re.findall(r"^License-File: (.+)$", metadata, re.MULTILINE))
    if not named or named != {name.removeprefix(f"{info}/licenses/") for name in licences}:
        yield "the licences in the wheel are not those that its metadata names"
    if f"{info}/sboms/moebind.cdx.json" not in names:
        yield f"{info}/sboms/moebind.cdx.json is missing, the list of what is bundled"
        return
    listed = json.loads(archive.read(f"{info}/sboms/moebind.cdx.json"))
    components = {each["name"]: each for each in listed["components"]}
    lacking = components.keys() | put_in(names)
    lacking -= {posixpath.basename(name)[:-4] for name in licences} | {"ggml", PAGE}  # whose licence is llama.cpp's
    if lacking:
        yield f"there is no licence of {', '.join(sorted(lacking))}"
    yield from _of_page(archive, names, components.get(PAGE, {}).get("components", []))


def _of_page(archive: zipfile.ZipFile, names: set[str], listed: list[dict[str, str]]) -> Iterator[str]:
    """Whether the list has what is in the page for browsers, and the page's folder the licences of that."""
    text = archive.read(PAGE_LICENCES).decode() if PAGE_LICENCES in names else ""
    titles = set(re.findall(r"^={80}\n(.+?)(?: \(.+\))?\n={80}$", text, re.MULTILINE))
    parts = {f"{each['name']} {each.get('version', '')}".rstrip() for each in listed}
    if unlisted := sorted(titles - parts):
        yield f"the list of what is bundled lacks {unlisted[0]}, which is in the page for browsers"
    if lacking := sorted(parts - titles):
        yield f"{PAGE_LICENCES} has no licence of {lacking[0]}"
