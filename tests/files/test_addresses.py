"""Addresses on the Hub, in every place where a model's file, or one of what lies beside models, is taken."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lora
import projectors
import pytest
from commands import Capture, run
from hub_server import REPO, Hub, cached
from serving import SMALL_SERVER, ask, complete

import moebind
from conftest import CPU, SMALL
from moebind import Ftype, Gguf, Model, ModelNotFoundError
from moebind.bench import decode, default_placements
from moebind.mtmd import MtmdContext
from moebind.params.draft import Draft
from moebind.server import Server
from moebind.tuning import saved

ADDRESS = f"hf://{REPO}/Q4_K"
#: Functions that read a header; of a file that is not in the cache they read nothing more.
READERS: dict[str, Callable[[str], object]] = {
    "Gguf.from_file": Gguf.from_file,
    "inspect": moebind.inspect,
    "experts": moebind.experts,
    "plan": lambda path: moebind.plan(path, CPU, SMALL),
    "plan, draft": lambda path: moebind.plan(path, CPU, SMALL, draft=Draft(path)),
    "fit": lambda path: moebind.fit(path, devices=["64MiB"]),
    "fit, draft": lambda path: moebind.fit(path, devices=["64MiB"], draft=path),
    "doctor": lambda path: moebind.doctor(path, CPU),
    "default_placements": default_placements,
    "what tune found": saved.find,
}
#: Functions that compute with the weights, or write them.
LOADERS: dict[str, Callable[[str], object]] = {
    "load_from_file": lambda path: Model.load_from_file(path, CPU).close(),
    "load_from_splits": lambda path: Model.load_from_splits([path], CPU).close(),
    "quantize": lambda path: moebind.quantize(path, None, Ftype.Q8_0, dry_run=True),
    "bench.decode": lambda path: decode(path, CPU, SMALL, n_prompt=4, n_generate=2, progress=False),
}


@pytest.fixture(autouse=True)
def _found_by_tune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOEBIND_CACHE", str(tmp_path / "moebind"))


@pytest.mark.parametrize("function", READERS)
def test_headers_of_addresses(hub: Hub, tmp_path: Path, function: str) -> None:
    assert READERS[function](ADDRESS)
    assert 0 < hub.sent < hub.size(REPO, "tiny-Q4_K.gguf")
    assert cached(tmp_path) == []
    with pytest.raises(ModelNotFoundError, match="matches 'Q9'"):
        READERS[function](f"hf://{REPO}/Q9")


@pytest.mark.parametrize("function", LOADERS)
def test_files_of_addresses(hub: Hub, tmp_path: Path, function: str) -> None:
    with pytest.raises(ModelNotFoundError, match="matches 'Q9'"):
        LOADERS[function](f"hf://{REPO}/Q9")
    LOADERS[function](ADDRESS)
    assert cached(tmp_path) == ["tiny-Q4_K.gguf"]


def test_a_fit_of_an_address(hub: Hub, tmp_path: Path) -> None:
    fit = moebind.fit(ADDRESS, context_params=SMALL, devices=["64MiB"])
    fit.save(tmp_path / "fit.json")
    assert moebind.Fit.load(tmp_path / "fit.json").plan.path == fit.plan.path
    elsewhere = tmp_path / "elsewhere.gguf"
    shutil.copy(str(hub.repos[REPO]["tiny-Q4_K.gguf"]), elsewhere)
    moebind.fit(elsewhere, context_params=SMALL, devices=["64MiB"]).save(tmp_path / "fit.json")
    elsewhere.unlink()
    assert moebind.Fit.load(tmp_path / "fit.json", ADDRESS).plan.path == fit.plan.path
    assert cached(tmp_path) == []


@pytest.mark.usefixtures("no_child_is_left")
def test_tuning_of_an_address(hub: Hub, tmp_path: Path) -> None:
    given: dict[str, Any] = {"n_prompt": 16, "n_generate": 4, "context_params": SMALL, "prompts": ["the cat is in it"]}
    given |= {"devices": [], "progress": False, "dimensions": ["micro-batch", "speculation"]}
    drafts = f"hf://{REPO}/Q4_K_M"
    with pytest.raises(ModelNotFoundError, match="matches 'Q9'"):
        moebind.tune(ADDRESS, draft=f"hf://{REPO}/Q9", **given)
    assert cached(tmp_path) == []
    assert moebind.tune(ADDRESS, draft=drafts, **given).model_params.n_gpu_layers == 0
    assert cached(tmp_path) == ["tiny-Q4_K.gguf", "tiny-Q4_K_M.gguf"]


def test_a_projectors_address(hub: Hub, tmp_path: Path, capsys: Capture) -> None:
    text = projectors.text_model(tmp_path / "text.gguf", "gemma3")
    hub.repos["someone/seeing"] = {
        "text.gguf": text,
        "mmproj-text.gguf": projectors.write(tmp_path / "mmproj.gguf", "gemma3"),
    }
    address = "hf://someone/seeing/mmproj-text.gguf"
    assert moebind.plan(text, CPU, SMALL, mmproj=address).mmproj == address
    assert moebind.fit("hf://someone/seeing", devices=["64MiB"], mmproj=True).plan.mmproj == address
    assert cached(tmp_path) == []
    with Model.load_from_file(text, CPU) as model, MtmdContext.init_from_file(address, model) as mtmd:
        assert mtmd.support_vision
    assert cached(tmp_path) == ["mmproj-text.gguf"]
    shutil.rmtree(tmp_path / "cache")
    photo = projectors.photo(tmp_path / "photo.jpg")
    chat = ["chat", "-m", text, "--image", photo, "-p", "it is", "-st", "-n", 2, "-t", 1, "-ngl", 0, "-c", 512]
    chat += ["--chat-template", "chatml"]
    assert run(*chat, "--mmproj", address) == 0, capsys.readouterr().err
    assert cached(tmp_path) == ["mmproj-text.gguf"]


def test_a_drafts_address(hub: Hub, tmp_path: Path, capsys: Capture) -> None:
    path = hub.repos[REPO]["tiny-Q4_K.gguf"]
    writes = ["generate", path, "-p", "it is", "-n", 8, "-ngl", 0, "-t", 1, "-c", 256, "--timings"]
    assert run(*writes, "--model-draft", f"hf://{REPO}/Q4_K_M") == 0
    assert "drafted" in capsys.readouterr().err
    assert cached(tmp_path) == ["tiny-Q4_K_M.gguf"]


def test_a_server_of_addresses(hub: Hub, tmp_path: Path, first: lora.Pairs) -> None:
    hub.repos[REPO]["lora.gguf"] = lora.write(tmp_path / "lora.gguf", first)
    extra = [*SMALL_SERVER["extra"], "--lora-scaled", f"hf://{REPO}/lora.gguf:0.5,{tmp_path}/lora.gguf:2"]
    with Server(ADDRESS, **{**SMALL_SERVER, "extra": extra}, draft=f"hf://{REPO}/Q4_K_M") as server:
        adapters = ask(server.url, "/lora-adapters").said
        assert [each["scale"] for each in adapters] == [0.5, 2]
        assert Path(adapters[0]["path"]).is_relative_to(tmp_path / "cache")
        assert complete(server.url).status == 200
    assert cached(tmp_path) == ["lora.gguf", "tiny-Q4_K.gguf", "tiny-Q4_K_M.gguf"]
    extra[-1] = f"hf://{REPO}/none.gguf"
    with pytest.raises(ModelNotFoundError, match="matches 'none.gguf'"):
        Server(ADDRESS, **{**SMALL_SERVER, "extra": extra})


def test_an_importance_matrixs_address(hub: Hub, tmp_path: Path, capsys: Capture) -> None:
    hub.repos[REPO]["imatrix.gguf"] = b"not an importance matrix"
    assert run("quantize", ADDRESS, "Q8_0", "--dry-run", "--imatrix", f"hf://{REPO}/imatrix.gguf") == 1
    assert "imatrix.gguf is not an importance matrix" in capsys.readouterr().err
    assert cached(tmp_path) == ["imatrix.gguf", "tiny-Q4_K.gguf"]


# --- what takes none ---


def test_what_is_written_has_no_address(hub: Hub, tmp_path: Path) -> None:
    new = f"hf://{REPO}/new.gguf"
    with pytest.raises(
        ValueError, match=r"dst is '.*new.gguf', an address .*; it takes the path of a file that is to be"
    ):
        moebind.quantize(ADDRESS, new, Ftype.Q8_0)
    assert not hub.requests  # told before a download
    with (
        Model.load_from_file(ADDRESS, CPU) as model,
        pytest.raises(
            ValueError, match=r"path is '.*new.gguf', an address .*; it takes the path of a file that is to be"
        ),
    ):
        model.save_to_file(Path(new))


def test_wrong_arguments_of_quantize_are_told_before_a_download(hub: Hub) -> None:
    for wrong in ({"n_threads": 0}, {"overwrite": 1}, {"max_buf_size": -1}):
        with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
            moebind.quantize(ADDRESS, None, Ftype.Q8_0, dry_run=True, **wrong)  # type: ignore[arg-type]
    assert not hub.requests


def test_folders_have_no_addresses(hub: Hub, capsys: Capture) -> None:
    with pytest.raises(
        ValueError, match="folder is 'hf://someone/tiny', an address .*; it takes a folder of this machine"
    ):
        moebind.list_models([f"hf://{REPO}"], fits=False)
    with pytest.raises(
        ValueError, match="models_dir is .*; it takes a folder of this machine; give the address as model"
    ):
        Server(models_dir=f"hf://{REPO}")
    assert run("serve", "--models-dir", f"hf://{REPO}") == 2
    assert "--models-dir is 'hf://someone/tiny', an address" in capsys.readouterr().err
    assert not hub.requests
