"""``ProjectorBase``: what bitmaps and chunks may ask of the projector that they are given."""

from __future__ import annotations

from moebind._core.native import decoded, lib
from moebind._core.owner import Owner

__all__ = ["ProjectorBase"]


class ProjectorBase(Owner):
    """A loaded projector, as bitmaps and chunks know it. :class:`moebind.mtmd.MtmdContext` is one."""

    _warn_unclosed = True
    _elsewhere = "load it there again"

    @property
    def marker(self) -> str:
        """The text that stands for a picture or sound in :meth:`tokenize` (``mtmd_get_marker``)."""
        return decoded(lib.mtmd_get_marker(self._open()))

    @property
    def support_vision(self) -> bool:
        """Whether it takes pictures (``mtmd_support_vision``)."""
        return bool(lib.mtmd_support_vision(self._open()))

    @property
    def support_audio(self) -> bool:
        """Whether it takes sound (``mtmd_support_audio``)."""
        return bool(lib.mtmd_support_audio(self._open()))

    @property
    def audio_sample_rate(self) -> int | None:
        """Samples a second that sound has to have; None if it takes none (``mtmd_get_audio_sample_rate``)."""
        rate = int(lib.mtmd_get_audio_sample_rate(self._open()))
        return rate if rate > 0 else None

    @property
    def decode_use_mrope(self) -> bool:
        """Whether the model's positions have several dimensions, M-RoPE (``mtmd_decode_use_mrope``)."""
        return bool(lib.mtmd_decode_use_mrope(self._open()))
