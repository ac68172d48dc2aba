"""moebind serve."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import projectors
import psutil
import pytest
from commands import Capture, run
from held import descriptors
from PIL import Image
from serving import PATIENCE, ask, complete, is_there, until

import moebind
from conftest import CPU
from moebind import ContextParams, ModelParams
from moebind.cli.serve import _ended_by
from moebind.server.process import has_page
from moebind.server.supervisor import logger

MakeTiny = Callable[..., Path]
MOEBIND = Path(sys.executable).with_name("moebind")
SMALL = ["-c", "256", "-t", "1", "-ub", "64", "--port", "0"]
REST = ["--no-ui", "--", "--no-warmup"]


@pytest.fixture(scope="module")
def path(tiny_path: MakeTiny) -> Path:
    return tiny_path(n_expert=4)


@pytest.fixture(scope="module")
def folder(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, one of which is none."""
    found = tmp_path_factory.mktemp("models")
    (found / "a.gguf").symlink_to(path)
    (found / "bad.gguf").write_bytes(b"GGUF, or so it says")
    return found


@contextmanager
def serving(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """The command while it serves, and the lines that it wrote when it was ready."""
    command = [str(each) for each in (MOEBIND, "serve", *arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().rstrip()]
        while lines[-1] and lines[-1] != "}" and len(lines) < (3 if lines[0] != "{" else 10**6):
            lines.append(process.stdout.readline().rstrip())
        try:
            assert lines[0], process.stderr.read() if process.stderr else ""
            yield process, lines
        finally:
            process.kill()


def test_it_serves_until_it_is_told_to_end(path: Path) -> None:
    with serving(path, *SMALL, *REST) as (process, lines):
        assert lines[0].startswith("http://127.0.0.1:")
        assert lines[1].split() == ["model", "context", "parallel", "Host"]
        assert lines[2].split()[:3] == [path.stem, "256", "4"]
        assert complete(lines[0]).status == 200
        children = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        assert process.communicate(timeout=PATIENCE) == ("", "")
        assert process.returncode == 0
        until(lambda: not any(map(is_there, children)))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_other_ways_to_end_it(number: signal.Signals, path: Path) -> None:
    with serving(path, *SMALL, *REST) as (process, _):
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        assert process.communicate(timeout=PATIENCE) == ("", "")
        assert process.returncode == 0
        until(lambda: not any(map(is_there, children)))


def test_it_can_be_ended_before_it_is_ready(path: Path) -> None:
    command = [str(each) for each in (MOEBIND, "serve", path, *SMALL)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            until(psutil.Process(process.pid).children)
            children = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            process.communicate(timeout=PATIENCE)
        finally:
            process.kill()  # or leaving the block would wait for it without end
        assert process.returncode == 0
        until(lambda: not any(map(is_there, children)))


def test_a_signal_that_is_dropped_where_it_comes_ends_it_all_the_same() -> None:
    class Dropping:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    dropped: list[object] = []
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(sys, "unraisablehook", dropped.append)
        with _ended_by(signal.SIGTERM) as look:
            look()
            Dropping()  # whose finalizer is interrupted by it
            assert len(dropped) == 1
            look()


def test_what_it_serves_as_json(folder: Path) -> None:
    with serving("--models-dir", folder, *SMALL, "--json") as (process, lines):
        told = json.loads("\n".join(lines))
        assert [each["name"] for each in told["models"]] == ["a", "bad"]
        assert told["models"][0]["plan"]["n_ctx"] == 256
        assert "not a GGUF file" in told["models"][1]["reason"]
        assert complete(told["url"], "a").status == 200
        process.terminate()
        process.wait(PATIENCE)


def test_folders_in_one_text(folder: Path, path: Path) -> None:
    with serving("--model-dirs", f"{folder};{path.parent};", *SMALL) as (process, lines):
        names = [each["id"] for each in ask(lines[0], "/v1/models").said["data"]]
        assert {"a", path.stem} <= {*names}
        process.terminate()
        process.wait(PATIENCE)


def test_one_at_a_time(path: Path, tiny_path: MakeTiny) -> None:
    other = tiny_path()
    for given, count in (([], 2), (["--one-at-a-time"], 1)):
        with serving(path, other, *given, *SMALL, "--no-ui", "--json", *REST[1:]) as (process, lines):
            told = json.loads("\n".join(lines))
            assert told["at_once"] == count
            for name in (path.stem, other.stem):
                assert complete(told["url"], name).status == 200
            listed = ask(told["url"], "/models").said["data"]
            assert sum(each["status"]["value"] != "unloaded" for each in listed) == count
            process.terminate()
            process.wait(PATIENCE)


def test_where_it_listens(path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with serving(path, *SMALL[:-2], "--bind", f"127.0.0.1:{port}", *REST) as (process, lines):
        assert lines[0] == f"http://127.0.0.1:{port}"
        assert complete(f"http://127.0.0.1:{port}").status == 200
        process.terminate()
        process.wait(PATIENCE)


def test_where_it_listens_if_nobody_says(path: Path) -> None:
    command = [str(each) for each in (MOEBIND, "serve", path, *SMALL[:-2], *REST)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            if line := process.stdout.readline():
                assert line == "http://127.0.0.1:11435\n"
                assert complete("http://127.0.0.1:11435").status == 200
            else:  # somebody else on this machine is there
                assert process.stderr.read().startswith("moebind: 127.0.0.1:11435 is in use")
        finally:
            process.kill()


def test_experts_of_the_first_layers(path: Path) -> None:
    with serving(path, "--device", "loopback", "-ncmoe", "1", *SMALL, *REST) as (process, lines):
        assert complete(lines[0]).status == 200
        everybody = psutil.Process(process.pid).children(recursive=True)
        [words] = [each.cmdline() for each in everybody if each.name() == "llama-server"]
        [rule] = ModelParams().with_n_cpu_moe(1).tensor_overrides
        assert words[words.index("--override-tensor") + 1] == f"{rule.pattern}=CPU"
        process.terminate()
        process.wait(PATIENCE)


@pytest.mark.parametrize("option", [["--n-cpu-moe", "1"], ["--cpu-moe"]])
def test_experts_that_are_in_host_memory_anyway(option: list[str], path: Path) -> None:
    said = f"moebind: note: {option[0]} changes nothing: no device takes layers, so all weights are in host memory\n"
    for given, told in ((["--device", "none"], said), (["--device", "loopback"], "")):
        with serving(path, *option, *given, *SMALL, *REST) as (process, _):
            process.terminate()
            assert process.communicate(timeout=PATIENCE) == ("", told)


def test_a_picture(tmp_path: Path) -> None:
    projectors.put_seeing_model(tmp_path)
    Image.fromarray(projectors.pixels(96, 64, seed=2)).save(tmp_path / "other.jpg")
    seeing = [tmp_path / "seeing.gguf", "--mmproj", tmp_path / "mmproj-seeing.gguf"]

    def asked(*pictures: str) -> dict[str, object]:
        said: list[dict[str, object]] = [{"type": "text", "text": "it is"}]
        for name in pictures:
            data = base64.b64encode((tmp_path / name).read_bytes()).decode()
            said.append({"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}})
        message = {"role": "user", "content": said}
        likeliest = {"max_tokens": 16, "temperature": 0, "ignore_eos": True, "logprobs": True}
        return {"messages": [message], "cache_prompt": False, **likeliest}

    with serving(*seeing, "-c", 1024, *SMALL[2:], *REST) as (process, lines):
        replies = [
            ask(lines[0], "/v1/chat/completions", asked(*pictures)).said
            for pictures in ((), ("photo.jpg",), ("photo.jpg",), ("other.jpg",))
        ]
        process.terminate()
        process.wait(PATIENCE)
    tokens = [each["usage"]["prompt_tokens"] for each in replies]
    side = projectors.SIDES["gemma3"] // projectors.PATCH // projectors.MERGED
    assert tokens[1] == tokens[3] >= tokens[0] + side**2
    found = [each["choices"][0]["logprobs"]["content"] for each in replies]
    assert found[1] == found[2] != found[3]  # it sees which one
    with serving(seeing[0], "-c", 1024, *SMALL[2:], *REST) as (process, lines):
        assert "image" in ask(lines[0], "/v1/chat/completions", asked("photo.jpg")).said["error"]["message"]


NGRAMS = ["--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", "1", "--spec-ngram-simple-size-m", "2"]


@pytest.mark.parametrize("drafts", [[], ["--model-draft", "MODEL"], NGRAMS], ids=["none", "a model", "n-grams"])
def test_drafts(path: Path, drafts: list[str]) -> None:
    given = [path if each == "MODEL" else each for each in drafts]
    body: dict[str, object] = {"prompt": [70] * 8, "n_predict": 32, "temperature": 0, "ignore_eos": True}
    if drafts == NGRAMS:
        body["logit_bias"] = [[70, 100]]  # the same again and again: what came before comes after
    with serving(path, *given, *SMALL, *REST) as (process, lines):
        timings = ask(lines[0], "/completion", body).said["timings"]
        assert timings["predicted_n"] == 32
        assert (timings.get("draft_n_accepted", 0) > 0) is bool(drafts)
        process.terminate()
        process.wait(PATIENCE)


def test_experts_of_some_models_among_others(path: Path, tiny_path: MakeTiny, capsys: Capture) -> None:
    dense = tiny_path()
    with serving(path, dense, "--cpu-moe", *SMALL) as (process, lines):
        assert len(ask(lines[0], "/v1/models").said["data"]) == 2
        process.terminate()
        process.wait(PATIENCE)
    assert run("serve", dense, "--cpu-moe", *SMALL) == 1  # as of a single one
    assert "has no experts" in capsys.readouterr().err


def test_what_a_fit_found_is_served(path: Path, tmp_path: Path) -> None:
    saved = tmp_path / "fit.json"
    moebind.fit(path, model_params=CPU, context_params=ContextParams(n_seq_max=2), n_ctx=1024).save(saved)
    with serving(path, "--params", saved, "-t", "1", "--port", "0") as (process, lines):
        assert lines[2].split()[:3] == [path.stem, "1024", "2"]
        assert ask(lines[0], "/props").said["total_slots"] == 2
        process.terminate()
        process.wait(PATIENCE)


def test_a_length_of_context_that_is_the_default_is_one_that_was_asked_for(tiny_path: MakeTiny, tmp_path: Path) -> None:
    path = tiny_path(n_expert=4, n_ctx_train=1024)
    saved = tmp_path / "fit.json"
    moebind.fit(path, model_params=CPU, n_ctx=ContextParams().n_ctx).save(saved)
    for asked in (["-c", str(ContextParams().n_ctx)], ["--params", saved]):
        with serving(path, *asked, "-t", "1", "--port", "0") as (process, lines):
            assert ask(lines[0], "/props").said["default_generation_settings"]["n_ctx"] == ContextParams().n_ctx
            process.terminate()
            process.wait(PATIENCE)


def test_a_fit_for_devices_that_were_only_described_is_served_with_those_that_are_here(
    path: Path, tmp_path: Path, capsys: Capture
) -> None:
    saved = tmp_path / "fit.json"
    moebind.fit(path, devices=["1GiB"], n_ctx=512).save(saved)
    with serving(path, "--params", saved, "-t", "1", "--port", "0") as (process, lines):
        assert lines[2].split()[:2] == [path.stem, "512"]
        process.terminate()
        process.wait(PATIENCE)
    assert run("serve", path, "--params", saved, "--device", "1GiB", *SMALL) == 2
    assert "--device is '1GiB', which describes a device, and this computes" in capsys.readouterr().err


def test_a_worker_that_is_started_for_it(path: Path) -> None:
    with serving(path, "--device", "loopback", *SMALL, *REST) as (process, lines):
        assert lines[1].split()[3] == "RPC0"
        assert complete(lines[0]).status == 200
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=PATIENCE) == ("", "")
        until(lambda: not any(map(is_there, children)))


def test_a_template_of_moebinds(path: Path) -> None:
    with serving(path, "--chat-template", "chatml-tools", *SMALL, *REST) as (process, lines):
        messages = {"messages": [{"role": "user", "content": "Hello"}]}
        prompt = ask(lines[0], "/apply-template", messages).said["prompt"]
        assert prompt.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")
        process.terminate()
        process.wait(PATIENCE)


def test_embeddings_and_scores(path: Path, tiny_path: MakeTiny) -> None:
    with moebind.Model.load_from_file(path, CPU) as model:
        [expected] = model.embed("it is", normalize=True)  # with the mean, since the file says nothing
    with serving(path, "--embeddings", *SMALL) as (process, lines):
        [found] = ask(lines[0], "/v1/embeddings", {"input": "it is"}).said["data"]
        assert np.dot(found["embedding"], expected) > 0.999
        assert complete(lines[0]).status == 200  # and it writes text
        process.terminate()
        process.wait(PATIENCE)
    ranker = tiny_path(arch="bert", n_head_kv=4, n_ctx_train=64, n_cls_out=1)
    with serving(ranker, "--embeddings", "--pooling", "rank", *SMALL) as (process, lines):
        answer = ask(lines[0], "/v1/rerank", {"query": "it is", "documents": ["it was", "this"]})
        assert len(answer.said["results"]) == 2
        process.terminate()
        process.wait(PATIENCE)


def test_keys_are_read_from_a_file(path: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# who\nsesame-1\n\n  sesame-2  \n")
    with serving(path, *SMALL, "--api-key-file", keys) as (process, lines):
        for key, status in (("sesame-1", 200), ("sesame-2", 200), ("# who", 401)):
            assert complete(lines[0], Authorization=f"Bearer {key}").status == status
        everybody = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        assert not [each for each in everybody if "sesame" in " ".join(each.cmdline())]
        process.terminate()
        process.wait(PATIENCE)


def test_what_llama_server_writes_is_shown_on_request(path: Path) -> None:
    with serving(path, *SMALL, "-v", *REST) as (process, lines):
        assert complete(lines[0]).status == 200
        process.terminate()
        _, said = process.communicate(timeout=PATIENCE)
        assert "listening on http://127.0.0.1:" in said


def test_what_dies_is_started_again_and_told(path: Path) -> None:
    with serving(path, *SMALL, *REST) as (process, lines):
        [keeper] = psutil.Process(process.pid).children()
        [server] = keeper.children()
        server.kill()
        assert process.stderr is not None
        said = process.stderr.readline()
        assert said.startswith("moebind: llama-server was ended by SIGKILL: by somebody, or by the system")
        assert "; it is started again in 0.5 s (1 of 5);" in said

        def again() -> bool:
            try:
                return ask(lines[0], "/health").status == 200
            except OSError:
                return False

        until(again)
        process.terminate()
        process.wait(PATIENCE)


def test_what_is_behind_the_dashes_goes_to_llama_server(path: Path) -> None:
    with serving(path, *SMALL, "--", "--no-warmup", "--temp", "0.25", "--top-k", "3") as (process, lines):
        settings = ask(lines[0], "/props").said["default_generation_settings"]["params"]
        assert (settings["temperature"], settings["top_k"]) == (0.25, 3)
        process.terminate()
        process.wait(PATIENCE)


MISUSED: list[list[object]] = [
    ["serve"],
    ["serve", "--model-dirs", ";"],
    ["serve", "MODEL", "--bind", "11435"],
    ["serve", "MODEL", "--bind", "127.0.0.1:0", "--port", "0"],
    ["serve", "MODEL", "--port", "70000"],
    ["serve", "MODEL", "--host", "no such host"],
    ["serve", "MODEL", "--host", "0.0.0.0", "--port", "0"],
    ["serve", "MODEL", "--fit", "perhaps"],
    ["serve", "MODEL", "--margin", "much"],
    ["serve", "MODEL", "--parallel", "0"],
    ["serve", "MODEL", "--pooling", "max"],
    ["serve", "MODEL", "--device", "24GiB"],
    ["serve", "MODEL", "--device", "CUDA9"],
    ["serve", "MODEL", "MODEL2", "--params", "fit.json"],
    ["serve", "MODEL", "--timeout-load", "-1", "--port", "0"],
    ["serve", "MODEL", "--api-key", "sk-1"],
    ["serve", "MODEL", "--api-key-file", "EMPTY"],
    ["serve", "MODEL", "--api-key-file", "MODEL"],
    ["serve", "MODEL", "MODEL2", "--mmproj", "MODEL"],
    ["serve", "MODEL", "--chat-template", "none such"],
    ["serve", "MODEL", "--", "--chat-template", "none such"],
    ["serve", "MODEL", "--", "--port", "1"],
    ["serve", "MODEL", "--", "-ngl", "1"],
    ["serve", "-hf", "no repository"],
]


@pytest.mark.parametrize("arguments", MISUSED, ids=lambda arguments: " ".join(map(str, arguments)))
def test_misuse_is_one_line_and_ends_with_2(
    arguments: list[object], path: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "empty").write_text("# nothing\n")
    (tmp_path / "m2.gguf").symlink_to(path)
    named = {"MODEL": path, "EMPTY": tmp_path / "empty", "MODEL2": tmp_path / "m2.gguf"}
    assert run(*[named.get(str(each), each) for each in arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("moebind: ")
    assert said.err.count("\n") == 1


def test_failures_are_one_line_and_end_with_1(path: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF, or so it says")
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        for arguments, reason in (
            ([tmp_path / "none.gguf", "--port", 0], "none.gguf does not exist"),
            ([tmp_path / "bad.gguf", "--port", 0], "is not a GGUF file"),
            (["--models-dir", tmp_path / "none"], "does not exist"),
            ([path, "--mmproj", tmp_path], "a folder; it takes a file"),
            ([path, "--port", taken], f"127.0.0.1:{taken} is in use"),
            ([path, "--port", 0, "--", "--nonsense"], "invalid argument: --nonsense"),
            ([path, "--port", 0, "--", "--temp", "x"], 'argument "--temp": its value is no number, or too large a one'),
            ([path, "--port", 0, "--timeout-load", "0"], "llama-server is not ready after 0 s"),
            ([path, "--port", 0, "--api-key-file", tmp_path / "none"], "none', which cannot be read: No such file"),
        ):
            assert run("serve", *arguments) == 1
            said = capsys.readouterr()
            assert said.out == ""
            assert said.err.startswith("moebind: ")
            assert said.err.count("\n") == 1, said.err
            assert reason in said.err


def test_too_little_memory_is_said(path: Path) -> None:
    # In a process without other devices, which tests of this one may have.
    command = [MOEBIND, "serve", path, "--port", "0", "--margin", "1024TiB"]
    variables = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE, env=variables)
    assert (done.returncode, done.stdout) == (1, "")
    assert "does not fit, whatever stays in host memory: Host may take 0.0 MiB" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_process_is_as_before_afterwards(path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM), logger.handlers, logger.propagate, logger.level
    assert run("serve", path, "--port", 0, "--timeout-load", 0) == 1
    assert (signal.getsignal(signal.SIGTERM), logger.handlers, logger.propagate, logger.level) == before


def test_the_help_has_an_example_that_works(capsys: Capture) -> None:
    assert run("serve", "--help") == 0
    said = capsys.readouterr().out
    assert "moebind serve moe.gguf" in said


def test_no_descriptors_are_left(path: Path) -> None:
    before = descriptors()
    assert run("serve", path, "--port", 0, "--timeout-load", 0) == 1
    assert descriptors() <= before


def test_where_the_page_is_is_told_last(path: Path) -> None:
    for arguments, there in (([], has_page()), (["--no-ui"], False)):
        with serving(path, *SMALL, *arguments, "--json") as (process, lines):
            told = json.loads("\n".join(lines))
            assert told["page"] == (f"{told['url']}/" if there else None)
            assert ask(told["url"], "/", Accept_Encoding="identity").status == (415 if there else 404)
            process.terminate()
            process.wait(PATIENCE)
