"""The doctor, :func:`moebind.doctor`: what is there, what is missing, why, and what to do about it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from moebind._core.shown import shown
from moebind.backend.devices import of_one_card
from moebind.diagnosis.diagnosis import Diagnosis, Finding, Severity, show_gib
from moebind.diagnosis.facts import Facts, read_facts
from moebind.enums import DeviceType
from moebind.files.gguf import Gguf
from moebind.params.misplaced import explained_with_fields
from moebind.params.params import ContextParams, ModelParams

__all__ = ["doctor"]

#: llama.cpp's names for those of the processor's flags that its kernels are written for.
X86 = {
    "ssse3": "SSSE3", "avx": "AVX", "avx2": "AVX2", "fma": "FMA", "f16c": "F16C", "bmi2": "BMI2", "avx512f": "AVX512",
    "avx512vbmi": "AVX512_VBMI", "avx512_vnni": "AVX512_VNNI", "avx512_bf16": "AVX512_BF16", "avx_vnni": "AVX_VNNI",
    "amx_int8": "AMX_INT8",
}  # fmt: skip
ARM = {
    "asimd": "NEON", "asimddp": "DOTPROD", "i8mm": "MATMUL_INT8", "sve": "SVE", "asimdhp": "FP16_VA", "sme": "SME",
}  # fmt: skip
#: Parts of AVX-512 without which llama.cpp uses none of it.
AVX512 = {"avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"}

REBUILD = "pip install --force-reinstall --no-deps . in a checkout of moebind, on this machine (docs/build.md)"


@explained_with_fields(model="doctor(path, {})", context="doctor(path, context_params={})")
def doctor(
    path: str | os.PathLike[str] | None = None,
    model_params: ModelParams | None = None,
    context_params: ContextParams | None = None,
) -> Diagnosis:
    """Examine the build, the devices, the processor and the limits of this process.

    Parameters
    ----------
    path
        A model file that you want to load, or the first one of a split model: the findings then say whether there is
        enough memory.
    model_params, context_params
        The parameters to load it with; None: the defaults.

    Returns
    -------
    Diagnosis
        Findings, each with what to do about it. Nothing is loaded or changed.

    Raises
    ------
    ModelNotFoundError
        If ``path`` does not exist.

    Examples
    --------
    >>> print(moebind.doctor())
    """
    for name, given, kind in (
        ("model_params", model_params, ModelParams), ("context_params", context_params, ContextParams)
    ):  # fmt: skip
        if given is not None and not isinstance(given, kind):
            raise TypeError(f"{name} is {shown(given)}; it takes {kind.__name__}")
    size = None
    if path is not None:
        size = sum(Gguf.from_file(path)._sizes())
    load = PlannedLoad(size, model_params or ModelParams(), context_params or ContextParams())
    facts = read_facts()
    return Diagnosis(facts, findings(facts, load))


@dataclass(frozen=True)
class PlannedLoad:
    """A load that the user plans: its parameters, and the bytes of the model's files if a model was named."""

    size: int | None = None
    model: ModelParams = ModelParams()
    context: ContextParams = ContextParams()


def findings(facts: Facts, load: PlannedLoad) -> list[Finding]:
    """Judge the facts, for this load; nothing is read here."""
    return [finding for check in CHECKS for finding in check(facts, load)]


def _gpus(facts: Facts) -> list[str]:
    return [device.name for device in facts.devices if device.type in (DeviceType.GPU, DeviceType.IGPU)]


# --- the graphics card ---


def _no_cuda_in_the_build(facts: Facts, load: PlannedLoad) -> Iterator[Finding]:
    if facts.cuda_verdict.startswith("in"):
        return
    there = facts.nvidia_cards > 0 or facts.libcuda or bool(facts.nvidia_nodes)
    if there:
        yield Finding(
            "there is an NVIDIA card, but this build of moebind has no CUDA",
            f"when moebind was built, CUDA was {facts.cuda_verdict}",
            _built_again("MOEBIND_CUDA", facts.cuda_verdict),
            Severity.WARNING,
        )
    else:
        yield Finding(
            "this build of moebind has no CUDA",
            f"when moebind was built, CUDA was {facts.cuda_verdict}; no NVIDIA card was found here either",
            "nothing, unless this machine has such a card",
        )


def _no_cuda_device(facts: Facts, load: PlannedLoad) -> Iterator[Finding]:
    if not facts.cuda_verdict.startswith("in"):
        return
    hidden = facts.cuda_visible_devices
    if any(device.backend == "CUDA" for device in facts.devices):
        if hidden is not None:
            yield Finding(
                "CUDA shows only some of the cards",
                f"CUDA_VISIBLE_DEVICES is {hidden!r}",
                "unset it to use all of them",
            )
        return
    what = "CUDA is built in, but there is no CUDA device"
    closed = [path for path, usable in facts.nvidia_nodes.items() if not usable]
    if hidden is not None and hidden.strip() in {"", "-1", "NoDevFiles"}:
        why, do = f"CUDA_VISIBLE_DEVICES is {hidden!r}, which hides all cards", "unset it, or name cards: 0, or 0,1"
    elif not facts.libcuda:
        why = f"there is no driver: {facts.cuda_failure or 'libcuda.so.1 cannot be loaded'}"
        do = "install NVIDIA's driver; in a container, start it with the cards (docker run --gpus all)"
    elif facts.cuda_failure:
        why = f"the library of the CUDA backend cannot be loaded: {facts.cuda_failure}"
        do = "pip install 'moebind[cuda13]' puts CUDA's libraries beside moebind; ldconfig -p lists those of the system"
    elif closed:
        why = f"this user may not read and write {', '.join(closed)}"
        do = "change their permissions, or add the user to the group that has them (often video or render)"
    elif not facts.nvidia_nodes:
        why = "there is a driver, but no device files (/dev/nvidia*)"
        do = "in a container, start it with the cards (docker run --gpus all); elsewhere, modprobe nvidia"
    elif hidden is not None:
        why, do = f"CUDA_VISIBLE_DEVICES is {hidden!r}, and names no card that is there", "unset it"
    else:
        why = f"the driver {facts.nvidia_driver or ''} shows none: it may be older than the CUDA of this build"
        do = "see whether nvidia-smi works; a newer driver may be needed"
    yield Finding(what, why, do, Severity.WARNING)


def _no_vulkan_in_the_build(facts: Facts, load: PlannedLoad) -> Iterator[Finding]:
    if facts.vulkan_verdict.startswith("in") or not facts.other_cards:
        return
    yield Finding(
        "there is a card of AMD's or Intel's, but this build of moebind has no Vulkan",
        f"when moebind was built, Vulkan was {facts.vulkan_verdict}",
        _built_again("MOEBIND_VULKAN", facts.vulkan_verdict),
        Severity.WARNING,
    )


def _built_again(option: str, verdict: str) -> str:
    """What to do where a variable left a backend out of the build, or something was missing."""
    first = f"unset {option}" if verdict.endswith("=OFF") else "install what is missing"
    return f"{first}, then {REBUILD} with -C cmake.define.{option}=ON, which stops without it"


def _no_vulkan_device(facts: Facts, load: PlannedLoad) -> Iterator[Finding]:
    if not facts.vulkan_verdict.startswith("in") or any(device.backend == "Vulkan" for device in facts.devices):
        return
    variables, failure = facts.vulkan_variables, facts.vulkan_failure.partition("there are no device files")[0]
    chosen = [f"{name}={value}" for name, value in variables.items() if name != "GGML_DISABLE_VULKAN"]
    closed = [path for path, usable in facts.render_nodes.items() if not usable]
    if "GGML_DISABLE_VULKAN" in variables:
        why, do = f"GGML_DISABLE_VULKAN is {variables['GGML_DISABLE_VULKAN']!r}", "unset it"
    elif not variables.get("GGML_VK_VISIBLE_DEVICES", "0").strip():
        why, do = f"GGML_VK_VISIBLE_DEVICES is {variables['GGML_VK_VISIBLE_DEVICES']!r}, which hides all", "unset it"
    elif not facts.libvulkan:
        why = f"there is no loader of Vulkan: {facts.vulkan_failure or 'libvulkan.so.1 cannot be loaded'}"
        do = "install it, and the card's driver: packages libvulkan1 and, for AMD and Intel, mesa-vulkan-drivers"
    elif failure and chosen:
        why, do = f"{failure}; the environment has {', '.join(chosen)}", "unset it, or mend what it names"
    elif not facts.vulkan_drivers:
        why = f"there is no driver{f': {failure}' if failure else ''}"
        do = "install the card's: package mesa-vulkan-drivers for AMD and Intel, NVIDIA's driver for theirs"
    elif failure:
        why, do = failure, "see whether vulkaninfo works; a newer driver may be needed"
    elif closed:
        why = f"this user may not read and write {', '.join(closed)}"
        do = "change their permissions, or add the user to the group that has them (often render or video)"
    elif not facts.render_nodes:
        why = "there are no device files (/dev/dri/renderD*)"
        do = "in a container, start it with them (docker run --device /dev/dri); elsewhere, load its kernel driver"
    else:
        why = f"the drivers ({', '.join(facts.vulkan_drivers)}) show no card that has what llama.cpp needs"
        do = "see what vulkaninfo lists; a newer driver may be needed"
    software = any(name.startswith("lvp_") for name in facts.vulkan_drivers) and not chosen
    yield Finding(
        "Vulkan is built in, but there is no Vulkan device",
        why,
        do + (". GGML_VK_VISIBLE_DEVICES=0 uses the software driver, to try it out" if software else ""),
        Severity.WARNING if facts.other_cards else Severity.INFO,
    )


def _one_card_twice(facts: Facts, load: PlannedLoad) -> Iterator[Finding]:
    doubled = of_one_card(facts.devices)
    if doubled is not None:
        first, second = doubled
        yield Finding(
            f"{first.name} and {second.name} are one card",
            f"both are at {first.card} of the PCI bus",
            f"nothing: {first.name} is used, which comes first; ModelParams(devices=...) with {second.name} uses that",
        )


def _all_on_the_cpu(facts: Facts, load: PlannedLoad) -> Iterator[Finding]:
    params = load.model
    if params.n_gpu_layers != 0 and not params.vocab_only and params.devices is None and not _gpus(facts):
        yield Finding(
            "everything will run on the CPU",
            f"n_gpu_layers is {params.n_gpu_layers}, and no device can take layers",
            "set n_gpu_layers=0 if that is what you want; moebind.loopback_device() stands in for a device",
        )


# --- the processor ---


def _missing_instructions(facts: Facts, load: PlannedLoad) -> Iterator[Finding]:
    names = ARM if facts.architecture in {"aarch64", "arm64"} else X86
    usable = facts.cpu_flags if facts.cpu_flags >= AVX512 else {f for f in facts.cpu_flags if "avx512" not in f}
    missing = sorted({names[flag] for flag in usable if flag in names} - facts.cpu_features)
    if not missing:
        return
    lister = "the variant of the backend that was chosen" if facts.cpu_variants else "the build"
    yield Finding(
        f"the build does not use {', '.join(missing)} of this processor",
        f"the processor has them, but {lister} lists only {', '.join(sorted(facts.cpu_features)) or 'nothing'}",
        f"{REBUILD}: by default it uses all that the processor has. Experts on the CPU can be several times faster",
        Severity.WARNING,
    )


def _threads(facts: Facts, load: PlannedLoad) -> Iterator[Finding]:
    usable = facts.cores_allowed
    why = f"{facts.cores_allowed} of {facts.cores} cores are allowed to this process"
    if facts.core_quota is not None and facts.core_quota < usable:
        usable = max(1, math.floor(facts.core_quota))
        why = f"a control group grants it {facts.core_quota:g} of {facts.cores_allowed} cores"
    for name in ("n_threads", "n_threads_batch"):
        wanted = getattr(load.context, name)
        if wanted > usable:
            yield Finding(
                f"{name} is {wanted}, but only {usable} threads can run at once",
                why,
                f"ContextParams({name}={usable}): threads that wait for each other make it many times slower",
                Severity.WARNING,
            )
    if usable < facts.cores:
        yield Finding(
            f"this process has {usable} of the machine's {facts.cores} cores",
            why,
            f"use at most {usable} threads, or give it more (taskset, docker --cpus, Slurm's --cpus-per-task)",
        )
    if facts.load_average > facts.cores:
        yield Finding(
            f"the load average is {facts.load_average:.1f}, and there are {facts.cores} cores",
            "more threads want to run than can: those of one computation wait for each other, which can make it many "
            "times slower",
            "compute when the machine is idle, or with fewer threads: ContextParams(n_threads=1, n_threads_batch=1)",
        )
    wanted = load.context.n_threads
    if wanted < min(usable, facts.default_threads):
        yield Finding(
            f"n_threads is {wanted}, while {usable} threads could run",
            f"that is {'the default' if load.context == ContextParams() else 'what was asked for'}; llama.cpp's own "
            f"programs would use {facts.default_threads} here",
            f"ContextParams(n_threads={min(usable, facts.default_threads)}) if nothing else needs the cores",
        )


def _openmp(facts: Facts, load: PlannedLoad) -> Iterator[Finding]:
    variables = facts.openmp
    most = max(load.context.n_threads, load.context.n_threads_batch)
    limit = variables.get("OMP_THREAD_LIMIT", "")
    if limit.isdecimal() and int(limit) < most:
        yield Finding(
            f"OpenMP starts at most {limit} threads, though {most} are asked for",
            f"OMP_THREAD_LIMIT is {limit}",
            "unset it, or ask for no more threads",
            Severity.WARNING,
        )
    if variables.get("OMP_DYNAMIC", "").strip().lower() in {"true", "1"}:
        yield Finding(
            "OpenMP may use fewer threads than were asked for",
            f"OMP_DYNAMIC is {variables['OMP_DYNAMIC']!r}",
            "unset it",
            Severity.WARNING,
        )
    binds = [
        f"{name}={variables[name]}"
        for name in ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY")
        if name in variables
    ]
    if binds and variables.get("OMP_PROC_BIND", "").strip().lower() not in {"false", "0"}:
        yield Finding(
            "OpenMP ties threads to cores: those of two contexts or processes may share one and leave others idle",
            f"the environment has {', '.join(binds)}",
            "unset it, unless one context is all that computes here",
            Severity.WARNING,
        )
    if variables.get("OMP_WAIT_POLICY", "").strip().lower() == "active":
        yield Finding(
            "threads of OpenMP's wait by spinning",
            "OMP_WAIT_POLICY is 'active'",
            "unset it where other processes need the cores",
            Severity.WARNING,
        )
    if "OMP_NUM_THREADS" in variables:
        yield Finding(
            "OMP_NUM_THREADS does not choose llama.cpp's threads",
            f"it is {variables['OMP_NUM_THREADS']!r}; n_threads and n_threads_batch choose them",
            "set those in ContextParams",
        )


# --- memory ---


def _memory(facts: Facts, load: PlannedLoad) -> Iterator[Finding]:
    memory = facts.memory
    if memory.capacity < facts.memory_total:
        yield Finding(
            f"this process may use {show_gib(memory.capacity)} of the machine's {show_gib(facts.memory_total)}",
            f"{memory.limit or 'the system'} says so",
            "give it more if a model needs it (docker --memory, systemd's MemoryMax, Slurm's --mem)",
        )
    if load.size is None:
        return
    if _gpus(facts) and load.model.n_gpu_layers != 0:
        return  # how much goes where is what a plan tells
    if load.size > memory.capacity:
        yield Finding(
            f"the model has {show_gib(load.size)}, and {show_gib(memory.capacity)} is all that there is",
            f"the limit is {memory.limit or 'the memory of this machine'}",
            "take a smaller quantisation, or more memory: mapped, it would be read from the disk again and again",
            Severity.PROBLEM if not load.model.use_mmap else Severity.WARNING,
        )
    elif load.size > memory.free:
        yield Finding(
            f"the model has {show_gib(load.size)}, and {show_gib(memory.free)} is free",
            f"of {show_gib(memory.capacity)}, as {memory.limit or 'the system'} says",
            "end something else, or take a smaller quantisation",
            Severity.WARNING,
        )


def _address_space(facts: Facts, load: PlannedLoad) -> Iterator[Finding]:
    if facts.address_space is None:
        return
    left = max(0, facts.address_space - facts.address_space_used)
    needed = load.size or 0
    yield Finding(
        f"this process may have {show_gib(facts.address_space)} of address space, of which {show_gib(left)} is left",
        "RLIMIT_AS (ulimit -v) is set; a mapped model counts in full",
        "ulimit -v unlimited, in the shell or the service that starts it",
        Severity.PROBLEM if needed > left else Severity.WARNING,
    )


def _locked_memory(facts: Facts, load: PlannedLoad) -> Iterator[Finding]:
    if not load.model.use_mlock or facts.lockable is None:
        return
    if load.size is None or load.size > facts.lockable:
        what = "a model" if load.size is None else f"the model's {show_gib(load.size)}"
        yield Finding(
            f"use_mlock cannot lock {what} in memory",
            f"RLIMIT_MEMLOCK (ulimit -l) allows {facts.lockable / 2**20:.0f} MiB; llama.cpp would log that and go on",
            "ulimit -l unlimited; docker run --ulimit memlock=-1; LimitMEMLOCK=infinity for systemd",
            Severity.WARNING,
        )


CHECKS: tuple[Callable[[Facts, PlannedLoad], Iterator[Finding]], ...] = (
    _no_cuda_in_the_build,
    _no_cuda_device,
    _no_vulkan_in_the_build,
    _no_vulkan_device,
    _one_card_twice,
    _all_on_the_cpu,
    _missing_instructions,
    _threads,
    _openmp,
    _memory,
    _address_space,
    _locked_memory,
)
