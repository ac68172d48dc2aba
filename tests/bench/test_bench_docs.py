"""The documentation tells of everything that moebind.bench has."""

from __future__ import annotations

import dataclasses
import inspect
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "project"))
from pages import DOCS, members_used, names_used, program
from test_docs import REFERENCE, members

from moebind import bench
from moebind.bench import nvml
from moebind.cli import main

NAMES = [*bench.__all__, *nvml.__all__]
#: tests/cli/test_cli_docs.py runs them.
OF_OTHERS = ("get", "routing", "generate", "chat", "probe", "embed", "rerank", "tokenize")
COMMANDS = [
    command.replace("\\\n", "")
    for command in re.findall(
        r"^\$ moebind ((?:.*\\\n)*.*)$", (DOCS / "cli.md").read_text(encoding="utf-8"), re.MULTILINE
    )
]


def _found(name: str) -> object:
    return getattr(bench, name, None) or getattr(nvml, name)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_in_the_reference_and_has_a_docstring(name: str) -> None:
    assert re.search(rf"^\.\. auto\w+:: (moebind\.bench\.)?{name}(\(.*\))?$", REFERENCE, re.MULTILINE)
    assert inspect.getdoc(_found(name))


@pytest.mark.timeout(600)  # it waits for mypy
def test_every_name_and_member_has_an_example(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="needs the extra [dev]")
    programs = [program(page) for page in (DOCS / "bench.md", DOCS / "api" / "bench.md")]
    shown = {name for tree in programs for module in (bench, nvml) for name in names_used(tree, module.__name__)}
    assert {*NAMES} <= shown
    used = members_used(programs, tmp_path)
    for name in NAMES:
        found = _found(name)
        if inspect.isclass(found):
            for base, member, value in members(found):
                assert getattr(value, "__doc__", None), (base, member)
                assert (base, member) in used


@pytest.mark.parametrize("name", [name for name in NAMES if dataclasses.is_dataclass(_found(name))])
def test_every_field_is_described(name: str) -> None:
    described = inspect.getdoc(_found(name)) or ""
    for field in dataclasses.fields(_found(name)):  # type: ignore[arg-type]
        assert re.search(rf"^(.*, )?{field.name}(,.*)?( : .*)?$", described, re.MULTILINE), field.name


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_page_are_understood(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    # Options are read before --help is answered: one that there is not would end with 2.
    arguments, _, _ = command.partition(" -- ")  # what is behind it is llama-server's
    with pytest.raises(SystemExit) as ended:
        main([*shlex.split(arguments), "--help"])
    assert ended.value.code == 0, capsys.readouterr().err


@pytest.mark.timeout(600)  # half a minute, on a machine that has nothing else to do
def test_commands_of_the_page_run(
    tiny_path: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # one of them writes a file, which the next one reads
    path = str(tiny_path(n_expert=4))
    for command in COMMANDS:
        arguments = [path if word == "moe.gguf" else word for word in shlex.split(command)]
        if arguments[0] in {"bench", "rpc-worker", "serve", *OF_OTHERS} or "hf:" in command:
            continue  # tests/cli has them; here they would take long, never end, or ask the Hub
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0, capsys.readouterr().err
