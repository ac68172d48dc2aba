"""The conversation with child processes: results, events and answers, and every way in which a child can end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from moebind.bench.protocol import run_child
from moebind.bench.record import FailedError

MakeChild = Callable[[str], str]


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeChild:
    """Modules for children, from the body of their function ``measure(parent, request)``."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(body: str, before: str = "") -> str:
        name = f"child_{len(list(tmp_path.iterdir()))}"
        function = f"def measure(parent, request):\n{textwrap.indent(textwrap.dedent(body), '    ')}\n"
        (tmp_path / f"{name}.py").write_text(f"import os, signal, sys, time\n{before}\n{function}", encoding="utf-8")
        return name

    return make


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # maybe only now
        return True


def test_a_request_and_its_result(child: MakeChild) -> None:
    request = {"text": "ä\n\u2028", "numbers": [1, 2.5, None], "large": "x" * 300_000}
    found = run_child(child("return {'pid': os.getpid(), 'request': request}"), request)
    assert found["request"] == request
    assert found["pid"] != os.getpid()
    assert gone(found["pid"])


def test_events_are_handled_in_order_and_questions_are_answered(child: MakeChild) -> None:
    module = child(
        """
        parent.tell("step", at=1)
        doubled = parent.ask("question", value=21)
        parent.tell("step", at=2)
        return [doubled, parent.ask("question", value="a"), os.getpid()]
        """
    )
    events: list[object] = []

    def answer(pid: int, content: Mapping[str, Any]) -> object:
        events.append(("question", pid))
        return 2 * content["value"]

    handlers = {"step": lambda pid, content: events.append(content["at"]), "question": answer}
    doubled, text, pid = run_child(module, {}, handlers=handlers)
    assert (doubled, text) == (42, "aa")
    assert events == [1, ("question", pid), 2, ("question", pid)]


def test_other_output_does_not_come_between(child: MakeChild) -> None:
    module = child(
        """
        print("garbage")
        os.write(1, b'{"event": "done"}\\n')
        os.system("echo more garbage")
        return "fine"
        """,
        "print('garbage while it is imported')",
    )
    assert run_child(module, {}) == "fine"


@pytest.mark.parametrize(
    "line", [b"garbage", b"\xff\xfe", b"[]", b"3", b"null", b"{}", b'{"event": "done", "content": {}, "waits": false}',
             b'{"event": "failed", "content": {}, "waits": false}', b'{"event": "step", "content": 3, "waits": false}']
)  # fmt: skip
def test_a_child_that_writes_garbage_for_messages(child: MakeChild, line: bytes) -> None:
    module = child(
        f"""
        parent._out.buffer.write({line!r} + b"\\n")
        parent._out.flush()
        time.sleep(60)
        """
    )
    with pytest.raises(FailedError, match="something else than a message: "):
        run_child(module, {}, handlers={"step": lambda pid, content: None})


def test_an_event_that_nobody_expects(child: MakeChild) -> None:
    with pytest.raises(FailedError, match="'strange', which nobody expects"):
        run_child(child("parent.ask('strange')"), {})


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise ValueError('no such device')", "ValueError: no such device"),
        ("import moebind; raise moebind.MoebindError('it broke')", "MoebindError: it broke"),
        ("open('/none/at/all')", "FileNotFoundError: .*'/none/at/all'"),
        ("from moebind.bench.record import FailedError; raise FailedError('as it is')", "^as it is$"),
        ("raise KeyError('x')", "ended with status 1: KeyError: 'x'"),
        ("return object()", "ended with status 1: TypeError: .*not JSON serializable"),
        ("sys.exit(7)", "ended with status 7$"),
        ("os._exit(0)", "ended with status 0$"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "ended by SIGKILL: by somebody, or by the system"),
        ("print('bad thing', file=sys.stderr, flush=True); os.abort()", "ended by SIGABRT: .+"),
    ],
)
def test_every_way_to_fail(child: MakeChild, body: str, reason: str) -> None:
    with pytest.raises(FailedError, match=reason):
        run_child(child(body), {})


def test_a_module_that_is_not_there() -> None:
    with pytest.raises(FailedError, match="status 1: ModuleNotFoundError: No module named 'no_such_module'"):
        run_child("no_such_module", {})


def test_a_child_that_is_killed_while_its_question_is_answered(child: MakeChild) -> None:
    handlers = {"question": lambda pid, content: os.kill(pid, signal.SIGKILL)}
    with pytest.raises(FailedError, match="SIGKILL"):
        run_child(child("parent.ask('question'); time.sleep(60)"), {}, handlers=handlers)


def test_a_child_that_takes_too_long_is_ended(child: MakeChild) -> None:
    pids: list[int] = []
    module = child("parent.tell('here'); time.sleep(60)")
    start = time.monotonic()
    with pytest.raises(FailedError, match="longer than the 3 seconds that were allowed"):
        run_child(module, {}, timeout=3, handlers={"here": lambda pid, content: pids.append(pid)})
    assert time.monotonic() - start < 50
    assert all(gone(pid) for pid in pids)


def test_an_exception_of_a_handler_ends_the_child(child: MakeChild) -> None:
    pids: list[int] = []

    def stop(pid: int, content: object) -> None:
        pids.append(pid)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_child(child("parent.ask('here'); time.sleep(60)"), {}, handlers={"here": stop})
    assert gone(pids[0])


def test_a_child_does_not_outlive_its_parent(child: MakeChild, tmp_path: Path) -> None:
    module = child("parent.tell('here'); time.sleep(60)")
    code = (
        "import sys\nfrom moebind.bench.protocol import run_child\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        f"run_child({module!r}, {{}}, handlers={{'here': lambda pid, content: print(pid, flush=True)}})\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    for _ in range(1200):
        if gone(pid):
            return
        time.sleep(0.05)
    pytest.fail("the child goes on")
