"""What a wheel of moebind bundles, where that lies in llama.cpp, and under which licence: one table.

Two things are made of it. ``licences/`` has the licence of each, for ``license-files`` in pyproject.toml, which is read
before llama.cpp is there: without arguments this writes it, and with ``--check`` it compares it with the llama.cpp that
is there, as every build does. ``--sbom FILE`` writes the list of what was built (CycloneDX), which the build installs
in the wheel's metadata. With ``--page`` the list has the packages of the page for browsers, too: those of which
vendor/page.py puts the licences beside the page.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "vendor"))
from fetch import Pin, read_lock, sha256_of  # noqa: E402

LLAMA = ROOT / "vendor/llama.cpp"
LICENCES = ROOT / "licences"


class BundledError(Exception):
    """llama.cpp is not as the table says; the message is one sentence that says what to do."""


@dataclass(frozen=True)
class Bundled:
    """A library that comes with llama.cpp.

    Parameters
    ----------
    name
        Its name; that of the file in ``licences/``, too.
    licence
        Its licence, as an expression of SPDX.
    file
        Where the licence is told, relative to llama.cpp.
    start, end
        Between which words it is told there; without them the whole file is the licence.
    source
        Where its version is told, relative to llama.cpp; empty: nowhere.
    version
        Patterns of what is between the dots of the version.
    """

    name: str
    licence: str
    file: str
    start: str = ""
    end: str = "*/"
    source: str = ""
    version: tuple[str, ...] = ()

    def text(self, llama: Path) -> str:
        """The text of the licence."""
        text = (llama / self.file).read_text(encoding="utf-8")
        if not self.start:
            return text
        begin = text.find(self.start)
        end = text.find(self.end, begin)
        if begin < 0 or end < 0:
            raise BundledError(
                f"{self.file} of this llama.cpp no longer has the licence that begins with '{self.start}': see what "
                "became of it, and change the table in cmake/bundled.py"
            )
        lines = text[begin:end].splitlines()
        return "\n".join(re.sub("^(//|  +) ?", "", line).rstrip() for line in lines).strip() + "\n"

    def found_version(self, llama: Path) -> str:
        """The version, or an empty text if none is told."""
        if not self.source:
            return ""
        text = (llama / self.source).read_text(encoding="utf-8")
        parts = [re.search(pattern, text) for pattern in self.version]
        if not all(parts):
            raise BundledError(
                f"{self.source} of this llama.cpp does not tell the version of {self.name} any more: change the table "
                "in cmake/bundled.py"
            )
        return ".".join(part[1] for part in parts if part)


#: Where llama.cpp has the libraries of others.
OTHERS = "vendor"
#: llama.cpp itself comes first; ggml and what its folder ``vendor`` and its sources have of others follow.
BUNDLED = (
    Bundled("llama.cpp", "MIT", "LICENSE"),
    Bundled(
        "ggml",
        "MIT",
        "LICENSE",
        source="ggml/CMakeLists.txt",
        version=tuple(rf"GGML_VERSION_{part} (\d+)" for part in ("MAJOR", "MINOR", "PATCH")),
    ),
    Bundled(
        "nlohmann-json",
        "MIT",
        "licenses/LICENSE-jsonhpp",
        source=f"{OTHERS}/nlohmann/json.hpp",
        version=tuple(rf"NLOHMANN_JSON_VERSION_{part} (\d+)" for part in ("MAJOR", "MINOR", "PATCH")),
    ),
    Bundled(
        "cpp-httplib",
        "MIT",
        f"{OTHERS}/cpp-httplib/LICENSE",
        source=f"{OTHERS}/cpp-httplib/httplib.h",
        version=(r'CPPHTTPLIB_VERSION "([\d.]+)"',),
    ),
    Bundled(
        "miniaudio",
        "Unlicense OR MIT-0",
        f"{OTHERS}/miniaudio/miniaudio.h",
        "This software is available as a choice of",
        source=f"{OTHERS}/miniaudio/miniaudio.h",
        version=tuple(rf"MA_VERSION_{part} +(\d+)" for part in ("MAJOR", "MINOR", "REVISION")),
    ),
    Bundled(
        "stb_image",
        "MIT OR Unlicense",
        f"{OTHERS}/stb/stb_image.h",
        "This software is available under 2 licenses",
        source=f"{OTHERS}/stb/stb_image.h",
        version=(r"stb_image - v([\d.]+)",),
    ),
    Bundled("subprocess", "Unlicense", f"{OTHERS}/sheredom/subprocess.h", "This is free and unencumbered software"),
    Bundled(
        "xxhash",
        "BSD-2-Clause",
        f"{OTHERS}/hash/xxhash/LICENSE",
        source=f"{OTHERS}/hash/xxhash/xxhash.h",
        version=tuple(rf"XXH_VERSION_{part} +(\d+)" for part in ("MAJOR", "MINOR", "RELEASE")),
    ),
    Bundled("sha1", "LicenseRef-public-domain", f"{OTHERS}/hash/sha1/sha1.c", "SHA-1 in C"),
    Bundled("sha256", "LicenseRef-public-domain", f"{OTHERS}/hash/sha256/LICENSE"),
    Bundled("rotate-bits", "MIT", f"{OTHERS}/hash/rotate-bits/LICENSE.md"),
    Bundled("llamafile", "MIT", "ggml/src/ggml-cpu/llamafile/sgemm.cpp", "Copyright 2024 Mozilla", "\n\n"),
)

#: llama-server's page for browsers, as its sources call it; it has llama.cpp's licence.
PAGE = "llama-ui"


def licences(llama: Path = LLAMA) -> dict[str, str]:
    """The files of ``licences/``, by name."""
    return {f"{each.name}.txt": each.text(llama) for each in BUNDLED if each.name != "ggml"}  # which is llama.cpp's


def differences(folder: Path = LICENCES, llama: Path = LLAMA) -> list[str]:
    """The files of ``licences/`` that are not as this llama.cpp has them."""
    wanted = licences(llama)
    there = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.txt")}
    return sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))


def licensed(expression: str) -> list[dict[str, Any]]:
    """A licence as CycloneDX has it."""
    if expression.startswith("LicenseRef-"):
        return [{"license": {"name": expression.removeprefix("LicenseRef-").replace("-", " ")}}]
    return [{"expression": expression}] if " " in expression else [{"license": {"id": expression}}]


def component(each: Bundled, llama: Path, pin: Pin) -> dict[str, Any]:
    """A row of the table as a component of the list."""
    made: dict[str, Any] = {"type": "library", "bom-ref": each.name, "name": each.name}
    if each.name == "llama.cpp":
        made["version"] = pin.llama_version
        made["purl"] = f"pkg:github/ggml-org/llama.cpp@{pin.commit}"
        made["pedigree"] = {
            "commits": [{"uid": pin.commit}],
            "notes": "Built with the patches that the properties name, and with the sources of native/replaced",
        }
        made["properties"] = [
            {"name": f"moebind:{patch.relative_to(ROOT).as_posix()}", "value": f"sha256:{sha256_of(patch)}"}
            for patch in pin.patches
        ]
        made["externalReferences"] = [
            {
                "type": "source-distribution",
                "url": f"pkg:pypi/{pin.project}@{pin.version}",
                "hashes": [{"alg": "SHA-256", "content": pin.sha256}],
            }
        ]
    elif version := each.found_version(llama):
        made["version"] = version
    return made | {"licenses": licensed(each.licence)}


def package(name: str, locked: dict[str, str]) -> dict[str, Any]:
    """A package of npm's as a component of the list."""
    made: dict[str, Any] = {"type": "library", "name": name, "version": locked["version"]}
    made["bom-ref"] = made["purl"] = f"pkg:npm/{name.replace('@', '%40')}@{locked['version']}"
    kind, _, digest = locked["integrity"].partition("-")
    made["externalReferences"] = [
        {
            "type": "distribution",
            "url": made["purl"],
            "hashes": [{"alg": kind.upper().replace("SHA", "SHA-"), "content": base64.b64decode(digest).hex()}],
        }
    ]
    if "license" in locked:
        made["licenses"] = licensed(locked["license"])
    return made


def page_component(source: Path = LLAMA / "tools/ui") -> dict[str, Any]:
    """The page for browsers as a component of the list, with what is in it.

    Parameters
    ----------
    source
        llama.cpp's ``tools/ui``.
    """
    from page import is_licence, needed  # not in every copy of the sources that is built

    lock = json.loads((source / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    packages = [package(path.rpartition("node_modules/")[2], lock[path]) for path in needed(source, lock)]
    vendored = {file.parent.name for file in (source / "src").rglob("*") if is_licence(file)}
    others = [{"type": "library", "bom-ref": f"{PAGE}/{name}", "name": name} for name in vendored]
    by_ref = {each["bom-ref"]: each for each in (*packages, *others)}  # npm may have one twice
    parts = [by_ref[ref] for ref in sorted(by_ref)]
    return {"type": "application", "bom-ref": PAGE, "name": PAGE, "licenses": licensed("MIT"), "components": parts}


def sbom(
    version: str, files: Sequence[str], llama: Path = LLAMA, without: Sequence[str] = (), *, page: bool = False
) -> dict[str, Any]:
    """The list of what a build bundles.

    Parameters
    ----------
    version
        moebind's.
    files
        The libraries and programs that were built.
    without
        The patches that were left out.
    page
        Whether the page for browsers is there.
    """
    pin = read_lock(without=without)
    others = [each.name for each in BUNDLED[1:]]
    components = [component(each, llama, pin) for each in BUNDLED]
    if page:
        others.append(PAGE)
        components.append(page_component(llama / "tools/ui"))
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "library",
                "bom-ref": "moebind",
                "name": "moebind",
                "version": version,
                "purl": f"pkg:pypi/moebind@{version}",
                "licenses": licensed("MIT"),
                "properties": [{"name": "moebind:built", "value": name} for name in files],
            }
        },
        "components": components,
        "dependencies": [{"ref": "moebind", "dependsOn": ["llama.cpp"]}, {"ref": "llama.cpp", "dependsOn": others}],
    }


def main() -> int:
    """Write or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare licences/, write nothing")
    parser.add_argument("--sbom", type=Path, metavar="FILE", help="write the list of what is bundled")
    parser.add_argument("--version", default="", help="moebind's, for the list")
    parser.add_argument("--built", nargs="*", default=(), help="libraries and programs, for the list")
    parser.add_argument("--without", nargs="*", default=(), help="patches that were left out, for the list")
    parser.add_argument("--page", action="store_true", help="the page for browsers is there, for the list")
    arguments = parser.parse_args()
    try:
        if arguments.check and (changed := differences()):
            raise BundledError(
                f"not as this llama.cpp has them: {', '.join(f'licences/{name}' for name in changed)}; run "
                "python cmake/bundled.py, and see what changed"
            )
        if arguments.sbom:
            listed = sbom(arguments.version, arguments.built, without=arguments.without, page=arguments.page)
            arguments.sbom.parent.mkdir(parents=True, exist_ok=True)
            arguments.sbom.write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
        elif not arguments.check:
            LICENCES.mkdir(exist_ok=True)
            for name in differences():
                (LICENCES / name).unlink(missing_ok=True)
            for name, text in licences().items():
                (LICENCES / name).write_text(text, encoding="utf-8")
    except (BundledError, OSError) as error:
        print(f"bundled: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
