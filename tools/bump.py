"""Move moebind to another llama.cpp: ``make bump VERSION=2026.10.11549``, or ``python tools/bump.py VERSION``.

The version is that of the package whose source distribution carries llama.cpp (``vendor/llama.cpp.lock``). The lock
is changed, the source fetched and patched, and moebind built. Then it is told what has changed in llama.cpp's API, and
what is to be decided for it; the tests that guard what moebind uses of llama.cpp's inside run first, then all others.

Where a step fails, mend what it says and give the same command again: it goes on from there, and still compares with
the llama.cpp that was there before.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "vendor"), str(ROOT / "native/bind"), str(ROOT / "tools")]
import fetch  # noqa: E402

PYTHON = ROOT / ".venv/bin/python"
#: What tools/environment.py remembers of its last build.
BUILT = ROOT / ".venv/.moebind-build"
#: What an upgrade needs to remember, until the next one.
NOTES = ROOT / "build/bump"
#: The tests of couplings that no row of native/*/README.md names.
GUARDS = ("tests/native", "tests/project/test_parity.py", "tests/params/test_params.py", "tests/test_enums.py")
#: Prints the defaults of llama.cpp's parameters, as the installed moebind sees them.
DEFAULTS = """
import json
from moebind import ffi, lib
found = {}
for name in (each for each in dir(lib) if each.endswith("_default_params")):
    struct = getattr(lib, name)()
    for field, kind in ffi.typeof(struct).fields:
        if kind.type.kind in {"primitive", "enum"}:
            found[f"{name}().{field}"] = repr(getattr(struct, field))
print(json.dumps(found))
"""


def lock_text(project: str, version: str, sha256: str, folder: str, commit: str, llama_version: str) -> str:
    """What ``vendor/llama.cpp.lock`` says."""
    return (
        f"# llama.cpp as moebind builds it. The source distribution of {project} carries llama.cpp whole;\n"
        "# moebind takes nothing else from it. pip reads the requirement, vendor/fetch.py and CMake read the comments\n"
        "# below it: where in the archive llama.cpp is, which commit or build it is, and its version. Written by\n"
        "# tools/bump.py.\n"
        f"{project}=={version} --hash=sha256:{sha256}\n"
        f"# llama.cpp-folder: {folder}\n# llama.cpp-commit: {commit}\n# llama.cpp-version: {llama_version}\n"
    )


def pinned(archive: Path, project: str, version: str, commit: str | None) -> str:
    """The lock for this archive: its hash, and what is said inside about where llama.cpp is and which one."""
    with tarfile.open(archive, "r:gz") as tar:
        names = [name for name in tar.getnames() if name.endswith("/include/llama.h")]
        roots = [name.removesuffix("/include/llama.h") for name in names]
        roots = [root for root in roots if f"{root}/ggml/include/ggml.h" in tar.getnames()]
        if len(roots) != 1:
            raise SystemExit(f"bump: {archive.name} has llama.cpp whole in {roots or 'no folder'}; it takes one")
        (root,) = roots
        listing = tar.extractfile(f"{root}/CMakeLists.txt")
        assert listing is not None  # noqa: S101  # it is a file
        text = listing.read().decode()
    parts = dict(re.findall(r"set\(LLAMA_VERSION_(MAJOR|MINOR|PATCH) (\d+)\)", text))
    if len(parts) != 3:
        raise SystemExit(
            "bump: CMakeLists.txt of this llama.cpp does not say its version as LLAMA_VERSION_MAJOR and so on"
        )
    release = ".".join(parts[part] for part in ("MAJOR", "MINOR", "PATCH"))
    build = re.search(r"\.(\d{4,6})(\.\d)?$", version)  # versions of such packages end in the number of the build
    if commit is None and build is None:
        raise SystemExit(
            f"bump: {version} does not end in the number of a build: say which commit it is, with --commit"
        )
    named = commit or f"b{build[1]}"  # type: ignore[index]
    return lock_text(project, version, fetch.sha256_of(archive), root.partition("/")[2], named, f"{release}-dev")


def downloaded(project: str, version: str) -> Path:
    """The archive in the cache, or brought by pip; its hash is not known yet."""
    pin = fetch.Pin(project, version, "", "", "", "")
    archive = fetch.cache_folder() / pin.archive_name
    if not archive.is_file():
        archive.parent.mkdir(parents=True, exist_ok=True)
        print(f"bump: downloading {pin.archive_name}", flush=True)
        with tempfile.TemporaryDirectory(dir=archive.parent, prefix="download-") as folder:
            wanted = Path(folder, "wanted.txt")
            wanted.write_text(f"{project}=={version}\n", encoding="utf-8")
            try:
                fetch.download(pin, wanted, Path(folder), hashed=False).replace(archive)
            except fetch.FetchError as error:
                raise SystemExit(f"bump: {error}") from None
    return archive


# --- what is compared ---


def api(tree: Path, compiler: str = "gcc") -> dict[str, dict[str, str]]:
    """What a llama.cpp offers, by kind: each name, and how it reads."""
    import headers
    from pycparser import c_ast, c_generator

    write = c_generator.CGenerator().visit
    own = (ROOT / "native/bind", ROOT / "native/core")
    read = headers.read([compiler], [*own, tree / "include", tree / "ggml/include"])
    mine = set(headers.OWN_HEADERS)
    found: dict[str, dict[str, str]] = {
        "functions": {each.name: write(each.decl) for each in read.functions if each.header not in mine},
        "fields": {},
        "constants": dict(read.macros),
        "architectures": dict(architectures(tree)),
    }
    for node in read.types:
        inner = node.type
        while not isinstance(inner, (c_ast.Struct, c_ast.Enum)) and hasattr(inner, "type"):
            inner = inner.type
        if Path(node.coord.file).name in mine:
            continue
        if isinstance(inner, c_ast.Struct) and inner.decls:
            for field in inner.decls:
                found["fields"][f"{inner.name or node.name}.{field.name}"] = write(field)
        elif isinstance(inner, c_ast.Enum) and inner.values is not None:
            known: dict[str, int] = {}
            value = -1
            for member in inner.values.enumerators:
                value = _value(write(member.value), known) if member.value is not None else value + 1
                known[member.name] = value
            found["constants"].update({name: str(number) for name, number in known.items()})
    return found


def _value(text: str, known: dict[str, int]) -> int:
    text = re.sub(r"\b[A-Za-z_]\w*\b", lambda name: str(known.get(name[0], 0)), text)
    return int(eval(re.sub(r"[^\d<>|&()+*x-]", "", text), {"__builtins__": {}}))  # noqa: S307  # digits and operators


def architectures(tree: Path) -> list[tuple[str, str]]:
    """The architectures that it knows, by their names in files."""
    text = (tree / "src/llama-arch.cpp").read_text(encoding="utf-8")
    return [(name, "") for name in re.findall(r'\{ LLM_ARCH_\w+, +"([\w.-]+)" +\}', text)]


def changes(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Lines that say what was added, removed or changed."""
    lines = [f"  + {name}{after[name] and f': {after[name]}'}" for name in after.keys() - before.keys()]
    lines += [f"  - {name}" for name in before.keys() - after.keys()]
    both = before.keys() & after.keys()
    lines += [f"  ~ {name}: {before[name]} -> {after[name]}" for name in both if before[name] != after[name]]
    return sorted(lines, key=lambda line: line[4:])


def uses() -> dict[str, list[tuple[str, list[str]]]]:
    """Of the READMEs in native: for each file of llama.cpp's inside, those that use it, with the tests that notice."""
    found: dict[str, list[tuple[str, list[str]]]] = {}
    for readme in sorted((ROOT / "native").glob("*/README.md")):
        for row in readme.read_text(encoding="utf-8").splitlines():
            cells = [cell.strip() for cell in row.split(" | ")]
            if not row.startswith("| `") or len(cells) != 5:
                continue
            tests = re.findall(r"`(tests/[^`]+)`", cells[3])
            for used in re.findall(r"`([\w./-]+\.(?:h|cpp|cu))`", cells[1]):
                found.setdefault(used, []).append((re.sub(r"[|` ]", "", cells[0]), tests))
    return found


def changed_inside(before: Path, after: Path) -> list[str]:
    """Of what moebind uses of llama.cpp's inside, the files that changed, and who is to look."""
    lines = []
    public = {
        header: [("what it says of behaviour", [])] for header in ("include/llama.h", "ggml/include/ggml-backend.h")
    }
    for used, users in [*public.items(), *uses().items()]:
        texts = [
            (tree / used).read_text("utf-8").splitlines() if (tree / used).is_file() else None
            for tree in (before, after)
        ]
        if texts[0] == texts[1]:
            continue
        if None in texts:
            told = "is new" if texts[0] is None else "is gone"
        else:
            told = f"has {len(set(texts[0] or ()) ^ set(texts[1] or ()))} other lines"
        lines.append(f"  {used} {told}: {', '.join(sorted({user for user, _ in users}))}")
    return lines


def undecided() -> list[str]:
    """What has no place in moebind yet, as its own checks say."""
    said = []
    for command in ("tools/c_api_table.py", "tools/params_methods.py", "tools/house.py"):
        done = subprocess.run([PYTHON, command, "--check"], cwd=ROOT, capture_output=True, text=True, check=False)
        said += [f"  {line}" for line in done.stderr.splitlines() if line.strip()]
    return said


# --- the steps ---


def tell(title: str, lines: list[str]) -> None:
    """Print a title, and lines, if there are any."""
    print(f"\n{title}" if lines else f"\n{title}: nothing", flush=True)
    for line in lines:
        print(line)


def report(before: Path, after: Path) -> None:
    """Print what changed between two unpacked llama.cpp, and what is to be decided."""
    old, new = api(before), api(after)
    for kind in old:
        tell(f"{kind} of the API", changes(old[kind], new[kind]))
    notes = NOTES / "defaults.json"
    if notes.is_file():
        told = subprocess.run([PYTHON, "-c", DEFAULTS], capture_output=True, text=True, check=True).stdout
        tell("defaults", changes(json.loads(notes.read_text(encoding="utf-8")), json.loads(told)))
    tell("read again, since it is used from inside", changed_inside(before, after))
    tell("to be decided", undecided())


def remember(lock: Path) -> None:
    """Keep the lock and the defaults from before."""
    NOTES.mkdir(parents=True, exist_ok=True)
    shutil.copy(lock, NOTES / "before.lock")
    (NOTES / "defaults.json").unlink(missing_ok=True)
    if PYTHON.exists():
        done = subprocess.run([PYTHON, "-c", DEFAULTS], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            (NOTES / "defaults.json").write_text(done.stdout, encoding="utf-8")


def guards() -> list[str]:
    """The tests that guard couplings: those of the rows of native/*/README.md, and the general ones."""
    named = {test for users in uses().values() for _, tests in users for test in tests}
    return [*GUARDS, *sorted(test for test in named if not test.startswith(tuple(GUARDS)) and "cuda_build" not in test)]


def main() -> int:
    """Move to another llama.cpp, or go on with that."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("version", help="of the package that carries llama.cpp")
    parser.add_argument("--project", default=fetch.read_lock().project, help="another package than now")
    parser.add_argument("--commit", help="llama.cpp's, where the version does not end in the number of a build")
    parser.add_argument("--no-tests", action="store_true", help="stop before the tests")
    arguments = parser.parse_args()
    pin = fetch.read_lock()
    if (pin.project, pin.version) != (arguments.project, arguments.version):
        archive = downloaded(arguments.project, arguments.version)
        text = pinned(archive, arguments.project, arguments.version, arguments.commit)
        remember(fetch.LOCK)
        fetch.LOCK.write_text(text, encoding="utf-8")
    elif not (NOTES / "before.lock").is_file():
        raise SystemExit(
            f"bump: {pin.project} {pin.version} is what is pinned already, and nothing is known of another"
        )
    try:
        for name, lock in ("before", NOTES / "before.lock"), ("after", fetch.LOCK):
            fetch.fetch(NOTES / name, lock, [patch.stem for patch in fetch.PATCHES.glob("*.patch")])
        fetch.fetch()
    except fetch.FetchError as error:
        raise SystemExit(f"bump: {error}") from None
    BUILT.unlink(missing_ok=True)  # one may have come back to a llama.cpp that was built, but then unpacked again
    if subprocess.run(["make", "environment"], cwd=ROOT, check=False).returncode != 0:
        raise SystemExit(
            "bump: it does not build. What is to be ported can be left out for now, with MOEBIND_WITHOUT "
            "(docs/build.md); mend the rest, and give this command again"
        )
    report(NOTES / "before", NOTES / "after")
    if arguments.no_tests:
        return 0
    pytest: list[Any] = [PYTHON, "-m", "pytest", "-q", "-n", "auto", "--maxprocesses", "8", "--dist", "loadfile"]
    print("\nbump: the tests that guard what is used from inside", flush=True)
    if subprocess.run([*pytest, *guards()], cwd=ROOT, check=False).returncode != 0:
        raise SystemExit("bump: mend these first: the others stand on them")
    return subprocess.run(["make", "test-all", "check"], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
