"""tools/wheels: what is built and how, the same by hand and in the forge's workflow; and where it is tried."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

import moebind

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools/wheels"))
import building
import clean
import flavours
import roots
import tested

WORKFLOW = ROOT / ".github/workflows/wheels.yml"
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
SETTINGS = PROJECT[PROJECT.index("[tool.cibuildwheel]") : PROJECT.index("[tool.ruff]")]


# --- the workflow ---


def test_the_workflow_is_one() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
    done = subprocess.run([*command, str(WORKFLOW)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_cibuildwheel_takes_the_settings() -> None:
    pytest.importorskip("cibuildwheel", reason="cibuildwheel is not for this Python")
    command = [sys.executable, "-m", "cibuildwheel", "--platform", "linux", "--archs", "x86_64,aarch64"]
    done = subprocess.run(
        [*command, "--print-build-identifiers"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["cp310-manylinux_x86_64", "cp310-manylinux_aarch64"]


def setting(name: str) -> str:
    """A setting of cibuildwheel, as it stands in pyproject.toml."""
    found = re.search(
        rf"^{name} = (\[.*?\]$|.*)", SETTINGS, re.MULTILINE | re.DOTALL if name == "test-requires" else re.M
    )
    assert found is not None, name
    return found[1]


def test_the_workflow_builds_as_the_tool_does() -> None:
    assert [tuple(each) for each in re.findall(r'"cmake\.define\.(\w+)" = "(\w+)"', setting("config-settings"))] == [
        tuple(each.split("=")) for each in building.DEFINES
    ]
    told = dict(re.findall(r'(\w+) = "(\w+)"', setting("environment")))
    assert flavours.FLAVOURS["cpu"].environment.items() <= told.items()
    assert told.keys() - flavours.FLAVOURS["cpu"].environment.keys() == {"MOEBIND_UI"}
    assert "python {project}/tools/wheels/repair.py {wheel} {dest_dir}" in setting("repair-wheel-command")
    assert setting("test-command") == '"python {project}/tools/wheels/tested.py"'
    assert tuple(re.findall(r'"([^"]+)"', setting("test-requires"))) == tested.TESTERS


def test_the_workflow_names_what_there_is() -> None:
    text = WORKFLOW.read_text(encoding="utf-8")
    commands = re.findall(r"python3 (\S+)(?: (\w+) (\S+) --flavour (\w+))?", text)
    assert {name for name, *_ in commands} == {
        "vendor/fetch.py",
        "vendor/page.py",
        "tools/wheels",
        "tools/wheels/tag.py",
    }
    assert all((ROOT / name).exists() for name, *_ in commands)
    (built,) = [each for each in commands if each[0] == "tools/wheels"]
    assert built[1] == "build"
    assert built[3] in flavours.FLAVOURS
    assert 'tags: ["v*"]' in text
    assert "startsWith(github.ref, 'refs/tags/v')" in text
    assert "needs: [sdist, wheels]" in text  # nothing is published that was not tried
    assert not re.findall(r"https?://|\.org\b|\.io\b", text)


def tagged(tag: str) -> subprocess.CompletedProcess[str]:
    """What the workflow's step does of a tag."""
    (command,) = re.findall(r"^ +run: (python3 tools/wheels/tag\.py .*)$", WORKFLOW.read_text("utf-8"), re.MULTILINE)
    told = {**os.environ, "GITHUB_REF_NAME": tag}
    return subprocess.run(command, shell=True, capture_output=True, text=True, check=False, cwd=ROOT, env=told)  # noqa: S602


def test_a_tag_is_the_version() -> None:
    right = tagged(f"v{moebind.__version__}")
    assert (right.returncode, right.stdout, right.stderr) == (0, "", "")


@pytest.mark.parametrize("tag", ["v9.9", moebind.__version__, f"v{moebind.__version__}rc1", "v"])
def test_a_tag_that_is_not_the_version(tag: str) -> None:
    version = moebind.__version__
    wrong = tagged(tag)
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr == (
        f"tag: the tag is {tag}, and src/moebind/_core/version.py says {version}: "
        f"tag v{version}, or change the version and tag that\n"
    )


def test_nothing_is_built_for_a_tag_that_is_not_the_version() -> None:
    jobs = re.split(r"^  (\w+):$", WORKFLOW.read_text("utf-8").partition("\njobs:\n")[2], flags=re.MULTILINE)
    needs = {
        name: set(re.findall(r"[a-z]\w*", found[1])) if (found := re.search(r"^    needs: (.+)$", job, re.M)) else set()
        for name, job in zip(jobs[1::2], jobs[2::2], strict=True)
    }
    assert needs == {
        "version": set(),
        **{name: {"version"} for name in ("sdist", "wheels", "cuda13")},
        "publish": {"sdist", "wheels"},
    }


# --- building ---


@pytest.mark.parametrize("name", flavours.FLAVOURS)
def test_flavours_say_what_is_built(name: str) -> None:
    told = building.environment(name, 3)
    assert told["CMAKE_BUILD_PARALLEL_LEVEL"] == "3"
    assert {"MOEBIND_CUDA", "MOEBIND_VULKAN"} <= told.keys()
    assert "MOEBIND_CUDA_ARCHITECTURES" not in told
    assert building.environment(name, 1, "90")["MOEBIND_CUDA_ARCHITECTURES"] == "90"


def test_the_command_that_builds() -> None:
    command = building.pip_wheel("python3", "source", "folder", "objects")
    assert command[:4] == ["python3", "-m", "pip", "wheel"]
    assert "-Ccmake.define.MOEBIND_PORTABLE=ON" in command
    assert "-Cbuild-dir=objects" in command
    assert command[-3:] == ["--wheel-dir", "folder", "source"]


@pytest.mark.parametrize("machine", building.CROSS)
def test_building_for_another_processor(machine: str) -> None:
    told = building.defines(("one", "two"), machine)
    assert told[0] == "MOEBIND_VARIANTS=one;two"
    toolchain = Path(told[1].removeprefix("CMAKE_TOOLCHAIN_FILE="))
    assert f"set(CMAKE_SYSTEM_PROCESSOR {machine})" in toolchain.read_text(encoding="utf-8")
    assert building.environment("cpu", 1, machine=machine)["_PYTHON_HOST_PLATFORM"] == f"linux-{machine}"
    assert machine in {root.machine for root in roots.ROOTS.values()}  # where it is tried


def test_building_for_this_processor_says_nothing_of_it() -> None:
    assert building.defines() == []
    assert "_PYTHON_HOST_PLATFORM" not in building.environment("cpu", 1)


def test_what_builds_is_kept(tmp_path: Path) -> None:
    """A Python that writes down what it is asked, and says that the build takes one thing more."""
    python, asked = tmp_path / "bin/python", tmp_path / "asked"
    python.parent.mkdir()
    python.write_text(
        f'#!/bin/sh\necho "$@" >> {asked}\ncase "$*" in *get_requires*) echo "[\\"$MOEBIND_CUDA\\"]" ;; esac\n'
    )
    python.chmod(0o755)
    assert building.toolchain(tmp_path, {"MOEBIND_CUDA": "a-toolkit"}) == str(python)
    first, *_, last = asked.read_text().splitlines()
    requires = re.search(r"^requires = \[(.+)\]$", PROJECT, re.MULTILINE)
    assert requires is not None
    assert first.endswith(requires[1].replace('"', "").replace(",", ""))
    assert last.startswith("-m pip install")
    assert last.endswith(" a-toolkit")
    # No command of the build names a folder that is another one the next time.
    assert "--no-build-isolation" in building.pip_wheel(str(python), "source", "folder", "objects")


def test_a_folder_has_one_wheel(tmp_path: Path) -> None:
    with pytest.raises(building.BuildError, match="has 0 wheels of moebind; it takes one"):
        building.only_wheel(tmp_path)
    (tmp_path / "moebind-1.whl").write_text("")
    (tmp_path / "numpy-1.whl").write_text("")
    assert building.only_wheel(tmp_path).name == "moebind-1.whl"
    (tmp_path / "moebind-2.whl").write_text("")
    with pytest.raises(building.BuildError, match="has 2 wheels"):
        building.only_wheel(tmp_path)


# --- trying ---


def test_every_file_of_tests_is_there_and_quick() -> None:
    thorough = (ROOT / "conftest.py").read_text(encoding="utf-8")
    for name in tested.TESTED:
        assert (ROOT / name).is_file(), name
        assert f'"{name}"' not in thorough
    assert set(tested.TESTERS) <= set(re.findall(r'"([^"]+)"', PROJECT))


def test_tags_that_a_system_takes() -> None:
    tags = clean.plain_tags("aarch64", 28)
    assert tags[0] == "manylinux_2_28_aarch64"
    assert tags[-2:] == ["manylinux_2_17_aarch64", "manylinux2014_aarch64"]
    assert "manylinux_2_31_aarch64" not in tags


def write_sources(folder: Path, **files: str) -> Path:
    (folder / "sources.list.d").mkdir()
    for name, text in files.items():
        path = folder / "sources.list" if name == "list" else folder / f"sources.list.d/{name}.{name}"
        path.write_text(text)
    return folder


STANZAS = """Types: deb deb-src
# where it comes from
URIs: http://mirror.example/debian/
Suites: bookworm bookworm-updates
Components: main

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security

Types: deb
URIs: http://other.example/node_20.x
Suites: nodistro
"""


def test_mirrors_are_those_of_apt(tmp_path: Path) -> None:
    folder = write_sources(tmp_path, list="", sources=STANZAS)
    assert roots.mirrors(folder) == ("http://mirror.example/debian", "http://mirror.example/debian-security")


def test_mirrors_in_the_older_form(tmp_path: Path) -> None:
    text = (
        "# deb http://no.example/debian bookworm main\ndeb [signed-by=/a] http://mirror.example/debian bookworm main\n"
    )
    folder = write_sources(tmp_path, list=text)
    assert roots.mirrors(folder) == ("http://mirror.example/debian",) * 2


def test_a_machine_without_mirrors(tmp_path: Path) -> None:
    folder = write_sources(tmp_path, list="deb http://mirror.example/ubuntu noble main\n")
    with pytest.raises(roots.RootError, match="names no mirror of Debian's"):
        roots.mirrors(folder)


def test_an_index_is_for_this_system_unless_it_is_said() -> None:
    assert os.confstr("CS_GNU_LIBC_VERSION") == f"glibc 2.{clean.libc_here()}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["index", "nothing.whl", "index"], "nothing.whl is not there: tools/wheels build makes a wheel"),
        (["try", "nowhere"], "nowhere is no index with a wheel of moebind: tools/wheels index makes one"),
    ],
)
def test_what_is_to_be_tried_is_not_there(arguments: list[str], said: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools/wheels"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"wheels: {said}\n")
    assert list(tmp_path.iterdir()) == []


def test_an_index_takes_a_wheel_for_other_systems(tmp_path: Path) -> None:
    wheel = tmp_path / "moebind-0.1.0-cp310-abi3-linux_x86_64.whl"
    wheel.touch()
    command = [sys.executable, str(ROOT / "tools/wheels"), "index", wheel.name, "index"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"wheels: {wheel.name} is for the system that it was built on, and if pip made it, for its processor: an index "
        "takes a manylinux wheel, which tools/wheels build makes\n"
    )
    assert list(tmp_path.iterdir()) == [wheel]


def test_a_distribution_has_no_compiler() -> None:
    for kind in roots.ROOTS.values():
        assert not {"g++", "gcc", "clang", "make", "build-essential"} & {*kind.packages}


def test_a_distribution_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / roots.STAMP).write_text("debian-13\n")
    roots.make("debian-13", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [roots.STAMP]


def test_a_processor_that_nothing_emulates(tmp_path: Path) -> None:
    with pytest.raises(roots.RootError, match=r"apt-get install qemu-user-static.*qemu-pdp11\.conf"):
        roots.check_emulated("pdp11", tmp_path)
    (tmp_path / "qemu-pdp11").write_text("enabled\n")
    roots.check_emulated("pdp11", tmp_path)
    roots.check_emulated("", tmp_path)
    roots.check_emulated(platform.machine(), tmp_path)


def test_every_root_has_a_name_at_debian() -> None:
    assert {root.machine for root in roots.ROOTS.values()} - {""} <= roots.DEBIAN.keys()


def test_the_commands() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/wheels"), "build", "--help"], capture_output=True, text=True, check=True
    )
    assert all(name in done.stdout for name in flavours.FLAVOURS)
    failed = subprocess.run(
        [sys.executable, str(ROOT / "tools/wheels"), "repair", "/no/such.whl", "/tmp"],  # noqa: S108
        capture_output=True,
        text=True,
        check=False,
    )
    assert failed.returncode == 1
    assert failed.stderr.startswith("wheels: auditwheel could not repair such.whl")
