"""llama.cpp's log."""

from __future__ import annotations

import contextlib
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import moebind
from conftest import CPU, SMALL
from moebind import Batch, Model, PoolingType
from moebind._core import log

MakeTiny = Callable[..., Path]


@pytest.fixture(autouse=True)
def defaults() -> Iterator[None]:
    yield
    moebind.set_log()
    moebind._core.log.logger.setLevel(logging.NOTSET)


def lines_of(caplog: pytest.LogCaptureFixture, path: Path, level: str | int | None) -> list[logging.LogRecord]:
    caplog.clear()
    moebind.set_log(level)
    Model.load_from_file(path, CPU.with_cpu_moe_all()).close()
    return [record for record in caplog.records if record.name == "moebind.llama"]


def test_levels(caplog: pytest.LogCaptureFixture, tiny_path: MakeTiny) -> None:
    path = tiny_path(n_expert=4)
    assert lines_of(caplog, path, None) == []
    assert lines_of(caplog, path, "error") == []
    info = lines_of(caplog, path, "info")
    debug = lines_of(caplog, path, logging.DEBUG)
    assert len(debug) > len(info) > 20
    assert {record.levelno for record in info} <= {logging.INFO, logging.WARNING}
    assert logging.DEBUG in {record.levelno for record in debug}
    assert any("print_info: arch" in record.getMessage() for record in info)


def test_lines_are_whole(caplog: pytest.LogCaptureFixture, tiny_path: MakeTiny) -> None:
    for record in lines_of(caplog, tiny_path(n_expert=4), "debug"):
        assert "\n" not in record.getMessage()
        assert record.getMessage()


def test_percent_signs_are_text(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    moebind.set_log("debug")
    with pytest.raises(moebind.ModelLoadError):
        path = tmp_path / "100%s%d.gguf"
        path.write_bytes(b"GGUF")
        Model.load_from_file(path, CPU)
    for record in caplog.records:
        record.getMessage()


def test_errors_of_a_failed_load_are_in_the_message_even_in_silence(tiny_path: MakeTiny) -> None:
    moebind.set_log(None)
    unknown = CPU.with_kv_override("general.architecture", "nonesuch")
    with pytest.raises(moebind.ModelLoadError, match="could not be loaded:\n(  llama.cpp: .*\n)+.*nonesuch"):
        Model.load_from_file(tiny_path(), unknown)


@pytest.mark.parametrize(
    ("level", "error"), [("loud", ValueError), (True, TypeError), (1.5, TypeError), ([], TypeError)]
)
def test_bad_levels(level: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="level is"):
        moebind.set_log(level)  # type: ignore[arg-type]


def test_without_logging_warnings_reach_standard_error(tiny_path: MakeTiny) -> None:
    code = (
        "from moebind import Model, ModelParams, ContextParams\n"
        f"with Model.load_from_file({str(tiny_path())!r}, ModelParams(n_gpu_layers=0)) as model:\n"
        "    model.new_context(ContextParams(n_ctx=1024)).close()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert "n_ctx_seq (1024) > n_ctx_train (512)" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_what_moebind_chooses_itself_is_no_warning(tiny_path: MakeTiny) -> None:
    # llama.cpp warns about mappings of what stays in host memory (once a process), about pooling not named in a file.
    code = (
        "import sys, logging, moebind\n"
        "if sys.argv[1:]:\n"
        "    logging.basicConfig(format='%(levelname)s %(message)s')\n"
        "    moebind.set_log('info')\n"
        "from moebind import Model, ModelParams, ContextParams\n"
        "cpu, one = ModelParams(n_gpu_layers=0), ContextParams(n_threads=1, n_threads_batch=1)\n"
        f"with Model.load_from_file({str(tiny_path(n_expert=4))!r}, cpu.with_cpu_moe_all()) as model:\n"
        "    model.embed('Hello', context_params=one)\n"
        "    with model.new_context(one) as context:\n"
        "        list(context.generate('Hello', max_tokens=2))"
    )
    silent = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert silent.stdout == silent.stderr == ""
    asked = subprocess.run([sys.executable, "-c", code, "info"], capture_output=True, text=True, check=True)
    assert asked.stdout == ""
    for told in ("tensor overrides to CPU are used with mmap enabled", "model default pooling_type is [-1]"):
        assert re.search(rf"^INFO .*{re.escape(told)}", asked.stderr, re.MULTILINE)


def test_a_full_cache_is_an_exception_only(caplog: pytest.LogCaptureFixture, tiny_path: MakeTiny) -> None:
    moebind.set_log()
    batch = Batch(200)
    with Model.load_from_file(tiny_path(), CPU) as model, model.new_context(SMALL) as context:
        batch.add_sequence([10] * 200, 0)
        context.decode(batch)
        batch.clear()
        batch.add_sequence([10] * 200, 0, pos=200)
        caplog.clear()
        with pytest.raises(moebind.NoKvSlotError):
            context.decode(batch)
    assert all(record.levelno < logging.WARNING for record in caplog.records)


def test_outputs_of_every_token_are_no_warning(caplog: pytest.LogCaptureFixture, dense: Model) -> None:
    moebind.set_log()
    with dense.new_context(SMALL.with_embeddings(True)) as context:
        context.decode(Batch.get_one([1, 2, 3]))
    assert all(record.levelno < logging.WARNING for record in caplog.records)


def test_types_that_quantize_was_told_are_no_warning(
    caplog: pytest.LogCaptureFixture, dense: Model, tmp_path: Path
) -> None:
    moebind.set_log("info")
    types = {"ffn_down": moebind.GgmlType.Q8_0}
    moebind.quantize(dense.path, tmp_path / "out.gguf", moebind.Ftype.Q4_0, tensor_types=types, n_threads=1)
    told = [record.levelno for record in caplog.records if "applying manual override" in record.getMessage()]
    assert told
    assert set(told) == {logging.INFO}


def test_tensors_that_get_another_type_are_one_warning(
    caplog: pytest.LogCaptureFixture, tiny_path: MakeTiny, tmp_path: Path
) -> None:
    moebind.set_log("info")
    moebind.quantize(tiny_path(), tmp_path / "out.gguf", moebind.Ftype.Q4_K_M, n_threads=1)
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 1
    assert re.search(
        r"WARNING: \d+ of \d+ tensors have rows whose length is no multiple of their type's block", told[0]
    )
    assert sum("(required for type" in record.getMessage() for record in caplog.records) > 1


def test_pooling_unlike_the_models_is_a_warning(caplog: pytest.LogCaptureFixture, tiny_path: MakeTiny) -> None:
    moebind.set_log()
    mean = CPU.with_kv_override("bert.pooling_type", 1)
    with Model.load_from_file(tiny_path(arch="bert", n_head_kv=4), mean) as model:
        model.embed("Hello", pooling_type=PoolingType.LAST, context_params=SMALL)
    assert "model default pooling_type is [1], but [3] was specified" in caplog.text


def test_errors_that_an_exception_quotes_are_not_logged_besides(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, dense: Model
) -> None:
    moebind.set_log()
    text = tmp_path / "text.gguf"
    text.write_text("It is no model." * 9)
    for use in (
        lambda: Model.load_from_file(text, CPU),
        lambda: moebind.Gguf.from_file(text),
        lambda: moebind.quantize(text, tmp_path / "out.gguf", moebind.Ftype.Q4_0),
    ):
        with pytest.raises(moebind.ModelLoadError, match="llama.cpp: gguf_init_from_reader: invalid magic"):
            use()
    assert caplog.records == []


@pytest.mark.parametrize("fails", [False, True])
def test_errors_are_kept_back_until_it_is_known_whether_it_failed(
    caplog: pytest.LogCaptureFixture, fails: bool
) -> None:
    moebind.set_log("info")
    with contextlib.suppress(ZeroDivisionError), log.quoted():
        with log.quoted():
            moebind.lib.gguf_init_from_file(b"/nowhere/a", {"no_alloc": True, "ctx": moebind.ffi.NULL})
            assert caplog.records == []
            assert any("/nowhere/a" in line for line in log.recent())
            if fails:
                raise ZeroDivisionError
        assert caplog.records != []
    level = logging.INFO if fails else logging.ERROR
    assert {record.levelno for record in caplog.records if "/nowhere/a" in record.getMessage()} == {level}
    moebind.lib.gguf_init_from_file(b"/nowhere/b", {"no_alloc": True, "ctx": moebind.ffi.NULL})
    assert {record.levelno for record in caplog.records if "/nowhere/b" in record.getMessage()} == {logging.ERROR}


@pytest.mark.parametrize(("asked", "n_seq_max", "given"), [(512, 3, 768), (1000, 1, 1024), (300, 2, 512)])
def test_a_context_that_is_rounded_up_does_not_say_down(
    caplog: pytest.LogCaptureFixture, dense: Model, asked: int, n_seq_max: int, given: int
) -> None:
    moebind.set_log("info")
    with dense.new_context(SMALL.with_n_ctx(asked).with_n_seq_max(n_seq_max)) as context:
        assert context.n_ctx == given
        assert repr(context).endswith(f"n_ctx={given} (rounded up from {asked})>")
        told = [record.getMessage() for record in caplog.records]
        assert not [line for line in told if "rounding down" in line]
        if n_seq_max == 3:  # only then llama.cpp says something
            assert any(f"each sequence has a multiple of 256 tokens, to {given}" in line for line in told)


def test_an_error_that_quotes_it_does_not_say_down(dense: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = "llama_context: n_ctx is not divisible by n_seq_max - rounding down to 768"

    def copy(buffer: object, size: int) -> None:
        moebind.ffi.memmove(buffer, wrong.encode(), len(wrong))

    monkeypatch.setattr(log, "lib", type("Lib", (), {"moebind_log_recent": staticmethod(copy)}))
    assert log.recent_lines().endswith("each sequence has a multiple of 256 tokens, to 768")
