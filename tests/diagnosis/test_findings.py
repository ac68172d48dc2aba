"""What doctor() says: each finding from made-up facts, and all of them on this machine."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hub_server import REPO, Hub

import moebind
from moebind import ContextParams, Device, DeviceType, Finding, LoadMode, ModelParams, Severity
from moebind.backend.host_memory import HostMemory
from moebind.diagnosis.facts import Facts
from moebind.diagnosis.findings import ARM, X86, PlannedLoad, findings

MakeTiny = Callable[..., Path]

GIB = 2**30
CPU = Device(0, "CPU", "a processor", "CPU", DeviceType.CPU, 16 * GIB, 8 * GIB, 16 * GIB)
CUDA = Device(1, "CUDA0", "a card", "CUDA", DeviceType.GPU, 8 * GIB, 8 * GIB, 8 * GIB)
#: Nothing to be said about what is asked for.
QUIET = PlannedLoad(None, ModelParams(n_gpu_layers=0), ContextParams(n_threads=1, n_threads_batch=1))
BUILT = Facts(cuda_verdict="in: nvcc, cudart, cublas", devices=(CPU,), libcuda=True, nvidia_cards=1)
NODES = {"/dev/nvidia0": True, "/dev/nvidiactl": True}


def said(facts: Facts, asked: PlannedLoad = QUIET) -> dict[str, Finding]:
    found = findings(facts, asked)
    for finding in found:
        assert finding.what
        assert finding.why
        assert finding.do
    assert len({finding.what for finding in found}) == len(found)
    return {finding.what: finding for finding in found}


def only(facts: Facts, asked: PlannedLoad = QUIET) -> Finding:
    [finding] = said(facts, asked).values()
    return finding


def test_nothing_remarkable() -> None:
    assert not said(replace(BUILT, devices=(CPU, CUDA), nvidia_nodes=NODES, nvidia_driver="580.1"))


# --- the graphics card ---


def test_no_cuda_and_no_card() -> None:
    finding = only(Facts(cuda_verdict="out: not found: nvcc"))
    assert finding.what == "this build of moebind has no CUDA"
    assert "not found: nvcc" in finding.why
    assert finding.severity is Severity.INFO


@pytest.mark.parametrize("there", [{"nvidia_cards": 2}, {"libcuda": True}, {"nvidia_nodes": {"/dev/nvidia0": False}}])
def test_no_cuda_in_spite_of_a_card(there: dict[str, object]) -> None:
    finding = only(replace(Facts(cuda_verdict="out: not found: nvcc"), **there))  # type: ignore[arg-type]
    assert "there is an NVIDIA card" in finding.what
    assert finding.severity is Severity.WARNING
    assert "MOEBIND_CUDA=ON" in finding.do
    off = only(replace(Facts(cuda_verdict="out: MOEBIND_CUDA=OFF"), **there))  # type: ignore[arg-type]
    assert off.do.startswith("unset MOEBIND_CUDA, then ")


@pytest.mark.parametrize(
    ("facts", "why", "do"),
    [
        (replace(BUILT, cuda_visible_devices=""), "CUDA_VISIBLE_DEVICES is ''", "unset it"),
        (replace(BUILT, cuda_visible_devices="-1"), "hides all cards", "unset it"),
        (replace(BUILT, libcuda=False), "libcuda.so.1 cannot be loaded", "--gpus all"),
        (replace(BUILT, libcuda=False, cuda_failure="libcuda.so.1: none"), "no driver: libcuda.so.1: none", "driver"),
        (replace(BUILT, cuda_failure="libcublas.so.13: none"), "loaded: libcublas.so.13: none", "moebind[cuda13]"),
        (replace(BUILT, nvidia_nodes={**NODES, "/dev/nvidia-uvm": False}), "/dev/nvidia-uvm", "permissions"),
        (BUILT, "no device files", "modprobe nvidia"),
        (replace(BUILT, nvidia_nodes=NODES, cuda_visible_devices="7"), "names no card that is there", "unset it"),
        (replace(BUILT, nvidia_nodes=NODES, nvidia_driver="470.1"), "the driver 470.1 shows none", "nvidia-smi"),
    ],
)
def test_cuda_without_a_device(facts: Facts, why: str, do: str) -> None:
    finding = only(facts)
    assert finding.what == "CUDA is built in, but there is no CUDA device"
    assert why in finding.why
    assert do in finding.do
    assert finding.severity is Severity.WARNING


def test_some_cards_are_hidden() -> None:
    finding = only(replace(BUILT, devices=(CPU, CUDA), cuda_visible_devices="1"))
    assert finding.what == "CUDA shows only some of the cards"


@pytest.mark.parametrize(
    ("params", "devices", "all_on_cpu"),
    [
        (ModelParams(), (CPU,), True),
        (ModelParams(n_gpu_layers=5), (CPU,), True),
        (ModelParams(), (CPU, CUDA), False),
        (ModelParams(devices=(CUDA,)), (CPU, CUDA), False),
        (ModelParams(n_gpu_layers=0), (CPU,), False),
        (ModelParams(devices=()), (CPU,), False),
        (ModelParams(vocab_only=True), (CPU,), False),
    ],
)
def test_whether_everything_is_on_the_cpu(params: ModelParams, devices: tuple[Device, ...], all_on_cpu: bool) -> None:
    facts = Facts(devices=devices)
    found = set(said(facts, replace(QUIET, model=params))) - set(said(facts))
    assert found == ({"everything will run on the CPU"} if all_on_cpu else set())


BUILT_VULKAN = replace(
    BUILT,
    devices=(CPU, CUDA),
    vulkan_verdict="in: headers 1.3.239, glslc 2023.2",
    libvulkan=True,
    vulkan_drivers=("radeon_icd.x86_64.json",),
    other_cards=1,
)
RENDER = {"/dev/dri/renderD128": True}


def test_no_vulkan_in_spite_of_a_card() -> None:
    out = replace(BUILT_VULKAN, vulkan_verdict="out: not found: glslc")
    finding = only(out)
    assert finding.what == "there is a card of AMD's or Intel's, but this build of moebind has no Vulkan"
    assert "out: not found: glslc" in finding.why
    assert "MOEBIND_VULKAN=ON" in finding.do
    assert finding.do.startswith("install what is missing, then ")
    off = only(replace(out, vulkan_verdict="out: MOEBIND_VULKAN=OFF"))
    assert off.do.startswith("unset MOEBIND_VULKAN, then ")  # nothing is missing
    assert finding.severity is Severity.WARNING
    assert not said(replace(out, other_cards=0))


@pytest.mark.parametrize(
    ("changes", "why", "do"),
    [
        ({"vulkan_variables": {"GGML_DISABLE_VULKAN": "1"}}, "GGML_DISABLE_VULKAN is '1'", "unset it"),
        ({"vulkan_variables": {"GGML_VK_VISIBLE_DEVICES": ""}}, "GGML_VK_VISIBLE_DEVICES is ''", "unset it"),
        ({"libvulkan": False}, "libvulkan.so.1 cannot be loaded", "libvulkan1"),
        (
            {"libvulkan": False, "vulkan_failure": "libvulkan.so.1: none"},
            "no loader of Vulkan: libvulkan.so.1: none",
            "",
        ),
        ({"vulkan_drivers": ()}, "there is no driver", "mesa-vulkan-drivers"),
        ({"vulkan_drivers": (), "vulkan_failure": "ErrorIncompatibleDriver"}, "driver: ErrorIncompatibleDriver", ""),
        (
            {"vulkan_failure": "no device 7", "vulkan_variables": {"GGML_VK_VISIBLE_DEVICES": "7"}},
            "no device 7; the environment has GGML_VK_VISIBLE_DEVICES=7",
            "unset it",
        ),
        (
            {"vulkan_failure": "there are no device files of graphics cards (/dev/dri); look"},
            "there are no device files (/dev/dri/renderD*)",
            "--device /dev/dri",
        ),
        ({"vulkan_failure": "Vulkan 1.2 required"}, "Vulkan 1.2 required", "vulkaninfo"),
        ({"render_nodes": {"/dev/dri/renderD128": False}}, "may not read and write /dev/dri/renderD128", "render"),
        ({}, "no device files", "--device /dev/dri"),
        ({"render_nodes": RENDER}, "(radeon_icd.x86_64.json) show no card", "vulkaninfo"),
        (
            {"vulkan_drivers": ("lvp_icd.x86_64.json",)},
            "no device files",
            "GGML_VK_VISIBLE_DEVICES=0 uses the software",
        ),
    ],
)
def test_vulkan_without_a_device(changes: dict[str, object], why: str, do: str) -> None:
    facts = replace(BUILT_VULKAN, **changes)  # type: ignore[arg-type]
    finding = only(facts)
    assert finding.what == "Vulkan is built in, but there is no Vulkan device"
    assert why in finding.why
    assert do in finding.do
    assert finding.severity is Severity.WARNING
    assert only(replace(facts, other_cards=0)).severity is Severity.INFO


def test_a_card_that_two_backends_list() -> None:
    at = "0000:01:00.0"
    vulkan = Device(2, "Vulkan0", "a card", "Vulkan", DeviceType.GPU, 8 * GIB, 8 * GIB, 8 * GIB, at)
    finding = only(replace(BUILT_VULKAN, devices=(CPU, replace(CUDA, card=at), vulkan)))
    assert finding.what == "CUDA0 and Vulkan0 are one card"
    assert at in finding.why
    assert finding.severity is Severity.INFO
    assert not said(replace(BUILT_VULKAN, devices=(CPU, replace(CUDA, card="0000:02:00.0"), vulkan)))


# --- the processor ---

AVX512 = frozenset({"avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw", "avx512vbmi"})
PLAIN = replace(Facts(), cuda_verdict=BUILT.cuda_verdict, devices=(CPU, CUDA))


@pytest.mark.parametrize(
    ("flags", "features", "missing"),
    [
        ({"avx", "avx2", "fma"}, {"AVX", "AVX2", "FMA"}, None),
        ({"avx", "avx2", "fma"}, {"AVX"}, "AVX2, FMA"),
        ({"avx", "sse4_2", "rdrand"}, {"AVX", "SSE3"}, None),
        (AVX512, set(), "AVX512, AVX512_VBMI"),
        ({"avx512f", "avx512_vnni"}, set(), None),  # not enough of it for llama.cpp
        (set(), set(), None),
    ],
)
def test_instructions_that_the_build_lacks(flags: set[str], features: set[str], missing: str | None) -> None:
    facts = replace(PLAIN, cpu_flags=frozenset(flags), cpu_features=frozenset(features))
    if missing is None:
        assert not said(facts)
    else:
        finding = only(facts)
        assert finding.what == f"the build does not use {missing} of this processor"
        assert finding.severity is Severity.WARNING
        assert "the build lists" in finding.why
        assert "the variant of the backend" in only(replace(facts, cpu_variants=True)).why


def test_instructions_on_arm() -> None:
    facts = replace(
        PLAIN, architecture="aarch64", cpu_flags=frozenset({"asimd", "i8mm"}), cpu_features=frozenset({"NEON"})
    )
    assert "MATMUL_INT8" in only(facts).what


def test_names_of_features_are_llama_cpps() -> None:
    source = Path(__file__).parents[2] / "vendor/llama.cpp/ggml/src/ggml-cpu/ggml-cpu.cpp"
    text = source.read_text(encoding="utf-8")
    for feature in {*X86.values(), *ARM.values()}:
        assert f'{{ "{feature}", "1" }}' in text


@pytest.mark.parametrize(
    ("facts", "asked", "what", "severity"),
    [
        ({"cores": 8, "cores_allowed": 8}, (9, 1), "n_threads is 9, but only 8 threads can run", Severity.WARNING),
        ({"cores": 8, "cores_allowed": 8}, (1, 16), "n_threads_batch is 16, but only 8", Severity.WARNING),
        ({"cores": 8, "cores_allowed": 8, "core_quota": 1.5}, (2, 1), "only 1 threads can run", Severity.WARNING),
        ({"cores": 8, "cores_allowed": 8, "core_quota": 0.2}, (1, 1), "1 of the machine's 8 cores", Severity.INFO),
        ({"cores": 8, "cores_allowed": 2}, (1, 1), "2 of the machine's 8 cores", Severity.INFO),
        (
            {"cores": 8, "cores_allowed": 8, "default_threads": 4},
            (2, 2), "n_threads is 2, while 8 threads could run", Severity.INFO,
        ),
        (
            {"cores": 8, "cores_allowed": 8, "load_average": 8.26},
            (1, 1), "the load average is 8.3, and there are 8 cores", Severity.INFO,
        ),
    ],
)  # fmt: skip
def test_threads(facts: dict[str, object], asked: tuple[int, int], what: str, severity: Severity) -> None:
    context = ContextParams(n_threads=asked[0], n_threads_batch=asked[1])
    found = said(replace(PLAIN, **facts), replace(QUIET, context=context))  # type: ignore[arg-type]
    [finding] = [finding for finding in found.values() if what in finding.what]
    assert finding.severity is severity


def test_enough_threads() -> None:
    facts = replace(PLAIN, cores=8, cores_allowed=8, core_quota=9.0, default_threads=4, load_average=8.0)
    assert not said(facts, replace(QUIET, context=ContextParams(n_threads=8, n_threads_batch=8)))


@pytest.mark.parametrize(
    ("variables", "what"),
    [
        ({"OMP_THREAD_LIMIT": "1"}, "OpenMP starts at most 1 threads, though 2 are asked for"),
        ({"OMP_THREAD_LIMIT": "2"}, None),
        ({"OMP_THREAD_LIMIT": "many"}, None),
        ({"OMP_DYNAMIC": "TRUE"}, "fewer threads"),
        ({"OMP_DYNAMIC": "false"}, None),
        ({"OMP_PROC_BIND": "close"}, "ties threads to cores"),
        ({"GOMP_CPU_AFFINITY": "0-3"}, "ties threads to cores"),
        ({"OMP_PROC_BIND": "false", "OMP_PLACES": "cores"}, None),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "spinning"),
        ({"OMP_WAIT_POLICY": "passive"}, None),
        ({"OMP_NUM_THREADS": "4"}, "does not choose"),
    ],
)
def test_openmp(variables: dict[str, str], what: str | None) -> None:
    facts = replace(PLAIN, cores=2, cores_allowed=2, openmp=variables)
    asked = replace(QUIET, context=ContextParams(n_threads=2, n_threads_batch=2))
    if what is None:
        assert not said(facts, asked)
    else:
        assert what in only(facts, asked).what


# --- memory ---


def test_a_control_group() -> None:
    finding = only(replace(PLAIN, memory_total=64 * GIB, memory=HostMemory(8 * GIB, 4 * GIB, "the control group x")))
    assert finding.what == "this process may use 8.0 GiB of the machine's 64.0 GiB"
    assert "the control group x" in finding.why


@pytest.mark.parametrize(
    ("size", "mode", "severity"),
    [
        (3 * GIB, LoadMode.MMAP, None),
        (6 * GIB, LoadMode.MMAP, Severity.WARNING),
        (20 * GIB, LoadMode.MMAP, Severity.WARNING),
        (20 * GIB, LoadMode.NONE, Severity.PROBLEM),
    ],
)
def test_a_model_that_is_too_large(size: int, mode: LoadMode, severity: Severity | None) -> None:
    facts = replace(PLAIN, memory_total=16 * GIB, memory=HostMemory(16 * GIB, 4 * GIB))
    asked = replace(QUIET, size=size, model=ModelParams(n_gpu_layers=0, load_mode=mode))
    found = list(said(facts, asked).values())
    assert [finding.severity for finding in found] == ([] if severity is None else [severity])
    # Where a device takes part of it, a plan tells more.
    assert not said(facts, replace(asked, model=ModelParams(load_mode=mode)))


@pytest.mark.parametrize(
    ("size", "severity"), [(None, Severity.WARNING), (GIB, Severity.WARNING), (4 * GIB, Severity.PROBLEM)]
)
def test_address_space(size: int | None, severity: Severity) -> None:
    facts = replace(PLAIN, address_space=4 * GIB, address_space_used=GIB)
    finding = only(facts, replace(QUIET, size=size))
    assert finding.severity is severity
    assert "3.0 GiB is left" in finding.what


@pytest.mark.parametrize(
    ("mlock", "lockable", "size", "there"),
    [
        (True, 8 * 2**20, None, True),
        (True, 8 * 2**20, GIB, True),
        (True, 2 * GIB, GIB, False),
        (True, None, GIB, False),
        (False, 8 * 2**20, GIB, False),
    ],
)
def test_locked_memory(mlock: bool, lockable: int | None, size: int | None, there: bool) -> None:
    asked = replace(QUIET, size=size, model=ModelParams(n_gpu_layers=0).with_use_mlock(mlock))
    found = said(replace(PLAIN, lockable=lockable), asked)
    assert [finding.why.startswith("RLIMIT_MEMLOCK") for finding in found.values()] == [True] * there


# --- the whole ---


@pytest.mark.parametrize(
    "arguments", [(5,), ("x", "y"), (None, ContextParams()), (None, None, ModelParams()), ("a\0b",)]
)
def test_wrong_arguments(arguments: tuple[object, ...]) -> None:
    with pytest.raises((TypeError, ValueError), match="path|params"):
        moebind.doctor(*arguments)  # type: ignore[arg-type]


def test_files_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        moebind.doctor(tmp_path / "none.gguf")
    (tmp_path / "text.gguf").write_text("text")
    with pytest.raises(moebind.ModelLoadError):
        moebind.doctor(tmp_path / "text.gguf")


def test_limits_of_this_process(tiny_path: MakeTiny) -> None:
    code = (
        "import resource, sys, moebind\n"
        "limit = 8 * 2**30\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "found = moebind.doctor(sys.argv[1])\n"
        "assert any('8.0 GiB of address space' in finding.what for finding in found), found\n"
        "assert any('CUDA_VISIBLE' in finding.why or 'CUDA' in finding.what for finding in found)\n"
        "assert any(finding.what.startswith('OMP_NUM_THREADS') for finding in found)\n"
    )
    subprocess.run([sys.executable, "-c", code, tiny_path()], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert resource.getrlimit(resource.RLIMIT_AS)


def test_it_is_imported_when_it_is_asked_for() -> None:
    code = "import sys, moebind; before = 'moebind.diagnosis.findings' in sys.modules; moebind.doctor; print(before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert callable(moebind.doctor)
    assert moebind.Severity.PROBLEM > moebind.Severity.WARNING > moebind.Severity.INFO


def test_doctor_and_params_know_of_it(hub: Hub) -> None:
    assert moebind.doctor(f"hf://{REPO}/Q4_K", ModelParams(n_gpu_layers=0))
