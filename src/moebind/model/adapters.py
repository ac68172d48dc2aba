"""LoRA adapters: loaded for a model, used by its contexts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from moebind._core import log
from moebind._core.native import ffi, lib, own, text_from
from moebind._core.owner import Owner
from moebind.backend import rpc_servers
from moebind.errors import LoraError, NativeError
from moebind.files import lora_file

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moebind.model.model import Model

__all__ = ["LoraAdapter"]


class LoraAdapter(Owner):
    """A LoRA adapter, made by :meth:`Model.lora_adapter_init` and used by :meth:`Context.set_lora_adapters`.

    It keeps its model in memory, and closing the model closes it. A context that uses it keeps the adapter's memory,
    even after the adapter is closed. It is freed by ``llama_adapter_lora_free``.

    Examples
    --------
    >>> with model.lora_adapter_init("adapter.gguf") as adapter:
    ...     context.set_lora_adapters({adapter: 0.5})
    """

    def __init__(self, *_arguments: object, **_keywords: object) -> None:
        raise TypeError("adapters are made by Model.lora_adapter_init(path)")

    @classmethod
    @log.quoted()
    def _load(cls, model: Model, path: str) -> LoraAdapter:
        native = model._open()
        if model._without_weights:
            raise LoraError("the model was loaded without weights (vocab_only, no_alloc): there is nothing to adapt")
        lora_file.check(path, model)
        try:
            with rpc_servers.watched(model._servers):
                pointer = own(lib.own_moebind_adapter_load, native, os.fsencode(path), holds=[native])
        except NativeError as error:
            raise LoraError(f"{path} could not be loaded: {error.message}") from error
        if not pointer:
            raise LoraError(f"{path} could not be loaded{log.recent_lines(3)}")
        adapter = cls.__new__(cls)
        adapter._pointer, adapter._model, adapter._path, adapter._meta = pointer, model, path, None
        model._add_child(adapter)
        return adapter

    _model: Model
    _path: str
    _meta: Mapping[str, str] | None

    def __repr__(self) -> str:
        return "<LoraAdapter, closed>" if self.closed else f"<LoraAdapter {os.path.basename(self._path)}>"

    @property
    def model(self) -> Model:
        """The model that it changes."""
        return self._model

    @property
    def path(self) -> str:
        """The file that it was loaded from."""
        return self._path

    @property
    def meta(self) -> Mapping[str, str]:
        """The metadata of the file, as text, without arrays.

        Uses ``llama_adapter_meta_count``, ``llama_adapter_meta_key_by_index`` and
        ``llama_adapter_meta_val_str_by_index``.
        """
        pointer = self._open()
        if self._meta is None:
            count = range(lib.llama_adapter_meta_count(pointer))
            keys = [text_from(lib.llama_adapter_meta_key_by_index, pointer, at) for at in count]
            values = [text_from(lib.llama_adapter_meta_val_str_by_index, pointer, at) for at in count]
            self._meta = MappingProxyType(dict(sorted(zip(keys, values, strict=True))))
        return self._meta

    @property
    def alora_invocation_tokens(self) -> NDArray[np.int32]:
        """The tokens that an activated LoRA waits for; empty for others.

        Returns
        -------
        numpy.ndarray
            int32, ``(n_tokens,)``, a copy. The caller sets the adapter from the place in the prompt where they occur.

        Notes
        -----
        Uses ``llama_adapter_get_alora_n_invocation_tokens`` and ``llama_adapter_get_alora_invocation_tokens``.
        """
        pointer = self._open()
        count = int(lib.llama_adapter_get_alora_n_invocation_tokens(pointer))
        if not count:
            return np.empty(0, np.int32)
        memory = ffi.buffer(lib.llama_adapter_get_alora_invocation_tokens(pointer), 4 * count)
        tokens: NDArray[np.int32] = np.frombuffer(memory, np.int32).copy()
        return tokens
