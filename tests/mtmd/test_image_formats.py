"""Pictures of every kind that is decoded: the right pixels, or a sentence that says what is wrong."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import projectors
import pytest
from PIL import Image

from moebind.errors import MtmdError
from moebind.mtmd import Bitmap

PIXELS = projectors.pixels(23, 17)


def encoded(kind: str, image: Image.Image | None = None, **options: object) -> bytes:
    file = io.BytesIO()
    (Image.fromarray(PIXELS) if image is None else image).save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, raw: bytes, interlaced: int = 0, more: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    body = chunk(b"IHDR", header) + more + chunk(b"IDAT", zlib.compress(raw, 9))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_pixels_are_what_was_saved(kind: str) -> None:
    bitmap = Bitmap.from_buffer(encoded(kind))
    assert (bitmap.nx, bitmap.ny) == (23, 17)
    np.testing.assert_array_equal(bitmap.data, PIXELS)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_a_photo(options: dict[str, object]) -> None:
    smooth = Image.fromarray(PIXELS).resize((64, 48), Image.Resampling.BICUBIC)
    data = encoded("JPEG", smooth, quality=95, **options)
    theirs = np.asarray(Image.open(io.BytesIO(data)), int)
    # Decoders differ in how they round, and in how they spread colours of half the size.
    assert np.abs(Bitmap.from_buffer(data).data - theirs).mean() < 3


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "LA"])
def test_other_kinds_of_colour(mode: str) -> None:
    image = Image.fromarray(PIXELS).convert(mode)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(Bitmap.from_buffer(encoded("PNG", image)).data, expected)


def test_sixteen_bits_are_made_eight() -> None:
    values = np.random.default_rng(2).integers(0, 2**16, (5, 7, 3), dtype=np.uint16)
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    np.testing.assert_array_equal(Bitmap.from_buffer(png(7, 5, 16, 2, raw)).data, (values >> 8).astype(np.uint8))


def test_interlaced() -> None:
    # Adam7 of a picture of one colour: each pass has as many rows as it has.
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    raw = b""
    for left, top, right, down in passes:
        columns, rows = len(range(left, 9, right)), len(range(top, 5, down))
        raw += (b"\0" + b"\x07\x08\x09" * columns) * rows if columns else b""
    data = Bitmap.from_buffer(png(9, 5, 8, 2, raw, interlaced=1)).data
    assert data.shape == (5, 9, 3)
    assert (data == (7, 8, 9)).all()


def test_the_first_picture_of_an_animation() -> None:
    first, second = (Image.new("RGB", (8, 6), colour) for colour in ((250, 10, 10), (10, 10, 250)))
    data = encoded("GIF", first, save_all=True, append_images=[second])
    assert tuple(Bitmap.from_buffer(data).data[0, 0]) == (250, 10, 10)


def colours(n: int) -> Image.Image:
    """A picture of so many colours, each pixel another one than its neighbours."""
    palette = np.random.default_rng(n).permutation(256**3)[:n]
    rgb = np.stack([palette >> 16, palette >> 8 & 255, palette & 255], -1).astype(np.uint8)
    return Image.fromarray(rgb[np.arange(23 * 17).reshape(17, 23) * 7 % n])


@pytest.mark.parametrize("n", [2, 5, 16, 200, 256])
@pytest.mark.parametrize("options", [{"interlace": 0}, {"interlace": 1}])
def test_gifs_of_several_colours(n: int, options: dict[str, object]) -> None:
    image = colours(n)
    data = encoded("GIF", image.convert("P", palette=Image.Palette.ADAPTIVE, colors=n), **options)
    np.testing.assert_array_equal(Bitmap.from_buffer(data).data, np.asarray(image))


def test_a_gif_with_a_palette_of_its_picture_and_room_around_it() -> None:
    def palette(*rgb: tuple[int, int, int]) -> bytes:
        return bytes(np.array(rgb, np.uint8))

    # Codes of 3 bits, the lowest first: clear, 0, 1, clear, 1, 0, end. More between two clears would make them longer.
    codes = sum(code << 3 * at for at, code in enumerate((4, 0, 1, 4, 1, 0, 5))).to_bytes(3, "little")
    everybody = palette((1, 2, 3), (40, 50, 60), (7, 8, 9), (0, 0, 0))
    own = palette((200, 10, 20), (30, 210, 40), (5, 5, 5), (6, 6, 6))
    for local, (zero, one) in ((b"", [(1, 2, 3), (40, 50, 60)]), (own, [(200, 10, 20), (30, 210, 40)])):
        data = b"GIF89a" + struct.pack("<HHBBB", 4, 3, 0x81, 0, 0) + everybody
        data += b"," + struct.pack("<HHHHB", 1, 1, 2, 2, 0x81 if local else 0) + local
        shown = Bitmap.from_buffer(data + b"\x02\x03" + codes + b"\0;").data
        assert shown.shape == (3, 4, 3)
        np.testing.assert_array_equal(shown[1:, 1:3], [[zero, one], [one, zero]])


@pytest.mark.parametrize(("mode", "n"), [("P", 256), ("P", 7), ("1", 2), ("L", 256)])
def test_bitmaps_with_a_palette(mode: str, n: int) -> None:
    image = colours(n)
    image = image.convert("P", palette=Image.Palette.ADAPTIVE, colors=n) if mode == "P" else image.convert(mode)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(Bitmap.from_buffer(encoded("BMP", image)).data, expected)


@pytest.mark.parametrize("bits", [1, 4])
@pytest.mark.parametrize("upside_down", [False, True])
def test_bitmaps_of_several_pixels_in_a_byte(bits: int, upside_down: bool) -> None:
    n, width, height = 2**bits, 13, 5
    palette = np.random.default_rng(bits).integers(0, 256, (n, 4), dtype=np.uint8)
    pixels = np.random.default_rng(3).integers(0, n, (height, width))
    in_bits = np.unpackbits(pixels.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits :].reshape(height, -1)
    padded = np.pad(in_bits, ((0, 0), (0, -width * bits % 32)))
    rows = np.packbits(padded if upside_down else padded[::-1], axis=-1).tobytes()
    offset = 54 + 4 * n
    header = b"BM" + struct.pack("<IHHI", offset + len(rows), 0, 0, offset)
    header += struct.pack("<IiiHHIIiiII", 40, width, -height if upside_down else height, 1, bits, 0, 0, 0, 0, n, 0)
    shown = Bitmap.from_buffer(header + palette.tobytes() + rows).data
    np.testing.assert_array_equal(shown, palette[pixels][..., 2::-1])


def test_the_first_picture_of_an_animated_png() -> None:
    pictures = [Image.fromarray(projectors.pixels(23, 17, seed)) for seed in (1, 2, 3)]
    for first, options in ((pictures[0], {}), (pictures[0], {"default_image": True})):
        data = encoded("PNG", first, save_all=True, append_images=pictures[1:], **options)
        assert b"acTL" in data
        np.testing.assert_array_equal(Bitmap.from_buffer(data).data, np.asarray(first))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP"])
def test_cut_off(kind: str) -> None:
    data = encoded(kind)
    for length in {2, 5, 9, 20, 40, len(data) // 2, len(data) - 40}:
        with pytest.raises(MtmdError, match=r"cut off|another format|damaged|without|empty"):
            Bitmap.from_buffer(data[:length])


def test_nothing_and_something_else(tmp_path: Path) -> None:
    for data, told in [
        (b"", "data is empty; what is decoded is PNG"),
        (b"hello, world", r"of another format \(it begins with b'hello, w'\)"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "data is a WebP; what is decoded"),
        (b"\0\0\0\x18ftypheic", "MP4, HEIC or AVIF"),
        (b"#EXTM3U\nhttp://127.0.0.1/x", "of another format"),
    ]:
        with pytest.raises(MtmdError, match=told):
            Bitmap.from_buffer(data)
    (tmp_path / "notes.png").write_text("no picture")
    with pytest.raises(MtmdError, match=r"notes\.png is of another format"):
        Bitmap.from_file(tmp_path / "notes.png")


def test_a_bomb_is_not_inflated() -> None:
    bomb = png(1, 1, 8, 2, bytes(2**26))
    assert len(bomb) < 2**17
    with pytest.raises(MtmdError, match="holds more than its 1 times 1 pixels"):
        Bitmap.from_buffer(bomb)


def test_what_a_header_claims_is_not_allocated() -> None:
    for data, told in [
        (png(40_000, 40_000, 8, 2, b""), "40000 times 40000 pixels, more than 67108864"),
        (png(60_000, 1, 8, 2, b""), "a side takes at most 46000"),
        (png(0, 5, 8, 2, b""), "0 times 5 pixels; it takes at least one"),
        (png(5, 5, 3, 2, b""), "of a kind that there is not"),
        (png(5, 5, 8, 2, b"\0"), "cut off"),
        (b"GIF89a" + struct.pack("<HHB", 65_535, 65_535, 0) + b"\0\0;", "a side takes at most"),
        (b"BM" + bytes(8) + struct.pack("<IIiiHHI", 54, 40, 30_000, -30_000, 1, 24, 0), "more than"),
        (b"BM" + bytes(8) + struct.pack("<IIiiHHI", 54, 40, 5, 5, 1, 8, 1), "compressed"),
        (b"BM" + bytes(8) + struct.pack("<IIiiHHI", 54, 41, 5, 5, 1, 8, 0), "a header of 41 bytes"),
    ]:
        with pytest.raises(MtmdError, match=told):
            Bitmap.from_buffer(data)


def test_more_pixels_if_they_are_asked_for() -> None:
    data = encoded("PNG")
    with pytest.raises(MtmdError, match=r"23 times 17 pixels, more than 390: .* raise max_pixels"):
        Bitmap.from_buffer(data, max_pixels=390)
    assert Bitmap.from_buffer(data, max_pixels=391).nx == 23
    with pytest.raises(MtmdError, match="more than 100 bytes: make it smaller, or raise max_bytes"):
        Bitmap.from_buffer(data, max_bytes=100)


@pytest.mark.parametrize(
    ("frame", "told"),
    [
        (b"\xff\xc3\0\x11\x08\0\x05\0\x05\x03" + bytes(9), "of a rare kind"),
        (b"\xff\xc0\0\x11\x0c\0\x05\0\x05\x03" + bytes(9), "of 12 bits and 3 components"),
        (b"\xff\xc0\0\x11\x08\0\0\0\x05\x03" + bytes(9), "5 times 0 pixels"),
        (b"\xff\xd9", "without a picture"),
        (b"\xff\xda\0\x02", "its size is missing"),
        (b"\xff\xe0\0\x01", "damaged"),
        (b"\xff\xff\xd0x", "damaged"),
    ],
)
def test_rare_and_damaged_photos(frame: bytes, told: str) -> None:
    with pytest.raises(MtmdError, match=told):
        Bitmap.from_buffer(b"\xff\xd8" + frame + b"\xff\xd9" if frame[0] == 0xFF else frame)


def test_scans_without_end_are_refused() -> None:
    data = encoded("JPEG", progressive=True)
    at = data.rindex(b"\xff\xda")
    with pytest.raises(MtmdError, match="more than 100 scans"):
        Bitmap.from_buffer(data[:at] + data[at:-2] * 101 + b"\xff\xd9")


def test_no_pixel_is_what_memory_held() -> None:
    """A scan that ends at its first restart, from which on nothing is decoded; the decoder tells nobody."""
    image = Image.fromarray(projectors.pixels(256, 256))
    data = encoded("JPEG", image, restart_marker_blocks=1)
    at = data.index(b"\xff\xd0", data.index(b"\xff\xda"))
    cut = data[:at] + b"\xff\xd9"
    memory = [bytearray(os.urandom(2**16)) for _ in range(64)]  # freed, and given to the next who asks
    del memory
    shown = Bitmap.from_buffer(cut).data
    again = Bitmap.from_buffer(cut).data
    np.testing.assert_array_equal(shown, again)
    assert len(np.unique(shown[64:].reshape(-1, 3), axis=0)) == 1


def test_gifs_that_are_not_what_they_say() -> None:
    data = bytearray(encoded("GIF"))
    at = data.index(b",", 13 + 3 * 2 ** ((data[10] & 7) + 1))
    struct.pack_into("<H", data, at + 5, 400)
    with pytest.raises(MtmdError, match="not inside of it"):
        Bitmap.from_buffer(bytes(data))


def test_no_program_is_started_for_what_cannot_be_decoded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """libmtmd gives what it does not know to ffprobe and ffmpeg."""
    for name in ("ffprobe", "ffmpeg"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    data = bytearray(encoded("JPEG"))
    at = data.index(b"\xff\xc4")
    data[at + 5 : at + 21] = b"\xff" * 16  # a table that there cannot be
    with pytest.raises(MtmdError, match="cannot be decoded: it is damaged"):
        Bitmap.from_buffer(bytes(data))
    assert not (tmp_path / "started").exists()
