"""Models placed for serving."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import projectors
import pytest
from hypothesis import given, strategies
from serving import CONTEXT, complete

import moebind
from conftest import CPU
from moebind import (
    ContextParams,
    Device,
    DeviceType,
    FitError,
    ModelLoadError,
    ModelParams,
    MtmdError,
    Plan,
    PoolingType,
    SplitMode,
)
from moebind.backend.breakdown import DeviceMemory
from moebind.files.tensor_patterns import experts_pattern
from moebind.placement.mmproj import Projector
from moebind.server import Server
from moebind.server.folders import Found, of_file
from moebind.server.placed import (
    DRIVER,
    PARALLEL,
    ServedModel,
    Wishes,
    budgets,
    place,
    prompt_cache,
    server_context,
    table,
    together,
    tried,
)

MakeTiny = Callable[..., Path]
WISHES = Wishes(CPU, server_context(CONTEXT, None))
GIB = 2**30


@pytest.fixture(scope="module")
def found(tiny_path: MakeTiny) -> Found:
    return of_file(tiny_path(n_expert=4))


def test_the_context_is_llama_servers() -> None:
    context = server_context(None, None)
    assert (context.n_seq_max, context.kv_unified, context.swa_full) == (PARALLEL, True, False)
    assert (context.n_outputs_max, context.n_outputs_max_per_seq) == (PARALLEL, 1)
    assert server_context(ContextParams(n_seq_max=3), None).n_seq_max == 3
    assert not server_context(ContextParams(n_seq_max=3), None).kv_unified
    alone = server_context(ContextParams(n_batch=8), 1)
    assert (alone.n_seq_max, alone.n_outputs_max, alone.kv_unified) == (1, 1, False)
    embedding = server_context(ContextParams(embeddings=True, n_batch=64, n_ubatch=32), 2)
    assert (embedding.n_batch, embedding.n_outputs_max) == (32, 32)
    pooled = server_context(ContextParams(pooling_type=PoolingType.MEAN, n_batch=64), 2)
    assert (pooled.n_batch, pooled.n_outputs_max) == (64, 64)


def test_a_model_alone_takes_what_is_left(tiny_path: MakeTiny) -> None:
    long = of_file(tiny_path(n_expert=4, n_ctx_train=32768))
    wishes = replace(WISHES, context_params=server_context(CONTEXT.with_n_ctx(512), None))
    for alone, n_ctx in ((True, 32768), (False, 8192)):
        model = place(long, wishes, alone=alone)
        assert model.plan is not None
        assert model.plan.n_ctx == n_ctx


def test_several_take_no_more_than_they_were_trained_with(tiny_path: MakeTiny) -> None:
    short = of_file(tiny_path(n_expert=4, n_ctx_train=64))
    model = place(short, replace(WISHES, context_params=server_context(None, None)), alone=False)
    assert model.options["ctx-size"] == "64"


def test_a_length_that_was_asked_for_is_kept(found: Found) -> None:
    for alone in (True, False):
        assert place(found, WISHES, alone=alone).options["ctx-size"] == str(CONTEXT.n_ctx)


def test_so_is_one_that_is_the_default_of_the_parameters(tiny_path: Callable[..., Path]) -> None:
    length = ContextParams().n_ctx
    long = of_file(tiny_path(n_expert=4, n_ctx_train=2 * length))
    wishes = replace(WISHES, context_params=server_context(ContextParams(), None))
    for alone in (True, False):
        assert place(long, wishes, alone=alone).options["ctx-size"] == str(2 * length)
        assert place(long, replace(wishes, n_ctx=length), alone=alone).options["ctx-size"] == str(length)


def test_what_does_not_fit_is_refused(found: Found, tmp_path: Path) -> None:
    wishes = replace(WISHES, margin=2**50)
    with pytest.raises(FitError, match="does not fit"):
        place(found, wishes, alone=True)
    model = tried(found, wishes, alone=True)
    assert not model.offered
    assert "does not fit" in str(model.reason)
    assert place(found, replace(wishes, fitted=False), alone=True).offered  # who asks for it gets it


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF, or so it says")
    found = of_file(tmp_path / "x.gguf")
    with pytest.raises(ModelLoadError):
        place(found, WISHES, alone=True)
    assert "not a GGUF file" in str(tried(found, WISHES, alone=True).reason)


def test_a_projector_needs_room(found: Found, tmp_path: Path) -> None:
    path = projectors.write(tmp_path / "mmproj.gguf", "gemma3")
    counted = Projector.of(str(path))
    for wishes in (WISHES, replace(WISHES, fitted=False)):
        bare = place(found, wishes, alone=True)
        seeing = place(replace(found, mmproj=str(path)), wishes, alone=True)
        assert seeing.options["mmproj"] == str(path)
        more = counted.model + counted.compute
        assert {name: size - bare.needs[name] for name, size in seeing.needs.items()} == {"Host": more}
    (tmp_path / "mmproj.gguf").write_bytes(b"GGUF")
    with pytest.raises(MtmdError, match="could not be loaded"):
        place(replace(found, mmproj=str(path)), WISHES, alone=True)
    assert "could not be loaded" in str(tried(replace(found, mmproj=str(path)), WISHES, alone=True).reason)


def test_experts_go_to_the_host_where_the_device_is_full(found: Found, device: Device) -> None:
    experts = place(found, replace(WISHES, model_params=ModelParams(devices=[device]).with_cpu_moe_all()), alone=True)
    assert experts.options["device"] == "RPC0"
    assert experts.options["rpc"] == device.description
    assert experts.options["override-tensor"] == f"{experts_pattern()}=CPU"
    assert experts.used == [device]


def test_devices_keep_their_order(found: Found, device: Device) -> None:
    with moebind.loopback_device() as second:
        given = ModelParams(devices=[second, device])
        assert place(found, replace(WISHES, model_params=given), alone=True).used == [second, device]
        one = place(
            found, replace(WISHES, model_params=given.with_split_mode(SplitMode.NONE).with_main_gpu(1)), alone=True
        )
        assert one.used == [device]
        assert (one.options["rpc"], one.options["device"]) == (device.description, "RPC0")
        assert (one.options["split-mode"], one.options["main-gpu"]) == ("none", "0")
    extra = ["--no-warmup", "--log-verbosity", "4"]
    params = ModelParams(devices=[device], split_mode=SplitMode.NONE)
    with Server(found.path, model_params=params, context_params=CONTEXT, extra=extra) as server:
        assert complete(server.url).status == 200


def made(name: str = "m", free: int = GIB, **needs: int) -> ServedModel:
    """A model that takes so much of devices; the last is the host."""
    parts = tuple(DeviceMemory(each, DeviceType.GPU, size, 0, 0, (), free) for each, size in needs.items())
    return ServedModel(name, f"/{name}.gguf", Plan(parts))


SIZES = strategies.lists(
    strategies.fixed_dictionaries({"GPU0": strategies.integers(0, 9), "Host": strategies.integers(0, 9)}),
    min_size=1,
    max_size=5,
)


@given(SIZES, strategies.integers(1, 30), strategies.integers(1, 30))
def test_any_set_of_that_many_fits_and_not_any_of_one_more(sizes: list[dict[str, int]], gpu: int, host: int) -> None:
    models = [made(**size) for size in sizes]
    allowed = {"GPU0": gpu, "Host": host}

    def any_fits(count: int) -> bool:
        return all(
            sum(size[name] for size in some) <= allowed[name]
            for some in itertools.combinations(sizes, count)
            for name in allowed
        )

    most = together(models, allowed, driver=0)
    assert 1 <= most <= len(models)
    assert most == 1 or any_fits(most)
    assert most == len(models) or not any_fits(most + 1)


def test_models_on_other_devices_do_not_compete() -> None:
    models = [made(GPU0=5, Host=1), made(GPU1=5, Host=1)]
    assert together(models, {"GPU0": 5, "GPU1": 5, "Host": 2}, driver=0) == 2


def test_each_process_has_a_driver() -> None:
    models = [made(GPU0=GIB, Host=GIB) for _ in range(4)]
    assert together(models, {"GPU0": 4 * GIB, "Host": 4 * GIB}) == 3
    assert together(models, {"GPU0": 4 * GIB + 3 * DRIVER, "Host": 4 * GIB}) == 4
    assert together(models, {"GPU0": 4 * GIB + 3 * DRIVER - 1, "Host": 4 * GIB}) == 3
    assert together([made(Host=GIB) for _ in range(4)], {"Host": 4 * GIB}) == 4


def test_budgets_are_what_is_free_less_the_margin() -> None:
    models = [made(free=20 * GIB, GPU0=1, Host=1)]
    assert budgets(models, None) == {"GPU0": 19 * GIB, "Host": 19 * GIB}
    assert budgets([made(free=GIB, Host=1)], None) == {"Host": GIB - GIB // 10}
    assert budgets([made(free=GIB, Host=1)], GIB // 2) == {"Host": GIB // 2}
    assert budgets([made(free=GIB, Host=1)], 2 * GIB) == {"Host": 0}


def test_prompts_of_earlier_requests_get_what_is_left() -> None:
    models = [made("a", Host=2 * GIB), made("b", Host=GIB)]
    assert prompt_cache(models, {"Host": 100 * GIB}, 2) == 8192  # as in llama-server
    assert prompt_cache(models, {"Host": 5 * GIB}, 2) == 1024
    assert prompt_cache(models, {"Host": 5 * GIB}, 1) == 3072
    assert prompt_cache(models, {"Host": GIB}, 2) == 0


def test_the_table(found: Found) -> None:
    good = place(found, WISHES, alone=True)
    bad = ServedModel("bad", "/bad.gguf", reason="it is none")
    lines = table([good, bad])
    assert lines[0].split() == ["model", "context", "parallel", "Host"]
    assert lines[1].split()[:3] == [good.name, "256", "4"]
    assert lines[2] == "bad is not offered: it is none"
    assert table([bad]) == lines[2:]


def test_a_model_is_plain_values(found: Found) -> None:
    good = place(found, WISHES, alone=True)
    plain = good.to_dict()
    assert good.plan is not None
    assert plain == {
        "name": good.name,
        "path": found.path,
        "mmproj": None,
        "reason": None,
        "plan": good.plan.to_dict(),
    }
    assert ServedModel("bad", "/bad.gguf", reason="it is none").to_dict()["plan"] is None


@pytest.mark.parametrize("placement", ["everything", "experts on the host"])
def test_llama_server_holds_what_was_planned(placement: str, demo_path: Path, device: Device) -> None:
    params = ModelParams(devices=[device])
    if placement != "everything":
        params = params.with_cpu_moe_all()
    context = CONTEXT.with_n_ctx(4096)
    extra = ["--no-warmup", "--log-verbosity", "4"]
    with Server(demo_path, model_params=params, context_params=context, extra=extra) as server:
        [served] = server.models
    # It says so when it ends, in whole MiB, cut off.
    said = dict(re.findall(r"- (RPC0|Host)[^=\n]* \|[^|\n]*?(\(?[ \d]+=[^|)\n]*)", server.log))
    assert {*said} == {"RPC0", "Host"}
    assert served.plan is not None
    for part, name in zip(served.plan.devices, ("RPC0", "Host"), strict=True):  # servers are counted anew there
        numbers = [int(each) for each in re.findall(r"\d+", said[name])][-4:]
        planned = (part.total, part.model, part.context, part.compute)
        assert numbers == [size // 2**20 for size in planned], part.name
