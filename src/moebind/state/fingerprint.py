"""The fingerprint of a model, which stays the same wherever its files and tensors are."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from moebind._core import atomic_files
from moebind._core.native import decoded, lib
from moebind.errors import ModelLoadError, StateError
from moebind.files import gguf

if TYPE_CHECKING:
    from moebind._core.model_base import ModelBase

__all__ = ["fingerprint"]

#: Of each tensor, so many bytes are read at so many places.
SAMPLE, PLACES = 128, 3


def fingerprint(model: ModelBase) -> bytes:
    """Sixteen bytes that tell the model from others: also from those of equal shape.

    They are made of its architecture's metadata, overrides of metadata, and of each tensor the name, type, size and a
    few bytes of its weights: splitting a file or placing tensors elsewhere changes nothing. Weights are read from the
    file, since a device may hold them in another order.

    Raises
    ------
    StateError
        If the file is gone, or was changed since the model was loaded.
    """
    if model._fingerprint is None:
        try:
            if any(atomic_files.signature(path) != then for path, then in model._files.items()):
                raise StateError(
                    f"{model.path} was changed since the model was loaded, so that nothing tells which model a state "
                    "belongs to: load the model again"
                )
            model._fingerprint = _read(model)
        except (OSError, ModelLoadError) as error:
            raise StateError(
                f"{model.path} cannot be read any more, so that nothing tells which model a state belongs to: {error}"
            ) from error
    return model._fingerprint


def _read(model: ModelBase) -> bytes:
    samples: dict[bytes, bytes] = {}
    for path in model._files:
        header = gguf.open_header(path)
        start = lib.gguf_get_data_offset(header)
        with open(path, "rb", buffering=0) as file:
            for index in range(lib.gguf_get_n_tensors(header)):
                size = lib.gguf_get_tensor_size(header, index)
                begin = start + lib.gguf_get_tensor_offset(header, index)
                shape = lib.gguf_get_tensor_ne(header, index)
                name, kind = decoded(lib.gguf_get_tensor_name(header, index)), lib.gguf_get_tensor_type(header, index)
                tensor = repr((name, kind, [shape[i] for i in range(4)]))
                read = [
                    os.pread(file.fileno(), SAMPLE, begin + max(0, size * (place + 1) // (PLACES + 1) - SAMPLE // 2))
                    for place in range(PLACES)
                ]
                samples[tensor.encode()] = b"".join(read)
    import hashlib  # rarely needed, and slow to import

    digest = hashlib.blake2b(digest_size=16)
    architecture = model._architecture
    known = {key: value for key, value in model.meta.items() if key.startswith(architecture + ".")}
    digest.update(repr((architecture, sorted(known.items()), sorted(model._meta_overrides.items()))).encode())
    for key in sorted(samples):
        digest.update(key + b"\0" + samples[key])
    return digest.digest()
