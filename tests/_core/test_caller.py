"""Warnings point to the line that called moebind, from however deep in it."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import moebind
from moebind import Model
from moebind._core.caller import warn


def test_whoever_calls() -> None:
    with pytest.warns(UserWarning, match="^so$") as caught:
        warn("so")
    assert caught[0].filename == __file__


def test_every_depth(demo: Model, recwarn: pytest.WarningsRecorder) -> None:
    message = [{"role": "user", "content": "a"}]
    schema = {"type": "number", "minimum": 1.5}
    calls: list[Callable[[], object]] = [
        lambda: demo.apply_chat_template(message, unheard=1),
        lambda: demo.chat_format(message, json_schema=schema, strict=False),
        lambda: moebind.json_schema_to_grammar(schema, strict=False),
    ]
    for call in calls:
        warnings.simplefilter("always")
        call()
        told = recwarn.pop(UserWarning)
        assert told.filename == __file__, told.message


def test_a_thread_that_belongs_to_nobody_can_warn() -> None:
    program = "import threading; from moebind._core.caller import warn; t = threading.Thread(target=warn, args=['so']);"
    ended = subprocess.run(
        [sys.executable, "-c", f"{program} t.start(); t.join()"], capture_output=True, text=True, check=True
    )
    assert "UserWarning: so" in ended.stderr


def test_no_place_is_counted_by_hand() -> None:
    package = Path(moebind.__file__).parent
    places = [path.name for path in package.rglob("*.py") if "warnings.warn(" in path.read_text(encoding="utf-8")]
    assert sorted(places) == ["caller.py", "owner.py"]  # the second is called by the interpreter
