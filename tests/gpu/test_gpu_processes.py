"""Processes that fork once they have used a GPU: what CUDA had does not come along."""

from __future__ import annotations

from pathlib import Path

from on_gpu import program

from moebind import Device


def test_a_child_of_a_fork_gets_exceptions_and_computes_on_the_cpu(gpu: Device, demo_path: Path) -> None:
    """CUDA answers a forked child with errors. None of them may end it, or leave it waiting."""
    told = program(
        """
device = holder.__enter__()
params = ModelParams(devices=(device,)).with_cpu_moe_all()
model = Model.load_from_file(sys.argv[1], params)
context = model.new_context(small)
expected = text(context)

child = os.fork()
if child == 0:
    said = {}
    try:
        context.decode(Batch.get_one([5]))
    except ClosedError as error:
        said["context"] = str(error)
    try:
        said["devices"] = [each.name for each in moebind.devices()]
    except MoebindError as error:
        said["devices"] = str(error)
    try:
        with Model.load_from_file(sys.argv[1], params) as other, other.new_context(small) as again:
            said["load"] = f"it works: {text(again) == expected}"
    except (MoebindError, ValueError) as error:
        said["load"] = f"{type(error).__name__}: {error}"
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with Model.load_from_file(sys.argv[1]) as other, other.new_context(small) as again:
            said["defaults"] = len(text(again))
    said["heard"] = " ".join(str(each.message) for each in heard)
    with Model.load_from_file(sys.argv[1], cpu) as other, other.new_context(small) as again:
        said["cpu"] = len(text(again))
    print(json.dumps(said), flush=True)
    sys.exit(0)  # with all that an interpreter does at its end

give_up = time.monotonic() + 120
while os.waitpid(child, os.WNOHANG)[0] == 0:
    if time.monotonic() > give_up:
        os.kill(child, 9)
        raise SystemExit("the child hangs")
    time.sleep(0.05)
context.kv_cache_clear()
print(json.dumps({"same": text(context) == expected}))
context.close()
model.close()
""",
        demo_path,
    )
    assert len(told) == 2
    child, parent = told
    assert "forked" in child["context"]
    # The GPU is not there any more, whoever asks; it does not half work.
    assert gpu.name not in child["devices"]
    assert child["load"].startswith(f"ValueError: there is no device {gpu.name!r}"), child
    if gpu.backend != "RPC":
        assert "forked" in child["load"]
        assert "no device can take layers" in child["heard"]
        assert "forked" in child["heard"]
    assert child["cpu"] == child["defaults"] == 8
    assert parent["same"]


def test_a_child_that_is_spawned_uses_the_gpu(gpu: Device, demo_path: Path) -> None:
    code = """
device = holder.__enter__()
with Model.load_from_file(sys.argv[1], ModelParams(devices=(device,)).with_cpu_moe_all()) as model:
    with model.new_context(small) as context:
        print(json.dumps({"text": text(context)}))
"""
    [first] = program(code, demo_path)
    [second] = program(code, demo_path)
    assert first == second


def test_an_interpreter_ends_with_everything_open(gpu: Device, demo_path: Path) -> None:
    """Model and context are left to the end of the interpreter, when the driver may be going down too."""
    [done] = program(
        """
device = holder.__enter__()
model = Model.load_from_file(sys.argv[1], ModelParams(devices=(device,)).with_cpu_moe_all())
context = model.new_context(small)
pieces = context.generate("Once upon a time", max_tokens=20)
print(json.dumps({"token": int(next(pieces).token)}))
""",
        demo_path,
    )
    assert done["token"] >= 0
