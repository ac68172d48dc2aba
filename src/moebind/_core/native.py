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
import threading
import weakref
from operator import is_
from types import MethodType
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, TypeVar

import moebind._core.interpreter  # noqa: F401  # before numpy: another interpreter is refused

# isort: split
import numpy as np

from moebind._libllama import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType
    from typing import TypeAlias

#: Where the shared libraries are, beside the extension.
LIBRARIES = os.path.join(os.path.dirname(str(sys.modules["moebind._libllama"].__file__)), "lib")
T = TypeVar("T")
#: A pointer or struct of cffi's. It has no static type.
CData: TypeAlias = "Any"

__all__ = [
    "LIBRARIES",
    "CData",
    "Clones",
    "Hooks",
    "clones",
    "decoded",
    "ffi",
    "keeping",
    "lib",
    "llama_cpp_version",
    "own",
    "read_log",
    "text_from",
]


def own(make: Callable[..., CData], *arguments: object, holds: Iterable[CData] = ()) -> CData:
    """Have something made that is freed once nobody holds it any more, nor what holds it in turn.

    Parameters
    ----------
    make
        One of the ``lib.own_...``, of which there is one for each function that makes something
        (``native/bind/guards.py``). Their results are owned before they return, whatever a signal handler raises then.
    arguments
        Those of the function itself.
    holds
        Owned pointers to what it points to and uses until it is freed, such as the model of a context. They are held by
        ``native/core/owned.cpp``, so that Python may collect its objects in any order.
    """
    owned = ffi.gc(ffi.new("struct moebind_owned **"), lib.moebind_owned_release)
    for each in holds:
        lib.moebind_owned_holds(owned, each)
    pointer = make(owned, *arguments)
    return part_of(owned, pointer) if pointer else pointer


def part_of(owner: CData, pointer: CData) -> CData:
    """A pointer to what an owner has, or to a part of it, which keeps the owner.

    The garbage collector finalizes the objects of a cycle in any order, cffi's included, and finalizers that are yet to
    run may still use the pointer. So the collector must not get at the owner: it does not see what an array of numpy's
    holds. An owner must therefore hold nothing that could refer to the pointer.
    """
    memory = np.frombuffer(ffi.buffer(keeping(pointer, owner), 1), np.uint8)
    return ffi.from_buffer(ffi.typeof(pointer), memory)


def keeping(pointer: CData, *kept: object) -> CData:
    """Where a pointer points to, as ``char *`` that keeps these objects: for arrays, whose memory is then theirs.

    The destructor does nothing, and is of a type from which the garbage collector takes nothing away: a function's
    defaults would be cleared.
    """
    return ffi.gc(ffi.cast("char *", pointer), MethodType(is_, kept))


def decoded(text: CData) -> str:
    """A C string as str; bytes that are not UTF-8 are replaced, since they come from files."""
    return bytes(ffi.string(text)).decode("utf-8", "replace") if text else ""


#: The version of the llama.cpp inside (``llama_version``).
llama_cpp_version = decoded(lib.llama_version())


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
        handle = handle_of(self)
        #: What a context holds natively. It may outlive this object, and then calls nobody.
        self.pointer = own(
            lib.own_moebind_hooks_new, called, handle, holds=[own(lib.own_moebind_reference, id(handle))]
        )


def handle_of(called: object) -> CData:
    """The handle of an object that C++ has called.

    It does not keep the object, which may refer to what is called for: only Python's own references do, and the
    collector sees those. The C++ side keeps the handle, by a reference to it.
    """
    return ffi.new_handle(weakref.ref(called))


def _gone() -> NoReturn:
    raise ReferenceError("the function to be called is no longer there: keep the object that it was given to")


def _callback(error: bool | None) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Define one of native/bind/callbacks.h; ``error`` is what it returns when it raises."""
    decorator: Callable[[Callable[..., T]], Callable[..., T]] = ffi.def_extern(error=error, onerror=_keep_exception)
    return decorator


@_callback(error=False)
def moebind_on_progress(fraction: float, handle: CData) -> bool:
    hooks = ffi.from_handle(handle)() or _gone()
    hooks.stopped = hooks.progress(fraction) is False
    return not hooks.stopped


@_callback(error=True)
def moebind_on_abort(handle: CData) -> bool:
    return bool((ffi.from_handle(handle)() or _gone()).abort())


@_callback(error=False)
def moebind_on_eval(tensor: CData, ask: bool, handle: CData) -> bool:
    return bool((ffi.from_handle(handle)() or _gone()).eval(tensor, ask))


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
    (ffi.from_handle(handle)() or _gone()).apply(candidates)
    return True


@_callback(error=False)
def moebind_on_sampler_accept(token: int, handle: CData) -> bool:
    (ffi.from_handle(handle)() or _gone()).accept(token)
    return True


@_callback(error=False)
def moebind_on_sampler_reset(handle: CData) -> bool:
    (ffi.from_handle(handle)() or _gone()).reset()
    return True


class Clones(threading.local):
    """Copies of samplers in Python that this thread is making, for whoever keeps them."""

    kept: list[object] | None = None


clones = Clones()


@_callback(error=False)
def moebind_on_sampler_clone(handle: CData, object: CData, copy: CData) -> bool:
    clone = (ffi.from_handle(handle)() or _gone()).clone()
    if clones.kept is None:  # llama_sampler_clone, called by somebody else: nobody but the native sampler keeps it
        made = ffi.new_handle(lambda: clone)
    else:
        clones.kept.append(clone)
        made = clone.handle
    lib.moebind_reference(id(made))
    object[0], copy[0] = id(made), made
    return True


lib.moebind_setup()
# Threads that compute may outlive the interpreter.
atexit.register(lib.moebind_end)
atexit.register(lib.moebind_log_start, lib.GGML_LOG_LEVEL_NONE)
