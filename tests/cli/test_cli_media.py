"""Pictures and sound on the command line: --image, --audio, --mmproj, and /image in a chat."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import projectors
import pytest
from commands import Capture, run
from PIL import Image
from typist import type_lines

import moebind
from moebind.mtmd import Bitmap
from moebind.tuning.configuration import Process
from moebind.tuning.result import KEY
from moebind.tuning.speculation import Speculation

FAST = ["-ngl", "0", "-t", "1", "-c", "512"]
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has these lines come on standard input."""
    return partial(type_lines, monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with its projector beside it, and two pictures."""
    made = tmp_path_factory.mktemp("seeing")
    projectors.text_model(made / "model.gguf", "gemma3")
    projectors.write(made / "mmproj-model.gguf", "gemma3")
    for seed in (1, 2):
        Image.fromarray(projectors.pixels(70, 50, seed)).save(made / f"{seed}.png")
    return made


def test_generate_looks_at_pictures(folder: Path, capsys: Capture) -> None:
    model = moebind.Model.load_from_file(folder / "model.gguf", moebind.ModelParams(n_gpu_layers=0, devices=()))
    params = moebind.ContextParams(n_ctx=512, n_threads=1, n_threads_batch=1)
    projector = folder / "mmproj-model.gguf"
    with model, moebind.mtmd.MtmdContext.init_from_file(projector, model) as mtmd, model.new_context(params) as context:
        prompt: list[str | Bitmap] = [*(Bitmap.from_file(folder / f"{seed}.png") for seed in (1, 2)), "it is"]
        expected = context.generate(prompt, mtmd=mtmd, max_tokens=6).complete()
    pictures = ["--image", folder / "1.png", "--image", folder / "2.png"]
    assert run("generate", folder / "model.gguf", "it is", "-n", 6, *FAST, *pictures, "--json") == 0
    *_, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert last["text"] == expected.text
    assert last["usage"]["prompt_tokens"] == expected.usage.prompt_tokens


@pytest.fixture
def drafting_file(tmp_path: Path) -> Path:
    """Parameters of a file that says what drafts."""
    file = tmp_path / "tuned.json"
    found = {"process": Process().to_dict(), "speculation": Speculation("ngram-mod").to_dict()}
    file.write_text(json.dumps({"context_params": {}, KEY: found}))
    return file


def test_what_a_file_drafts_with_is_left_out_for_pictures(folder: Path, drafting_file: Path, capsys: Capture) -> None:
    picture = ["--image", folder / "1.png", "--params", drafting_file]
    assert run("generate", folder / "model.gguf", "it is", "-n", 3, *FAST, *picture) == 0
    assert "is left out: a prompt with pictures or sound is not drafted for" in capsys.readouterr().err


def test_a_chat_that_is_drafted_for_may_come_to_pictures(
    folder: Path, drafting_file: Path, typed: Any, capsys: Capture
) -> None:
    typed("Hello", f"/image {folder / '2.png'}", "And this?", "And now?")
    projector = ["--mmproj", folder / "mmproj-model.gguf"]
    arguments = ["--chat-template", TEMPLATE, "-n", 3, *FAST, *projector, "--params", drafting_file]
    assert run("chat", folder / "model.gguf", *arguments) == 0
    assert capsys.readouterr().err == ""


def test_a_chat_about_pictures(folder: Path, typed: Any, capsys: Capture, tmp_path: Path) -> None:
    typed(f"/image {folder / '2.png'}", "And this?", f"/save {tmp_path / 'chat.json'}", "/undo", "/retry")
    arguments = ["--chat-template", TEMPLATE, "-n", 4, *FAST, "--json"]
    first = ["-p", "What is it?", "--image", folder / "1.png"]
    assert run("chat", folder / "model.gguf", *first, *arguments) == 0
    replies = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(replies) == 3
    # The first answer again: the picture is still there, and not computed again.
    assert replies[2]["message"]["content"] == replies[0]["message"]["content"]
    assert replies[1]["usage"]["cached_tokens"] > 20
    saved = json.loads((tmp_path / "chat.json").read_text())
    assert [len(each["content"]) if isinstance(each["content"], list) else 0 for each in saved] == [2, 0, 2, 0]
    assert saved[0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    typed("And now?")
    again = ["--load", tmp_path / "chat.json", "--mmproj", folder / "mmproj-model.gguf"]
    assert run("chat", folder / "model.gguf", *again, *arguments) == 0
    (reply,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert reply["usage"]["prompt_tokens"] > replies[1]["usage"]["prompt_tokens"]


def test_a_chat_about_sound(tmp_path: Path, typed: Any, capsys: Capture) -> None:
    projectors.text_model(tmp_path / "model.gguf", "ultravox")
    projectors.write(tmp_path / "mmproj.gguf", "ultravox")
    (tmp_path / "a.wav").write_bytes(projectors.wav(np.sin(np.arange(8000) / 9).astype(np.float32)))
    typed()
    asked = ["-p", "Who is it?", "--audio", tmp_path / "a.wav", "--chat-template", TEMPLATE, "-n", 3, *FAST, "--json"]
    assert run("chat", tmp_path / "model.gguf", *asked) == 0
    (reply,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert reply["usage"]["prompt_tokens"] > 188


def test_what_is_wrong(folder: Path, typed: Any, capsys: Capture, tmp_path: Path) -> None:
    model = folder / "model.gguf"
    (tmp_path / "note.png").write_text("no picture")
    alone = projectors.text_model(tmp_path / "alone.gguf", "gemma3")
    for arguments, lines, told in [
        (["generate", alone, "x", "--image", folder / "1.png"], [], "needs the model's projector, and none (mmproj"),
        (["generate", model, "x", "--image", tmp_path / "note.png"], [], "note.png is of another format"),
        (["generate", model, "x", "--image", tmp_path / "nothing.png"], [], "nothing.png"),
        (["generate", model, "x", "--image", folder / "1.png", "--mmproj", model], [], "is no projector"),
        (["chat", model, "-p", "x", "--audio", tmp_path / "note.png"], [], "note.png is of another format"),
        (
            ["chat", alone, "--chat-template", TEMPLATE],
            [f"/image {folder / '1.png'}"],
            "need the model's projector: begin the chat with --mmproj FILE",
        ),
    ]:
        typed(*lines)
        assert run(*arguments, *FAST) != 0
        assert told in capsys.readouterr().err


def test_plans_and_fits_count_it(folder: Path, capsys: Capture) -> None:
    model, projector = folder / "model.gguf", folder / "mmproj-model.gguf"
    assert run("plan", model, "--device", "1GiB", "--mmproj", projector, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["mmproj"] == str(projector)
    assert found["devices"][0]["buffers"][-1]["name"] == "mmproj"
    assert run("fit", model, "--device", "1GiB", "--mmproj", projector, "--ctx-size", 512, "--json") == 0
    assert json.loads(capsys.readouterr().out)["plan"]["mmproj"] == str(projector)
