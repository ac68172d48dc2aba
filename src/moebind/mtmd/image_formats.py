"""What a picture's header says, read before anything is decoded: its size, and whether the file holds what it says.

Decoders allocate what a header claims and expand what is compressed, and a few bytes can claim gigabytes. So the size
is known before the decoder sees the file, and what it could expand to is bounded.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from typing import TypeAlias

from moebind.errors import MtmdError

__all__ = ["SIDE_MAX", "image_size"]

#: libmtmd only asserts it.
SIDE_MAX = 46_000
#: Each scan of a progressive JPEG goes over the whole picture, however few bytes it has; encoders write about ten.
SCANS_MAX = 100
#: So much is inflated at once, to be counted.
_AT_ONCE = 2**20

_PNG = b"\x89PNG\r\n\x1a\n"
#: Numbers in a pixel, by PNG's type of colour.
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
#: Adam7: where each pass begins, and its steps, across and down.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
#: JPEG's markers of a frame that the decoder knows, and those of others: lossless, hierarchical, arithmetic.
_FRAMES, _OTHER_FRAMES = {0xC0, 0xC1, 0xC2}, {0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)}


#: What checks a file of one format.
Reader: TypeAlias = Callable[[bytes, Callable[[int, int], None]], None]


def image_size(name: str, data: bytes, check: Callable[[int, int], None]) -> str | None:
    """Check a picture, and give the name of its format; None if it is of none that is known.

    ``check`` gets its width and height, before anything that takes time.

    Raises
    ------
    MtmdError
        If it is damaged, cut off, or of a kind that cannot be decoded.
    """
    readers: tuple[tuple[str, tuple[bytes, ...], Reader], ...] = (
        ("PNG", (_PNG,), _png),
        ("JPEG", (b"\xff\xd8\xff",), _jpeg),
        ("GIF", (b"GIF87a", b"GIF89a"), _gif),
        ("BMP", (b"BM",), _bmp),
    )
    for kind, beginnings, read in readers:
        if data.startswith(beginnings):
            try:
                read(data, check)
            except (struct.error, IndexError):
                raise MtmdError(f"{name} is a {kind} that is cut off: get the whole file") from None
            except _DamagedError as error:
                raise MtmdError(f"{name} is a {kind} {error}") from None
            return kind
    return None


class _DamagedError(Exception):
    """What is wrong with a file; it follows "is a PNG"."""


_CUT_OFF = "that is cut off: get the whole file"


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(_PNG)
    while True:
        length, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        if len(body) < length:
            raise _DamagedError(_CUT_OFF)
        yield kind, body
        if kind == b"IEND":
            return
        at += 12 + length


def _png(data: bytes, check: Callable[[int, int], None]) -> None:
    chunks = _png_chunks(data)
    kind, header = next(chunks)
    if kind != b"IHDR":
        raise _DamagedError("that does not begin with its header: save it again, with another program")
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header[:13])
    if depth not in {1, 2, 4, 8, 16} or colour not in _SAMPLES or interlaced > 1:
        raise _DamagedError(f"of a kind that there is not (depth {depth}, colour {colour}, interlace {interlaced})")
    check(width, height)
    bits = depth * _SAMPLES[colour]
    passes = _PASSES if interlaced else ((0, 0, 1, 1),)
    expected = 0
    for left, top, right, down in passes:
        columns, rows = -(-(width - left) // right), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            expected += rows * (1 + (columns * bits + 7) // 8)
    inflater, inflated = zlib.decompressobj(), 0
    try:
        for kind, body in chunks:
            rest = body if kind == b"IDAT" else b""
            while rest and not inflater.eof:
                inflated += len(inflater.decompress(rest, _AT_ONCE))
                rest = inflater.unconsumed_tail
                if inflated > expected:
                    raise _DamagedError(f"that holds more than its {width} times {height} pixels: it is refused")
        while not inflater.eof and inflated < expected:
            more = inflater.decompress(b"", _AT_ONCE)
            inflated += len(more)
            if not more:
                break
    except zlib.error as error:
        raise _DamagedError(f"that is damaged ({error}): get it again") from None
    if inflated < expected:
        raise _DamagedError(_CUT_OFF)


def _jpeg(data: bytes, check: Callable[[int, int], None]) -> None:
    at, known = 2, False
    while True:
        if data[at] != 0xFF:
            raise _DamagedError("that is damaged: get it again")
        marker = data[at + 1]
        if marker == 0xFF:  # filling
            at += 1
            continue
        if marker == 0xD9:
            raise _DamagedError("without a picture")
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            at += 2
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        if length < 2:
            raise _DamagedError("that is damaged: get it again")
        if marker in _OTHER_FRAMES:
            raise _DamagedError("of a rare kind (lossless, hierarchical or arithmetic): save it as an ordinary one")
        if marker in _FRAMES:
            precision, height, width, components = struct.unpack_from(">BHHB", data, at + 4)
            if precision != 8 or components not in {1, 3, 4}:
                raise _DamagedError(
                    f"of {precision} bits and {components} components: save it with 8 bits, in colour or grey"
                )
            check(width, height)
            known = True
        if marker == 0xDA:
            break
        at += 2 + length
    if not known:
        raise _DamagedError("that is damaged: its size is missing")
    rest = data[at:]
    if rest.count(b"\xff\xda") > SCANS_MAX:
        raise _DamagedError(f"of more than {SCANS_MAX} scans, which no program writes: it is refused")
    if b"\xff\xd9" not in rest:
        raise _DamagedError(_CUT_OFF)


def _gif(data: bytes, check: Callable[[int, int], None]) -> None:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    check(width, height)
    at = 13 + (3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0)
    while True:
        block = data[at]
        if block == 0x3B:
            raise _DamagedError("without a picture")
        if block == 0x2C:
            left, top, columns, rows, flags = struct.unpack_from("<HHHHB", data, at + 1)
            if not columns or not rows or left + columns > width or top + rows > height:
                raise _DamagedError("whose first picture is not inside of it: save it again, with another program")
            at += 10 + (3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0) + 1
            _after_blocks(data, at)
            return
        if block != 0x21:
            raise _DamagedError("that is damaged: get it again")
        at = _after_blocks(data, at + 2)


def _after_blocks(data: bytes, at: int) -> int:
    while size := data[at]:
        at += 1 + size
    return at + 1


def _bmp(data: bytes, check: Callable[[int, int], None]) -> None:
    offset, header = struct.unpack_from("<II", data, 10)
    if header == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression = 0
    elif header in {40, 56, 108, 124}:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    else:
        raise _DamagedError(f"with a header of {header} bytes, which there is not")
    check(width, abs(height))
    if bits not in {1, 4, 8, 16, 24, 32} or compression not in {0, 3}:
        raise _DamagedError(f"of {bits} bits, compressed ({compression}): save it without compression, or as PNG")
    if len(data) < offset + (width * bits + 31) // 32 * 4 * abs(height):
        raise _DamagedError(_CUT_OFF)
