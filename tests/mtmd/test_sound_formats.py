"""How long sound is, from its headers; and what is decoded of it."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import projectors
import pytest

from moebind.errors import MtmdError
from moebind.mtmd import Bitmap, MtmdContext
from moebind.mtmd.sound_formats import sound_seconds

TONE = np.sin(np.arange(16_000) / 10).astype(np.float32) / 2


@pytest.fixture(scope="module")
def ears(seeing: Callable[[str], projectors.Seeing]) -> MtmdContext:
    return seeing("ultravox").mtmd


def mp3_frame(bitrate: int = 9, rate: int = 0) -> bytes:
    """A frame of MPEG 1, layer 3, of silence: 128 kbit/s at 44100 Hz."""
    frame = bytes([0xFF, 0xFB, bitrate << 4 | rate << 2, 0xC0])
    return frame + bytes(417 - 4)


def wav_header(**changed: int) -> bytes:
    """A WAV file's header, 16 bits of one channel, and 100 samples."""
    said = {"tag": 1, "channels": 1, "rate": 16_000, "block": 2, "bits": 16, "size": 200} | changed
    form = struct.pack(
        "<HHIIHH", said["tag"], said["channels"], said["rate"], said["rate"] * 2, said["block"], said["bits"]
    )
    head = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", said["size"])
    return b"RIFF" + struct.pack("<I", len(head) + 200) + head + bytes(200)


def flac(rate: int = 16_000, samples: int = 16_000) -> bytes:
    """The beginning of a FLAC file."""
    packed = (rate << 44 | 0 << 41 | 15 << 36 | samples).to_bytes(8, "big")
    return b"fLaC\x80\0\0\x22" + bytes(10) + packed + bytes(16)


def test_samples_are_what_was_saved(ears: MtmdContext) -> None:
    bitmap = Bitmap.from_buffer(projectors.wav(TONE), ears)
    assert bitmap.is_audio
    assert bitmap.nx == TONE.size
    np.testing.assert_allclose(bitmap.data, TONE, atol=1 / 32767)


def test_rates_and_channels_are_converted(ears: MtmdContext) -> None:
    two = np.stack([TONE[:8000], -TONE[:8000]], axis=1)
    silence = Bitmap.from_buffer(projectors.wav(two.reshape(-1), 8000, 2), ears)
    assert abs(silence.nx - 16_000) <= 2
    assert np.abs(silence.data).max() < 1e-3


def test_lengths() -> None:
    assert sound_seconds("x", projectors.wav(TONE), 10) == pytest.approx(1)
    assert sound_seconds("x", mp3_frame() * 10, 10) == pytest.approx(10 * 1152 / 44100)
    assert sound_seconds("x", b"ID3\x04\0\0\0\0\0\x05hello" + mp3_frame() * 4, 10) == pytest.approx(4 * 1152 / 44100)
    assert sound_seconds("x", flac(8_000, 24_000), 10) == pytest.approx(3)
    assert sound_seconds("x", b"no sound", 10) is None


def test_a_file_that_is_too_long(ears: MtmdContext) -> None:
    for data in (projectors.wav(TONE), mp3_frame() * 40, flac()):
        with pytest.raises(MtmdError, match=r"longer than 0\.5 seconds: shorten it, or raise max_seconds"):
            Bitmap.from_buffer(data, ears, max_seconds=0.5)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (wav_header(size=2**32 - 1), "a WAV that is cut off"),
        (wav_header(rate=1), "of 1 Hz; 1000 to 768000 are taken"),
        (wav_header(channels=0, block=0), "of 0 channels"),
        (wav_header(tag=2, bits=4, block=1), "of another kind .format 2, 4 bits.: save it as PCM"),
        (wav_header(block=200), "of another kind"),
        (wav_header()[:30], "cut off"),
        (wav_header()[:12] + wav_header()[36:], "its format is missing"),
        (flac(samples=0), "does not say how long it is"),
        (flac(rate=0), "of 0 Hz"),
        (flac()[:30], "cut off"),
        (b"ID3\x04\0\0\0\0\0\x05hello" + bytes(100), "an? MP3 without sound"),
    ],
)
def test_what_headers_claim(ears: MtmdContext, data: bytes, told: str) -> None:
    with pytest.raises(MtmdError, match=told):
        Bitmap.from_buffer(data, ears)


def test_sound_needs_a_projector_that_hears(seeing: Callable[[str], projectors.Seeing]) -> None:
    with pytest.raises(MtmdError, match="is sound, which is converted .* give it the MtmdContext"):
        Bitmap.from_buffer(projectors.wav(TONE))
    with pytest.raises(MtmdError, match="is sound, .* takes none"):
        Bitmap.from_buffer(projectors.wav(TONE), seeing("gemma3").mtmd)


def test_no_samples(ears: MtmdContext) -> None:
    with pytest.raises(MtmdError, match="cannot be decoded"):
        Bitmap.from_buffer(projectors.wav(TONE[:0]), ears)
    with pytest.raises(MtmdError, match="1 samples; sound has 2 or more"):
        Bitmap.from_buffer(projectors.wav(TONE[:1]), ears)
