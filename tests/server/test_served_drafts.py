"""What drafts for a served model: its options, what it takes, and that llama-server drafts with it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from serving import CONTEXT, complete

from conftest import CPU
from moebind import ContextParams, Device, Draft, FlashAttnType, GgmlType, LoadMode, ModelParams
from moebind.placement.draft_memory import draft_part
from moebind.server import Server
from moebind.server.folders import Found, of_file
from moebind.server.placed import Wishes, place, server_context
from moebind.server.served_drafts import ServedDraft, most_drafted, served_draft, with_outputs

MakeTiny = Callable[..., Path]
WISHES = Wishes(CPU, server_context(CONTEXT, None))
MTP = {"arch": "glm4moe", "n_layer": 4, "n_expert": 4, "n_mtp": 1, "n_head_kv": 4}
EXTRA = ["--no-warmup", "--log-verbosity", "4"]


@pytest.fixture(scope="module")
def found(tiny_path: MakeTiny) -> Found:
    return of_file(tiny_path(n_expert=4))


def test_a_draft_model_in_options(found: Found, tiny_path: MakeTiny, device: Device) -> None:
    other = tiny_path(n_layer=1, n_expert=4)
    bare = place(found, WISHES, alone=True)
    assert not [name for name in bare.options if name.startswith("spec-")]
    given = Draft(
        str(other),
        ModelParams(n_gpu_layers=1, devices=(device,)).with_cpu_moe_all(),
        ContextParams(type_k=GgmlType.F32),
    )
    model = place(found, replace(WISHES, draft=served_draft(given, CPU, WISHES.context_params)), alone=True)
    assert {name: value for name, value in model.options.items() if name.startswith("spec-")} == {
        "spec-type": "draft-simple",
        "spec-draft-model": str(other),
        "spec-draft-ngl": "1",
        "spec-draft-device": "RPC0",
        "spec-draft-override-tensor": model.options["spec-draft-override-tensor"],
        "spec-draft-type-k": "f32",
        "spec-draft-type-v": "f16",
    }
    assert str(model.options["spec-draft-override-tensor"]).endswith("=CPU")
    # The server knows the draft's device, but lets no layers of the model have it.
    assert model.options["rpc"] == device.description
    assert (model.options["device"], model.used, model.used_by_draft) == ("none", [], [device])
    assert model.needs[device.name] > 0
    assert model.needs["Host"] > bare.needs["Host"]


def test_the_models_own_layers(tiny_path: MakeTiny) -> None:
    model = place(of_file(tiny_path(**MTP)), replace(WISHES, draft=True), alone=True)
    assert model.options["spec-type"] == "draft-mtp"
    assert "spec-draft-model" not in model.options


def test_layers_ahead_in_a_file_beside_the_model(tiny_path: MakeTiny, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_path(arch="glm4moe", n_layer=3, n_expert=4, n_head_kv=4).read_bytes())
    beside = tmp_path / "mtp-model.gguf"
    beside.write_bytes(tiny_path(**MTP).read_bytes())
    read = CPU.with_load_mode(LoadMode.NONE)
    named = place(of_file(path), replace(WISHES, draft=ServedDraft(str(beside))), alone=True)
    assert named.options["spec-type"] == "draft-mtp"
    model = place(of_file(path), replace(WISHES, model_params=read, draft=True), alone=True)
    assert (model.options["spec-type"], model.options["spec-draft-model"]) == ("draft-mtp", str(beside))
    typed = ServedDraft(context_params=ContextParams(type_k=GgmlType.F32))
    made = place(of_file(path), replace(WISHES, draft=typed), alone=True)
    assert (made.options["spec-draft-model"], made.options["spec-draft-type-k"]) == (str(beside), "f32")
    assert model.plan is not None and model.plan.draft is not None and model.plan.draft.model_params is not None
    assert model.plan.draft.model_params.load_mode == LoadMode.NONE  # llama-server takes it from the model


def test_what_it_has_from_the_model() -> None:
    target = ModelParams(n_gpu_layers=3, split_mode=0, no_host=True).with_cpu_moe_all()
    assert ServedDraft("d.gguf").loaded_for(target) == replace(target, tensor_overrides=(), load_mtp=True)
    context = with_outputs(server_context(CONTEXT.with_type_k(GgmlType.Q8_0), 2))
    assert (context.n_outputs_max, context.n_outputs_max_per_seq) == (min(context.n_batch, 8), 4)
    draft = ServedDraft("d.gguf").context_for(context, 512, ahead=False)
    assert (draft.n_ctx, draft.n_seq_max, draft.type_k) == (512, 2, GgmlType.F16)
    assert draft.n_outputs_max_per_seq == 1
    embeds = server_context(CONTEXT.with_embeddings(True), 2)
    assert with_outputs(embeds) == embeds


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Draft("d.gguf", ModelParams(no_host=True)), "draft has no_host True: llama-server takes it from the model"),
        (Draft("d.gguf", context_params=ContextParams(swa_full=False)), "draft has swa_full False"),
    ],
)
def test_what_llama_server_cannot(given: Draft, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        served_draft(given, CPU, ContextParams())


def test_what_it_has_as_the_model_has_it() -> None:
    # A command's draft has all of the model's context but what its own options say.
    target = ContextParams(swa_full=False, flash_attn_type=FlashAttnType.DISABLED)
    given = Draft(context_params=Draft().context_for(target, 256, ahead=True).with_type_k(GgmlType.F32))
    made = served_draft(given, CPU, target)
    assert isinstance(made, ServedDraft)
    assert made.context_for(target, 256, ahead=True).type_k == GgmlType.F32


@pytest.mark.parametrize(
    ("extra", "n_max"),
    [([], 3), (["--spec-draft-n-max", "16"], 16), (["--spec-draft-n-max", "5", "--spec_draft_n_max", "7", "-v"], 7)],
)
def test_as_many_outputs_as_are_drafted(found: Found, tiny_path: MakeTiny, extra: list[str], n_max: int) -> None:
    assert most_drafted(extra) == n_max
    draft = served_draft(tiny_path(n_layer=1, n_expert=4), CPU, WISHES.context_params, n_max)
    planned = place(found, replace(WISHES, draft=draft, n_drafted=n_max), alone=True).plan
    assert planned is not None and planned.draft is not None and planned.draft.context_params is not None
    sequences = WISHES.context_params.n_seq_max
    assert planned.context_params.n_outputs_max_per_seq == 1 + n_max
    assert planned.draft.context_params.n_outputs_max == sequences * (1 + n_max)


def test_what_is_no_draft(found: Found, tiny_path: MakeTiny) -> None:
    with pytest.raises(TypeError, match="draft"):
        Server(found.path, draft=5)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"nothing\.gguf"):
        Server(found.path, draft="nothing.gguf", model_params=CPU)
    with pytest.raises(ValueError, match="draft belongs to one model"):
        Server([found.path, tiny_path()], draft=found.path)


@pytest.mark.parametrize("extra", [["-md", "x.gguf"], ["--spec-draft-ngl", "3"], ["--spec-type", "draft-mtp"]])
def test_drafts_that_no_plan_would_count(found: Found, extra: list[str]) -> None:
    with pytest.raises(ValueError, match=": use draft$"):
        Server(found.path, extra=extra)


@pytest.mark.parametrize("where", ["device", "host"])
def test_llama_server_drafts(demo_path: Path, device: Device, where: str) -> None:
    params = ModelParams(devices=[device]) if where == "device" else CPU
    draft = Draft(str(demo_path), ModelParams(n_gpu_layers=-1 if where == "device" else 0))
    context = CONTEXT.with_n_ctx(1024)
    with Server(demo_path, model_params=params, context_params=context, draft=draft, extra=EXTRA) as server:
        answer = complete(server.url, n_predict=16).said
        [served] = server.models
    assert answer["timings"]["draft_n"] > 0
    assert served.plan is not None
    # Each context says what it is as it is made, in hundredths of a MiB: the model's, then the draft's.
    said = [float(size) for size in re.findall(r"KV buffer size = +([\d.]+) MiB", server.log)]
    planned = [
        sum(each.context - draft_part(each, "context") for each in served.plan.devices) / 2**20,
        sum(draft_part(each, "context") for each in served.plan.devices) / 2**20,
    ]
    assert said[-2:] == pytest.approx(planned, abs=0.006)
