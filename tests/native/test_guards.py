"""llama.cpp's failures become exceptions, and the objects go on working."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
import tiny

import moebind
from conftest import CPU, SMALL
from moebind import Context, Model, NativeError, ffi, lib


def decode_raw(context: Context, tokens: list[int]) -> int:
    native = ffi.new("llama_token[]", tokens)
    return int(lib.llama_decode(context.native, lib.llama_batch_get_one(native, len(tokens))))


def test_failed_assertion_in_decode_raises_and_the_context_goes_on(moe: Model) -> None:
    with moe.new_context(SMALL.with_n_batch(8).with_n_ubatch(8)) as context:
        with pytest.raises(NativeError, match=r"llama-context.cpp:\d+: GGML_ASSERT\(n_tokens_all <= cparams.n_batch\)"):
            decode_raw(context, [1] * 9)
        assert decode_raw(context, [1, 5, 7]) == 0
        after = np.frombuffer(ffi.buffer(lib.llama_get_logits_ith(context.native, -1), 4 * moe.n_vocab), np.float32)
        with moe.new_context(SMALL) as fresh:
            assert decode_raw(fresh, [1, 5, 7]) == 0
            before = np.frombuffer(ffi.buffer(lib.llama_get_logits_ith(fresh.native, -1), 4 * moe.n_vocab), np.float32)
            np.testing.assert_array_equal(after, before)


def test_cpp_exception_in_tokens_to_text(moe: Model) -> None:
    buffer = ffi.new("char[]", 8)
    with pytest.raises(NativeError) as caught:
        lib.llama_token_to_piece(lib.llama_model_get_vocab(moe.native), 10**6, buffer, 8, 0, False)
    assert caught.value.message
    assert moe.tokens_to_str(moe.str_to_token("still here")).strip() == "still here"


def test_cpp_exception_in_tokenizing(moe: Model) -> None:
    above_unicode = b"\xf7\xbf\xbf\xbf"
    tokens = ffi.new("llama_token[]", 16)
    # SPM takes any bytes; the length is what it cannot take.
    with pytest.raises(NativeError):
        lib.llama_tokenize(lib.llama_model_get_vocab(moe.native), above_unicode, -5, tokens, 16, False, False)
    assert moe.str_to_token("still here").size


def test_cpp_exception_in_tokenizing_invalid_codepoint(demo: Model) -> None:
    tokens = ffi.new("llama_token[]", 16)
    with pytest.raises(NativeError, match="invalid codepoint"):
        lib.llama_tokenize(lib.llama_model_get_vocab(demo.native), b"\xf7\xbf\xbf\xbf", 4, tokens, 16, False, False)
    assert demo.tokens_to_str(demo.str_to_token("still here")) == "still here"


def test_cpp_exception_in_a_grammar(moe: Model) -> None:
    sampler = lib.llama_sampler_init_grammar(lib.llama_model_get_vocab(moe.native), b'root ::= "a"', b"root")
    assert sampler
    try:
        with pytest.raises(NativeError):
            lib.llama_sampler_accept(sampler, tiny.TOKENS.index("b"))
        lib.llama_sampler_reset(sampler)
        lib.llama_sampler_accept(sampler, tiny.TOKENS.index("a"))
    finally:
        lib.llama_sampler_free(sampler)


def test_text_of_a_failure_belongs_to_its_thread() -> None:
    texts: list[str] = []

    def fail(mode: int) -> None:
        for _ in range(200):
            try:
                lib.llama_load_mode_name(mode)
            except NativeError as error:
                texts.append(error.message)

    threads = [threading.Thread(target=fail, args=(mode,)) for mode in (77, 78, 79)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts) == 600
    assert all("fatal error" in text for text in texts)


def test_a_text_that_is_no_utf_8_is_told_all_the_same() -> None:
    with pytest.raises(NativeError, match="load mode: \\ufffdmap"):
        lib.llama_load_mode_from_str(b"\xffmap")


def test_a_failure_is_raised_once() -> None:
    with pytest.raises(NativeError):
        lib.ggml_backend_dev_get(10**6)
    assert lib.llama_time_us() > 0


@pytest.mark.parametrize("name", ["__init__", "_core.native"])
def test_importing_registers_nothing_that_prints(name: str) -> None:
    code = f"import moebind.{name}" if name != "__init__" else "import moebind"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""


def test_abort_without_a_guard_says_why() -> None:
    # A pointer to the C function goes around the wrapper that raises, but not around the guard.
    code = (
        "from moebind import ffi, lib; f = ffi.addressof(lib, 'ggml_backend_dev_get'); "
        "print(f(10**6)); print(lib.llama_time_us() > 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["<cdata 'struct ggml_backend_device *' NULL>", "True"]


class Failure(Exception):
    pass


def test_exception_in_progress_callback_reaches_the_caller(tiny_path: object) -> None:
    def progress(fraction: float) -> bool:
        raise Failure(f"at {fraction}")

    path = tiny_path(n_expert=4)  # type: ignore[operator]
    with pytest.raises(Failure, match="at 0"):
        Model.load_from_file(path, CPU.with_progress_callback(progress))
    with Model.load_from_file(path, CPU) as model:
        assert model.n_expert == 4


def test_exception_in_abort_callback_reaches_the_caller(moe: Model) -> None:
    def abort() -> bool:
        raise Failure("no more")

    with moe.new_context(SMALL.with_abort_callback(abort)) as context, pytest.raises(Failure, match="no more"):
        for _ in range(1000):
            context.decode(moebind.Batch.get_one([1, 2, 3]))
            context.kv_cache_clear()


def test_exception_in_eval_callback_reaches_the_caller(moe: Model) -> None:
    seen: list[str] = []

    def evaluate(tensor: moebind.EvalTensor, ask: bool) -> bool:
        if ask:
            return tensor.name.startswith("l_out")
        seen.append(tensor.name)
        if len(seen) == 3:
            raise Failure("seen enough")
        return True

    with moe.new_context(SMALL.with_eval_callback(evaluate)) as context:
        context.decode(moebind.Batch.get_one([1, 5, 7]))
        assert seen == ["l_out-0", "l_out-1"]
        with pytest.raises(Failure, match="seen enough"):
            context.decode(moebind.Batch.get_one([9]))


def test_exception_in_logging_reaches_the_caller(tiny_path: object, tmp_path: object) -> None:
    import logging

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise Failure(record.getMessage())

    handler = Broken()
    logger = logging.getLogger("moebind.llama")
    logger.addHandler(handler)
    try:
        moebind.set_log("debug")
        with pytest.raises(Failure, match="llama"):
            Model.load_from_file(tiny_path(n_expert=4), CPU)  # type: ignore[operator]
    finally:
        logger.removeHandler(handler)
        moebind.set_log()


def test_a_callback_may_use_other_objects(moe: Model, dense: Model) -> None:
    other = dense.new_context(SMALL)

    def evaluate(tensor: object, ask: bool) -> bool:
        if ask:
            other.decode(moebind.Batch.get_one([3]))
            other.kv_cache_clear()
            with pytest.raises(NativeError):
                lib.ggml_backend_dev_get(10**6)
        return False

    with other, moe.new_context(SMALL.with_eval_callback(evaluate)) as context:
        context.decode(moebind.Batch.get_one([1, 5, 7]))
        assert context.get_logits_ith(-1).shape == (moe.n_vocab,)


def test_a_callback_must_not_use_its_own_context(moe: Model) -> None:
    contexts: list[Context] = []

    def evaluate(tensor: object, ask: bool) -> bool:
        contexts[0].kv_cache_clear()
        return False

    with moe.new_context(SMALL.with_eval_callback(evaluate)) as context:
        contexts.append(context)
        with pytest.raises(RuntimeError, match="callback must not call it"):
            context.decode(moebind.Batch.get_one([1]))
        contexts.clear()
