"""Drafts in plans and fits: counted as they are loaded, on the devices where they are, and kept with a fit."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from drafts import FROM_STATES, write_mtp
from hub_server import Hub, cached

from conftest import EXACT, SMALL
from moebind import (
    ContextParams,
    Device,
    DeviceMemory,
    Draft,
    Fit,
    GgmlType,
    Model,
    ModelParams,
    MtpSpeculative,
    Plan,
    Sampler,
    Speculative,
    fit,
    plan,
)
from moebind.backend.breakdown import PARTS
from moebind.errors import FitError, ModelLoadError, SpeculativeError
from moebind.placement.draft_memory import draft_part

MakeTiny = Callable[..., Path]
MTP = {"arch": "glm4moe", "n_layer": 4, "n_expert": 4, "n_mtp": 1, "n_head_kv": 4}
LONG = EXACT.with_n_ctx(512)


def close(planned: int, actual: int) -> bool:
    return abs(planned - actual) <= max(0.01 * actual, 4096)


def check(planned: Plan, target: tuple[DeviceMemory, ...], draft: tuple[DeviceMemory, ...], *, own: bool) -> None:
    """Raise unless the plan has what both hold: the draft's as such, and the model's once, if it is the same."""
    theirs = {device.name: device for device in draft}
    assert {device.name for device in planned.devices} == {device.name for device in (*target, *draft)}
    for device in planned.devices:
        for part in PARTS:
            shared = own and part == "model"
            of_draft = 0 if shared or device.name not in theirs else getattr(theirs[device.name], part)
            of_model = sum(getattr(each, part) for each in target if each.name == device.name)
            assert close(draft_part(device, part), of_draft), (device.name, part, planned.draft)
            assert close(getattr(device, part) - draft_part(device, part), of_model), (device.name, part)


@pytest.fixture(params=["device", "host"])
def where(request: pytest.FixtureRequest, device: Device) -> ModelParams:
    return ModelParams(devices=(device,), n_gpu_layers=-1 if request.param == "device" else 0)


@pytest.mark.parametrize(
    ("params", "draft_params"),
    [
        (SMALL, None),
        (LONG.with_n_seq_max(2).with_n_ubatch(64), ContextParams(type_k=GgmlType.Q8_0, type_v=GgmlType.Q8_0)),
    ],
)
def test_a_draft_model_as_it_is_loaded(
    tiny_path: MakeTiny, where: ModelParams, params: ContextParams, draft_params: ContextParams | None
) -> None:
    path, draft_path = tiny_path(n_expert=4, n_head=2, n_head_kv=1), tiny_path(n_layer=1, n_head=2, n_head_kv=1)
    planned = plan(path, where, params, draft=Draft(str(draft_path), context_params=draft_params))
    resolved = planned.draft
    assert resolved is not None
    assert resolved.model_params is not None
    assert resolved.context_params is not None
    assert resolved.context_params.n_ctx == planned.n_ctx
    assert resolved.context_params.n_seq_max == params.n_seq_max
    assert resolved.model_params.devices == where.devices
    with ExitStack() as opened:
        model = opened.enter_context(Model.load_from_file(path, where))
        drafts = opened.enter_context(Model.load_from_file(draft_path, resolved.model_params))
        target = opened.enter_context(model.new_context(params))
        draft = opened.enter_context(drafts.new_context(resolved.context_params))
        made = opened.enter_context(Speculative(target, draft))
        target.generate("the", max_tokens=4, speculative=made).complete()
        check(planned, target.memory_breakdown().devices, draft.memory_breakdown().devices, own=False)
    assert "draft" in str(planned)
    told = planned.to_dict()["draft"]
    assert isinstance(told, dict)
    assert (told["path"], told["kind"]) == (str(draft_path), "DRAFT_SIMPLE")
    assert sum(each["total"] for each in told["devices"]) == sum(draft_part(each, "total") for each in planned.devices)
    # What the model reads for a token has nothing to do with it.
    assert planned.bytes_per_token == plan(path, where, params).bytes_per_token


@pytest.mark.parametrize("params", [LONG, LONG.with_n_ubatch(8), LONG.with_n_seq_max(4).with_kv_unified(True)])
def test_many_drafted_tokens_are_counted(tiny_path: MakeTiny, where: ModelParams, params: ContextParams) -> None:
    """A step with 16 drafted tokens computes 17, with as many outputs; a plan does not ask how many there will be."""
    path = tiny_path(n_expert=4)
    planned = plan(path, where, params, draft=path)
    assert planned.draft is not None
    assert planned.draft.model_params is not None
    assert planned.draft.context_params is not None
    with ExitStack() as opened:
        model = opened.enter_context(Model.load_from_file(path, where))
        drafts = opened.enter_context(Model.load_from_file(path, planned.draft.model_params))
        target = opened.enter_context(model.new_context(params))
        draft = opened.enter_context(drafts.new_context(planned.draft.context_params))
        made = opened.enter_context(Speculative(target, draft, n_max=16))
        never = Sampler.chain_simple(
            [Sampler.logit_bias({2: -1e9}), Sampler.greedy()]
        )  # its text does not end by itself
        target.generate("the", max_tokens=40, sampler=never, speculative=made).complete()
        assert target.timings().n_accepted > 16  # it is its own draft
        check(planned, target.memory_breakdown().devices, draft.memory_breakdown().devices, own=False)


def test_the_models_own_layers(tiny_path: MakeTiny, where: ModelParams) -> None:
    path = tiny_path(**MTP)
    planned = plan(path, where, LONG, draft=True)
    assert planned.model_params.load_mtp
    assert planned.draft is not None
    assert planned.draft.path is None
    with Model.load_from_file(path, planned.model_params) as model, model.new_context(LONG) as target:
        with MtpSpeculative(target) as made:
            target.generate("the", max_tokens=4, speculative=made).complete()
            draft = made.draft_context
            assert draft is not None
            check(planned, target.memory_breakdown().devices, draft.memory_breakdown().devices, own=True)
    bare = plan(path, planned.model_params, LONG)
    assert planned.devices[-1].total > bare.devices[-1].total or planned.devices[0].total > bare.devices[0].total


@pytest.mark.parametrize("name", ["eagle3", "dflash", "dspark", "gemma4-assistant"])
def test_drafts_from_hidden_states(architecture_path: Callable[..., Path], where: ModelParams, name: str) -> None:
    kind = FROM_STATES[name]
    path = architecture_path(kind.target, 1)
    draft_path = architecture_path(kind.architecture, 2, kind.numbers, kind.named)
    planned = plan(path, where, LONG, draft=draft_path)
    assert planned.draft is not None
    assert planned.draft.model_params is not None
    assert planned.draft.context_params is not None
    assert planned._draft is not None
    assert planned._draft.kind == kind.kind
    with ExitStack() as opened:
        model = opened.enter_context(Model.load_from_file(path, where))
        drafts = opened.enter_context(Model.load_from_file(draft_path, planned.draft.model_params))
        target = opened.enter_context(model.new_context(LONG))
        draft = opened.enter_context(drafts.new_context(planned.draft.context_params, ctx_other=target))
        made = opened.enter_context(Speculative(target, draft))
        target.generate("the", max_tokens=4, speculative=made).complete()
        check(planned, target.memory_breakdown().devices, draft.memory_breakdown().devices, own=False)


def test_layers_ahead_in_a_file_of_their_own(tmp_path: Path, where: ModelParams) -> None:
    path, heads = tmp_path / "model.gguf", tmp_path / "mtp-model.gguf"
    write_mtp(path, ahead=False)
    write_mtp(heads, trunk=False)
    planned = plan(path, where, LONG, draft=True)
    assert planned.draft is not None
    assert planned.draft.path == str(heads)
    assert planned.draft.model_params is not None
    assert planned.draft.context_params is not None
    with ExitStack() as opened:
        model = opened.enter_context(Model.load_from_file(path, where))
        layers = opened.enter_context(Model.load_from_file(heads, planned.draft.model_params))
        target = opened.enter_context(model.new_context(LONG))
        draft = opened.enter_context(layers.new_context(planned.draft.context_params, ctx_other=target))
        made = opened.enter_context(Speculative(target, draft))
        target.generate("the", max_tokens=4, speculative=made).complete()
        check(planned, target.memory_breakdown().devices, draft.memory_breakdown().devices, own=False)


def test_layers_ahead_in_a_file_beside_the_model(tiny_path: MakeTiny, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(tiny_path(arch="glm4moe", n_layer=3, n_expert=4, n_head_kv=4).read_bytes())
    with pytest.raises(SpeculativeError, match=r"no mtp-\*\.gguf lies beside it: give the file of a draft model"):
        plan(model, draft=True)
    beside = tmp_path / "mtp-model.gguf"
    beside.write_bytes(tiny_path(**MTP).read_bytes())
    planned = plan(model, context_params=LONG, devices=["1GiB"], draft=True)
    assert planned.draft is not None
    assert planned.draft.path == str(beside)
    told = planned.to_dict()["draft"]
    assert isinstance(told, dict)
    assert told["kind"] == "DRAFT_MTP"
    assert plan(model, draft=False).draft is None


def test_layers_ahead_in_a_file_of_the_repository(hub: Hub, tiny_path: MakeTiny, tmp_path: Path) -> None:
    model, drafts = tiny_path(**{**MTP, "n_layer": 3, "n_mtp": 0}), tiny_path(**MTP)
    hub.repos["someone/ahead"] = {"model-Q4_0.gguf": model, "model-Q8_0.gguf": model}
    address = "hf://someone/ahead/Q4_0"
    with pytest.raises(
        SpeculativeError, match=rf"{address} has no layers .* give the file of a draft model \(draft=, or"
    ):
        plan(address, context_params=LONG, devices=["1GiB"], draft=True)
    hub.repos["someone/ahead"] |= {"mtp-model-Q8_0.gguf": drafts, "mtp-model-Q4_0.gguf": drafts}
    ways: list[Draft | bool] = [True, Draft(), Draft(context_params=LONG.with_type_k(GgmlType.F32))]
    for download in (False, True):  # in the cache, nothing lies beside it
        if download:
            Model.from_pretrained("someone/ahead", "Q4_0", ModelParams(n_gpu_layers=0)).close()
        for way in ways:
            planned = plan(address, context_params=LONG, devices=["1GiB"], draft=way)
            assert planned.draft is not None
            assert planned.draft.path == "hf://someone/ahead/mtp-model-Q4_0.gguf"
    assert planned.draft.context_params is not None
    assert planned.draft.context_params.type_k == GgmlType.F32
    found = fit(address, n_ctx=512, devices=["1GiB"], draft=True)
    found.save(tmp_path / "fit.json")
    assert Fit.load(tmp_path / "fit.json").plan.draft == found.plan.draft
    assert cached(tmp_path) == ["model-Q4_0.gguf"]


def test_places_of_its_own(tiny_path: MakeTiny) -> None:
    path = tiny_path(n_expert=4)
    devices = ["1GiB", "1GiB"]
    both = plan(path, devices=devices, draft=path)
    host = plan(path, devices=devices, draft=Draft(str(path), ModelParams(n_gpu_layers=0)))
    bare = plan(path, devices=devices)
    assert all(draft_part(device, "total") for device in both.devices)
    assert not any(draft_part(device, "model") for device in host.devices[:-1])
    assert draft_part(host.host, "model") > draft_part(both.host, "model")
    assert [draft_part(each, "model") for each in host.devices[:-1]] == [0, 0]
    assert bare.host.total < host.host.total
    # The layers go where the model leaves room.
    cramped = plan(path, ModelParams(tensor_split=[1, 0]), devices=["4MiB", "1GiB"], draft=path)
    assert draft_part(cramped.devices[0], "model") < draft_part(cramped.devices[1], "model")


def test_a_device_that_only_the_draft_has(tiny_path: MakeTiny, device: Device) -> None:
    path = tiny_path(n_expert=4)
    planned = plan(path, ModelParams(devices=()), SMALL, draft=Draft(str(path), ModelParams(devices=(device,))))
    assert [each.name for each in planned.devices] == [device.name, "Host"]
    assert planned.devices[0].buffers[0].name == "draft"
    assert planned.devices[0].model == draft_part(planned.devices[0], "model") > 0
    assert planned._own_devices == ()
    assert plan(path, ModelParams(devices=()), SMALL).host.model == planned.host.model - draft_part(
        planned.host, "model"
    )


def test_a_device_that_is_not_planned_for(tiny_path: MakeTiny, device: Device) -> None:
    path = tiny_path()
    draft = Draft(str(path), ModelParams(devices=[device]))
    message = rf"draft has the device '{device.name}', which is not among those that are planned for: GPU0"
    for call in (plan, fit):
        with pytest.raises(ValueError, match=message):
            call(path, devices=["1GiB"], draft=draft)


def test_a_fit_counts_it_first(tiny_path: MakeTiny) -> None:
    model = tiny_path(n_expert=8, n_layer=4)
    draft = tiny_path(n_layer=1)
    whole = plan(model, context_params=ContextParams(n_ctx=512), devices=["1GiB"], draft=draft)
    budget = whole.devices[0].total
    fits = fit(model, memory=budget, n_ctx=512, devices=["1GiB"], draft=draft)
    assert not fits.model_params.tensor_overrides
    tight = fit(model, memory=budget - 1, n_ctx=512, devices=["1GiB"], draft=draft)
    assert tight.model_params.tensor_overrides
    assert tight.plan.devices[0].total < budget
    # The draft is whole, and where it was.
    assert draft_part(tight.plan.devices[0], "model") == draft_part(whole.devices[0], "model")
    assert re.search(r"The draft takes .* of GPU0 and .* of Host, which the model does not get\.", str(tight))
    assert not fit(model, memory=budget - 1, n_ctx=512, devices=["1GiB"]).model_params.tensor_overrides
    host = Draft(str(draft), ModelParams(n_gpu_layers=0))
    told = fit(model, memory=budget - 1, n_ctx=512, devices=["1GiB"], draft=host)
    assert not told.model_params.tensor_overrides
    assert not draft_part(told.plan.devices[0], "model")


def test_fewer_layers_of_the_model_are_not_fewer_of_the_draft(tiny_path: MakeTiny) -> None:
    dense, draft = tiny_path(n_layer=6), tiny_path(n_layer=1)
    params = ContextParams(n_ctx=512)
    whole = plan(dense, context_params=params, devices=["1GiB"], draft=draft)
    found = fit(dense, memory=whole.devices[0].total - 1, n_ctx=512, devices=["1GiB"], draft=draft)
    assert 0 <= found.model_params.n_gpu_layers < 7
    assert draft_part(found.plan.devices[0], "model") == draft_part(whole.devices[0], "model")


def test_a_fit_over_several_devices(tiny_path: MakeTiny) -> None:
    model, draft = tiny_path(n_expert=8, n_layer=4), tiny_path(n_expert=4)
    params = ContextParams(n_ctx=512)
    whole = plan(model, context_params=params, devices=["1GiB", "1GiB"], draft=draft)
    budgets = {device.name: device.total * 9 // 10 for device in whole.devices[:-1]}
    found = fit(model, memory=budgets, n_ctx=512, devices=["1GiB", "1GiB"], draft=draft)
    for device in found.plan.devices[:-1]:
        assert device.total <= budgets[device.name]
    assert any(draft_part(device, "model") for device in found.plan.devices[:-1])


def test_the_context_of_a_draft_grows_with_the_models(tiny_path: MakeTiny) -> None:
    model = tiny_path(n_ctx_train=8192)
    alone = fit(model, memory="4MiB", n_ctx_min=256, devices=["1GiB"])
    found = fit(model, memory="4MiB", n_ctx_min=256, devices=["1GiB"], draft=model)
    assert found.plan.draft is not None
    assert found.plan.draft.context_params is not None
    assert found.plan.draft.context_params.n_ctx == found.plan.n_ctx <= alone.plan.n_ctx
    assert found.plan.devices[0].total <= 4 * 2**20


@pytest.mark.parametrize("pinned", [False, True])
def test_a_saved_fit_knows_it(tiny_path: MakeTiny, tmp_path: Path, pinned: bool) -> None:
    path = tiny_path(n_expert=4)
    given = Draft(
        str(tiny_path(n_head=2, n_head_kv=1)), ModelParams(n_gpu_layers=1), ContextParams(type_k=GgmlType.Q8_0)
    )
    if pinned:
        from moebind.backend.devices import describe
        from moebind.placement.described_devices import described_device

        second = describe(1, described_device(1, "1GiB"))
        given = Draft(given.path, ModelParams(devices=(second,)))
    found = fit(path, memory="1GiB", n_ctx=512, devices=["1GiB", "1GiB"], draft=given)
    found.save(tmp_path / "fit.json")
    again = Fit.load(tmp_path / "fit.json")
    assert again.plan.devices == found.plan.devices
    assert again.plan.draft == found.plan.draft
    assert bool(draft_part(again.plan.devices[0], "model")) is not pinned
    own = fit(tiny_path(**MTP), memory="1GiB", n_ctx=512, devices=["1GiB"], draft=True)
    own.save(tmp_path / "own.json")
    assert Fit.load(tmp_path / "own.json").plan.draft == own.plan.draft


@pytest.mark.parametrize(
    ("draft", "message"),
    [
        ("d.gguf", "draft is 'd.gguf'; it takes an object with path"),
        ({"path": 3}, "path is 3"),
        ({"path": "d.gguf", "model_params": {"devices": 5}}, "the draft's devices are 5; it takes a list of names"),
        ({"path": "d.gguf", "model_params": {"devices": ["GPU7"]}}, "devices are GPU7, of which some are not among"),
    ],
)
def test_a_saved_draft_that_is_damaged(tiny_path: MakeTiny, tmp_path: Path, draft: object, message: str) -> None:
    saved = tmp_path / "fit.json"
    fit(tiny_path(), n_ctx=512, devices=["1GiB"]).save(saved)
    saved.write_text(json.dumps({**json.loads(saved.read_text()), "draft": draft}))
    with pytest.raises(ValueError, match=re.escape(message)):
        Fit.load(saved)


def test_advice_counts_it(tiny_path: MakeTiny) -> None:
    path = tiny_path(n_expert=4)
    planned = plan(path, context_params=SMALL, devices=["1GiB"], draft=path)
    assert planned._again(planned.model_params, planned.context_params).devices == planned.devices


def bad(tiny_path: MakeTiny, architecture_path: Callable[..., Path]) -> Iterator[tuple[object, type[Exception], str]]:
    yield 5, TypeError, "draft is 5; it takes a file, a Draft, or True"
    yield "nothing.gguf", FileNotFoundError, "nothing.gguf"
    yield Draft(), SpeculativeError, "has no layers that predict further ahead"
    yield architecture_path("dflash", 2), SpeculativeError, "it was made for another model"
    yield architecture_path("gemma4-assistant", 2), SpeculativeError, "drafts for models of architecture gemma4"


@pytest.mark.parametrize("at", range(5))
def test_what_is_no_draft(tiny_path: MakeTiny, architecture_path: Callable[..., Path], at: int) -> None:
    draft, kind, message = list(bad(tiny_path, architecture_path))[at]
    with pytest.raises(kind, match=message):
        plan(tiny_path(n_layer=1), draft=draft)  # type: ignore[arg-type]


def test_a_draft_that_has_no_room_anywhere(tiny_path: MakeTiny) -> None:
    path = tiny_path()
    only = Draft(str(tiny_path(n_expert=8, n_layer=4)))
    with pytest.raises(FitError, match="does not fit"):
        fit(path, memory={"Host": "1KiB"}, n_ctx=512, devices=[], draft=only)


def test_a_file_that_is_damaged(tiny_path: MakeTiny, tmp_path: Path) -> None:
    (tmp_path / "draft.gguf").write_bytes(tiny_path().read_bytes()[:2000])
    with pytest.raises(ModelLoadError):
        plan(tiny_path(), draft=tmp_path / "draft.gguf")
