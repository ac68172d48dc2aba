"""What CMake says when it configures: the summary, the options, and what is missing. Nothing is compiled."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
from checkout import fetch, page
from configured import NOTHING_ELSE, configure, line, refusal

ROOT = Path(__file__).resolve().parents[2]
LOCK = (ROOT / "vendor/llama.cpp.lock").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    return configure(tmp_path_factory.mktemp("plain"), "-DMOEBIND_CUDA=OFF")


def test_summary(plain: subprocess.CompletedProcess[str]) -> None:
    assert plain.returncode == 0, plain.stderr
    version, commit = re.findall(r"^# llama\.cpp-(?:version|commit): (\S+)", LOCK, re.MULTILINE)[::-1]
    assert line(plain.stdout, r"llama\.cpp") == f"{version}, commit {commit}"
    assert line(plain.stdout, "CPU flags").startswith("-m")
    assert line(plain.stdout, "backends") == "cpu, rpc"
    assert line(plain.stdout, "CUDA") == "out: MOEBIND_CUDA=OFF"
    assert line(plain.stdout, "Vulkan") == "out: MOEBIND_VULKAN=OFF"
    assert line(plain.stdout, "web page") == "out: MOEBIND_UI=OFF"


def test_our_own_files_give_no_warnings(plain: subprocess.CompletedProcess[str]) -> None:
    warnings = re.findall(r"CMake (?:\w+ )?Warning.*? at (\S+?):\d+", plain.stderr)
    assert not [file for file in warnings if not file.startswith("vendor/llama.cpp")]


def test_free_threaded_python_is_refused(tmp_path: Path) -> None:
    """One that says so of itself; all else it does as ours."""
    python = tmp_path / "python3"
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *Py_GIL_DISABLED*) echo 1 ;; *) exec {sys.executable} "$@" ;; esac\n',
        encoding="utf-8",
    )
    python.chmod(0o755)
    done = configure(tmp_path / "build", "-DMOEBIND_CUDA=OFF", f"-DPython_EXECUTABLE={python}")
    assert done.returncode != 0
    said = " ".join(done.stderr.split())
    assert f"{python} is a free-threaded Python" in said
    assert "Use the Python of the same version with the interpreter's lock." in said


# --- what is compiled how ---

#: What computes, and the flags of a command that say where its source is.
COMPUTING = ("ggml-base", "ggml-cpu", "ggml", "ggml-rpc", "llama")


def flags(folder: Path) -> dict[str, set[str]]:
    """By target: the flags of its sources, each set as one text, without what differs between two folders."""
    found: dict[str, set[str]] = {}
    for entry in json.loads((folder / "compile_commands.json").read_text(encoding="utf-8")):
        target = re.search(r"CMakeFiles/([^/]+)\.dir/", entry["command"])
        assert target is not None
        words = entry["command"].partition(" -o ")[0].replace(str(folder), "").split(" ")
        # CMake adds the checkout's folder for sources that it joins.
        kept = [word for word in words if word != f"-I{ROOT}" and "CCACHE_EXTRAFILES" not in word]
        found.setdefault(target[1], set()).add(" ".join(kept))
    return found


def test_what_computes_is_compiled_as_llama_cpp_has_it(plain: subprocess.CompletedProcess[str], tmp_path: Path) -> None:
    nothing = tmp_path / "modules/CompileTime.cmake"
    nothing.parent.mkdir()
    nothing.touch()
    done = configure(tmp_path / "build", "-DMOEBIND_CUDA=OFF", f"-DCMAKE_MODULE_PATH={nothing.parent}")
    assert done.returncode == 0, done.stderr
    folder = plain.args[plain.args.index("-B") + 1]
    ours, theirs = flags(Path(folder)), flags(tmp_path / "build")
    assert {name: ours[name] for name in COMPUTING} == {name: theirs[name] for name in COMPUTING}
    assert all(" -O3 " in command for name in COMPUTING for command in ours[name])
    # The rest is not, or this would compare nothing.
    for name in ("llama-common", "mtmd"):
        assert ours[name] != theirs[name]
    # Else native/chat/template_limits.cpp is not called: tests/chat tells that as well, once it is built.
    assert not [text for text in ours["llama-common"] if re.search("-fno-semantic-interposition|-fvisibility", text)]


# --- CUDA ---

#: Each part of a toolkit: a file of it, and what it is called when it is missing.
PARTS = {
    "bin/nvcc": "the compiler nvcc (package nvidia-cuda-nvcc)",
    "lib/libcudart.so.13": "the CUDA runtime (package nvidia-cuda-runtime)",
    "include/cuda_runtime.h": "the headers of the CUDA runtime (package nvidia-cuda-runtime)",
    "include/cccl/cub/cub.cuh": "the headers of CCCL (package nvidia-cuda-cccl)",
    "lib/libcublas.so.13": "cuBLAS (package nvidia-cublas)",
    "include/cublas_v2.h": "the headers of cuBLAS (package nvidia-cublas)",
}
CUBLASLT = "lib/libcublasLt.so.13"
#: Says its version, knows two architectures and compiles nothing.
NVCC = """#!/bin/sh
case "$*" in
  *--version*) echo "Cuda compilation tools, release 13.0, V13.0.88" ;;
  *--list-gpu-arch*) echo compute_75; echo compute_90 ;;
  *) echo "host_config.h:137:2: error: #error -- unsupported GNU version! gcc versions later than 15 ..." >&2; exit 1 ;;
esac
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter without packages, so that no toolkit of this environment's is found."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return folder / "bin/python"


def toolkit(folder: Path, *without: str, nvcc: str = "", **contents: str) -> Path:
    """A folder with a toolkit's files, empty ones, as pip and NVIDIA's archives lay them out."""
    for name in {*PARTS, CUBLASLT} - set(without):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    for name, text in contents.items():
        (folder / "include" / f"{name}.h").write_text(text)
    if "bin/nvcc" not in without:
        (folder / "bin/nvcc").write_text(nvcc)
        (folder / "bin/nvcc").chmod(0o755)
    return folder


def cuda_refusal(failed: subprocess.CompletedProcess[str]) -> str:
    return refusal(failed, "MOEBIND_CUDA")


@pytest.mark.parametrize("part", PARTS)
def test_cuda_on_names_each_missing_part(python: Path, tmp_path: Path, part: str) -> None:
    found = toolkit(tmp_path / "toolkit", part)
    options = (f"-DPython_EXECUTABLE={python}", "-DMOEBIND_CUDA=ON", *NOTHING_ELSE)
    said = cuda_refusal(configure(tmp_path / "build", *options, CUDA_HOME=str(found)))
    assert said.startswith(f"MOEBIND_CUDA=ON, but not found: {PARTS[part]}. Install it")


@pytest.mark.parametrize("where", ["CUDA_PATH", "CUDACXX", "CUDAToolkit_ROOT", "PATH"])
def test_cuda_is_found_in_many_ways(python: Path, tmp_path: Path, where: str) -> None:
    found = toolkit(tmp_path / "toolkit", "include/cublas_v2.h")
    options = [f"-DPython_EXECUTABLE={python}", "-DMOEBIND_CUDA=ON", "-DCMAKE_FIND_USE_CMAKE_SYSTEM_PATH=OFF"]
    environment = {}
    if where == "CUDAToolkit_ROOT":
        options += [f"-D{where}={found}"]
    else:
        environment[where] = str(found / "bin/nvcc" if where == "CUDACXX" else found)
    if where == "PATH":
        environment[where] = f"{found / 'bin'}:{os.environ['PATH']}"
    else:
        options += ["-DCMAKE_FIND_USE_SYSTEM_ENVIRONMENT_PATH=OFF"]
    said = cuda_refusal(configure(tmp_path / "build", *options, **environment))
    assert said.startswith(f"MOEBIND_CUDA=ON, but not found: {PARTS['include/cublas_v2.h']}. Install it")


def test_cuda_on_without_anything(python: Path, tmp_path: Path) -> None:
    said = cuda_refusal(configure(tmp_path, f"-DPython_EXECUTABLE={python}", "-DMOEBIND_CUDA=ON", *NOTHING_ELSE))
    assert "; ".join(PARTS.values()) in said


def test_cuda_auto_says_what_is_missing(python: Path, tmp_path: Path) -> None:
    done = configure(tmp_path, f"-DPython_EXECUTABLE={python}", *NOTHING_ELSE)
    assert done.returncode == 0, done.stderr
    assert line(done.stdout, "CUDA") == f"out: not found: {'; '.join(PARTS.values())}"


def test_cuda_of_pip_is_found_wherever_python_looks(python: Path, tmp_path: Path) -> None:
    # As in pip's build environments, which are on the path of an interpreter that lies elsewhere.
    place = {"PYTHONPATH": str(tmp_path)}
    toolkit(tmp_path / "nvidia/cu13", "include/cublas_v2.h")
    options = (f"-DPython_EXECUTABLE={python}", "-DMOEBIND_CUDA=PIP")
    said = cuda_refusal(configure(tmp_path / "build", *options, **place))
    assert said.startswith(f"MOEBIND_CUDA=PIP, but not found: {PARTS['include/cublas_v2.h']}. pip brings it where")


def test_cuda_of_pip_takes_nothing_else(python: Path, tmp_path: Path) -> None:
    found = toolkit(tmp_path / "toolkit")
    options = (f"-DPython_EXECUTABLE={python}", "-DMOEBIND_CUDA=PIP")
    said = cuda_refusal(configure(tmp_path / "build", *options, CUDA_HOME=str(found), CUDACXX=str(found / "bin/nvcc")))
    assert "; ".join(PARTS.values()) in said


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"cublas_api": "#define CUBLAS_VER_MAJOR 12\n"}, "the headers of cuBLAS are of CUDA 12"),
        ({"cuda_runtime_api": "#define CUDART_VERSION  12090\n"}, "its headers are of CUDA 12"),
        ({"cuda_runtime_api": "#define CUDART_VERSION  13000\n"}, None),
        ({"cublas_api": "#define CUBLAS_VER_MAJOR 13\n"}, None),
        ({"nvcc": NVCC.replace("13.0", "12.9")}, "the CUDA runtime is of CUDA 13"),
        ({"nvcc": NVCC.replace("13.0", "11.8")}, "is of CUDA 11.8, and 12.0 is the oldest that will do"),
    ],
)
def test_cuda_of_different_versions(python: Path, tmp_path: Path, changed: dict[str, str], says: str | None) -> None:
    found = toolkit(tmp_path / "toolkit", **{"nvcc": NVCC, **changed})
    options = (f"-DPython_EXECUTABLE={python}", "-DMOEBIND_CUDA_ARCHITECTURES=90", *NOTHING_ELSE)
    done = configure(tmp_path / "build", *options, CUDA_HOME=str(found))
    assert done.returncode == 0, done.stderr  # AUTO
    verdict = line(done.stdout, "CUDA")
    if says is None:
        assert "cannot build with these parts" in verdict
    else:
        assert verdict.startswith("out: ")
        assert says in verdict
        assert says in cuda_refusal(configure(tmp_path / "on", "-DMOEBIND_CUDA=ON", *options, CUDA_HOME=str(found)))


def test_cuda_that_does_not_compile(python: Path, tmp_path: Path) -> None:
    found = toolkit(tmp_path / "toolkit", nvcc=NVCC)
    options = (f"-DPython_EXECUTABLE={python}", "-DMOEBIND_CUDA=ON", "-DMOEBIND_CUDA_ARCHITECTURES=90", *NOTHING_ELSE)
    said = cuda_refusal(configure(tmp_path / "build", *options, CUDA_HOME=str(found)))
    assert "cannot build with these parts" in said
    assert "unsupported GNU version! gcc versions later than 15" in said
    assert "CUDAHOSTCXX=g++-14" in said


@pytest.mark.parametrize("option", ["-DMOEBIND_CUDA_ARCHITECTURES=90,61", "-DCMAKE_CUDA_ARCHITECTURES=61-real"])
def test_cuda_for_cards_that_nvcc_does_not_know(python: Path, tmp_path: Path, option: str) -> None:
    found = toolkit(tmp_path / "toolkit", nvcc=NVCC)
    options = (f"-DPython_EXECUTABLE={python}", "-DMOEBIND_CUDA=ON", option, *NOTHING_ELSE)
    said = cuda_refusal(configure(tmp_path / "build", *options, CUDA_HOME=str(found)))
    assert "nvcc 13.0 has no architecture 61" in said


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, str]]:
    """Makes a driver with cards of these capabilities, and with nothing else that a driver has."""

    def make(*cards: tuple[int, int]) -> dict[str, str]:
        folder = tmp_path_factory.mktemp("driver")
        listed = ", ".join(f"{{{major}, {minor}}}" for major, minor in cards) or "{0, 0}"
        source = folder / "driver.c"
        source.write_text(
            f"static int cards[][2] = {{{listed}}};\n"
            "int cuInit(unsigned flags) { return 0; }\n"
            f"int cuDeviceGetCount(int * n) {{ *n = {len(cards)}; return 0; }}\n"
            "int cuDeviceGet(int * device, int i) { *device = i; return 0; }\n"
            "int cuDeviceGetAttribute(int * x, int which, int device) { *x = cards[device][which - 75]; return 0; }\n"
        )
        subprocess.run(["cc", "-shared", "-fPIC", "-o", str(folder / "libcuda.so.1"), str(source)], check=True)
        return {"LD_LIBRARY_PATH": str(folder)}

    return make


@pytest.mark.parametrize(
    ("cards", "capabilities"),
    [((), ""), (((8, 6),), "8.6"), (((9, 0), (8, 9), (9, 0)), "8.9;9.0"), (((12, 0), (7, 5)), "7.5;12.0")],
)
def test_which_cards_there_are(
    python: Path, driver: Callable[..., dict[str, str]], cards: tuple[tuple[int, int], ...], capabilities: str
) -> None:
    command = [str(python), str(ROOT / "cmake/cuda_probe.py")]
    done = subprocess.run(command, env=os.environ | driver(*cards), capture_output=True, text=True, check=True)
    assert done.stdout == f"\n{capabilities}\n"


def test_cuda_for_this_machines_cards(python: Path, driver: Callable[..., dict[str, str]], tmp_path: Path) -> None:
    found = toolkit(tmp_path / "toolkit", nvcc=NVCC)
    options = (f"-DPython_EXECUTABLE={python}", "-DMOEBIND_CUDA=ON", *NOTHING_ELSE)
    said = cuda_refusal(configure(tmp_path / "old", *options, CUDA_HOME=str(found), **driver((6, 1))))
    assert "nvcc 13.0 has no architecture 61" in said
    said = cuda_refusal(configure(tmp_path / "known", *options, CUDA_HOME=str(found), **driver((9, 0), (7, 5))))
    assert "cannot build with these parts" in said  # so it has them
    native = configure(
        tmp_path / "none", *options, "-DMOEBIND_CUDA_ARCHITECTURES=native", CUDA_HOME=str(found), **driver()
    )
    assert "native, but the driver shows no card here" in " ".join(native.stderr.split())


def test_cuda_takes_four_words(tmp_path: Path) -> None:
    failed = configure(tmp_path / "build", "-DMOEBIND_CUDA=maybe")
    assert failed.returncode != 0
    assert "MOEBIND_CUDA is 'MAYBE'; it takes AUTO, ON, OFF or PIP" in " ".join(failed.stderr.split())


def test_the_developers_environment_has_the_toolkit_of_the_build() -> None:
    code = "import sys; sys.path.insert(0, 'tools'); import environment; print(*environment.requirements(), sep='\\n')"
    command = [sys.executable, "-c", code]

    def required(**asked: str) -> set[str]:
        kept = {name: value for name, value in os.environ.items() if name != "MOEBIND_CUDA"}
        done = subprocess.run(command, env=kept | asked, cwd=ROOT, capture_output=True, text=True, check=True)
        return set(done.stdout.split("\n"))

    toolkit = required(MOEBIND_CUDA="pip") - required()
    packages = set(re.findall(r"package ([\w-]+)", " ".join(PARTS.values())))
    assert {name.partition(">")[0] for name in toolkit} == packages
    assert required(MOEBIND_CUDA="ON") == required()
    # What runs is of the version that was built with.
    extra = re.search(r"^cuda13 = (\[.*\])$", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert extra is not None
    assert set(re.findall(r'"([^"]+)"', extra[1])) <= toolkit


def test_portable(tmp_path: Path) -> None:
    done = configure(tmp_path / "build", "-DMOEBIND_CUDA=OFF", "-DMOEBIND_PORTABLE=ON")
    assert done.returncode == 0, done.stderr
    assert "chosen when it is loaded" in line(done.stdout, "CPU flags")
    backends = line(done.stdout, "backends").split(", ")
    assert "rpc" in backends
    assert len([name for name in backends if name.startswith("cpu-")]) > 5
    assert "-march=native" not in (tmp_path / "build/build.ninja").read_text(encoding="utf-8")


#: Two of the kinds of processors that there are for each kind of machine.
VARIANTS = {"x86_64": ("x64", "haswell"), "aarch64": ("armv8.0_1", "armv8.2_1")}


def test_some_variants(tmp_path: Path) -> None:
    wanted = VARIANTS[platform.machine()]
    done = configure(tmp_path, "-DMOEBIND_CUDA=OFF", "-DMOEBIND_PORTABLE=ON", f"-DMOEBIND_VARIANTS={';'.join(wanted)}")
    assert done.returncode == 0, done.stderr
    assert set(line(done.stdout, "backends").split(", ")) == {f"cpu-{name}" for name in wanted} | {"rpc"}
    assert line(done.stdout, "CPU flags").startswith(f"{' '.join(wanted)}, but not ")
    # Nothing of the others is compiled, nor installed.
    commands = json.loads((tmp_path / "compile_commands.json").read_text(encoding="utf-8"))
    compiled = [(re.search(r"/ggml-cpu-(\S+?)\.dir/", each["command"]), each["file"]) for each in commands]
    files: dict[str, set[str]] = {}
    for target, file in compiled:
        if target is not None:
            files.setdefault(target[1], set()).add(Path(file).name)
    assert len(files[wanted[0]]) > 5
    others = {name: made for name, made in files.items() if name.removesuffix("-feats") not in wanted}
    assert all(made == {"left_out.c"} for name, made in others.items() if not name.endswith("-feats"))
    installed = (tmp_path / "cmake_install.cmake").read_text(encoding="utf-8")
    assert all((f"libggml-cpu-{name}.so" in installed) == (name in wanted) for name in files if "-feats" not in name)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("-DMOEBIND_VARIANTS=x64",), "there are variants only with MOEBIND_PORTABLE=ON. Set that, too."),
        (
            ("-DMOEBIND_PORTABLE=ON", "-DMOEBIND_VARIANTS=pentium"),
            "has 'pentium', which is no variant for this kind of processor. There are: ",
        ),
    ],
)
def test_variants_that_there_are_not(options: tuple[str, ...], says: str, tmp_path: Path) -> None:
    failed = configure(tmp_path, "-DMOEBIND_CUDA=OFF", *options)
    assert failed.returncode != 0
    assert says in " ".join(failed.stderr.split())


@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-g++") is None, reason="there is no cross compiler for 64-bit Arm")
def test_for_64_bit_arm(tmp_path: Path) -> None:
    done = configure(
        tmp_path,
        "-DMOEBIND_CUDA=OFF",
        "-DMOEBIND_PORTABLE=ON",
        f"-DCMAKE_TOOLCHAIN_FILE={ROOT}/cmake/aarch64-linux.cmake",
        f"-DPython_INCLUDE_DIR={sysconfig.get_path('include')}",  # as scikit-build-core says it
    )
    assert done.returncode == 0, done.stderr
    assert "cpu-armv8.0_1" in line(done.stdout, "backends").split(", ")
    assert "aarch64-linux-gnu-g++" in (tmp_path / "compile_commands.json").read_text(encoding="utf-8")


def test_a_source_that_cannot_be_fetched(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "vendor").mkdir(parents=True)
    for name in ("CMakeLists.txt", "cmake", "native", "src"):
        (source / name).symlink_to(ROOT / name)
    for name in ("fetch.py", "llama.cpp.lock"):
        shutil.copy(ROOT / "vendor" / name, source / "vendor")
    package = re.findall(r"^(\S+)==", LOCK, re.MULTILINE)[0]
    nowhere = "http://127.0.0.1:9"
    failed = configure(
        tmp_path / "build", source=source, MOEBIND_CACHE=str(tmp_path / "cache"), PIP_NO_INDEX="1",
        PIP_FIND_LINKS=str(tmp_path), HTTPS_PROXY=nowhere, HTTP_PROXY=nowhere,
    )  # fmt: skip
    assert failed.returncode != 0
    said = " ".join(failed.stderr.split())
    assert f"pip could not download {package}" in said
    assert f"check the network, or put {package}-" in said
    assert not (source / "vendor/llama.cpp").exists()


# --- the web page ---


def without_npm(folder: Path) -> str:
    """A search path with all that there is, but npm."""
    folder.mkdir()
    for place in os.environ["PATH"].split(":"):
        for program in Path(place).iterdir() if Path(place).is_dir() else []:
            if program.name != "npm" and not (folder / program.name).is_symlink():
                (folder / program.name).symlink_to(program)
    return str(folder)


def test_without_npm_there_is_no_page(tmp_path: Path) -> None:
    options = ("-DMOEBIND_CUDA=OFF", "-DMOEBIND_UI=AUTO")
    environment = {"PATH": without_npm(tmp_path / "bin"), "MOEBIND_CACHE": str(tmp_path / "cache")}
    done = configure(tmp_path / "build", *options, **environment)
    assert done.returncode == 0, done.stderr
    assert line(done.stdout, "web page") == "out: npm is not installed"
    assert "llama-ui" not in (tmp_path / "build/moebind.cdx.json").read_text(encoding="utf-8")
    failed = configure(tmp_path / "build", "-DMOEBIND_UI=ON", **environment)
    assert failed.returncode != 0
    said = " ".join(failed.stderr.split())
    assert "MOEBIND_UI=ON, but npm is not installed. Install Node.js with npm" in said


def test_other_words_for_the_page(tmp_path: Path) -> None:
    failed = configure(tmp_path, "-DMOEBIND_CUDA=OFF", "-DMOEBIND_UI=perhaps")
    assert failed.returncode != 0
    assert "MOEBIND_UI is 'PERHAPS'; it takes AUTO, ON or OFF." in " ".join(failed.stderr.split())


def test_a_page_that_is_in_the_cache_is_installed(tmp_path: Path) -> None:
    folder = tmp_path / f"page-{page.digest(page.SOURCE, fetch.read_lock().commit)[:16]}"
    folder.mkdir()
    for name in (page.LIST, page.LICENCES):
        (folder / name).touch()
    environment = {"PATH": without_npm(tmp_path / "bin"), "MOEBIND_CACHE": str(tmp_path)}
    done = configure(tmp_path / "build", "-DMOEBIND_CUDA=OFF", "-DMOEBIND_UI=ON", **environment)
    assert done.returncode == 0, done.stderr
    assert line(done.stdout, "web page") == f"in: {folder}"
    rules = (tmp_path / "build/cmake_install.cmake").read_text(encoding="utf-8")
    assert f'moebind/ui" TYPE DIRECTORY FILES "{folder}/"' in rules
    listed = json.loads((tmp_path / "build/moebind.cdx.json").read_text(encoding="utf-8"))
    assert [each["name"] for each in listed["components"] if "components" in each] == ["llama-ui"]


RPC = "ggml/src/ggml-rpc/CMakeLists.txt"
BUILT_FROM = ("CMakeLists.txt", "cmake", "native", "src", "vendor/fetch.py", "vendor/llama.cpp.lock", "vendor/patches")


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        (RPC, "transport.cpp\n", "sockets.cpp\n", "ggml-rpc of this llama.cpp has no source transport.cpp"),
        (RPC, "ggml-rpc.cpp\n", "rpc.cpp\n", "ggml-rpc of this llama.cpp has no source ggml-rpc.cpp"),
        ("common/json-schema-to-grammar.cpp", "fprintf(stderr", "LOG_WRN(", 'has no "fprintf(stderr", which'),
        ("src/llama-model-loader.cpp", "gguf_init_from_file(", "gguf_open(", 'has no "gguf_init_from_file(", which'),
        ("tools/mtmd/mtmd-helper.cpp", "STB_IMAGE_IMPLEMENTATION", "STB", "replaced/stb_memory.h is for: port that"),
    ],
)
def test_a_replacement_of_what_is_not_there(tmp_path: Path, file: str, old: str, new: str, says: str) -> None:
    source = tmp_path / "source"
    (source / "vendor").mkdir(parents=True)
    for name in BUILT_FROM:
        (source / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "vendor/llama.cpp", source / "vendor/llama.cpp")
    text = (source / "vendor/llama.cpp" / file).read_text(encoding="utf-8")
    assert old in text
    (source / "vendor/llama.cpp" / file).write_text(text.replace(old, new), encoding="utf-8")
    failed = configure(tmp_path / "build", "-DMOEBIND_CUDA=OFF", source=source)
    assert failed.returncode != 0
    assert says in " ".join(failed.stderr.split())


def test_another_system_is_refused(tmp_path: Path) -> None:
    failed = configure(tmp_path / "build", "-DCMAKE_SYSTEM_NAME=FreeBSD")
    assert failed.returncode != 0
    said = " ".join(failed.stderr.split())
    assert "moebind is built for Linux, and this is FreeBSD. On Windows use WSL 2" in said
    assert "CMake Error" in said
    assert said.count("CMake Error") == 1
