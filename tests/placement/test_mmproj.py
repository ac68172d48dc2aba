"""Projectors in plans and fits: counted as they are loaded, found beside the model, and kept with a fit."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

import projectors
import pytest
from hub_server import REPO, Hub, cached

import moebind
from conftest import CPU
from moebind import ContextParams, Fit, Model, fit, plan
from moebind.errors import MtmdError
from moebind.mtmd import MtmdContext, MtmdContextParams
from moebind.placement.mmproj import Projector

KINDS = sorted(projectors.MODELS)


@pytest.mark.parametrize("kind", KINDS)
def test_planned_against_actual(tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    """What libmtmd says that it takes, when it loads a projector and warms it up."""
    path = projectors.write(tmp_path / "mmproj.gguf", kind)
    planned = Projector.of(str(path))
    assert planned.model == sum(tensor.nbytes for tensor in projectors.tensors(kind).values())
    text = projectors.text_model(tmp_path / "text.gguf", kind)
    moebind.set_log("info")
    try:
        with caplog.at_level(logging.INFO, "moebind.llama"), Model.load_from_file(text, CPU) as model:
            caplog.clear()
            MtmdContext.init_from_file(path, model, MtmdContextParams(use_gpu=False)).close()
    finally:
        moebind.set_log("warning")
    said = "\n".join(record.getMessage() for record in caplog.records)
    found = re.findall(r"compute buffer size = +([\d.]+) MiB", said)
    assert found
    # It is told in hundredths of a MiB.
    assert abs(planned.compute / 2**20 - float(found[-1])) <= 0.005 + 1e-9


@pytest.mark.parametrize("devices", [[], ["1GiB"], ["1GiB", "1GiB"]])
def test_a_plan_counts_it_on_the_first_device(
    tiny_path: Callable[..., Path], tmp_path: Path, devices: list[str]
) -> None:
    path = projectors.write(tmp_path / "mmproj.gguf", "gemma3")
    counted = Projector.of(str(path))
    model = tiny_path()
    bare = plan(model, devices=devices)
    seeing = plan(model, devices=devices, mmproj=path)
    assert (bare.mmproj, seeing.mmproj) == (None, str(path))
    assert seeing.devices[0].total - bare.devices[0].total == counted.model + counted.compute
    assert seeing.devices[0].model - bare.devices[0].model == counted.model
    assert seeing.devices[1:] == bare.devices[1:]
    assert seeing.devices[0].buffers[-1].name == "mmproj"
    assert seeing.devices[0].buffers[:-1] == bare.devices[0].buffers
    assert "mmproj" in str(seeing)
    assert seeing.to_dict()["mmproj"] == str(path)
    # What is planned in advice counts it, too.
    again = seeing._again(seeing.model_params, seeing.context_params)
    assert again.devices == seeing.devices


def test_a_fit_leaves_room_for_it(tiny_path: Callable[..., Path], tmp_path: Path) -> None:
    path = projectors.write(tmp_path / "mmproj.gguf", "gemma3")
    counted = Projector.of(str(path))
    model = tiny_path(n_expert=8, n_layer=4)
    whole = plan(model, context_params=ContextParams(n_ctx=512), devices=["1GiB"])
    budget = whole.devices[0].total + counted.model + counted.compute
    fits = fit(model, memory=budget, n_ctx=512, devices=["1GiB"], mmproj=path)
    assert not fits.model_params.tensor_overrides
    tight = fit(model, memory=budget - 1, n_ctx=512, devices=["1GiB"], mmproj=path)
    assert tight.model_params.tensor_overrides
    assert tight.plan.devices[0].total < budget
    assert not fit(model, memory=budget - 1, n_ctx=512, devices=["1GiB"]).model_params.tensor_overrides
    # Where nothing is on the device, it is in host memory, too.
    none = fit(model, memory="1MiB", n_ctx=512, devices=["1GiB"], mmproj=path)
    assert [device.name for device in none.plan.devices] == ["Host"]
    assert none.plan.host.buffers[-1].name == "mmproj"


def test_a_saved_fit_knows_it(tiny_path: Callable[..., Path], tmp_path: Path) -> None:
    path = projectors.write(tmp_path / "mmproj.gguf", "gemma3")
    found = fit(tiny_path(), memory="1GiB", n_ctx=512, devices=["1GiB"], mmproj=path)
    found.save(tmp_path / "fit.json")
    again = Fit.load(tmp_path / "fit.json")
    assert again.plan.mmproj == str(path)
    assert again.plan.devices == found.plan.devices
    fit(tiny_path(), memory="1GiB", n_ctx=512, devices=["1GiB"]).save(tmp_path / "bare.json")
    assert Fit.load(tmp_path / "bare.json").plan.mmproj is None


def test_it_is_found_beside_the_model(tmp_path: Path) -> None:
    model = projectors.text_model(tmp_path / "model.gguf", "gemma3")
    with pytest.raises(MtmdError, match=r"no projector \(mmproj\*\.gguf\) lies beside .*model\.gguf: give its file"):
        plan(model, mmproj=True)
    projectors.write(tmp_path / "mmproj-model-f16.gguf", "gemma3")
    assert plan(model, mmproj=True).mmproj == str(tmp_path / "mmproj-model-f16.gguf")
    assert plan(model, mmproj=False).mmproj is None


def test_what_is_no_projector(tiny_path: Callable[..., Path], tmp_path: Path) -> None:
    model = tiny_path()
    with pytest.raises(MtmdError, match="is no projector"):
        plan(model, mmproj=model)
    with pytest.raises(FileNotFoundError, match="often begins with mmproj"):
        plan(model, mmproj=tmp_path / "nothing.gguf")
    with pytest.raises(TypeError):
        plan(model, mmproj=5)  # type: ignore[arg-type]
    projectors.write(tmp_path / "lacking.gguf", "gemma3", without="mm.input_projection.weight")
    with pytest.raises(MtmdError, match="cannot be planned"):
        plan(model, mmproj=tmp_path / "lacking.gguf")


def test_projectors_of_the_hub_are_counted_before_a_download(hub: Hub, tmp_path: Path) -> None:
    kind = KINDS[0]
    files = {"mmproj-b.gguf": projectors.write(tmp_path / "mmproj.gguf", kind)}
    files["text.gguf"] = projectors.text_model(tmp_path / "text.gguf", kind)
    hub.repos[REPO] = dict(files)
    local = plan(files["text.gguf"], CPU, mmproj=files["mmproj-b.gguf"])
    for given in (True, f"hf://{REPO}/mmproj-b.gguf"):
        there = plan(f"hf://{REPO}/text.gguf", CPU, mmproj=given)
        assert there.mmproj == f"hf://{REPO}/mmproj-b.gguf"
        assert there.devices[0].buffers[-1] == local.devices[0].buffers[-1]
    assert cached(tmp_path) == []
    found = fit(f"hf://{REPO}/text.gguf", mmproj=True, n_ctx=512, host="1GiB", devices=[])
    found.save(tmp_path / "fit.json")
    assert Fit.load(tmp_path / "fit.json").plan.mmproj == f"hf://{REPO}/mmproj-b.gguf"
    with Model.load_from_file(f"hf://{REPO}/text.gguf", CPU) as model:
        MtmdContext.init_from_file(f"hf://{REPO}/mmproj*", model, MtmdContextParams(use_gpu=False)).close()
    assert plan(f"hf://{REPO}/text.gguf", CPU, mmproj=True).devices[0].buffers == local.devices[0].buffers  # it is here
    del hub.repos[REPO]["mmproj-b.gguf"]
    with pytest.raises(MtmdError, match="no projector"):
        plan(f"hf://{REPO}/text.gguf", CPU, mmproj=True)
