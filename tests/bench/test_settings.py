"""Settings of a benchmark: what is taken, and what is written down of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import SMALL
from moebind import ContextParams, Device, DeviceType, Gguf, ModelParams
from moebind.bench.settings import Settings, checked_context, checked_devices, checked_prompts
from moebind.bench.texts import AGREEMENT
from moebind.params.params import N_CTX

MakeTiny = Callable[..., Path]


def test_contexts(tiny_path: MakeTiny) -> None:
    header = Gguf.from_file(tiny_path(n_ctx_train=768))
    assert checked_context(None, header).n_ctx == N_CTX
    assert checked_context(SMALL, header) is SMALL
    assert checked_context(SMALL.with_n_ctx(0), header) == SMALL.with_n_ctx(768)
    with pytest.raises(TypeError, match="takes ContextParams"):
        checked_context(ModelParams(), header)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has embeddings"):
        checked_context(SMALL.with_embeddings(True), header)


def test_prompts() -> None:
    assert checked_prompts(None) is AGREEMENT
    assert len(AGREEMENT) == len(set(AGREEMENT))
    assert checked_prompts(["a", "ü\0"]) == ("a", "ü\0")
    for wrong, error, message in (
        ("text", TypeError, "list of texts"),
        ({"a"}, TypeError, "list of texts"),
        ([], ValueError, "at least one"),
        (["a", ""], ValueError, r"prompts\[1\] is empty"),
        (["a", 3], TypeError, r"prompts\[1\] is 3"),
        (["\ud800"], ValueError, r"prompts\[0\] contains the lone surrogate"),
    ):
        with pytest.raises(error, match=message):
            checked_prompts(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("loopback", {"kind": "loopback", "memory": None, "n_threads": 3}),
        ("24MiB", {"kind": "loopback", "memory": 24 * 2**20, "n_threads": 3}),
        ("localhost:5000", {"kind": "server", "endpoint": "localhost:5000"}),
        ("[::1]:5000", {"kind": "server", "endpoint": "[::1]:5000"}),
        (
            Device(1, "GPU7", "a card", "CUDA", DeviceType.GPU, 1, 1, 1),
            {"kind": "local", "name": "GPU7"},
        ),
    ],
)
def test_devices_that_a_child_opens(given: Device | str, expected: dict[str, object]) -> None:
    assert checked_devices([given], 3) == (expected,)


def test_a_worker_of_ours_is_another_one_like_it(device: Device) -> None:
    [found] = checked_devices([device], 2)
    assert found == {"kind": "loopback", "memory": None, "n_threads": 2}
    with pytest.raises(ValueError, match="serves one process at a time"):
        checked_devices([replace(device, name="RPC99")], 2)


@pytest.mark.parametrize(
    ("devices", "error", "message"),
    [
        ("loopback", TypeError, "takes a list"),
        ([], ValueError, "at least one"),
        ([3], TypeError, r"devices\[0\] is 3"),
        (["loopback", "CUDA99"], ValueError, r"devices\[1\] is 'CUDA99'; it takes 'loopback'"),
        ([":5000"], ValueError, "'HOST:PORT'"),
        (["host:port"], ValueError, "'HOST:PORT'"),
        (["0B"], ValueError, "a size such as"),
        (["a\0"], ValueError, "NUL"),
        ([Device(0, "CPU", "", "CPU", DeviceType.CPU, 1, 1, 1)], ValueError, "is the CPU"),
    ],
)
def test_devices_that_are_none(devices: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        checked_devices(devices, 1)


def test_a_record_is_plain_values() -> None:
    context = ContextParams(n_ctx=64, n_threads=2, n_threads_batch=2)
    settings = Settings(context, 3, 1, 8, 2, ("a", "b"), ({"kind": "loopback"},), None)
    record = settings.record()
    assert json.loads(json.dumps(record)) == record
    assert settings.steps == 1 + 1 + 3 + 2
    assert record["context_params"]["n_ctx"] == 64
    assert record["context_params"]["n_ubatch"] == context.n_ubatch
    # Threads depend on the machine: they are told even where they are the default.
    default = Settings(ContextParams(), 3, 1, 8, 2, ("a",), (), None).context_record()
    assert default == {"n_threads": ContextParams().n_threads, "n_threads_batch": ContextParams().n_threads_batch}


def test_parts_of_the_work_have_names() -> None:
    settings = Settings(
        SMALL, repeats=3, warmup=2, n_prompt=8, n_generate=2, prompts=("a", "b"), devices=(), timeout=None
    )
    names = [settings.step_name(at) for at in range(settings.steps)]
    assert names == [
        "loading", "warm-up 1 of 2", "warm-up 2 of 2", "run 1 of 3", "run 2 of 3", "run 3 of 3", "comparing 1 of 2",
        "comparing 2 of 2",
    ]  # fmt: skip
    assert settings.step_name(settings.steps) == names[-1]  # nothing comes after it
    assert replace(settings, warmup=0).step_name(1) == "run 1 of 3"
