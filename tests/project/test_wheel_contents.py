"""tools/wheels: whether a wheel is whole, and that repairing one keeps it so. The wheels here have empty libraries."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools/wheels"))
import contents
import flavours
import repair

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no compiler (cc)")
NAME = "moebind-1.0-cp310-abi3-manylinux_2_31_x86_64.whl"
#: As it is built: auditwheel looks whether the libraries are for that processor.
BUILT = f"moebind-1.0-cp310-abi3-linux_{platform.machine()}.whl"
INFO = "moebind-1.0.dist-info"
LIBRARIES = ("ggml-base", "ggml", "ggml-rpc", "llama", "llama-common", "mtmd")
BACKEND = "int ggml_backend_init(void) { return 0; }\nint ggml_backend_score(void) { return 1; }\n"
METADATA = "Metadata-Version: 2.4\nName: moebind\nVersion: 1.0\nLicense-File: LICENSE\nLicense-File: licences/a.txt\n"


class Wheel:
    """A folder that becomes a wheel."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tree = folder / "tree"
        extension = "int PyInit__libllama(void) { return 0; }\n"
        self.compile("moebind/_libllama.abi3.so", "$ORIGIN/lib", extension, needed=("llama",))
        for name in LIBRARIES:
            self.compile(f"moebind/lib/lib{name}.so", "$ORIGIN", needed=() if name == "ggml-base" else ("ggml-base",))
        for kind in ("x64", "haswell"):
            self.compile(f"moebind/lib/libggml-cpu-{kind}.so", "$ORIGIN", BACKEND, needed=("ggml-base",))
        self.compile("moebind/bin/llama-server", "$ORIGIN/../lib", needed=("llama",))
        self.write(f"{INFO}/METADATA", METADATA)
        self.write(f"{INFO}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {BUILT[12:-4]}\n")
        self.write(f"{INFO}/licenses/LICENSE", "MIT License\n")
        self.write(f"{INFO}/licenses/licences/a.txt", "MIT License\n")
        self.write(f"{INFO}/sboms/moebind.cdx.json", json.dumps({"components": [{"name": "a"}, {"name": "ggml"}]}))

    def write(self, name: str, text: str) -> None:
        path = self.tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def compile(self, name: str, rpath: str, code: str = "", *, needed: tuple[str, ...] = (), soname: str = "") -> None:
        path = self.tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        source = self.folder / "source.c"
        source.write_text(code)
        command = ["cc", "-shared", "-fPIC", "-o", str(path), str(source), f"-Wl,-rpath,{rpath}", "-Wl,--no-as-needed"]
        command += [f"-Wl,-soname,{soname or path.name}", f"-L{self.tree}/moebind/lib", "-Wl,--allow-shlib-undefined"]
        libraries = [f"-l{library}" for library in needed if (self.tree / f"moebind/lib/lib{library}.so").exists()]
        # One that does not exist yet: an empty one of its name does to link with.
        for library in needed:
            if f"-l{library}" not in libraries:
                (self.folder / "lib").mkdir(exist_ok=True)
                stand_in = self.folder / f"lib/lib{library}.so"
                soname_option = f"-Wl,-soname,lib{library}.so"
                subprocess.run(["cc", "-shared", "-o", stand_in, soname_option, "-xc", "/dev/null"], check=True)
                libraries += [f"-L{self.folder}/lib", f"-l{library}"]
        subprocess.run([*command, *libraries], check=True)

    def pack(self, name: str = NAME) -> Path:
        target = self.folder / name
        files = [path.relative_to(self.tree).as_posix() for path in self.tree.rglob("*") if path.is_file()]
        self.write(f"{INFO}/RECORD", "".join(f"{file},,\n" for file in sorted({*files, f"{INFO}/RECORD"})))
        with zipfile.ZipFile(target, "w") as archive:
            for path in sorted(self.tree.rglob("*")):
                if path.is_file():
                    archive.write(path, path.relative_to(self.tree))
        return target

    def problems(self, name: str = NAME) -> list[str]:
        return contents.problems(self.pack(name))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    Wheel(folder)
    return folder


@pytest.fixture
def wheel(whole: Path, tmp_path: Path) -> Wheel:
    made = Wheel.__new__(Wheel)
    made.folder, made.tree = tmp_path, tmp_path / "tree"
    shutil.copytree(whole / "tree", made.tree)
    return made


def test_a_whole_one(wheel: Wheel) -> None:
    assert wheel.problems() == []


def test_a_library_that_was_renamed(wheel: Wheel) -> None:
    library = wheel.tree / "moebind/lib/libggml-rpc.so"
    (wheel.tree / "moebind.libs").mkdir()
    library.rename(wheel.tree / "moebind.libs/libggml-rpc-1234.so")
    assert wheel.problems() == [
        "moebind/lib/libggml-rpc.so is missing",
        "moebind.libs/libggml-rpc-1234.so is a library of llama.cpp's outside moebind/lib",
        "moebind.libs/libggml-rpc-1234.so calls itself libggml-rpc.so",
        "moebind.libs/libggml-rpc-1234.so needs libggml-base.so, which it does not find",
    ]


def test_libraries_that_are_looked_for_elsewhere(wheel: Wheel) -> None:
    wheel.compile("moebind/lib/libmtmd.so", "$ORIGIN/../../moebind.libs:/build/lib", needed=("ggml-base",))
    assert wheel.problems() == [
        "moebind/lib/libmtmd.so looks in $ORIGIN/../../moebind.libs:/build/lib, which must begin with $ORIGIN",
        "moebind/lib/libmtmd.so looks in /build/lib, a folder of the machine that built it",
        "moebind/lib/libmtmd.so needs libggml-base.so, which it does not find",
    ]


def test_a_wheel_for_one_processor(wheel: Wheel) -> None:
    for path in (wheel.tree / "moebind/lib").glob("libggml-cpu-*"):
        path.unlink()
    wheel.compile("moebind/lib/libggml-cpu.so", "$ORIGIN", needed=("ggml-base",))
    assert wheel.problems() == [
        "it is for one kind of processor: tools/wheels build makes one for all (MOEBIND_PORTABLE=ON)"
    ]


def test_a_backend_that_cannot_be_loaded(wheel: Wheel) -> None:
    wheel.compile("moebind/lib/libggml-cpu-x64.so", "$ORIGIN", "int ggml_backend_init(void) { return 0; }\n")
    assert wheel.problems() == ["moebind/lib/libggml-cpu-x64.so has no ggml_backend_score: ggml passes it by"]


def test_an_extension_that_uses_what_is_loaded_later(wheel: Wheel) -> None:
    uses = "int ggml_threadpool_new(void);\nint llama_init(void) { return ggml_threadpool_new(); }\n"
    wheel.compile("moebind/_libllama.abi3.so", "$ORIGIN/lib", uses, needed=("llama",))
    has = f"{BACKEND}int ggml_threadpool_new(void) {{ return 0; }}\n"
    wheel.compile("moebind/lib/libggml-cpu-x64.so", "$ORIGIN", has, needed=("ggml-base",))
    assert wheel.problems() == [
        "moebind/_libllama.abi3.so uses ggml_threadpool_new, which no library that is linked has: it cannot be loaded"
    ]
    wheel.compile("moebind/lib/libggml-base.so", "$ORIGIN", "int ggml_threadpool_new(void) { return 0; }\n")
    assert wheel.problems() == []


def test_a_program_that_cannot_be_executed(wheel: Wheel) -> None:
    (wheel.tree / "moebind/bin/llama-server").chmod(0o644)
    assert wheel.problems() == ["moebind/bin/llama-server cannot be executed"]


@pytest.mark.parametrize("name", sorted(flavours.BROUGHT))
def test_a_drivers_library(name: str, wheel: Wheel) -> None:
    wheel.write(f"moebind.libs/{name}", "")
    assert f"{name} is bundled, which the driver or another package brings" in wheel.problems()


def test_licences_and_the_list(wheel: Wheel) -> None:
    (wheel.tree / INFO / "licenses/licences/a.txt").unlink()
    assert wheel.problems() == [
        "the licences in the wheel are not those that its metadata names",
        "there is no licence of a",
    ]
    (wheel.tree / INFO / "sboms/moebind.cdx.json").unlink()
    assert wheel.problems()[1:] == [f"{INFO}/sboms/moebind.cdx.json is missing, the list of what is bundled"]


def test_the_page_for_browsers(wheel: Wheel) -> None:
    line = "=" * 80
    wheel.write("moebind/ui/licences.txt", f"{line}\n@a/b 1.0 (MIT)\n{line}\nMIT License\n\n{line}\nc\n{line}\n")
    assert wheel.problems() == ["the list of what is bundled lacks @a/b 1.0, which is in the page for browsers"]
    parts = [{"name": "@a/b", "version": "1.0"}, {"name": "c"}]
    listed = {"components": [{"name": "a"}, {"name": "llama-ui", "components": parts}]}
    wheel.write(f"{INFO}/sboms/moebind.cdx.json", json.dumps(listed))
    assert wheel.problems() == []
    wheel.write("moebind/ui/licences.txt", f"{line}\nc\n{line}\n")
    assert wheel.problems() == ["moebind/ui/licences.txt has no licence of @a/b 1.0"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("moebind-1.0-cp310-abi3-linux_x86_64.whl", "says for no C library that it fits: repair it first"),
        ("moebind-1.0-cp311-cp311-manylinux_2_31_x86_64.whl", "is not for every Python from 3.10"),
        ("moebind-1.0.whl", "is not for every Python from 3.10"),
    ],
)
def test_tags(name: str, says: str, wheel: Wheel) -> None:
    (said,) = wheel.problems(name)
    assert says in said


# --- repairing ---


def test_what_is_repaired_is_whole(wheel: Wheel, tmp_path: Path) -> None:
    # libgomp is what a wheel needs besides the system: it is put in, and nothing else is changed.
    for name in ("cpu-x64", "cpu-haswell"):
        code = f"{BACKEND}int omp_get_max_threads(void);\nint threads(void) {{ return omp_get_max_threads(); }}\n"
        path = wheel.tree / f"moebind/lib/libggml-{name}.so"
        source = tmp_path / "source.c"
        source.write_text(code)
        command = ["cc", "-shared", "-fPIC", "-fopenmp", "-o", path, source, "-Wl,-rpath,$ORIGIN", "-Wl,--no-as-needed"]
        command += [f"-Wl,-soname,{path.name}", f"-L{wheel.tree}/moebind/lib", "-lggml-base"]
        subprocess.run(command, check=True)
    before = set(zipfile.ZipFile(wheel.pack(BUILT)).namelist())
    repaired = repair.repair(tmp_path / BUILT, tmp_path / "out")
    assert repaired.parent == tmp_path / "out"
    assert "manylinux_2_" in repaired.name
    assert contents.problems(repaired) == []
    with zipfile.ZipFile(repaired) as archive:
        added = set(archive.namelist()) - before
        found = {binary.name: binary for binary in contents.binaries(archive)}
        metadata = archive.read(f"{INFO}/METADATA").decode()
        licence = archive.read(f"{INFO}/licenses/licences/libgomp.txt").decode()
    assert metadata == f"{METADATA}License-File: licences/libgomp.txt\n"
    assert "GCC RUNTIME LIBRARY EXCEPTION" in licence
    assert "GNU GENERAL PUBLIC LICENSE\n                       Version 3" in licence
    (library,) = {name for name in added if name.startswith("moebind.libs/lib")}
    assert library.startswith("moebind.libs/libgomp-")
    assert f"{INFO}/licenses/licences/libgomp.txt" in added
    for name in ("cpu-x64", "cpu-haswell"):
        binary = found[f"moebind/lib/libggml-{name}.so"]
        assert binary.needed.count(library.partition("/")[2]) == 1
        assert binary.folders[0] == "$ORIGIN"
        assert binary.finds(library.partition("/")[2], {library})


def test_a_licence_that_nobody_has(wheel: Wheel) -> None:
    wheel.write("moebind.libs/libother-2-0123abcd-89abcdef.so.1.2", "")
    assert wheel.problems() == ["there is no licence of libother-2"]
    with pytest.raises(repair.RepairError, match=r"add its text as tools/wheels/licences/libother-2\.txt"):
        repair.add_licences(wheel.pack())


def test_what_needs_nothing_is_left_alone(wheel: Wheel) -> None:
    before = wheel.pack().read_bytes()
    repair.add_licences(wheel.folder / NAME)
    assert (wheel.folder / NAME).read_bytes() == before


def test_what_cannot_be_repaired(wheel: Wheel, tmp_path: Path) -> None:
    not_one = tmp_path / BUILT
    not_one.write_bytes(b"nothing")
    with pytest.raises(repair.RepairError, match=r"auditwheel could not repair moebind-1\.0"):
        repair.repair(not_one, tmp_path / "out")
    (wheel.tree / "moebind/lib/libmtmd.so").unlink()
    wheel.pack(BUILT)
    with pytest.raises(repair.RepairError, match=r"(?s)is not whole:.*moebind/lib/libmtmd\.so is missing"):
        repair.repair(not_one, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
