"""Options of commands that draft."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import Capture, run
from drafts import FROM_STATES
from hub_server import REPO, Hub, cached

from moebind import Device
from moebind.cli.drafts import DRAFTS, passed_on
from moebind.cli.given import Given

MakeTiny = Callable[..., Path]
FAST = ["-ngl", 0, "-t", 1, "-c", 256]
PROMPT = "the a of the a of the a of"


@pytest.fixture(scope="module")
def path(tiny_path: MakeTiny) -> Path:
    return tiny_path(n_expert=4)


@pytest.fixture(scope="module")
def other(tiny_path: MakeTiny) -> Path:
    return tiny_path(seed=2, n_layer=1)


def told(path: Path, capsys: Capture, *options: object) -> tuple[str, str]:
    assert run("generate", path, PROMPT, "-n", 24, *FAST, "--timings", *options) == 0
    said = capsys.readouterr()
    return said.out, said.err


NGRAMS = ["--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", 2, "--spec-ngram-simple-size-m", 4]


def test_the_text_is_the_one_without(path: Path, other: Path, capsys: Capture) -> None:
    plain, timings = told(path, capsys)
    assert "drafted" not in timings
    for options in (
        ["-md", path, "--spec-draft-n-max", 4],
        ["--model-draft", other, "--spec-type", "draft-simple", "--draft-p-min", 0.1, "-ngld", 0],
        NGRAMS,
        ["--spec-type", "ngram-mod,ngram-map-k", "--spec-ngram-mod-n-match", 2, "--spec-ngram-mod-n-min", 1],
        ["--spec-type", "auto"],
        ["--spec-type", "none"],
    ):
        text, timings = told(path, capsys, *options)
        assert text == plain
        assert ("drafted" in timings) == ("-md" in options or "--model-draft" in options or options is NGRAMS)


def test_a_chat_drafts(path: Path, capsys: Capture) -> None:
    ask = ["chat", path, "-p", "the a", "--single-turn", "-n", 12, *FAST, "--json", "--chat-template", "chatml"]
    messages = []
    for options in ([], ["-md", path]):
        assert run(*ask, *options) == 0
        messages.append(json.loads(capsys.readouterr().out)["message"])
    assert messages[0] == messages[1]


def test_the_models_own_layers_draft(tiny_path: MakeTiny, capsys: Capture) -> None:
    path = tiny_path(arch="glm4moe", n_layer=4, n_expert=4, n_mtp=1, n_head_kv=4)
    plain, _ = told(path, capsys)
    text, timings = told(path, capsys, "--spec-type", "draft-mtp", "--spec-draft-n-max", 2)
    assert text == plain
    assert "drafted" in timings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--spec-draft-n-max", 3], "add --spec-type or --model-draft"),
        (["--spec-type", "ngram-simple", "--spec-ngram-mod-n-max", 3], "without --spec-type ngram-mod"),
        (["--spec-type", "ngrams"], "--spec-type is 'ngrams'; it takes auto, none, or some of draft-simple"),
        (["--spec-type", "draft-simple"], "takes a draft"),
        (
            ["--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", 40, "--spec-ngram-simple-size-m", 8],
            "--spec-ngram-simple-size-m is 8 and --spec-ngram-simple-size-n is 40: ngram-simple drafts",
        ),
        (["--spec-type", "draft-mtp"], "and no mtp-*.gguf lies beside it: add --model-draft FILE"),
        (["-md", "a.gguf", "-hfd", "someone/tiny"], "--model-draft and --spec-draft-hf are both given"),
        (["--image", "photo.jpg", "-mm", "m.gguf", "--spec-type", "auto"], "photo.jpg and --spec-type are both given"),
        (["--draft-max", "8"], "there is no --draft-max here: llama.cpp has taken it away: use --spec-draft-n-max"),
        (["-Cd", "3"], "there is no -Cd here: threads have their processors for the whole process"),
        (["--spec-draft-p-split=0.1"], "there is no --spec-draft-p-split here"),
        (["-md", "nothing.gguf"], "nothing.gguf"),
    ],
)
def test_options_that_do_not_go_together(path: Path, capsys: Capture, options: list[object], message: str) -> None:
    assert run("generate", path, PROMPT, *FAST, *options) != 0
    assert message in capsys.readouterr().err


def as_json(capsys: Capture, *arguments: object) -> dict[str, Any]:
    assert run(*arguments, "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


DEVICES = ["--device", "1GiB", "--device", "1GiB", "-c", 256]


def test_a_plan_counts_a_draft(path: Path, other: Path, capsys: Capture) -> None:
    bare = as_json(capsys, "plan", path, *DEVICES)
    assert bare["draft"] is None
    found = as_json(capsys, "plan", path, *DEVICES, "-md", other)
    assert found["draft"]["path"] == str(other)
    assert found["device_bytes"] > bare["device_bytes"]
    host = as_json(capsys, "plan", path, *DEVICES, "--model-draft", other, "-ngld", 0)
    assert host["device_bytes"] < found["device_bytes"]
    assert host["draft"]["model_params"] == {"n_gpu_layers": 0, "load_mtp": True}
    on_second = as_json(capsys, "plan", path, *DEVICES, "-md", other, "-devd", "GPU1", "-td", 3, "-tbd", 5)
    assert [each["name"] for each in on_second["draft"]["devices"]] == ["GPU1", "Host"]
    assert on_second["draft"]["context_params"]["n_threads"] == 3
    assert on_second["draft"]["context_params"]["n_threads_batch"] == 5
    assert run("plan", path, *DEVICES, "-md", other) == 0
    assert "  draft " in capsys.readouterr().out


def test_experts_and_caches_of_a_draft(path: Path, tiny_path: MakeTiny, capsys: Capture) -> None:
    wide = tiny_path(n_expert=4, n_head=2, n_head_kv=1)
    command = ["plan", path, *DEVICES, "-md", wide]
    [whole, moved, first, by_hand, small] = (
        sum(each["model"] + each["context"] for each in as_json(capsys, *command, *options)["draft"]["devices"][:-1])
        for options in ([], ["-cmoed"], ["-ncmoed", 1], ["-otd", r"blk\.0\.=CPU"], ["-ctkd", "q8_0", "-ctvd", "q8_0"])
    )
    assert moved < first < whole
    assert by_hand < whole
    assert small < whole


def test_a_fit_counts_a_draft(path: Path, tmp_path: Path, capsys: Capture) -> None:
    saved = tmp_path / "fit.json"
    options = ["--device", "1GiB", "--memory", "2MiB", "-c", 256]
    bare = as_json(capsys, "fit", path, *options)
    found = as_json(capsys, "fit", path, *options, "-md", path, "--save", saved)
    assert found["draft"]["path"] == str(path)
    assert found["plan"]["expert_bytes"] < bare["plan"]["expert_bytes"]
    assert json.loads(saved.read_text())["draft"] == found["draft"]


def test_the_models_own_layers_are_counted(tiny_path: MakeTiny, capsys: Capture) -> None:
    path = tiny_path(arch="glm4moe", n_layer=4, n_expert=4, n_mtp=1, n_head_kv=4)
    found = as_json(capsys, "plan", path, *DEVICES, "--spec-type", "draft-mtp")
    assert (found["draft"]["path"], found["draft"]["kind"]) == (None, "DRAFT_MTP")
    assert found["model_params"]["load_mtp"]


def test_what_is_fitted_drafts(path: Path, other: Path, capsys: Capture, device: Device) -> None:
    command = ["generate", path, PROMPT, "-n", 8, "-t", 1, "-c", 256, "--device", device.name, "--timings", "-md"]
    assert run(*command, other, "-devd", device.name) == 0
    assert "drafted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-ngld", 1], "--spec-draft-ngl says how a draft's file is loaded; give the file, --model-draft FILE"),
        (["-devd", "GPU0"], "--spec-draft-device says how"),
        (["-ctkd", "q8_0"], "--spec-draft-type-k is given, but no model that drafts"),
        (["-md", "PATH", "-devd", "GPU7"], "--spec-draft-device is 'GPU7'; it takes none, or some of"),
        (["-md", "PATH", "-devd", "CPU"], "--spec-draft-device is 'CPU'; it takes none, or some of"),
        (["-md", "PATH", "-ngld", -7], "--spec-draft-ngl is -7; it takes"),
        (["-md", "PATH", "-ncmoed", -4], "--spec-draft-n-cpu-moe is -4; it takes"),
        (["-md", "PATH", "-td", -7], "--spec-draft-threads is -7; it takes"),
        (["-md", "PATH", "-tbd", -7], "--spec-draft-threads-batch is -7; it takes"),
        (["-md", "PATH", "-ctkd", "q9"], "--spec-draft-type-k is 'q9'"),
        (["-md", "PATH", "-ngld", "some"], "--spec-draft-ngl is 'some'"),
        (["-md", "PATH", "--spec-ngram-mod-n-max", 3], "without --spec-type ngram-mod"),
    ],
)
def test_counted_options_that_are_wrong(path: Path, capsys: Capture, options: list[object], message: str) -> None:
    assert run("plan", path, *DEVICES, *(path if each == "PATH" else each for each in options)) != 0
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", ["plan", "fit", "serve"])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("ngrams", "--spec-type is 'ngrams'; it takes auto, none, or some of draft-simple"),
        (
            "ngram-mod,draft-eagle3",
            "--spec-type is draft-eagle3, which takes a draft, and no eagle3-*.gguf lies beside",
        ),
        ("draft-simple", "--spec-type is draft-simple, which takes a draft: add --model-draft FILE"),
    ],
)
def test_kinds_that_there_are_not(path: Path, capsys: Capture, command: str, kind: str, message: str) -> None:
    assert run(command, path, "--spec-type", kind) == 2
    assert message in capsys.readouterr().err


def test_kinds_have_pythons_names_too(tiny_path: MakeTiny, capsys: Capture) -> None:
    path = tiny_path(arch="glm4moe", n_layer=4, n_expert=4, n_mtp=1, n_head_kv=4)
    assert as_json(capsys, "plan", path, *DEVICES, "--spec-type", "DRAFT_MTP")["draft"]["kind"] == "DRAFT_MTP"


MTP = {"arch": "glm4moe", "n_layer": 4, "n_expert": 4, "n_mtp": 1, "n_head_kv": 4}


@pytest.fixture
def apart(tiny_path: MakeTiny, tmp_path: Path) -> Path:
    """A model whose layers that predict further ahead are in a file beside it."""
    (tmp_path / "model.gguf").symlink_to(tiny_path(**{**MTP, "n_layer": 3, "n_mtp": 0}))
    (tmp_path / "mtp-model.gguf").symlink_to(tiny_path(**MTP))
    return tmp_path / "model.gguf"


def test_layers_ahead_in_a_file_beside_the_model(apart: Path, capsys: Capture, device: Device) -> None:
    plain, _ = told(apart, capsys)
    beside = str(apart.with_name("mtp-model.gguf"))
    for options in ([], ["-md", beside], ["-ngld", 0, "-ctkd", "f32"], ["--spec-type", "draft-mtp,ngram-mod"]):
        text, timings = told(apart, capsys, "--spec-type", "draft-mtp", "--spec-draft-n-max", 2, *options)
        assert text == plain
        assert "drafted" in timings
    found = as_json(capsys, "plan", apart, *DEVICES, "--spec-type", "draft-mtp", "-ngld", 0)
    assert (found["draft"]["path"], found["draft"]["kind"]) == (beside, "DRAFT_MTP")
    found = as_json(capsys, "fit", apart, *DEVICES, "--spec-type", "draft-mtp")
    assert found["draft"]["path"] == beside
    # Where it is fitted before it is loaded, too.
    fitted = ["generate", apart, PROMPT, "-n", 8, "-t", 1, "-c", 256, "--device", device.name, "--timings"]
    assert run(*fitted, "--spec-type", "draft-mtp") == 0
    assert "drafted" in capsys.readouterr().err


def test_another_kind_of_file_beside_the_model(
    architecture_path: Callable[..., Path], tmp_path: Path, capsys: Capture
) -> None:
    kind = FROM_STATES["eagle3"]
    (tmp_path / "model.gguf").symlink_to(architecture_path(kind.target, 1))
    (tmp_path / "eagle3-model.gguf").symlink_to(architecture_path(kind.architecture, 2, kind.numbers, kind.named))
    found = as_json(capsys, "plan", tmp_path / "model.gguf", *DEVICES, "--spec-type", "draft-eagle3")
    assert found["draft"]["path"] == str(tmp_path / "eagle3-model.gguf")
    assert found["draft"]["kind"] == "DRAFT_EAGLE3"


@pytest.fixture
def repository(hub: Hub, apart: Path) -> str:
    hub.repos["someone/ahead"] = {each.name: each for each in (apart, apart.with_name("mtp-model.gguf"))}
    return "someone/ahead"


def test_a_draft_on_the_hub(hub: Hub, repository: str, path: Path, tmp_path: Path, capsys: Capture) -> None:
    ask = ["-hf", repository, "--spec-type", "draft-mtp"]
    found = as_json(capsys, "plan", *ask, *DEVICES)
    assert found["draft"]["path"] == f"hf://{repository}/mtp-model.gguf"
    assert cached(tmp_path) == []
    # A model that is in the cache has there, at first, nothing beside it.
    assert run("get", repository, "--yes", *DEVICES[:2]) == 0
    assert cached(tmp_path) == ["model.gguf"]
    capsys.readouterr()
    writes = ["generate", "-p", PROMPT, "-n", 12, *FAST, "--timings"]
    assert run(*writes, "-hf", repository) == 0
    plain = capsys.readouterr().out
    assert run(*writes, *ask) == 0
    said = capsys.readouterr()
    assert said.out == plain
    assert "drafted" in said.err
    assert cached(tmp_path) == ["model.gguf", "mtp-model.gguf"]
    # For a model that is somewhere else: what lies beside models of the repository, or else the model itself.
    model = str(hub.repos[repository]["model.gguf"])
    found = as_json(capsys, "plan", model, *DEVICES, "-hfd", repository, "--spec-type", "draft-mtp")
    assert (found["draft"]["path"], found["draft"]["kind"]) == (f"hf://{repository}/mtp-model.gguf", "DRAFT_MTP")
    found = as_json(capsys, "plan", path, *DEVICES, "--spec-draft-hf", f"{REPO}:Q4_K")
    assert (found["draft"]["path"], found["draft"]["kind"]) == (f"hf://{REPO}/Q4_K", "DRAFT_SIMPLE")


def test_a_server_is_told_numbers_and_threads_and_no_file() -> None:
    values = {option.name: None for option in DRAFTS} | {"hf_repo_draft": REPO, "spec_type": "draft-mtp,ngram-mod"}
    told = passed_on(Given({**values, "spec_draft_n_max": 4, "threads_draft": 2, "threads_batch_draft": 3}))
    numbers = ["--spec-draft-n-max", "4", "--spec-draft-threads", "2", "--spec-draft-threads-batch", "3"]
    assert told == ["--spec-type", "ngram-mod", *numbers]
