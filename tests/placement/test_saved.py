"""Fits in files: what comes back, for which model, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub
from hypothesis import given
from hypothesis import strategies as st

import moebind
from conftest import SMALL
from moebind import ContextParams, Device, Fit, GgmlType, ModelNotFoundError, ModelParams
from moebind.placement.header import read_header
from moebind.placement.saved import LONGEST, Identity, Saved

MakeTiny = Callable[..., Path]
CONTEXT = ContextParams(n_ctx=512, type_k=GgmlType.F32, n_ubatch=64)


@pytest.fixture(scope="module")
def path(tiny_path: MakeTiny) -> Path:
    return tiny_path(n_expert=4, n_layer=3)


@pytest.fixture(scope="module")
def fit(path: Path) -> Fit:
    return moebind.fit(path, memory="1200KiB", context_params=CONTEXT, devices=["8MiB"], host="1GiB")


def test_it_comes_back(fit: Fit, tmp_path: Path) -> None:
    fit.save(tmp_path / "fit.json")
    back = Fit.load(tmp_path / "fit.json")
    assert back == fit
    assert back.plan.devices[0].capacity == 8 * 2**20
    assert back.plan.host.capacity == 2**30
    assert back.model_params.tensor_overrides
    assert str(back) == str(fit)
    back.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "fit.json").read_bytes()


def test_what_is_in_the_file(fit: Fit, tmp_path: Path) -> None:
    fit.save(tmp_path / "fit.json")
    told = json.loads((tmp_path / "fit.json").read_text(encoding="utf-8"))
    assert told == json.loads(json.dumps(fit.to_dict()))
    assert (told["format"], told["version"]) == ("moebind fit", 1)
    assert told["devices"] == [8 * 2**20]
    assert told["host"] == 2**30
    assert told["budgets"] == {"GPU0": 1200 * 2**10}
    assert ModelParams.from_dict(told["model_params"]) == fit.model_params
    assert ContextParams.from_dict(told["context_params"]) == fit.context_params == CONTEXT
    assert told["plan"] == fit.plan.to_dict()


def test_devices_that_are_here_go_by_name(path: Path, device: Device, tmp_path: Path) -> None:
    fit = moebind.fit(path, memory="2MiB", context_params=SMALL, devices=[device])
    fit.save(tmp_path / "fit.json")
    assert fit.model_params.devices == (device,)
    back = Fit.load(tmp_path / "fit.json")
    assert back == fit
    assert [each.name for each in back.plan.devices] == [device.name, "Host"]
    mixed = moebind.fit(path, memory="2MiB", context_params=SMALL, devices=[device, "8MiB"])
    mixed.save(tmp_path / "mixed.json")
    assert Fit.load(tmp_path / "mixed.json") == mixed


def test_a_model_that_was_moved_split_or_joined(tiny_path: MakeTiny, fit: Fit, path: Path, tmp_path: Path) -> None:
    fit.save(tmp_path / "fit.json")
    moved = tmp_path / "moved.gguf"
    moved.write_bytes(path.read_bytes())
    assert Fit.load(tmp_path / "fit.json", moved).model_params == fit.model_params
    split = tiny_path(n_expert=4, n_layer=3, split=2)
    assert Identity.of(read_header(str(split))) == Identity.of(read_header(str(path)))
    assert Fit.load(tmp_path / "fit.json", split).context_params == fit.context_params


def test_another_model_is_refused(tiny_path: MakeTiny, fit: Fit, path: Path, tmp_path: Path) -> None:
    fit.save(tmp_path / "fit.json")
    for other in (tiny_path(n_expert=4, n_layer=4), tiny_path(n_expert=8, n_layer=3), tiny_path(n_layer=3)):
        with pytest.raises(ValueError, match=rf"fit.json is a fit for {path.name} .*{other.name} .* is another model"):
            Fit.load(tmp_path / "fit.json", other)
    told = json.loads((tmp_path / "fit.json").read_text(encoding="utf-8"))
    told["model"]["path"] = str(tmp_path / "gone.gguf")
    (tmp_path / "fit.json").write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(ModelNotFoundError, match="gone.gguf"):
        Fit.load(tmp_path / "fit.json")


def test_a_device_that_is_gone(fit: Fit, path: Path, tmp_path: Path) -> None:
    fit.save(tmp_path / "fit.json")
    told = json.loads((tmp_path / "fit.json").read_text(encoding="utf-8"))
    told["devices"] = ["RPC77"]
    (tmp_path / "fit.json").write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(ValueError, match=r"no device 'RPC77'; there .*\. The fit is for it: add what"):
        Fit.load(tmp_path / "fit.json")


def test_a_model_is_never_written_over(fit: Fit, path: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="model.gguf is a model; a fit is saved in a file of its own"):
        fit.save(model)
    assert model.read_bytes() == path.read_bytes()
    with pytest.raises(OSError, match="there is no folder"):
        fit.save(tmp_path / "none" / "fit.json")
    with pytest.raises(TypeError, match="path"):
        fit.save(3)  # type: ignore[arg-type]


def test_callbacks_are_refused(path: Path, tmp_path: Path) -> None:
    model = ModelParams(progress_callback=lambda _: True)
    fit = moebind.fit(path, context_params=SMALL, model_params=model, devices=["8MiB"])
    with pytest.raises(ValueError, match="progress_callback is set"):
        fit.save(tmp_path / "fit.json")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_written_by_hand(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text('{"context_params": {"n_ctx": 1024}}', encoding="utf-8")
    assert Saved.read(file) == Saved(ModelParams(), ContextParams(n_ctx=1024))
    with pytest.raises(ValueError, match="mine.json names no model: it holds parameters, but no fit"):
        Fit.load(file)


BAD: list[tuple[str | bytes, str]] = [
    ("", "bad.json is not JSON"),
    (b"\xff\xfe\x00", "bad.json is not JSON"),
    ("[" * 100_000, "bad.json is not JSON"),
    ("[]", "has neither model_params nor context_params"),
    ('"text"', "has neither model_params nor context_params"),
    ("{}", "has neither model_params nor context_params"),
    ('{"model_params": []}', "bad.json: ModelParams is read from"),
    ('{"model_params": {"n_gpu_layer": 1}}', "bad.json: ModelParams has no 'n_gpu_layer'; did you mean 'n_gpu_layers'"),
    (
        '{"moebind": "9.9", "context_params": {"magic": 1}}',
        r"bad.json, which moebind 9.9 wrote: ContextParams has no 'magic' in moebind .* if a newer version wrote it",
    ),
    (
        '{"moebind": "9.9", "format": "moebind fit", "version": 2, "model_params": {}}',
        r"bad.json, which moebind 9.9 wrote, has the format 'moebind fit', version 2; this moebind .* version 1",
    ),
    ('{"format": "other", "model_params": {}}', "has the format 'other'"),
    ('{"model_params": {}, "model": {"name": "x"}}', "is damaged: it lacks 'path'"),
    ('{"model_params": {}, "model": 3}', "bad.json"),
    ('{"model_params": {}, "devices": [true]}', "devices"),
    ('{"model_params": {}, "devices": 7}', "bad.json"),
    ('{"model_params": {}, "host": -1}', "host is -1"),
    ('{"model_params": {}, "budgets": {"GPU0": "all"}}', "budgets"),
    ('{"model_params": {}, "budgets": [1]}', "is damaged"),
]


@pytest.mark.parametrize(("content", "message"), BAD, ids=lambda each: ascii(each)[:40])
def test_files_that_are_no_fits(tmp_path: Path, content: str | bytes, message: str) -> None:
    file = tmp_path / "bad.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        Saved.read(file)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none.json"):
        Fit.load(tmp_path / "none.json")
    with pytest.raises(OSError, match="not a regular file|Is a directory"):
        Fit.load(tmp_path)
    large = tmp_path / "large.gguf"
    with large.open("wb") as file:
        file.truncate(LONGEST + 1)
    with pytest.raises(ValueError, match=r"large.gguf has 16.0 MiB, and no parameters: is it the model\?"):
        Saved.read(large)


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["name", "path", "size", "x"]), inner),
    max_leaves=5,
)
KEYS = st.sampled_from(["format", "version", "model", "devices", "host", "budgets", "model_params", "explanation"])


@given(st.dictionaries(KEYS, JSON, max_size=4))
def test_any_json_is_a_fit_or_an_error(tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any]) -> None:
    file = tmp_path_factory.getbasetemp() / "any.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    try:
        Saved.read(file)
    except ValueError as error:
        assert "any.json" in str(error)  # noqa: PT017


def test_a_model_on_the_hub(hub: Hub, tmp_path: Path) -> None:
    fit = moebind.fit("hf://someone/tiny/tiny-Q4_K.gguf", context_params=SMALL, devices=["8MiB"])
    fit.save(tmp_path / "fit.json")
    back = Fit.load(tmp_path / "fit.json")
    assert (back.plan.path, back.plan.devices) == (fit.plan.path, fit.plan.devices)
    assert back.plan.path.startswith("hf://")


def test_files_and_folders_that_are_not_there(tiny_path: Callable[..., Path], tmp_path: Path) -> None:
    found = moebind.fit(tiny_path(n_expert=4), devices=["1GiB"], n_ctx=256)
    with pytest.raises(FileNotFoundError, match=r"fit\.json cannot be saved: there is no folder .*nowhere"):
        found.save(tmp_path / "nowhere" / "fit.json")
    with pytest.raises(FileNotFoundError, match=r"fit\.json does not exist: Fit\.save and Tuning\.save write"):
        Fit.load(tmp_path / "fit.json")
