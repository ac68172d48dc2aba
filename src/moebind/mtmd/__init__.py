"""Images and sound for models that see and hear: llama.cpp's libmtmd."""

from __future__ import annotations

from moebind.errors import MtmdError
from moebind.mtmd.bitmap import Bitmap
from moebind.mtmd.chunks import InputChunk, InputChunks, InputChunkType
from moebind.mtmd.projector import MtmdContext, MtmdContextParams, default_marker

__all__ = [
    "Bitmap",
    "InputChunk",
    "InputChunkType",
    "InputChunks",
    "MtmdContext",
    "MtmdContextParams",
    "MtmdError",
    "default_marker",
]
