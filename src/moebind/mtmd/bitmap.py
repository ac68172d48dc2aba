"""Bitmaps: pictures and sound, decoded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from moebind._core import checks, log
from moebind._core.native import CData, decoded, ffi, keeping, lib, own
from moebind._core.owner import CallLock, Owner
from moebind._core.shown import shown
from moebind.errors import MtmdError
from moebind.mtmd.image_formats import SIDE_MAX, image_size
from moebind.mtmd.sound_formats import sound_seconds

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Buffer

    from moebind.mtmd.projector_base import ProjectorBase

__all__ = ["Bitmap"]

#: What a file may have, unless more is asked for: 64 MiB, 67 megapixels, half an hour.
BYTES_MAX, PIXELS_MAX, SECONDS_MAX = 2**26, 2**26, 1800.0
_FORMATS = "PNG, JPEG, GIF, BMP, WAV, MP3 or FLAC"
#: Formats that are often met and cannot be decoded.
_OTHERS = (
    *((8, b"WEBP", "a WebP"), (4, b"ftyp", "an MP4, HEIC or AVIF"), (0, b"II*\0", "a TIFF"), (0, b"MM\0*", "a TIFF")),
    *((0, b"OggS", "an Ogg"), (0, b"%PDF", "a PDF"), (0, b"<svg", "an SVG"), (0, b"\x1aE\xdf\xa3", "a WebM")),
)


class Bitmap(Owner):
    """A picture of RGB pixels, or sound of float samples. Made by its class methods; freed by ``mtmd_bitmap_free``.

    Examples
    --------
    >>> picture = Bitmap.from_file("photo.jpg")
    >>> picture.data[0, 0]
    array([ 12,  40, 200], dtype=uint8)
    """

    _elsewhere = "make it there from its data"
    _digest: bytes | None = None

    def __init__(self, *_arguments: object, **_keywords: object) -> None:
        raise TypeError("a Bitmap is made by Bitmap.from_file, from_buffer, from_image_data or from_audio_data")

    @classmethod
    def _of(cls, pointer: CData) -> Bitmap:
        bitmap = cls.__new__(cls)
        bitmap._lock = CallLock()
        bitmap._pointer = pointer
        return bitmap

    _lock: CallLock

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        mtmd: ProjectorBase | None = None,
        *,
        max_bytes: int = BYTES_MAX,
        max_pixels: int = PIXELS_MAX,
        max_seconds: float = SECONDS_MAX,
    ) -> Bitmap:
        """Read a picture or sound from a file.

        Parameters
        ----------
        path
            The file: PNG, JPEG, GIF, BMP, WAV, MP3 or FLAC, whatever its name is. Addresses are not fetched.
        mtmd, max_bytes, max_pixels, max_seconds
            As for :meth:`from_buffer`.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        MtmdError
            As :meth:`from_buffer` does.
        """
        name = checks.path("path", path)
        limit = checks.integer("max_bytes", max_bytes, 1, 2**40)
        if os.path.exists(name) and not os.path.isfile(name):
            raise MtmdError(f"{name} is no file; it takes one of {_FORMATS}")
        with open(name, "rb") as file:
            data = file.read(limit + 1)
        return cls._decode(name, data, mtmd, limit, max_pixels, max_seconds)

    @classmethod
    def from_buffer(
        cls,
        data: Buffer,
        mtmd: ProjectorBase | None = None,
        *,
        max_bytes: int = BYTES_MAX,
        max_pixels: int = PIXELS_MAX,
        max_seconds: float = SECONDS_MAX,
    ) -> Bitmap:
        """Decode a picture or sound from the bytes of a file.

        Parameters
        ----------
        data
            The bytes of a PNG, JPEG, GIF, BMP, WAV, MP3 or FLAC file. Of an animation, the first picture is taken; what
            is transparent gets the colour that is stored there; a rotation in a photo's metadata is not applied.
        mtmd
            Sound needs it: it is converted to the sample rate of this projector, and one channel.
        max_bytes, max_pixels, max_seconds
            More is refused, by what the headers say and before anything is decoded: 64 MiB, 67 megapixels and half an
            hour unless you say otherwise.

        Returns
        -------
        Bitmap
            Its ``id`` is the SHA-256 of the bytes, in hexadecimal digits.

        Raises
        ------
        MtmdError
            If the data is too large, damaged, cut off, or of another format.

        Notes
        -----
        Uses ``mtmd_helper_bitmap_init_from_buf``, without its ways to start ffmpeg.
        """
        limit = checks.integer("max_bytes", max_bytes, 1, 2**40)
        return cls._decode("data", checks.octets("data", data).tobytes(), mtmd, limit, max_pixels, max_seconds)

    @classmethod
    @log.quoted()
    def _decode(
        cls,
        name: str,
        data: bytes,
        mtmd: ProjectorBase | None,
        max_bytes: int,
        max_pixels: int,
        max_seconds: float,
    ) -> Bitmap:
        pixels = checks.integer("max_pixels", max_pixels, 1, SIDE_MAX**2)
        seconds = checks.number("max_seconds", max_seconds, 0.0, 2.0**32)
        if len(data) > max_bytes:
            raise MtmdError(f"{name} has more than {max_bytes} bytes: make it smaller, or raise max_bytes")
        sizes: list[tuple[int, int]] = []

        def check(width: int, height: int) -> None:
            _check_size(name, width, height, pixels)
            sizes.append((width, height))

        kind = image_size(name, data, check)
        if kind is None:
            length = sound_seconds(name, data, seconds)
            if length is None:
                raise MtmdError(f"{name} is {_what(data)}; what is decoded is {_FORMATS}")
            if length > seconds:
                raise MtmdError(f"{name} is longer than {seconds:g} seconds: shorten it, or raise max_seconds")
            if mtmd is None or mtmd.audio_sample_rate is None:
                need = "give it the MtmdContext" if mtmd is None else f"{mtmd!r} takes none"
                raise MtmdError(f"{name} is sound, which is converted to what a projector hears: {need}")
        if kind is not None and not sizes:
            raise MtmdError(f"{name} is a {kind} that does not say how large it is")
        native = ffi.NULL if mtmd is None else mtmd._open()
        pointer = own(lib.own_moebind_bitmap_decode, native, ffi.from_buffer("unsigned char[]", data), len(data))
        if not pointer:
            raise MtmdError(f"{name} cannot be decoded: it is damaged{log.recent_lines(3)}")
        bitmap = cls._of(pointer)
        if kind is None:
            bitmap._check_sound(name)
        elif (bitmap.nx, bitmap.ny) != sizes[-1]:
            raise MtmdError(f"{name} says that it has {sizes[-1]} pixels, and has {(bitmap.nx, bitmap.ny)}")
        return bitmap

    @classmethod
    def from_image_data(cls, data: NDArray[np.uint8]) -> Bitmap:
        """A picture of pixels (``mtmd_bitmap_init``).

        Parameters
        ----------
        data
            uint8, ``(height, width, 3)``: red, green and blue. Copied.

        Raises
        ------
        TypeError, ValueError
            If the array is of another type or shape, or has no pixels.
        """
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8:
            kind = f"an array of {data.dtype}" if isinstance(data, np.ndarray) else shown(data)
            raise TypeError(f"data is {kind}; it takes an array of uint8, such as np.asarray(image.convert('RGB'))")
        if data.ndim != 3 or data.shape[2] != 3:
            more = ": leave out its transparency, data[..., :3]" if data.ndim == 3 and data.shape[2] == 4 else ""
            raise ValueError(f"data has the shape {data.shape}; it takes (height, width, 3){more}")
        height, width, _ = data.shape
        _check_size("data", width, height, SIDE_MAX**2)
        pixels = np.ascontiguousarray(data)
        pointer = own(lib.own_mtmd_bitmap_init, width, height, ffi.from_buffer("unsigned char[]", pixels))
        return cls._of(pointer)

    @classmethod
    def from_audio_data(cls, data: NDArray[np.float32]) -> Bitmap:
        """Sound of samples (``mtmd_bitmap_init_from_audio``).

        Parameters
        ----------
        data
            float32, ``(n_samples,)``, between -1 and 1, at ``MtmdContext.audio_sample_rate``. Copied.

        Raises
        ------
        TypeError, ValueError
            If the array is of another type or shape, has fewer than two samples, or one that is not finite.
        """
        if not isinstance(data, np.ndarray) or data.dtype != np.float32:
            kind = f"an array of {data.dtype}" if isinstance(data, np.ndarray) else shown(data)
            raise TypeError(f"data is {kind}; it takes an array of float32, between -1 and 1")
        if data.ndim != 1:
            raise ValueError(
                f"data has the shape {data.shape}; it takes (n_samples,): one channel, data.mean(axis=...)"
            )
        if not 2 <= data.size < 2**31:
            raise ValueError(f"data has {data.size} samples; it takes 2 or more")
        samples = np.ascontiguousarray(data)
        pointer = own(lib.own_mtmd_bitmap_init_from_audio, samples.size, ffi.from_buffer("float[]", samples))
        bitmap = cls._of(pointer)
        bitmap._check_sound("data")
        return bitmap

    def _check_sound(self, name: str) -> None:
        samples = self.data
        if samples.size < 2:
            raise MtmdError(f"{name} has {samples.size} samples; sound has 2 or more")
        if not np.isfinite(samples).all():
            at = int(np.argmin(np.isfinite(samples)))
            raise ValueError(f"{name} has the sample {samples[at]} at {at}; it takes finite numbers")

    def __repr__(self) -> str:
        if self.closed:
            return "<Bitmap, closed>"
        return f"<Bitmap of {self.nx} samples>" if self.is_audio else f"<Bitmap of {self.nx} x {self.ny} pixels>"

    @property
    def nx(self) -> int:
        """Its width in pixels, or how many samples it has (``mtmd_bitmap_get_nx``)."""
        return int(lib.mtmd_bitmap_get_nx(self._open()))

    @property
    def ny(self) -> int:
        """Its height in pixels; 1 for sound (``mtmd_bitmap_get_ny``)."""
        return int(lib.mtmd_bitmap_get_ny(self._open()))

    @property
    def is_audio(self) -> bool:
        """Whether it is sound (``mtmd_bitmap_is_audio``)."""
        return bool(lib.mtmd_bitmap_is_audio(self._open()))

    @property
    def data(self) -> NDArray[np.uint8] | NDArray[np.float32]:
        """Its pixels or samples.

        Returns
        -------
        numpy.ndarray
            uint8, ``(height, width, 3)``, or of sound float32, ``(n_samples,)``: a read-only view without a copy, which
            keeps the memory.

        Notes
        -----
        Uses ``mtmd_bitmap_get_data`` and ``mtmd_bitmap_get_n_bytes``.
        """
        pointer = self._open()
        size = lib.mtmd_bitmap_get_n_bytes(pointer)
        raw = lib.mtmd_bitmap_get_data(pointer)
        memory = ffi.buffer(keeping(raw, pointer), size) if size else b""
        view: NDArray[np.uint8] | NDArray[np.float32]
        if self.is_audio:
            view = np.frombuffer(memory, np.float32)
        else:
            view = np.frombuffer(memory, np.uint8).reshape(self.ny, self.nx, 3)
        view.flags.writeable = False
        return view

    @property
    def id(self) -> str:
        """A name of its content, which the chunks made of it have too; settable.

        Of a file, the SHA-256 of its bytes; else empty. Reuse of a prefix does not rely on it: it looks at the content.
        Uses ``mtmd_bitmap_get_id`` and ``mtmd_bitmap_set_id``.
        """
        with self._lock.held():
            return decoded(lib.mtmd_bitmap_get_id(self._open()))

    @id.setter  # noqa: A003  # the property
    def id(self, value: str) -> None:
        text = checks.text("id", value)
        with self._lock.held():
            lib.mtmd_bitmap_set_id(self._open(), text)

    @contextmanager
    def _called(self, name: str) -> Iterator[None]:
        """Give it another id meanwhile."""
        with self._lock.held():
            pointer = self._open()
            before = bytes(ffi.string(lib.mtmd_bitmap_get_id(pointer)))
            lib.mtmd_bitmap_set_id(pointer, name.encode())
            try:
                yield
            finally:
                lib.mtmd_bitmap_set_id(pointer, before)

    def _content(self) -> bytes:
        """What tells its content from any other."""
        if self._digest is None:
            import hashlib  # rarely needed, and slow to import

            data = self.data
            digest = hashlib.sha256(f"{data.shape}{data.dtype}".encode())
            if data.size:
                digest.update(data.reshape(-1).view(np.uint8).data)
            self._digest = digest.digest()
        return self._digest


def _check_size(name: str, width: int, height: int, pixels: int) -> None:
    if width < 1 or height < 1:
        raise MtmdError(f"{name} has {width} times {height} pixels; it takes at least one")
    if width > SIDE_MAX or height > SIDE_MAX:
        raise MtmdError(f"{name} has {width} times {height} pixels; a side takes at most {SIDE_MAX}: make it smaller")
    if width * height > pixels:
        raise MtmdError(
            f"{name} has {width} times {height} pixels, more than {pixels}: make it smaller, or raise max_pixels"
        )


def _what(data: bytes) -> str:
    if not len(data):
        return "empty"
    for at, mark, kind in _OTHERS:
        if data[at : at + len(mark)] == mark:
            return kind
    return f"of another format (it begins with {data[:8]!r})"
