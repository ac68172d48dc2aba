"""``moebind tune``, and ``--tuned`` of other commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from commands import Capture, run
from serving import ask

from moebind import ModelParams, Tuning
from moebind.bench import settings
from moebind.cli import tune as command
from moebind.cli.drafts import DRAFTS
from moebind.cli.given import Given
from moebind.tuning import saved
from moebind.tuning.configuration import MIN_BATCH, Process
from moebind.tuning.speculation import Speculation

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tuning"))
from results import CONTEXT, MODEL, made_up

MakeTiny = Callable[..., Path]
QUICK = ["--device", "none", "-c", 256, "-t", 1, "-p", 16, "-n", 4, "--only", "flash attention"]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOEBIND_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def path(tiny_path: MakeTiny) -> Path:
    return tiny_path(n_expert=4, n_layer=3)


def test_help_fits_on_a_screen(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("tune", "generate", "chat", "serve"):
        assert run(name, "--help") == 0
        said = capsys.readouterr().out
        assert said.count("\n") <= 40, name
        assert name == "tune" or "--tuned" in said
    assert run("tune", "--help") == 0
    assert "  Example: moebind tune moe.gguf " in capsys.readouterr().out


def test_it_tunes_and_others_use_it(path: Path, tmp_path: Path, capsys: Capture) -> None:
    assert run("tune", path, *QUICK, "--save", tmp_path / "tuned.json", "--preset", tmp_path / "preset.ini") == 0
    said = capsys.readouterr()
    assert "flash attention, screening ..." in said.err
    assert "what" in said.out.splitlines()[0]
    assert "Options of moebind: -ngl 0 " in said.out
    found = Tuning.load(tmp_path / "tuned.json")
    assert found.context_params.n_threads == 1
    assert found.conditions["command"].split()[0] == "moebind"
    assert "flash-attn = " in (tmp_path / "preset.ini").read_text(encoding="utf-8")
    assert saved.find(path).path is not None
    for source in (["--tuned"], ["--params", tmp_path / "tuned.json"]):
        assert run("generate", path, "the cat", "-n", 2, *source) == 0
        assert ("tuned for chat on 20" in capsys.readouterr().err) == (source == ["--tuned"])


def test_a_full_disk_leaves_the_preset_that_was_there(
    path: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "preset.ini").write_text("old", encoding="utf-8")
    monkeypatch.setattr(command, "tune", lambda *_, **__: made_up(path))
    monkeypatch.setattr(os, "fsync", fail)
    assert run("tune", path, "--preset", tmp_path / "preset.ini") == 1
    assert "No space left on device" in capsys.readouterr().err
    assert (tmp_path / "preset.ini").read_text(encoding="utf-8") == "old"


def test_workers_are_devices_beside_this_machines(path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[object] = []

    def tune(*_: object, **arguments: object) -> Tuning:
        used.append(arguments["devices"])
        return made_up(path)

    monkeypatch.setattr(command, "tune", tune)
    monkeypatch.setattr(settings, "gpu_names", lambda: ["CUDA0"])
    for given in (["--rpc", "h:1, i:2"], ["--rpc", "h:1", "--rpc", "i:2"]):
        assert run("tune", path, *given, "--json") == 0
        assert json.loads(capsys.readouterr().out)["options"][:2] == ["--rpc", "h:1,i:2"]
        assert used.pop() == ["h:1", "i:2", "CUDA0"]


def test_results_as_json(path: Path, capsys: Capture) -> None:
    assert run("tune", path, *QUICK, "--minutes", 0, "--json", "--no-progress") == 0
    said = capsys.readouterr()
    assert said.err == ""
    found = json.loads(said.out)
    assert found["tuning"]["complete"] is False
    assert found["options"][:2] == ["-ngl", "0"]


def test_it_resumes(path: Path, capsys: Capture) -> None:
    assert run("tune", path, *QUICK, "--minutes", 0, "--no-progress") == 0
    capsys.readouterr()
    assert run("tune", path, *QUICK, "--resume", "--no-progress", "--json") == 0
    assert json.loads(capsys.readouterr().out)["tuning"]["complete"] is True
    assert run("tune", path, *QUICK, "--resume", "--no-progress", "-b", 64) == 2
    said = capsys.readouterr().err
    assert "asked differs" in said
    assert "; leave --resume out to" in said


def test_without_a_result_a_sentence_says_so(path: Path, capsys: Capture) -> None:
    assert run("generate", path, "the cat", "-n", 1, "-c", 256, "-t", 1, "--device", "none", "--tuned") == 0
    said = capsys.readouterr().err
    assert f"{path.name} was not tuned, and the defaults are used: moebind tune {path}" in said


def test_chat_uses_it_too(path: Path, capsys: Capture) -> None:
    arguments = ["-p", "the cat", "-st", "-n", 1, "-c", 256, "-t", 1, "--device", "none"]
    assert run("chat", path, *arguments, "--tuned", "--chat-template", "chatml") == 0
    assert "was not tuned" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--goal", "fast"], "it takes 'chat', 'long-prompt', 'batch', or weights such as decode=0.5,prompt=0.5"),
        (["--goal", "decode=much"], "--goal is 'decode=much'; it takes weights such as decode=0.5,prompt=0.5"),
        (["--goal", "decode=-1"], "--goal has decode=-1; it takes weights of 0 or more, such as decode=0.5"),
        (["--goal", "prompt=1,decode=nan"], "--goal has decode=nan; it takes weights of 0 or more"),
        (["--goal", "decode=1,decode=2"], "--goal is 'decode=1,decode=2', which has decode twice"),
        (["--goal", "decode=1,batch=1"], "--goal weighs decode and batch: "),
        (["--moe-cache", "1MiB", "--device", "none"], "--moe-cache is 1.0 MiB, and there is no device besides"),
        (["--goal", "speed=1"], "--goal has 'speed'; it takes weights of prompt, decode, batch"),
        (["--only", "colour"], "--only has 'colour'; it takes placement"),
        (["--only", "cache types"], "--only has 'cache types', which changes results"),
        (["--minutes", "-1"], "--minutes is -1"),
        (["--device", "CUDA99"], "--device is 'CUDA99'; it takes 'loopback'"),
        (["-p", 500, "-c", 256], "make --ctx-size larger"),
        (["--model-draft", "a.gguf", "--only", "threads"], "--model-draft is given, and"),
        (["--plot", "steps.gif2"], "--plot is 'steps.gif2'"),
    ],
)
def test_wrong_options_are_refused(path: Path, arguments: list[object], said: str, capsys: Capture) -> None:
    assert run("tune", path, *arguments) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_picture_of_nothing_is_not_written(path: Path, tmp_path: Path, capsys: Capture) -> None:
    picture = tmp_path / "steps.svg"
    assert run("tune", path, *QUICK, "--minutes", 0, "--plot", picture) == 0
    assert f"{picture} is not written: nothing was measured that it would show" in capsys.readouterr().err
    assert not picture.exists()


def test_what_cannot_be_together(path: Path, tmp_path: Path, capsys: Capture) -> None:
    assert run("generate", path, "a", "--tuned", "--params", tmp_path / "a.json") == 2
    assert "--params and --tuned are both given; leave one of them out" in capsys.readouterr().err
    assert run("serve", path, path, "--tuned") == 2
    assert "--tuned is given, which is for one model; there are several" in capsys.readouterr().err


def test_weights() -> None:
    assert command._weights("chat") == "chat"
    assert command._weights("decode=1, prompt=3") == {"decode": 1.0, "prompt": 3.0}


def test_after_ctrl_c_it_says_where_the_journal_is(
    path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tune(*_: object, **__: object) -> None:
        raise KeyboardInterrupt("interrupted: what was measured is in a file: resume=True goes on")

    monkeypatch.setattr(command, "tune", tune)
    assert run("tune", path) == 130
    assert "interrupted: what was measured is in a file: --resume goes on" in capsys.readouterr().err


def test_too_few_minutes_are_told_in_options(path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "tune", lambda *_, **__: made_up(path, total=None, complete=False, needs=252.0))
    assert run("tune", path) == 0
    assert (
        "about 4.2 minutes: give --minutes 17 or more (--resume goes on), or shorter texts, such as -p 64 -n 16, or "
        "only some dimensions (--only WHAT,WHAT)."
    ) in capsys.readouterr().out


def kept(path: Path, **changes: Any) -> Path:
    """A result in the folder where commands look."""
    found = made_up(path, **changes)
    assert found._identity is not None
    target = Path(saved.place(found._identity, saved.here()))
    target.parent.mkdir(parents=True)
    found.save(target)
    return target


def test_what_was_found_is_read_as_parameters(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MIN_BATCH, raising=False)
    before = os.sched_getaffinity(0)
    target = kept(path, process=Process({MIN_BATCH: "77"}, (min(before),)))
    given = Given({"tuned": True, "params": None, "n_ubatch": 64})
    try:
        chosen = given.read(str(path), n_ctx=4096)
        assert os.environ.pop(MIN_BATCH) == "77"
        assert os.sched_getaffinity(0) == {min(before)}
    finally:
        os.sched_setaffinity(0, before)
    assert chosen.model_params == MODEL
    assert chosen.context_params == CONTEXT.with_n_ubatch(64)  # other options win over it
    # A server takes them as those of a file: not with llama-server's own defaults.
    assert given.values["params"] == str(target)


@pytest.mark.parametrize(
    ("speculation", "expected"),
    [
        (Speculation("ngram-mod"), {"spec_type": "ngram-mod"}),
        (Speculation("draft-mtp", n_max=3), {"spec_type": "draft-mtp", "spec_draft_n_max": 3}),
        (
            Speculation("draft-simple", "small.gguf", 6),
            {"spec_type": "draft-simple", "model_draft": "small.gguf", "spec_draft_n_max": 6},
        ),
    ],
)
def test_what_drafts_is_read_as_options(path: Path, speculation: Speculation, expected: dict[str, Any]) -> None:
    kept(path, speculation=speculation, model_params=MODEL.with_load_mtp(True))
    nothing = dict.fromkeys(option.name for option in DRAFTS)
    given = Given({"tuned": True, "params": None, **nothing})
    chosen = given.read(str(path))
    assert {name: value for name, value in given.values.items() if name in nothing and value is not None} == expected
    # Commands load the layers that predict further ahead if these are what drafts; others may need them all the same.
    assert chosen.model_params.load_mtp == (speculation.kind != "draft-mtp")
    # What options say of drafts wins over all of it, and commands that do not draft are told nothing.
    own = Given({"tuned": True, "params": None, **nothing, "spec_type": "none"})
    own.read(str(path))
    assert {name for name in nothing if own.values[name] is not None} == {"spec_type"}
    assert all(name.startswith("spec_") or name.endswith("_draft") for name in nothing)
    without = Given({"tuned": True, "params": None})
    without.read(str(path))
    assert set(without.values) == {"tuned", "params"}


def test_commands_draft_as_it_was_found(tiny_path: MakeTiny, capsys: Capture) -> None:
    path = tiny_path(arch="glm4moe", n_layer=4, n_expert=4, n_mtp=1, n_head_kv=4)
    kept(path, speculation=Speculation("draft-mtp", n_max=2), model_params=MODEL.with_load_mtp(True))
    arguments = ["generate", path, "the cat the cat the cat", "-n", 4, "-t", 1, "--device", "none", "--tuned"]
    assert run(*arguments, "--timings") == 0
    assert "drafted" in capsys.readouterr().err
    # What options say is what drafts, and here there is no such file.
    assert run(*arguments, "--model-draft", "none.gguf") == 1
    assert "none.gguf does not exist" in capsys.readouterr().err


def test_a_server_is_started_as_it_was_found(path: Path, tmp_path: Path) -> None:
    cpu = min(os.sched_getaffinity(0))
    kept(path, process=Process({MIN_BATCH: "77"}, (cpu,)), speculation=Speculation("ngram-mod"))
    command = [sys.executable, "-m", "moebind", "serve", path, "--tuned", "--port", "0", "--no-ui", "--", "--no-warmup"]
    with (
        open(tmp_path / "said", "w", encoding="utf-8") as said,
        subprocess.Popen([str(each) for each in command], stdout=subprocess.PIPE, stderr=said, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url.startswith("http://"), (tmp_path / "said").read_text(encoding="utf-8")
            props = ask(url, "/props").said
            assert props["default_generation_settings"]["n_ctx"] == CONTEXT.n_ctx
            children = psutil.Process(process.pid).children(recursive=True)
            [server] = [each for each in children if each.name() == "llama-server"]
            words = server.cmdline()
            assert words[words.index("--ubatch-size") + 1] == str(CONTEXT.n_ubatch) == "128"
            assert words[words.index("--spec-type") + 1] == "ngram-mod"
            assert server.environ()[MIN_BATCH] == "77"
            assert server.cpu_affinity() == [cpu]
        finally:
            process.terminate()
    assert "tuned for chat on 2026" in (tmp_path / "said").read_text(encoding="utf-8")


def test_another_build_is_refused_with_a_sentence(path: Path, capsys: Capture) -> None:
    about = {**saved.here(), "build": {"commit": "another"}}
    kept(path, conditions=about).rename(saved.place(made_up(path)._identity, about))  # type: ignore[arg-type]
    given = Given({"tuned": True, "params": None})
    assert given.read(str(path)).model_params == ModelParams()
    assert "was tuned with another build, and the defaults are used" in capsys.readouterr().err
    assert given.values["params"] is None


def test_a_file_of_another_model_is_refused(path: Path, tiny_path: MakeTiny, capsys: Capture) -> None:
    target = kept(path)
    assert run("generate", tiny_path(n_layer=2), "a", "--params", target) == 2
    assert "is another model" in capsys.readouterr().err
