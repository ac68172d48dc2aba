"""Native memory and its owners, texts out of C, and callbacks into Python."""

from __future__ import annotations

import gc
import weakref

import pytest

from moebind import ffi, lib
from moebind._core.native import CData, Hooks, decoded, keeping, own, part_of, text_from


@pytest.fixture(autouse=True)
def _nothing_of_earlier_tests() -> None:
    gc.collect()


def test_memory_is_freed_once_nobody_holds_it() -> None:
    before = lib.moebind_owned_alive()
    held = own(lib.own_llama_sampler_init_greedy)
    also = held
    assert lib.moebind_owned_alive() == before + 1
    del held
    gc.collect()
    assert ffi.string(lib.llama_sampler_name(also)) == b"greedy"
    del also
    gc.collect()
    assert lib.moebind_owned_alive() == before


def test_what_is_held_is_freed_later_than_what_holds_it() -> None:
    before = lib.moebind_owned_alive()
    needed = own(lib.own_llama_sampler_init_greedy)
    holder = own(lib.own_llama_sampler_init_greedy, holds=[needed])
    del needed
    gc.collect()
    assert lib.moebind_owned_alive() == before + 2
    del holder
    gc.collect()
    assert lib.moebind_owned_alive() == before


def test_a_pointer_to_a_part_keeps_its_owner() -> None:
    before = lib.moebind_owned_alive()
    owner = own(lib.own_llama_sampler_init_greedy)
    part = part_of(owner, owner)
    del owner
    gc.collect()
    assert ffi.string(lib.llama_sampler_name(part)) == b"greedy"
    del part
    gc.collect()
    assert lib.moebind_owned_alive() == before


def test_arrays_keep_what_their_memory_belongs_to() -> None:
    class Kept:
        pass

    kept = Kept()
    alive = weakref.ref(kept)
    memory = keeping(ffi.new("int *"), kept)
    del kept
    gc.collect()
    assert alive() is not None
    del memory
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
