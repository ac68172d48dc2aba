"""Native memory and its owners, texts out of C, and callbacks into Python."""

from __future__ import annotations

import gc
import weakref

import pytest

from moebind import ffi
from moebind._core.native import CData, Hooks, decoded, frees_nothing, own, text_from


class Kept:
    """What another object needs."""


def test_memory_is_freed_once_nobody_holds_it() -> None:
    freed: list[CData] = []
    kept = Kept()
    alive = weakref.ref(kept)
    pointer = ffi.new("int *")

    def free(given: CData) -> None:
        assert alive() is not None, "what it needs went first"
        freed.append(given)

    held = own(pointer, free, kept)
    also = held
    del kept, held
    gc.collect()
    assert alive() is not None
    assert freed == []
    del also
    gc.collect()
    assert freed == [pointer]
    assert alive() is None


def test_a_pointer_into_anothers_memory_only_keeps_it() -> None:
    kept = Kept()
    alive = weakref.ref(kept)
    inside = own(ffi.new("int *"), frees_nothing, kept)
    del kept
    gc.collect()
    assert alive() is not None
    del inside
    gc.collect()
    assert alive() is None


def test_texts_of_c() -> None:
    assert decoded(ffi.NULL) == ""
    assert decoded(ffi.new("char[]", "grün".encode())) == "grün"
    assert decoded(ffi.new("char[]", b"a\xffb")) == "a\ufffdb"


@pytest.mark.parametrize("length", [0, 1, 255, 256, 257, 100_000])
def test_texts_of_any_length(length: int) -> None:
    sizes: list[int] = []

    def write(what: str, buffer: CData, size: int) -> int:
        sizes.append(size)
        text = (what * length).encode()
        buffer[0 : min(len(text), size - 1)] = text[: size - 1]
        return len(text)

    assert text_from(write, "x") == "x" * length
    assert len(sizes) == (1 if length < 256 else 2)


def test_a_text_that_is_not_there_is_empty() -> None:
    assert text_from(lambda buffer, size: -1) == ""


def test_hooks_keep_what_is_called() -> None:
    def progress(fraction: float) -> bool:
        return fraction < 1

    alive = weakref.ref(progress)
    hooks = Hooks(progress=progress)
    assert not hooks.stopped
    del progress
    gc.collect()
    assert alive() is not None
    assert Hooks().pointer
    del hooks
    gc.collect()
    assert alive() is None
