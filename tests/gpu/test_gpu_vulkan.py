"""What only Vulkan has, on Mesa's software driver: limits that can be set, missing and broken drivers, a lost device.

Limits come from the environment (``GGML_VK_FORCE_...``), so each test has a process of its own. What no driver does
when it is asked to, ``vulkan_between.cpp`` does, which stands between ggml-vulkan and Vulkan's loader.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from on_gpu import logits_of, program

from conftest import SMALL
from moebind import Device, Model, ModelParams

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import planned_against_actual

pytestmark = pytest.mark.software

MIB = 2**20


def test_memory_that_is_too_small_is_an_error_and_no_end(gpu: Device, demo_path: Path) -> None:
    """No buffer may be larger than 32 MiB: there is room for the model without its experts, and not for all of it."""
    [done] = program(
        """
device = holder.__enter__()
def said_of(params, context_params):
    try:
        with Model.load_from_file(sys.argv[1], params) as model, model.new_context(context_params) as context:
            return text(context)
    except MoebindError as error:
        return f"{type(error).__name__}: {error}"
params = ModelParams(devices=(device,))
print(json.dumps({
    "cpu": said_of(cpu, small),
    "all": said_of(params, small),
    "cache": said_of(params.with_cpu_moe_all(), small.with_n_ctx(65536)),
    "experts": said_of(params.with_cpu_moe_all(), small),
}))
""",
        demo_path,
        GGML_VK_FORCE_MAX_BUFFER_SIZE=str(32 * MIB),
    )
    assert done["all"].startswith("ModelLoadError")
    assert f"unable to allocate {gpu.name} buffer" in done["all"]
    assert "exceeds device buffer size limit" in done["all"]
    assert done["cache"].startswith("ContextCreationError")
    assert "exceeds device buffer size limit" in done["cache"]
    assert done["experts"] == done["cpu"]


def test_memory_in_parts(gpu: Device, demo_path: Path) -> None:
    """A driver that gives at most 8 MiB at once: buffers have parts, and what is in them is the same."""
    code = """
device = holder.__enter__()
params = ModelParams(devices=(device,))
plan = moebind.plan(sys.argv[1], params, small)
with Model.load_from_file(sys.argv[1], params) as model, model.new_context(small) as context:
    held = context.memory_breakdown()
    told = {"text": text(context)}
parts = ("model", "context", "compute")
told["planned"] = [getattr(plan.devices[0], part) for part in parts]
told["held"] = [getattr(held.devices[0], part) for part in parts]
print(json.dumps(told))
"""
    [whole] = program(code, demo_path)
    [parts] = program(code, demo_path, GGML_VK_FORCE_MAX_ALLOCATION_SIZE=str(8 * MIB))
    assert whole["text"] == parts["text"]
    for told in (whole, parts):
        for planned, held in zip(told["planned"], told["held"], strict=True):
            assert abs(planned - held) <= max(0.01 * held, 4 * MIB), told


def test_a_described_card_is_planned_as_this_one_and_holds_that(gpu: Device, demo_path: Path) -> None:
    """The table of docs/offload.md. Pinned memory is aligned: its blocks may be a few bytes larger."""
    errors: list[tuple[int, float, str]] = []
    rows = [*planned_against_actual.part_rows(str(demo_path), gpu, "vulkan:2GiB", errors)]
    assert [row[0] for row in rows] == [*planned_against_actual.PARTS]
    assert all(error <= 64 for error, _, _ in errors)
    device = [row[5] for row in rows]
    assert device[0] > device[1] >= device[2]
    assert device[3] > device[2]  # it has the cache, too


LISTS = """
device = holder.__enter__()
found = moebind.doctor()
with Model.load_from_file(sys.argv[1], cpu) as model, model.new_context(small) as context:
    written = len(text(context))
print(json.dumps({
    "devices": [each.name for each in moebind.devices()],
    "doctor": str(found),
    "written": written,
}))
"""


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({"GGML_DISABLE_VULKAN": "1"}, "GGML_DISABLE_VULKAN is '1'"),
        ({"GGML_VK_VISIBLE_DEVICES": "7"}, "GGML_VK_VISIBLE_DEVICES has 7, and there are 1 devices, counted from 0"),
        ({"GGML_VK_VISIBLE_DEVICES": ""}, "GGML_VK_VISIBLE_DEVICES is ''"),
        ({"VK_ICD_FILENAMES": "/nowhere/driver.json"}, "ErrorIncompatibleDriver"),
    ],
    ids=["turned off", "no such device", "none chosen", "no driver"],
)
def test_without_a_device_there_is_a_reason(
    gpu: Device, demo_path: Path, environment: dict[str, str], why: str
) -> None:
    [done] = program(LISTS, demo_path, **environment)
    assert gpu.name not in done["devices"]
    assert why in done["doctor"]
    assert done["written"] == 8


@pytest.mark.parametrize("library", ["missing", "empty", "a text"])
def test_a_broken_driver_is_no_driver(gpu: Device, demo_path: Path, tmp_path: Path, library: str) -> None:
    broken = tmp_path / "libvulkan_broken.so"
    if library != "missing":
        broken.write_text("" if library == "empty" else "no library")
    icd = tmp_path / "broken.json"
    icd.write_text(
        json.dumps({"file_format_version": "1.0.0", "ICD": {"library_path": str(broken), "api_version": "1.3.0"}})
    )
    [done] = program(LISTS, demo_path, VK_ICD_FILENAMES=str(icd))
    assert gpu.name not in done["devices"]
    assert "no Vulkan device" in done["doctor"]
    assert done["written"] == 8


@pytest.fixture(scope="session")
def between(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library to preload."""
    library = tmp_path_factory.mktemp("between") / "vulkan_between.so"
    source = Path(__file__).with_name("vulkan_between.cpp")
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    subprocess.run(["c++", *flags, "-o", library, source, "-ldl"], check=True)
    return library


LOST = """
device = holder.__enter__()
params = ModelParams(devices=(device,))
said = {}
def tried(name, function):
    try:
        said[name] = str(function())
    except MoebindError as error:
        said[name] = f"{type(error).__name__}: {error}"

with Model.load_from_file(sys.argv[1], cpu) as other, other.new_context(small) as written:
    expected = str(text(written))
    model = Model.load_from_file(sys.argv[1], params)
    contexts = []
    for _ in range(2):
        tried("context", lambda: contexts.append(model.new_context(small)))
    for context in contexts:
        tried("text", lambda: text(context, 40))
        tried("clear", context.kv_cache_clear)
        tried("decode", lambda: context.decode(Batch.get_one([5])))
    tried("beside it", lambda: text(written))
    for each in [*contexts[:1], model]:  # and the interpreter ends with the other one
        each.close()
with Model.load_from_file(sys.argv[1], cpu) as other, other.new_context(small) as written:
    tried("afterwards", lambda: text(written))
print(json.dumps({"expected": expected, **said}))
"""


# When a context is made, in a first computation, in the middle of a text.
@pytest.mark.parametrize("after", [1, 3, 30])
def test_a_lost_device_is_an_error_and_no_end(gpu: Device, demo_path: Path, between: Path, after: int) -> None:
    """The driver says that the device is lost, from a submission on. What is on it fails, everything else goes on."""
    [said] = program(LOST, demo_path, LD_PRELOAD=str(between), VULKAN_LOST_AFTER=str(after))
    assert said["beside it"] == said["afterwards"] == said["expected"]
    if after == 1:
        assert said["context"].startswith("ContextCreationError")
        assert f"device lost on {gpu.name}" in said["context"]
    else:
        for call in ("text", "clear", "decode"):
            assert said[call].startswith("NativeError: vk::"), said
            assert "a device was lost, and does not come back in this process: start another one" in said[call]


def test_no_binding_names_a_buffer_that_is_gone(gpu: Device, demo_path: Path, between: Path) -> None:
    """Shaders may leave some of them alone; Mesa 22.3 writes to all of them (vulkan-bindings.patch)."""
    code = """
device = holder.__enter__()
params = ModelParams(devices=(device,))
with Model.load_from_file(sys.argv[1], params) as model, model.new_context(small) as context:
    first = text(context)
    for n in (8, 40, 3):  # other shaders and scratch memory, in place of those that it had
        with model.new_context(small) as other:
            context.kv_cache_clear()
            context.decode(Batch.get_one([5] * n))
            other.decode(Batch.get_one([5]))
    context.kv_cache_clear()
    print(json.dumps({"same": text(context) == first}))
"""
    [done] = program(code, demo_path, LD_PRELOAD=str(between), VULKAN_CHECK_BINDINGS="1")
    assert done["same"]


def test_host_memory_is_not_written_to_before_the_device_has_read_it(gpu: Device, demo_path: Path) -> None:
    """What experts in host memory gave, which the device copies later, and the next micro-batch, which is there soon.

    Copies of more than 128 KiB are left to the device's queue: of 132 tokens, at this model's width.
    """
    tokens = np.resize(np.arange(3, 259, dtype=np.int32), 264)
    several = SMALL.with_n_ctx(512).with_n_batch(512).with_op_offload(False)
    with Model.load_from_file(demo_path, ModelParams(devices=(gpu,)).with_cpu_moe_all()) as model:
        assert 132 * 4 * model.n_embd > 2**17
        at_once, in_two = (logits_of(model, several.with_n_ubatch(n), tokens) for n in (512, 132))
    assert np.abs(in_two - at_once).max() <= 1e-3 * at_once.std()
