"""How long a sound is, read from its headers before anything is decoded: decoders allocate what these claim."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from moebind.errors import MtmdError

__all__ = ["sound_seconds"]

#: Formats of samples in a WAV file: integers, floats, A-law, mu-law.
_WAV_KINDS = {1, 3, 6, 7}
_EXTENSIBLE = 0xFFFE
CHANNELS_MAX = 32
RATES = 1_000, 768_000
#: kbit/s, by the version of MPEG (1, or 2 and 2.5) and the layer; 0 is free, 15 there is not.
_BITRATES = {
    (1, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def sound_seconds(name: str, data: bytes, max_seconds: float) -> float | None:
    """The length of a sound in WAV, FLAC or MP3; None if it is none of these.

    Raises
    ------
    MtmdError
        If it is damaged, cut off, or of a kind that cannot be decoded.
    """
    for kind, is_it, read in (("WAV", _is_wav, _wav), ("FLAC", _is_flac, _flac), ("MP3", _is_mp3, _mp3)):
        if is_it(data):
            try:
                return read(data, max_seconds)
            except (struct.error, IndexError):
                raise MtmdError(f"{name} is a {kind} that is cut off: get the whole file") from None
            except _DamagedError as error:
                raise MtmdError(f"{name} is a {kind} {error}") from None
    return None


class _DamagedError(Exception):
    """What is wrong with a file; it follows "is a WAV"."""


def _is_wav(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WAVE"


def _is_flac(data: bytes) -> bool:
    return data[:4] == b"fLaC"


def _is_mp3(data: bytes) -> bool:
    return data[:3] == b"ID3" or (len(data) > 3 and _frame(data, 0) is not None)


def _checked(rate: int, channels: int) -> None:
    low, high = RATES
    if not low <= rate <= high:
        raise _DamagedError(f"of {rate} Hz; {low} to {high} are taken")
    if not 1 <= channels <= CHANNELS_MAX:
        raise _DamagedError(f"of {channels} channels; 1 to {CHANNELS_MAX} are taken")


def _wav(data: bytes, max_seconds: float) -> float:
    at, rate, width = 12, 0, 0
    while True:
        kind, size = struct.unpack_from("<4sI", data, at)
        if kind == b"fmt ":
            tag, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", data, at + 8)
            if tag == _EXTENSIBLE:
                (tag,) = struct.unpack_from("<H", data, at + 8 + 24)
            if tag not in _WAV_KINDS or bits not in {8, 16, 24, 32, 64} or block != bits // 8 * channels:
                raise _DamagedError(f"of another kind (format {tag}, {bits} bits): save it as PCM")
            _checked(rate, channels)
            width = block
        if kind == b"data":
            if not width:
                raise _DamagedError("that is damaged: its format is missing")
            if len(data) - at - 8 < size:
                raise _DamagedError("that is cut off: get the whole file")
            return float(size // width / rate)
        at += 8 + size + size % 2


def _flac(data: bytes, max_seconds: float) -> float:
    if data[4] & 0x7F or int.from_bytes(data[5:8], "big") < 34:
        raise _DamagedError("that does not begin with its header")
    packed = int.from_bytes(data[18:26], "big")
    rate, channels, samples = packed >> 44, (packed >> 41 & 7) + 1, packed & (2**36 - 1)
    if len(data) < 42:
        raise _DamagedError("that is cut off: get the whole file")
    _checked(rate, channels)
    if not samples:
        raise _DamagedError("that does not say how long it is: save it again, with another program")
    return samples / rate


def _frame(data: bytes, at: int) -> tuple[int, int, int] | None:
    """The bytes, samples and rate of the MP3 frame at this place, if there is one."""
    if data[at] != 0xFF or at + 4 > len(data):
        return None
    second, third = data[at + 1], data[at + 2]
    version, layer = second >> 3 & 3, 4 - (second >> 1 & 3)
    if second & 0xE0 != 0xE0 or version == 1 or layer == 4:
        return None
    bitrate, rate = third >> 4, third >> 2 & 3
    if bitrate in {0, 15} or rate == 3:
        return None
    kbit = _BITRATES[1 if version == 3 else 2, layer][bitrate]
    hertz = (44_100, 48_000, 32_000)[rate] // {3: 1, 2: 2, 0: 4}[version]
    samples = 384 if layer == 1 else 576 if layer == 3 and version != 3 else 1152
    padding = third >> 1 & 1
    size = samples // 8 * kbit * 1000 // hertz + padding * (4 if layer == 1 else 1)
    return max(size, 4), samples, hertz


def _mp3_frames(data: bytes) -> Iterator[tuple[int, int]]:
    """The samples and rate of each frame; where there is none, the next is looked for, as decoders do."""
    at = 0
    if data[:3] == b"ID3":
        size = data[6] << 21 | data[7] << 14 | data[8] << 7 | data[9]
        at = 10 + size + (10 if data[5] & 0x10 else 0)
    while at + 4 <= len(data):
        frame = _frame(data, at)
        if frame is None:
            at = data.find(b"\xff", at + 1)
            if at < 0:
                return
            continue
        yield frame[1:]
        at += frame[0]


def _mp3(data: bytes, max_seconds: float) -> float:
    seconds = 0.0
    for samples, rate in _mp3_frames(data):
        seconds += samples / rate
        if seconds > max_seconds:
            break
    if not seconds:
        raise _DamagedError("without sound")
    return seconds
