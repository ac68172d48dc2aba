"""What a GPU really holds, that it gets it back, and what happens when it has no more.

What could end a process has one of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from on_gpu import program

import moebind
from moebind import Device, LoadMode, Model, ModelLoadError, ModelParams

#: Whatever is asked for is held by a buffer of llama.cpp's own.
HOLD = """
def hold(device, size):
    kind = lib.ggml_backend_dev_buffer_type(lib.ggml_backend_dev_get(device.index))
    lib.moebind_log_quiet(True)
    buffer = lib.ggml_backend_buft_alloc_buffer(kind, size)
    lib.moebind_log_quiet(False)
    return buffer

def free(device):
    return next(each.memory_free for each in moebind.devices() if each.name == device.name)
"""


def test_more_than_the_device_has_is_an_error_and_no_end(
    gpu: Device, shape_path: Callable[..., Path], demo_path: Path
) -> None:
    # 377 GB of weights that are not there: the device is asked for them before they would be read.
    path = shape_path("deepseek-v3-q4_k_m")
    params = ModelParams(devices=(gpu,), load_mode=LoadMode.NONE)
    assert not moebind.plan(path, params).fits
    # Mesa's driver takes no matrix of more than 128 MiB: those stay on the host, which is asked first.
    with pytest.raises(ModelLoadError, match=rf"unable to allocate ({gpu.name}|CPU) buffer"):
        Model.load_from_file(path, params)
    with Model.load_from_file(demo_path, ModelParams(devices=(gpu,))) as model, model.new_context() as context:
        assert len(list(context.generate("Once", max_tokens=3))) == 3


@pytest.mark.cuda
def test_a_cache_that_is_too_large_is_an_error_and_no_end(gpu: Device, demo_path: Path) -> None:
    [done] = program(
        """
device = holder.__enter__()
with Model.load_from_file(sys.argv[1], ModelParams(devices=(device,))) as model:
    with model.new_context(small) as context:
        expected = text(context)
        per_token = context.memory_breakdown().devices[0].context / context.n_ctx
    def made(share):
        return model.new_context(small.with_n_ctx(int(share * device.memory_total / per_token)))
    def said_of(share):
        try:
            made(share).close()
        except MoebindError as error:
            return f"{type(error).__name__}: {error}"
        return "it was made"
    alone = said_of(1.2)
    with made(0.6):
        beside = said_of(0.6)  # each would fit, but not both
    with model.new_context(small) as context:
        again = text(context)
print(json.dumps({"alone": alone, "beside": beside, "same": again == expected}))
""",
        demo_path,
    )
    assert done["alone"].startswith("ContextCreationError")
    assert f"of {gpu.name}, which has" in done["alone"]
    assert done["beside"].startswith("ContextCreationError")
    assert "cudaMalloc failed" in done["beside"]
    assert done["same"]


@pytest.mark.cuda
def test_another_process_has_the_memory(gpu: Device, demo_path: Path) -> None:
    """The other one leaves room for the model without its experts, and not for all of it."""
    [done] = program(
        """
import subprocess
device = holder.__enter__()
without = ModelParams(devices=(device,)).with_cpu_moe_all()
with Model.load_from_file(sys.argv[1], without) as model, model.new_context(small) as context:
    list(context.generate("Once", max_tokens=2))  # what CUDA takes for itself is there from now on
left = 384 * 2**20
code = sys.argv[2] + f'''
import os, sys
import moebind
from moebind import lib
if "MOEBIND_PRETEND_LIBRARY" in os.environ:
    moebind.init()
    lib.ggml_backend_load(os.environ["MOEBIND_PRETEND_LIBRARY"].encode())
device = next(each for each in moebind.devices() if each.backend == "CUDA")
step, kept = 64 * 2**20, []
while free(device) > {left} + step:
    kept.append(hold(device, step))
    assert kept[-1]
print("held", flush=True)
sys.stdin.read()
'''
other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
assert other.stdout.readline() == "held\\n"
planned = moebind.plan(sys.argv[1], ModelParams(devices=(device,)), small)
try:
    with Model.load_from_file(sys.argv[1], ModelParams(devices=(device,))) as model:
        model.new_context(small)
    said = "it fits"
except MoebindError as error:
    said = f"{type(error).__name__}: {error}"
fit = moebind.fit(sys.argv[1], context_params=small, n_ctx=512, devices=[device], margin=160 * 2**20)
with Model.load_from_file(sys.argv[1], fit.model_params) as model, model.new_context(fit.context_params) as context:
    small_one = text(context)
other.communicate()
with Model.load_from_file(sys.argv[1], ModelParams(devices=(device,))) as model, model.new_context(small) as context:
    large_one = text(context)
print(json.dumps({"fits": planned.fits, "said": said, "small": len(small_one), "large": len(large_one)}))
""",
        demo_path,
        HOLD,
    )
    assert not done["fits"]
    assert done["said"].partition(":")[0] in {"ModelLoadError", "ContextCreationError"}
    assert "cudaMalloc failed" in done["said"]
    assert (done["small"], done["large"]) == (8, 8)


@pytest.mark.cuda
def test_memory_that_ends_in_the_middle_of_a_decode(gpu: Device, demo_path: Path) -> None:
    """CUDA's pool asks for more while it computes, and ends the process if it gets none: here it is an exception."""
    [done] = program(
        HOLD
        + """
device = holder.__enter__()
model = Model.load_from_file(sys.argv[1], ModelParams(devices=(device,)).with_cpu_moe_all())
with model.new_context(small) as context:
    expected = text(context)
context = model.new_context(small)  # its pool is empty
kept, step = [], 2**30
while step >= 2**12:
    buffer = hold(device, step)
    if buffer:
        kept.append(buffer)
    else:
        step //= 4
try:
    context.decode(Batch.get_one([5] * 500))
    said = "it has room"
except MoebindError as error:
    said = f"{type(error).__name__}: {error}"
for buffer in kept:
    lib.ggml_backend_buffer_free(buffer)
context.close()
with model.new_context(small) as context:
    again = text(context)
model.close()
print(json.dumps({"said": said, "same": again == expected}))
""",
        demo_path,
    )
    assert done["said"].startswith("NativeError")
    assert "CUDA error" in done["said"]
    assert done["same"]


@pytest.mark.cuda
def test_memory_that_ends_before_a_graph_is_captured(gpu: Device, demo_path: Path) -> None:
    """From the third like it on, a token's graph is captured and replayed, which takes memory too.

    Whether it fails is the driver's to say. The process must neither end nor wait, as it would if capturing was left in
    the middle (docs/gpu.md).
    """
    [done] = program(
        HOLD
        + """
device = holder.__enter__()
model = Model.load_from_file(sys.argv[1], ModelParams(devices=(device,)))
with model.new_context(small) as context:
    expected = text(context)
context = model.new_context(small)
context.decode(Batch.get_one([5, 6, 7]))
kept, step = [], 2**30
while step >= 2**12:
    buffer = hold(device, step)
    if buffer:
        kept.append(buffer)
    else:
        step //= 4
said = "it has room"
try:
    for token in range(8, 16):
        context.decode(Batch.get_one([token]))
        context.get_logits_ith(-1)
except MoebindError as error:
    said = f"{type(error).__name__}: {error}"
for buffer in kept:
    lib.ggml_backend_buffer_free(buffer)
context.close()
with model.new_context(small) as context:
    again = text(context)
model.close()
print(json.dumps({"said": said, "same": again == expected}))
""",
        demo_path,
    )
    assert done["said"] == "it has room" or done["said"].startswith("NativeError")
    assert done["same"]


@pytest.mark.cuda
def test_what_is_closed_is_given_back(gpu: Device, demo_path: Path) -> None:
    [done] = program(
        HOLD
        + """
device = holder.__enter__()
sizes = []
for round in range(4):
    before = free(device)
    with Model.load_from_file(sys.argv[1], ModelParams(devices=(device,))) as model:
        with model.new_context(small) as context:
            text(context)
            during = free(device)
    sizes.append([before, during, free(device)])
print(json.dumps({"sizes": sizes}))
""",
        demo_path,
    )
    # The first round is CUDA's: it keeps its context and the kernels that were loaded.
    for before, during, after in done["sizes"][1:]:
        assert before - during > 400 * 2**20
        assert abs(after - before) <= 4 * 2**20


@pytest.mark.driver
def test_the_driver_sees_what_is_held_and_its_own(
    gpu: Device, demo_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Buffers, and at most a gigabyte for CUDA's context and kernels, cuBLAS's workspace and the pool."""
    differences = []
    for change in ("params", "params.with_cpu_moe_all()"):
        [done] = program(
            HOLD
            + f"""
device = holder.__enter__()
from moebind.bench import nvml
cards = {{card.name: card.used for card in nvml.devices() or []}}
params = ModelParams(devices=(device,))
with Model.load_from_file(sys.argv[1], {change}) as model, model.new_context(small) as context:
    text(context)
    held = context.memory_breakdown().device_bytes
    mine = (nvml.process_memory(os.getpid()) or {{}}).get(device.name)
    now = {{card.name: card.used for card in nvml.devices() or []}}
grown = now.get(device.name, 0) - cards.get(device.name, 0)
print(json.dumps({{"why": nvml.reason(), "held": held, "mine": mine, "grown": grown}}))
""",
            demo_path,
        )
        if done["why"]:
            pytest.skip(done["why"])
        # In a container whose driver does not know our process id, the card's own count has to do.
        seen = done["mine"] if done["mine"] is not None else done["grown"]
        differences.append(seen - done["held"])
        record_property("driver_bytes", differences[-1])
        assert 0 <= differences[-1] <= 2**30, done
    assert abs(differences[0] - differences[1]) <= 128 * 2**20
