"""The one door to native code.

``lib`` holds every function and constant of llama.h, ggml-backend.h, gguf.h, ggml-rpc.h, ggml-cpu.h and ggml.h (graph
building left out), ``ffi`` is cffi's companion to it. Every call through ``lib`` is guarded: a C++ exception or
a failed assertion inside llama.cpp is raised as :class:`moebind.NativeError`, by the extension itself
(``native/core/guard.h``), so that no caller can forget to look.

Callbacks go the other way: libllama calls C++, which calls a function below, which calls the user's. When the user's
function raises, :func:`_keep_exception` hands the exception to C++, which keeps it, and the callback returns what makes
libllama stop; the native call that the user made then raises that very exception when it returns. A callback that runs
in a thread of llama.cpp's own has no such call above it, and its exception goes to ``sys.excepthook``.
"""

from __future__ import annotations

import atexit
import os
import sys
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from moebind._libllama import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import TypeAlias

#: Where the shared libraries are, beside the extension.
LIBRARIES = os.path.join(os.path.dirname(str(sys.modules["moebind._libllama"].__file__)), "lib")
T = TypeVar("T")
#: A pointer or struct of cffi's. It has no static type.
CData: TypeAlias = "Any"

__all__ = ["LIBRARIES", "CData", "Hooks", "decoded", "ffi", "frees_nothing", "lib", "own", "read_log", "text_from"]


def own(pointer: CData, free: Callable[[CData], object], *keep: object) -> CData:
    """Have ``free(pointer)`` called once nobody holds the result any more.

    ``keep`` lives until after that: a context keeps its model, whatever order Python collects them in.
    """

    def release(freed: CData, _keep: tuple[object, ...] = keep) -> None:
        free(freed)

    return ffi.gc(pointer, release)


def frees_nothing(pointer: CData) -> None:
    """The ``free`` of :func:`own` for a pointer into memory of another object, which the pointer only keeps alive."""


def decoded(text: CData) -> str:
    """A C string as str; bytes that are not UTF-8 are replaced, since they come from files."""
    return bytes(ffi.string(text)).decode("utf-8", "replace") if text else ""


def text_from(function: Callable[..., int], *arguments: object) -> str:
    """Call a libllama function that writes text, with a buffer that is large enough, and return the text."""
    size = 256
    while True:
        buffer = ffi.new("char[]", size)
        length = function(*arguments, buffer, size)
        if length < size:
            return bytes(ffi.buffer(buffer, max(length, 0))).decode("utf-8", "replace")
        size = length + 1


def _keep_exception(kind: type[BaseException], exception: BaseException, traceback: TracebackType) -> None:
    if not lib.moebind_keep_exception(id(exception)):
        sys.excepthook(kind, exception, traceback)


class Hooks:
    """Python callbacks of one load or one context, and what makes it stop.

    Parameters
    ----------
    progress, abort, eval
        What is called; see ``ModelParams.with_progress_callback``, ``ContextParams.with_abort_callback`` and
        ``with_eval_callback``.
    """

    def __init__(
        self,
        progress: Callable[[float], bool | None] | None = None,
        abort: Callable[[], bool] | None = None,
        eval: Callable[[CData, bool], bool] | None = None,
    ) -> None:
        self.progress = progress
        self.abort = abort
        self.eval = eval
        #: Whether the progress callback ended the load.
        self.stopped = False
        called = (lib.MOEBIND_HOOK_PROGRESS if progress else 0) | (lib.MOEBIND_HOOK_ABORT if abort else 0)
        called |= lib.MOEBIND_HOOK_EVAL if eval else 0
        self._handle = ffi.new_handle(self)
        self.pointer = own(lib.moebind_hooks_new(called, self._handle), lib.moebind_hooks_free, self._handle)


def _callback(error: bool | None) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Define one of native/bind/callbacks.h; ``error`` is what it returns when it raises."""
    decorator: Callable[[Callable[..., T]], Callable[..., T]] = ffi.def_extern(error=error, onerror=_keep_exception)
    return decorator


@_callback(error=False)
def moebind_on_progress(fraction: float, handle: CData) -> bool:
    hooks = ffi.from_handle(handle)
    hooks.stopped = hooks.progress(fraction) is False
    return not hooks.stopped


@_callback(error=True)
def moebind_on_abort(handle: CData) -> bool:
    return bool(ffi.from_handle(handle).abort())


@_callback(error=False)
def moebind_on_eval(tensor: CData, ask: bool, handle: CData) -> bool:
    return bool(ffi.from_handle(handle).eval(tensor, ask))


def _discard(level: int, line: str) -> None:
    """Drop a line of llama.cpp's log."""


_log_reader: Callable[[int, str], object] = _discard


def read_log(reader: Callable[[int, str], object]) -> None:
    """Have ``reader(level, line)`` called for each line of llama.cpp's log, beginning with warnings."""
    global _log_reader
    _log_reader = reader
    lib.moebind_log_start(lib.GGML_LOG_LEVEL_WARN)


@_callback(error=None)
def moebind_on_log(level: int, text: CData) -> None:
    _log_reader(level, decoded(text))


@_callback(error=False)
def moebind_on_sampler_apply(candidates: CData, handle: CData) -> bool:
    ffi.from_handle(handle).apply(candidates)
    return True


@_callback(error=False)
def moebind_on_sampler_accept(token: int, handle: CData) -> bool:
    ffi.from_handle(handle).accept(token)
    return True


@_callback(error=False)
def moebind_on_sampler_reset(handle: CData) -> bool:
    ffi.from_handle(handle).reset()
    return True


@_callback(error=False)
def moebind_on_sampler_clone(handle: CData, object: CData, copy: CData) -> bool:
    clone = ffi.from_handle(handle).clone()
    lib.moebind_reference(id(clone))
    object[0], copy[0] = id(clone), clone.handle
    return True


lib.moebind_setup()
# Threads that compute may outlive the interpreter.
atexit.register(lib.moebind_end)
atexit.register(lib.moebind_log_start, lib.GGML_LOG_LEVEL_NONE)
