"""Metadata overrides: values that take the place of those in a model's file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

from moebind._core import checks
from moebind._core.native import CData, ffi, lib
from moebind._core.shown import shown

__all__ = ["KvOverrides", "KvValue", "native_kv_overrides"]

KvValue: TypeAlias = "bool | int | float | str"

#: Bytes of a key or string in ``llama_model_kv_override``, whose last one is for the NUL.
KV_TEXT_MAX = len(ffi.new("struct llama_model_kv_override *").val_str) - 1


class KvOverrides(Mapping[str, KvValue]):
    """Metadata overrides: an immutable mapping from key to bool, int, float or str."""

    def __init__(self, items: Mapping[str, KvValue] | Iterable[tuple[str, KvValue]] = ()) -> None:
        self._items = dict(items)
        for key, value in self._items.items():
            encoded = [checks.text("the key of a kv override", key)]
            if isinstance(value, str):
                encoded.append(checks.text(f"the kv override {shown(key)}", value))
            elif isinstance(value, bool):
                pass
            elif isinstance(value, int):
                checks.integer(f"the kv override {shown(key)}", value, -(2**63), 2**63 - 1)
            else:
                checks.number(f"the kv override {shown(key)}", value)
            if not key or max(map(len, encoded)) > KV_TEXT_MAX:
                raise ValueError(f"the kv override {shown(key)} is empty or too long: {KV_TEXT_MAX} bytes are taken")

    def __getitem__(self, key: str) -> KvValue:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(tuple((key, type(value), value) for key, value in self._items.items()))

    def __eq__(self, other: object) -> bool:
        # True == 1 == 1.0, but they override differently.
        return isinstance(other, Mapping) and self._typed(self) == self._typed(other)

    @staticmethod
    def _typed(items: Mapping[str, KvValue]) -> dict[str, tuple[type, KvValue]]:
        return {key: (type(value), value) for key, value in items.items()}

    def __repr__(self) -> str:
        return repr(self._items)


def native_kv_overrides(overrides: KvOverrides) -> CData:
    """An array of ``llama_model_kv_override``, with the empty key that ends it."""
    entries = ffi.new("struct llama_model_kv_override[]", len(overrides) + 1)
    for entry, (key, value) in zip(entries, overrides.items(), strict=False):
        entry.key = key.encode()
        if isinstance(value, bool):
            entry.tag, entry.val_bool = lib.LLAMA_KV_OVERRIDE_TYPE_BOOL, value
        elif isinstance(value, int):
            entry.tag, entry.val_i64 = lib.LLAMA_KV_OVERRIDE_TYPE_INT, value
        elif isinstance(value, float):
            entry.tag, entry.val_f64 = lib.LLAMA_KV_OVERRIDE_TYPE_FLOAT, value
        else:
            entry.tag, entry.val_str = lib.LLAMA_KV_OVERRIDE_TYPE_STR, value.encode()
    return entries
