"""llama.cpp's log, through Python's ``logging``."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from moebind._core.fork import held_during_fork
from moebind._core.native import ffi, lib, read_log
from moebind._core.shown import shown

__all__ = ["logger", "quietly", "quoted", "recent", "recent_lines", "set_log"]

#: Where llama.cpp's lines go.
logger = logging.getLogger("moebind.llama")

_LEVELS = {
    lib.GGML_LOG_LEVEL_DEBUG: logging.DEBUG,
    lib.GGML_LOG_LEVEL_INFO: logging.INFO,
    lib.GGML_LOG_LEVEL_WARN: logging.WARNING,
    lib.GGML_LOG_LEVEL_ERROR: logging.ERROR,
}

#: Warnings of llama.cpp's that help nobody: moebind does it on purpose, or raises an exception that says more.
_DEMOTED = (
    "tensor overrides to CPU are used with mmap enabled",  # experts in host memory; docs/offload.md weighs the choice
    "model default pooling_type is [-1]",  # the file names none, and embed() takes MEAN
    "embeddings required but some input tokens were not marked as outputs",  # contexts that compute them give all
    "applying manual override",  # the type that quantize() was told to give the tensor
    " (required for type ",  # of each tensor that quantize() gives another type; the last line counts them
    "-> falling back to ",
    "failed to find a memory slot",  # NoKvSlotError, which generate_many() answers by itself
)

#: Lines of llama.cpp's that say what is not so, or too little, and what they mean. It says "down", but what it rounds
#: goes up.
_CORRECTED = (
    (
        "n_ctx is not divisible by n_seq_max - rounding down to",
        "n_ctx is rounded up, so that each sequence has a multiple of 256 tokens, to",
    ),
    (
        "tensor(s) required fallback quantization",
        "tensors have rows whose length is no multiple of their type's block, and got another type; "
        "moebind.set_log('info') tells which",
    ),
)

#: Held while a line goes to its handlers. Standard error has a lock inside, as every buffered file of Python's has,
#: which stays locked in a child if a thread was writing at the time of the fork. A handler may wait for the thread that
#: forks, so the fork does not wait for ever.
_emit_lock = held_during_fork(threading.RLock(), at_most=1)


def emit(level: int, line: str) -> None:
    """Log one line of llama.cpp's."""
    number = _LEVELS.get(level, logging.INFO)
    if number == logging.WARNING and any(text in line for text in _DEMOTED):
        number = logging.INFO
    with _emit_lock:
        logger.log(number, "%s", _corrected(line))


read_log(emit)


def _corrected(text: str) -> str:
    for wrong, right in _CORRECTED:
        text = text.replace(wrong, right)
    return text


@contextmanager
def quietly() -> Iterator[None]:
    """Show nothing of what this thread logs: warnings of what is done on purpose. Recent lines are kept."""
    lib.moebind_log_quiet(True)
    try:
        yield
    finally:
        lib.moebind_log_quiet(False)


@contextmanager
def quoted() -> Iterator[None]:
    """Begin the recent lines anew, and log errors as mere information if an exception leaves that quotes them."""
    lib.moebind_log_forget()
    lib.moebind_log_hold()
    level = lib.GGML_LOG_LEVEL_INFO
    try:
        yield
        level = lib.GGML_LOG_LEVEL_ERROR
    finally:
        lib.moebind_log_release(level)


def set_log(level: str | int | None = "warning") -> None:
    """Choose how much of llama.cpp's log is shown.

    Lines go to the logger ``moebind.llama``. If ``logging`` is not configured, Python prints warnings and errors to
    standard error. Lines below ``level`` cost nothing.

    Parameters
    ----------
    level
        ``"debug"``, ``"info"``, ``"warning"`` (the default), ``"error"``, one of ``logging``'s numbers, or None for
        silence.

    Raises
    ------
    ValueError
        If ``level`` is another word.

    Notes
    -----
    Uses ``llama_log_set``.

    Examples
    --------
    >>> moebind.set_log("error")
    >>> moebind.set_log()
    """
    if level is None:
        lib.moebind_log_start(lib.GGML_LOG_LEVEL_NONE)
        return
    if isinstance(level, str):
        names = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
        if level.lower() not in names:
            raise ValueError(
                f"level is {shown(level)}; it takes one of {', '.join(names)}, a number of logging's, or None"
            )
        level = names[level.lower()]
    elif isinstance(level, bool) or not isinstance(level, int):
        raise TypeError(f"level is {shown(level)}; it takes a word, a number of logging's, or None")
    passed = [native for native, number in _LEVELS.items() if number >= level]
    lib.moebind_log_start(passed[0] if passed else lib.GGML_LOG_LEVEL_NONE)
    # Otherwise the root logger's level, WARNING, would hide what was just asked for.
    logger.setLevel(level)
    if level < logging.WARNING and not logger.hasHandlers():
        logging.basicConfig()


def recent() -> list[str]:
    """The last lines that llama.cpp logged in this thread since ``moebind_log_forget``."""
    buffer = ffi.new("char[]", 16384)
    lib.moebind_log_recent(buffer, len(buffer))
    return _corrected(bytes(ffi.string(buffer)).decode("utf-8", "replace")).splitlines()


def recent_lines(n: int = 6) -> str:
    """The last of :func:`recent`, to be put at the end of an error message that has no full stop."""
    lines = "".join(f"\n  llama.cpp: {line}" for line in recent()[-n:])
    return f":{lines}" if lines else ""
