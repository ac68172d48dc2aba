"""Saved states as files: what is in them, how they are written, and prefixes that need not be decoded again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from conftest import CPU, SMALL
from moebind import Batch, ClosedError, Context, Model, StateError, StateNotFoundError, ffi, lib
from moebind.state.seal import SEAL_SIZE

MakeTiny = Callable[..., Path]
TOKENS = [1, 5, 9, 40, 7, 100]


def fill(context: Context, tokens: list[int] = TOKENS, seq_id: int = 0) -> None:
    batch = Batch(len(tokens))
    batch.add_sequence(tokens, seq_id)
    context.decode(batch)


def what_follows(context: Context, seq_id: int = 0) -> np.ndarray:
    batch = Batch(1)
    batch.add(8, len(TOKENS), [seq_id], True)
    context.decode(batch)
    logits = context.get_logits_ith(0).copy()
    context.kv_cache_seq_rm(seq_id, len(TOKENS))
    return logits


@pytest.fixture
def second(moe: Model) -> Iterator[Context]:
    with moe.new_context(SMALL.with_n_seq_max(2).with_kv_unified(True)) as context:
        yield context


def test_files_carry_their_tokens(context: Context, moe: Model, tmp_path: Path) -> None:
    fill(context)
    expected = what_follows(context)
    context.state_save_file(tmp_path / "whole", TOKENS)
    context.state_seq_save_file(tmp_path / "sequence", 0, np.array(TOKENS, np.uint8))
    with moe.new_context(SMALL) as second:
        for load in (
            lambda: second.state_load_file(tmp_path / "whole"),
            lambda: second.state_seq_load_file(str(tmp_path / "sequence"), 0),
        ):
            second.kv_cache_clear()
            tokens = load()
            assert tokens.dtype == np.int32
            assert tokens.tolist() == TOKENS
            np.testing.assert_array_equal(what_follows(second), expected)


def test_a_sequence_can_become_another(second: Context, tmp_path: Path) -> None:
    fill(second)
    expected = what_follows(second)
    second.state_seq_save_file(tmp_path / "sequence", 0, TOKENS)
    second.state_seq_load_file(tmp_path / "sequence", 1)
    assert second.kv_cache_seq_pos_max(0) == second.kv_cache_seq_pos_max(1) == 5
    np.testing.assert_array_equal(what_follows(second, 1), expected)


def test_no_tokens_and_many(context: Context, tmp_path: Path) -> None:
    for tokens in ([], np.zeros(100_000, np.int64)):
        for save, load in (
            (context.state_save_file, context.state_load_file),
            (
                lambda path, t: context.state_seq_save_file(path, 0, t),
                lambda path: context.state_seq_load_file(path, 0),
            ),
        ):
            save(tmp_path / "file", tokens)
            assert load(tmp_path / "file").size == len(tokens)


# --- prefixes ---


def decoded(context: Context, prompt: list[int], seq_id: int = 0) -> tuple[int, list[int]]:
    """How many tokens of a prompt were decoded, and what was generated. One that is decoded alone counts as 1."""
    context.reset_timings()
    pieces = list(context.generate(prompt, max_tokens=4, seq_id=seq_id))
    return context.timings().n_p_eval, [piece.token for piece in pieces]


def test_a_loaded_prefix_is_not_decoded_again(context: Context, moe: Model, tmp_path: Path) -> None:
    prompt = [1, *range(10, 60)]
    first, expected = decoded(context, prompt)
    assert first == len(prompt)
    context.state_save_file(tmp_path / "whole")
    context.state_seq_save_file(tmp_path / "sequence", 0)
    with moe.new_context(SMALL.with_n_seq_max(2).with_n_ctx(512)) as other, moe.new_context(SMALL) as same:
        loaded = same.state_load_file(tmp_path / "whole")
        assert loaded[: len(prompt)].tolist() == prompt
        assert decoded(same, prompt) == (1, expected)
        same.kv_cache_clear()
        same.state_seq_load_file(tmp_path / "sequence", 0)
        assert decoded(same, prompt) == (1, expected)
        assert decoded(same, [*prompt[:30], 3]) == (1, decoded(other, [*prompt[:30], 3])[1])


def test_sequences_taken_in_memory_keep_their_prefix(moe: Model) -> None:
    prompt = [1, *range(10, 60)]
    with moe.new_context(SMALL.with_n_seq_max(2).with_n_ctx(512)) as context:
        first, expected = decoded(context, prompt)
        state = context.state_seq_get(0)
        context.kv_cache_clear()
        context.state_seq_set(state, 1)
        assert first == len(prompt)
        assert decoded(context, prompt, 1) == (1, expected)


def test_a_refused_state_leaves_the_prefix(context: Context, dense: Model, tmp_path: Path) -> None:
    prompt = [1, *range(10, 60)]
    _, expected = decoded(context, prompt)
    with dense.new_context(SMALL) as other:
        other.state_save_file(tmp_path / "foreign", [])
    with pytest.raises(StateError, match="another model"):
        context.state_load_file(tmp_path / "foreign")
    assert decoded(context, prompt) == (1, expected)


def test_bytes_have_no_tokens(context: Context) -> None:
    prompt = [1, *range(10, 60)]
    _, expected = decoded(context, prompt)
    context.state_set(context.state_get())
    assert decoded(context, prompt) == (len(prompt), expected)


def test_the_callers_array_is_its_own(context: Context, tmp_path: Path) -> None:
    prompt = [1, *range(10, 60)]
    _, expected = decoded(context, prompt)
    context.state_save_file(tmp_path / "file")
    context.state_load_file(tmp_path / "file")[:] = 0
    assert decoded(context, prompt) == (1, expected)


# --- llama.cpp's own functions ---


def load_natively(context: Context, path: Path, seq_id: int | None) -> list[int] | None:
    tokens, count = ffi.new("llama_token[]", 64), ffi.new("size_t *")
    if seq_id is None:
        done = lib.llama_state_load_file(context.native, os.fsencode(path), tokens, 64, count)
    else:
        done = lib.llama_state_seq_load_file(context.native, os.fsencode(path), seq_id, tokens, 64, count)
    return ffi.unpack(tokens, count[0]) if done else None


def test_llama_cpp_loads_a_sequences_file_as_it_is(context: Context, second: Context, tmp_path: Path) -> None:
    fill(second)
    second.state_seq_save_file(tmp_path / "ours", 0, TOKENS)
    lib.llama_state_seq_save_file(second.native, os.fsencode(tmp_path / "theirs"), 0, TOKENS, len(TOKENS))
    assert (tmp_path / "ours").read_bytes()[:-SEAL_SIZE] == (tmp_path / "theirs").read_bytes()
    assert load_natively(context, tmp_path / "ours", 0) == TOKENS
    np.testing.assert_array_equal(what_follows(context), what_follows(second))


def test_llama_cpp_loads_a_contexts_file_without_the_seal(context: Context, moe: Model, tmp_path: Path) -> None:
    fill(context)
    context.state_save_file(tmp_path / "ours", TOKENS)
    lib.llama_state_save_file(context.native, os.fsencode(tmp_path / "theirs"), TOKENS, len(TOKENS))
    assert (tmp_path / "ours").read_bytes()[:-SEAL_SIZE] == (tmp_path / "theirs").read_bytes()
    os.truncate(tmp_path / "ours", (tmp_path / "ours").stat().st_size - SEAL_SIZE)
    with moe.new_context(SMALL) as other:
        assert load_natively(other, tmp_path / "ours", None) == TOKENS
        np.testing.assert_array_equal(what_follows(other), what_follows(context))


def test_files_of_llama_cpps_own_are_refused(context: Context, tmp_path: Path) -> None:
    lib.llama_state_save_file(context.native, os.fsencode(tmp_path / "whole"), TOKENS, len(TOKENS))
    lib.llama_state_seq_save_file(context.native, os.fsencode(tmp_path / "sequence"), 0, TOKENS, len(TOKENS))
    for load in (context.state_load_file, lambda path: context.state_seq_load_file(path, 0)):
        for name in ("whole", "sequence"):
            with pytest.raises(StateError, match="llama.cpp's own"):
                load(tmp_path / name)


# --- damaged and foreign files ---


def test_files_cut_short_anywhere(context: Context, tmp_path: Path) -> None:
    fill(context)
    expected = what_follows(context)
    context.state_save_file(tmp_path / "whole", TOKENS)
    context.state_seq_save_file(tmp_path / "sequence", 0, TOKENS)
    for name, load in (
        ("whole", context.state_load_file),
        ("sequence", lambda path: context.state_seq_load_file(path, 0)),
    ):
        data = (tmp_path / name).read_bytes()
        for size in [*range(0, len(data), 211), *range(60), *range(len(data) - 100, len(data))]:
            (tmp_path / "cut").write_bytes(data[:size])
            with pytest.raises(StateError, match="is not a whole state"):
                load(tmp_path / "cut")
        for place in [*range(0, len(data), 97), *range(60), *range(len(data) - 100, len(data))]:
            damaged = bytearray(data)
            damaged[place] ^= 0x41
            (tmp_path / "cut").write_bytes(damaged)
            with pytest.raises(StateError):
                load(tmp_path / "cut")
    np.testing.assert_array_equal(what_follows(context), expected)


def test_files_of_another_model(tiny_path: MakeTiny, context: Context, tmp_path: Path) -> None:
    fill(context)
    context.state_save_file(tmp_path / "whole", TOKENS)
    context.state_seq_save_file(tmp_path / "sequence", 0, TOKENS)
    with Model.load_from_file(tiny_path(n_expert=4, seed=2), CPU) as model, model.new_context(SMALL) as other:
        fill(other)
        expected = what_follows(other)
        with pytest.raises(StateError, match="another model"):
            other.state_load_file(tmp_path / "whole")
        with pytest.raises(StateError, match="another model"):
            other.state_seq_load_file(tmp_path / "sequence", 0)
        np.testing.assert_array_equal(what_follows(other), expected)


def test_files_of_the_other_kind(context: Context, tmp_path: Path) -> None:
    context.state_save_file(tmp_path / "whole", [])
    context.state_seq_save_file(tmp_path / "sequence", 0, [])
    with pytest.raises(StateError, match=r"is a file with one sequence's state\. Use state_seq_load_file\(path\)$"):
        context.state_load_file(tmp_path / "sequence")
    with pytest.raises(StateError, match=r"is a file with a whole context's state\. Use state_load_file\(path\)$"):
        context.state_seq_load_file(tmp_path / "whole", 0)
    with pytest.raises(StateError, match=r"is a file with a whole context's state\. Use state_load_file\(path\)$"):
        context.state_set((tmp_path / "whole").read_bytes())
    (tmp_path / "bytes").write_bytes(context.state_get())
    with pytest.raises(StateError, match=r"as state_get gives it\. Use state_set$"):
        context.state_load_file(tmp_path / "bytes")


@pytest.mark.parametrize("path", ["a\0b", "", 7, None, b"bytes"])
def test_what_is_no_path(context: Context, path: str) -> None:
    for call in (
        lambda: context.state_save_file(path, []),
        lambda: context.state_load_file(path),
        lambda: context.state_seq_save_file(path, 0, []),
        lambda: context.state_seq_load_file(path, 0),
    ):
        with pytest.raises((TypeError, ValueError), match="path"):
            call()


def test_paths_that_are_not_there(context: Context, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    missing = tmp_path / "no" / "file"
    for load in (context.state_load_file, lambda path: context.state_seq_load_file(path, 0)):
        for path in (tmp_path / "missing", missing):
            with pytest.raises(StateNotFoundError, match="does not exist"):
                load(path)
        for path in (tmp_path, tmp_path / "pipe", tmp_path / "file", tmp_path / "file" / "x", Path("/dev/zero")):
            with pytest.raises(StateError):
                load(path)
    for save in (context.state_save_file, lambda path, t: context.state_seq_save_file(path, 0, t)):
        with pytest.raises(FileNotFoundError, match="its folder does not exist"):
            save(missing, [])
        for path in (tmp_path, tmp_path / "pipe", tmp_path / "file" / "x", Path("/dev/null"), tmp_path / ("x" * 300)):
            with pytest.raises(StateError):
                save(path, [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "pipe"]


@pytest.mark.parametrize("tokens", [[-1], [2**40], ["a"], [[1]], "abc", 1.5, [1.5], [float("nan")]])
def test_what_is_no_token(context: Context, tmp_path: Path, tokens: list[int]) -> None:
    for save in (context.state_save_file, lambda path, t: context.state_seq_save_file(path, 0, t)):
        with pytest.raises((TypeError, ValueError), match="tokens"):
            save(tmp_path / "file", tokens)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seq_id", [-1, 1, 2**31, None, "0"])
def test_sequences_that_there_are_not(context: Context, tmp_path: Path, seq_id: int) -> None:
    context.state_seq_save_file(tmp_path / "file", 0, [])
    for call in (
        lambda: context.state_seq_save_file(tmp_path / "new", seq_id, []),
        lambda: context.state_seq_load_file(tmp_path / "file", seq_id),
    ):
        with pytest.raises((TypeError, ValueError), match="seq_id"):
            call()


def test_closed_contexts(moe: Model, tmp_path: Path) -> None:
    context = moe.new_context(SMALL)
    context.state_save_file(tmp_path / "file", [])
    context.close()
    for call in (
        lambda: context.state_save_file(tmp_path / "file", []),
        lambda: context.state_load_file(tmp_path / "file"),
        lambda: context.state_seq_save_file(tmp_path / "file", 0, []),
        lambda: context.state_seq_load_file(tmp_path / "file", 0),
    ):
        with pytest.raises(ClosedError):
            call()


# --- how they are written ---


def test_a_file_keeps_its_mode_and_its_links(context: Context, tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "real").chmod(0o604)
    (tmp_path / "link").symlink_to("real")
    context.state_save_file(tmp_path / "link", TOKENS)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o604
    assert context.state_load_file(tmp_path / "real").tolist() == TOKENS
    context.state_save_file(tmp_path / ("ü" * 127), TOKENS)  # 254 bytes: no room for a longer name
    assert context.state_load_file(tmp_path / ("ü" * 127)).tolist() == TOKENS
    assert len(list(tmp_path.iterdir())) == 3


def test_a_relative_path(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    context.state_save_file("file", TOKENS)
    assert context.state_load_file("file").tolist() == TOKENS


#: Saves again and again, in a process that something will happen to.
SAVES = """
import resource, sys
import moebind
from moebind import Batch, ContextParams, Model, ModelParams
model = Model.load_from_file(sys.argv[1], ModelParams(n_gpu_layers=0))
context = model.new_context(ContextParams(n_ctx=256, n_threads=1, n_threads_batch=1))
context.decode(Batch.get_one([7] * 200))
if sys.argv[3] == "limit":
    import signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
print("ready", flush=True)
while True:
    try:
        context.state_save_file(sys.argv[2], [7] * 200)
    except moebind.StateError as error:
        print(type(error.__cause__).__name__, error, flush=True)
        raise SystemExit(3)
"""


def saving(model: Path, target: Path, *how: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", "-c", SAVES, str(model), str(target), *how]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_file_that_may_not_grow_leaves_the_old_one(moe: Model, context: Context, tmp_path: Path) -> None:
    fill(context)
    context.state_save_file(tmp_path / "file", TOKENS)
    before = (tmp_path / "file").read_bytes()
    with saving(Path(moe.path), tmp_path / "file", "limit") as process:
        said, _ = process.communicate()
    assert process.returncode == 3
    assert "could not be saved, and is as it was before" in said
    assert (tmp_path / "file").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_process_killed_while_it_saves_leaves_a_whole_file(moe: Model, context: Context, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    context.state_save_file(tmp_path / "file", TOKENS)
    for _ in range(4):
        with saving(Path(moe.path), tmp_path / "file", "forever") as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            signal.sigtimedwait([], float(random.uniform(0, 0.1)))
            process.kill()
        assert process.returncode == -signal.SIGKILL
        assert context.state_load_file(tmp_path / "file").tolist() in (TOKENS, [7] * 200)


def test_a_full_disk_leaves_the_old_file(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # On a file system of its own where one may be mounted, and with a device that is always full in place of the new
    # file everywhere.
    fill(context)
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "moebind", str(folder)]
    mountable = os.getuid() == 0 and shutil.which("mount") is not None
    mounted = mountable and subprocess.run(mount, check=False, capture_output=True).returncode == 0
    try:
        context.state_save_file(folder / "file", TOKENS)
        before = (folder / "file").read_bytes()
        if not mounted:
            really_open = os.open
            monkeypatch.setattr(os, "open", lambda path, flags, *mode: really_open("/dev/full", os.O_WRONLY))
        context.kv_cache_clear()
        fill(context, [7] * 250)
        with pytest.raises(StateError, match="No space left"):
            context.state_save_file(folder / "file", [7] * 250)
        monkeypatch.undo()
        assert (folder / "file").read_bytes() == before
        assert [path.name for path in folder.iterdir()] == ["file"]
        assert context.state_load_file(folder / "file").tolist() == TOKENS
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def test_the_first_sequence_is_the_default(context: Context, second: Context, tmp_path: Path) -> None:
    fill(context)
    assert context.state_seq_size() == context.state_seq_size(0)
    context.state_seq_save_file(tmp_path / "first")
    assert second.state_seq_load_file(tmp_path / "first").size == 0  # nobody said what it holds
    second.kv_cache_clear()
    second.state_seq_set(context.state_seq_get())
    assert second.kv_cache_seq_pos_max(0) == context.kv_cache_seq_pos_max(0) == len(TOKENS) - 1
