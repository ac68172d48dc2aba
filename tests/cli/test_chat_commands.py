"""What somebody types in a chat."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path

import pytest
from commands import Capture, run
from typist import CTRL_D, MOEBIND, PATIENCE, type_lines, typing

from moebind.cli.chat_commands import COMMANDS

FAST = ["-ngl", "0", "-t", "1", "-c", "512"]


def test_commands(demo_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, tmp_path: Path) -> None:
    kept, other = tmp_path / "chat.json", tmp_path / "other.json"
    type_lines(
        monkeypatch,
        "/help",
        "/system",
        "/system Answer briefly.",
        "What is the capital of France?",
        "And of Italy?",
        "/undo",
        f"/save {kept}",
        "/retry",
        "/timings",
        "/clear",
        f"/save {other}",
        f"/load {kept}",
        "//help",
        f"/save {kept}",
        "/quit",
        "never read",
    )
    assert run("chat", demo_path, "-n", 4, *FAST) == 0
    said = capsys.readouterr().out
    assert "/undo            Take the last question back, with its reply.\n" in said
    assert "there is no system prompt\n" in said
    assert re.search(r"^prompt \d+ tokens in .* decode \d+ tokens", said, re.MULTILINE)
    system = {"role": "system", "content": "Answer briefly."}
    assert json.loads(other.read_text(encoding="utf-8")) == [system]
    found = json.loads(kept.read_text(encoding="utf-8"))
    assert [each["role"] for each in found] == ["system", "user", "assistant", "user", "assistant"]
    assert [each["content"] for each in found if each["role"] == "user"] == ["What is the capital of France?", "/help"]
    assert found[0] == system
    assert found[2]["content"]


def test_what_fails_in_a_pipe_does_not_end_it(
    demo_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, tmp_path: Path
) -> None:
    """A typing error does not cost what comes after it; the status at the end tells of the first."""
    kept = tmp_path / "chat.json"
    for wrong, status in ((["/foo", "/load none.json"], 2), (["/load none.json", "/save"], 1), ([], 0)):
        kept.unlink(missing_ok=True)
        monkeypatch.chdir(tmp_path)
        type_lines(monkeypatch, *wrong, "What is the capital of France?", f"/save {kept}")
        assert run("chat", demo_path, "-n", 4, *FAST) == status
        said = capsys.readouterr()
        assert said.err.count("moebind: ") == said.err.count("\n") == len(wrong)
        assert said.out.strip()
        assert [each["role"] for each in json.loads(kept.read_text(encoding="utf-8"))] == ["user", "assistant"]


@pytest.mark.parametrize("end", ["/exit", "/bye"])
def test_names_of_other_programs(end: str, demo_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    type_lines(monkeypatch, "/?", end, "/foo")
    assert run("chat", demo_path, *FAST) == 0
    said = capsys.readouterr()
    assert "/quit            End" in said.out
    assert "moebind:" not in said.err


def test_a_chat_goes_on(demo_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, tmp_path: Path) -> None:
    kept = tmp_path / "chat.json"
    type_lines(monkeypatch, "What is the capital of France?", f"/save {kept}")
    assert run("chat", demo_path, "-n", 4, *FAST) == 0
    type_lines(monkeypatch, "And of Italy?", f"/save {kept}")
    assert run("chat", demo_path, "--load", kept, "-sys", "Answer briefly.", "-n", 4, *FAST) == 0
    found = json.loads(kept.read_text(encoding="utf-8"))
    assert [each["role"] for each in found] == ["system", "user", "assistant", "user", "assistant"]
    capsys.readouterr()


def test_ctrl_c_stops_the_reply_and_not_the_program(demo_path: Path, tmp_path: Path) -> None:
    kept = tmp_path / "chat.json"
    endless = '{"type": "array", "items": {"enum": [1]}, "minItems": 2000}'
    with typing(MOEBIND, "chat", demo_path, "-j", endless, *FAST, "-c", 8192) as typist:
        assert "/help shows what there is" in typist.wait_for("> ")
        typist.type("Count.\n")
        typist.wait_for("1,")
        typist.interrupt()
        typist.wait_for("> ")
        typist.type(f"/save {kept}\n")
        typist.wait_for("> ")
        question, reply = json.loads(kept.read_text(encoding="utf-8"))
        assert question == {"role": "user", "content": "Count."}
        assert reply["role"] == "assistant"
        assert "1" in reply["content"]
        typist.type("/undo\n")
        typist.wait_for("> ")
        typist.type("/undo\n")
        typist.wait_for("moebind: nothing was asked yet")  # and the chat goes on
        typist.type(f"/load {tmp_path}/none.json\n")
        typist.wait_for(f"moebind: {tmp_path}/none.json: No such file or directory")
        typist.wait_for("> ")
        typist.type("/quit\n")
        typist.ends_with(0)


def test_the_second_ctrl_c_at_the_prompt_ends_it(demo_path: Path) -> None:
    with typing(MOEBIND, "chat", demo_path, *FAST) as typist:
        typist.wait_for("> ")
        typist.interrupt(waiting=True)
        typist.wait_for("(Ctrl-C again, or /quit, ends the chat)")
        typist.wait_for("> ")
        typist.type("/timings\n")  # something else in between
        typist.wait_for("> ")
        typist.interrupt(waiting=True)
        typist.wait_for("(Ctrl-C again")
        typist.wait_for("> ")
        typist.interrupt(waiting=True)
        typist.ends_with(130)


def test_ctrl_d_ends_it(demo_path: Path) -> None:
    with typing(MOEBIND, "chat", demo_path, *FAST, "-n", 4) as typist:
        typist.wait_for("> ")
        typist.type('"""\nWhat is\nthe capital of France?\n"""\n')
        typist.wait_for("> ")
        typist.type(f"{'word ' * 600}\n")
        typist.wait_for("make it with a larger --ctx-size")  # and the chat goes on
        typist.wait_for("> ")
        typist.type(CTRL_D)
        typist.ends_with(0)


def test_every_command_is_told_of(demo_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    type_lines(monkeypatch, "/help")
    assert run("chat", demo_path, *FAST) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said[:-1]] == list(COMMANDS)


def test_ctrl_c_where_nobody_types(demo_path: Path) -> None:
    command = [MOEBIND, "chat", demo_path, *FAST]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"/help\n")
        process.stdin.flush()
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
