"""What a program sees when the disk is full, a model's file changes under it, or a control group's memory ends.

Each happens to a process of its own, for which a limit on the size of files plays the full disk. The rooms test it for
what they write with libllama's help: tests/state, tests/model/test_saving.py, tests/files.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

MakeTiny = Callable[..., Path]
MIB = 2**20
BEGIN = """
import os, resource, signal, sys
import moebind
from moebind import Batch, ContextParams, LoadMode, Model, ModelParams
CPU = ModelParams(n_gpu_layers=0, devices=())
SMALL = ContextParams(n_ctx=256, n_threads=1, n_threads_batch=1)

def full(most):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

def computes(context):
    context.kv_cache_clear()
    context.decode(Batch.get_one([7, 8, 9]))
    return context.get_logits_ith(-1).tobytes()
"""


def child(code: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a program after BEGIN."""
    command = [sys.executable, "-W", "ignore", "-c", BEGIN + textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, text=True, check=False, stdout=subprocess.PIPE, timeout=240, **options)  # type: ignore[call-overload,no-any-return]


# --- the disk ---


def test_what_is_saved_is_whole_or_as_it_was(tiny_path: MakeTiny, tmp_path: Path) -> None:
    chat = '[{"role": "user", "content": "Hello!"}]'
    old = {"fit.json": "old", "routing.npz": "old", "chat.json": chat}
    for name, text in old.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    done = child(
        """
        from moebind.cli.conversation import Conversation
        path = sys.argv[1]
        recorder = moebind.RoutingRecorder()
        with Model.load_from_file(path, CPU) as model, model.new_context(SMALL.with_eval_callback(recorder)) as context:
            computes(context)
        chat = Conversation.__new__(Conversation)
        chat.messages = [{"role": "user", "content": "a" * 100}]
        fit = moebind.fit(path, n_ctx=256, devices=[])
        full(64)
        for save, name in [(fit.save, "fit.json"), (recorder.save, "routing.npz"), (chat.save, "chat.json")]:
            try:
                save(name)
            except OSError as error:
                print(name, error.strerror)
        """,
        tiny_path(n_expert=4),
        cwd=tmp_path,
    )
    assert done.returncode == 0
    assert done.stdout.splitlines() == [f"{name} File too large" for name in old]
    assert {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == old


def test_a_search_goes_on_where_the_disk_was_full(tmp_path: Path) -> None:
    from moebind.tuning.journal import Journal

    done = child(
        """
        from moebind.tuning.journal import Journal
        journal = Journal("journal", {"of": "this"})
        journal.ask({"n": 1}, lambda: 1)
        full(os.path.getsize("journal") + 10)
        try:
            journal.ask({"n": 2}, lambda: 2)
        except OSError as error:
            print(error.strerror)
        """,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout) == (0, "File too large\n")
    journal = Journal(tmp_path / "journal", {"of": "this"}, resume=True)
    assert [journal.ask({"n": n}, lambda n=n: 10 * n) for n in (1, 2)] == [1, 20]  # type: ignore[misc]
    journal.close()


def test_a_log_that_cannot_be_written_stops_nothing(tiny_path: MakeTiny, tmp_path: Path) -> None:
    done = child(
        """
        import logging
        logging.getLogger("moebind").addHandler(logging.FileHandler("log"))
        moebind.set_log("debug")
        full(100)
        with Model.load_from_file(sys.argv[1], CPU) as model, model.new_context(SMALL) as context:
            print(len(computes(context)) > 0)
        """,
        tiny_path(),
        cwd=tmp_path,
        stderr=subprocess.PIPE,
    )
    assert (done.returncode, done.stdout) == (0, "True\n")
    assert "Logging error" in done.stderr  # the standard library's own word, which logging.raiseExceptions turns off


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_terminal_that_cannot_be_written_to_stops_nothing(tiny_path: MakeTiny) -> None:
    with open("/dev/full", "w") as device:
        done = child(
            """
            moebind.set_log("debug")
            with Model.load_from_file(sys.argv[1], CPU) as model, model.new_context(SMALL) as context:
                print(len(computes(context)) > 0)
            """,
            tiny_path(),
            stderr=device,
        )
    assert done.stdout == "True\n"


# --- a model's file, while it is mapped or was read ---

WATCHED = """
mode = LoadMode[sys.argv[2]]
with Model.load_from_file(sys.argv[1], CPU.with_load_mode(mode)) as model, model.new_context(SMALL) as context:
    before = computes(context)
    input("computed\\n")
    print(before == computes(context), flush=True)
"""


def changed(path: Path, mode: str, change: Callable[[], object]) -> tuple[int, str]:
    """Change a file that a program has computed with; how the program ends, and whether it computes the same again."""
    command = [sys.executable, "-W", "ignore", "-c", BEGIN + WATCHED, str(path), mode]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "computed\n"
        change()
        said, _ = process.communicate("\n")
    return process.returncode, said.strip()


@pytest.fixture
def own(tiny_path: MakeTiny, tmp_path: Path) -> Path:
    """A model's file that nobody else has."""
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_path().read_bytes())
    return path


def test_a_file_that_is_cut_ends_a_process_that_has_it_mapped(own: Path) -> None:
    assert changed(own, "MMAP", lambda: os.truncate(own, 4096)) == (-signal.SIGBUS, "")


def test_a_file_that_was_read_may_be_cut(own: Path) -> None:
    assert changed(own, "NONE", lambda: os.truncate(own, 4096)) == (0, "True")


@pytest.mark.parametrize("mode", ["MMAP", "NONE"])
@pytest.mark.parametrize("how", ["replaced", "removed"])
def test_a_file_may_be_replaced_or_removed(own: Path, tmp_path: Path, mode: str, how: str) -> None:
    def change() -> None:
        if how == "replaced":
            (tmp_path / "new").write_bytes(b"no model")
            os.replace(tmp_path / "new", own)
        else:
            own.unlink()

    assert changed(own, mode, change) == (0, "True")


def test_a_mapped_file_that_is_written_over_is_what_is_computed_with(own: Path) -> None:
    def change() -> None:
        with open(own, "r+b") as file:
            size = os.path.getsize(own)
            file.seek(size // 2)
            file.write(bytes(size - size // 2))

    assert changed(own, "MMAP", change) == (0, "False")


# --- a control group's memory ---


@pytest.fixture
def group() -> Iterator[Path]:
    """The limit of a new control group for memory, where we may make one."""
    for folder, name in (("memory", "memory.limit_in_bytes"), ("", "memory.max")):
        limit = Path("/sys/fs/cgroup", folder, f"moebind-test-{os.getpid()}", name)
        with suppress(OSError):
            limit.parent.mkdir()
            break
    else:
        pytest.skip("no control group can be made here: that takes root, and a hierarchy that may be written to")
    try:
        if not limit.exists():
            pytest.skip("control groups here do not limit memory")
        yield limit
    finally:
        limit.parent.rmdir()


def limit_to(group: Path, limit: int) -> None:
    """Let a group have so much memory, and no swap, which would be room, too."""
    group.write_text(str(limit))
    for name, most in (("memory.swap.max", 0), ("memory.memsw.limit_in_bytes", limit)):
        if group.with_name(name).exists():
            group.with_name(name).write_text(str(most))


@pytest.mark.thorough
def test_what_a_control_group_limits_is_refused_before_it_is_taken(group: Path, tiny_path: MakeTiny) -> None:
    """The limit is met by what the interpreter takes with room to spare, and by neither the model nor the context."""
    path = tiny_path(n_embd=512, n_ff=2048, n_layer=12, n_ctx_train=2**20)
    limit = os.path.getsize(path) - MIB
    assert limit > 128 * MIB
    limit_to(group, limit)
    done = child(
        """
        with open(sys.argv[2], "w") as file:
            file.write(str(os.getpid()))
        try:
            Model.load_from_file(sys.argv[1], CPU.with_load_mode(LoadMode.NONE))
        except moebind.ModelLoadError as error:
            print(error)
        with Model.load_from_file(sys.argv[1], CPU) as model:  # mapped: pages come and go
            try:
                model.new_context(SMALL.with_n_ctx(2**20))
            except moebind.ContextCreationError as error:
                print(error)
            with model.new_context(SMALL) as context:
                print(len(computes(context)) > 0)
        """,
        path,
        group.parent / "cgroup.procs",
    )
    load, context, *rest = done.stdout.splitlines()
    assert f"and the control group {group.parent} lets this process have" in load
    assert "of Host, which has" in context
    assert (done.returncode, rest) == (0, ["True"])


#: What a program has besides a model, of which a group has room for half: the load is not refused, but meets the limit.
BALLAST = 48 * MIB
MEETS_LIMIT = f"""
with open(sys.argv[2], "w") as file:
    file.write(str(os.getpid()))
ballast = b"1" * {BALLAST}
WHOLE = CPU.with_load_mode(LoadMode.NONE)
"""


@pytest.fixture
def too_little(group: Path, tiny_path: MakeTiny) -> Path:
    """A model that is not refused, but cannot be read within the group's limit."""
    path = tiny_path(n_embd=512, n_ff=2048, n_layer=12, n_ctx_train=2**20)
    limit = os.path.getsize(path) + BALLAST // 2
    assert limit > 128 * MIB
    limit_to(group, limit)
    return path


@pytest.mark.thorough
def test_a_load_that_meets_the_limit_of_a_control_group_is_killed(group: Path, too_little: Path) -> None:
    """As the system's way is; whoever started the process goes on, and is told the signal."""
    load = """
print("loading", flush=True)
Model.load_from_file(sys.argv[1], WHOLE)
print("loaded", flush=True)
"""
    done = child(MEETS_LIMIT + load, too_little, group.parent / "cgroup.procs")
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "loading\n")


@pytest.mark.thorough
def test_a_server_whose_load_meets_the_limit_says_so(group: Path, too_little: Path) -> None:
    """It is the largest process of the group, so it is the one that is killed."""
    serve = """
from moebind.server import Server
try:
    with Server(sys.argv[1], model_params=WHOLE, context_params=SMALL, fit=False):
        print("ready")
except moebind.ServerError as error:
    print(error)
"""
    done = child(MEETS_LIMIT + serve, too_little, group.parent / "cgroup.procs")
    assert done.returncode == 0
    first = "llama-server was ended by SIGKILL: by somebody, or by the system, because memory ran out"
    assert done.stdout.startswith(first)
