"""Messages with pictures and sound, in OpenAI's form: what a template gets of them, and what it stands for.

A template writes text. So each picture or sound is a marker there, a text that nobody can have known before, and what
was rendered is cut at the markers again.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from moebind._core.owner import Owner
from moebind._core.shown import shown
from moebind.errors import ChatTemplateError, MtmdError

if TYPE_CHECKING:
    from moebind.mtmd.bitmap import Bitmap
    from moebind.mtmd.projector import MtmdContext

__all__ = ["Pictures", "is_chat", "part_of_file", "refuse_bitmaps", "with_markers", "without_media"]

_DATA_URL = re.compile(r"data:[\w.+-]*/?[\w.+-]*(?:;[\w.+-]+=[^;,]*)*;base64,", re.IGNORECASE)
#: Types of parts, each with the key that has what it shows.
_PARTS = {"image_url": "image_url", "input_audio": "input_audio", "image": "image", "audio": "audio"}


class Pictures:
    """The pictures and sounds of messages, in their order, and the marker that stands for each."""

    def __init__(self) -> None:
        self.marker = f"<moebind-media-{os.urandom(16).hex()}>"
        self.bitmaps: list[Bitmap] = []

    def put_into(self, text: str) -> list[str | Bitmap]:
        """What a template wrote, with the pictures in their places.

        Raises
        ------
        ChatTemplateError
            If it left some out, or wrote one twice.
        """
        pieces = text.split(self.marker)
        if len(pieces) != len(self.bitmaps) + 1:
            raise ChatTemplateError(
                f"the chat template writes {len(pieces) - 1} of {len(self.bitmaps)} pictures and sounds: leave them "
                "out of messages that it does not write, or give another template"
            )
        parts: list[str | Bitmap] = [pieces[0]]
        for bitmap, piece in zip(self.bitmaps, pieces[1:], strict=True):
            parts += [bitmap, piece]
        return parts


def is_chat(prompt: object) -> bool:
    """Whether a prompt is messages."""
    return isinstance(prompt, (list, tuple)) and any(isinstance(each, Mapping) for each in prompt)


def with_markers(messages: Any, mtmd: MtmdContext) -> tuple[Any, Pictures]:
    """Messages in which markers stand for pictures and sound, and these.

    What is no message is left for whoever checks messages.

    Raises
    ------
    TypeError, ValueError, MtmdError
        If a part has no picture or sound, or one that cannot be decoded.
    """
    pictures = Pictures()

    def take(name: str, part: Any) -> dict[str, object]:
        pictures.bitmaps.append(_bitmap(name, part, mtmd))
        return {"type": "media_marker", "text": pictures.marker}

    return _replaced(messages, take), pictures


def refuse_bitmaps(messages: Any) -> None:
    """Raise where messages have a bitmap, and nothing that could look at it.

    Raises
    ------
    ValueError
    """

    def take(name: str, part: Any) -> Any:
        if isinstance(part, Owner):
            raise ValueError(
                f"{name} is {shown(part)}: it takes mtmd=..., the MtmdContext that was loaded for this model"
            )
        return part

    _replaced(messages, take)


def without_media(messages: Any) -> Any:
    """Messages with a text in the place of pictures and sound, to be checked as others are."""
    return _replaced(messages, lambda _name, _part: {"type": "text", "text": "-"})


#: How files begin, and the types of what they hold, as OpenAI's form has them.
_TYPES = ((b"\x89PNG", "image/png"), (b"\xff\xd8", "image/jpeg"), (b"GIF8", "image/gif"), (b"BM", "image/bmp"))
_SOUNDS = ((b"RIFF", "wav"), (b"fLaC", "flac"), (b"ID3", "mp3"), (b"\xff", "mp3"))


def part_of_file(path: str | os.PathLike[str]) -> dict[str, object]:
    """A picture or sound of a file as a part of a message, in OpenAI's form: text, which JSON can hold."""
    with open(path, "rb") as file:
        data = file.read()
    coded = base64.b64encode(data).decode()
    for begin, kind in _TYPES:
        if data.startswith(begin):
            return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{coded}"}}
    kind = next((kind for begin, kind in _SOUNDS if data.startswith(begin)), "wav")
    return {"type": "input_audio", "input_audio": {"data": coded, "format": kind}}


def _replaced(messages: Any, take: Any) -> Any:
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence):
        return messages
    return [_replaced_message(f"messages[{at}]", each, take) for at, each in enumerate(messages)]


def _replaced_message(name: str, message: Any, take: Any) -> Any:
    content = message.get("content") if isinstance(message, Mapping) else None
    if isinstance(content, Owner):
        content = [content]
    if not isinstance(content, (list, tuple)):
        return message
    parts = [take(f"{name}['content'][{at}]", part) if _is_media(part) else part for at, part in enumerate(content)]
    return {**message, "content": parts}


def _is_media(part: object) -> bool:
    return isinstance(part, Owner) or (isinstance(part, Mapping) and part.get("type") in _PARTS)


def _bitmap(name: str, part: Any, mtmd: MtmdContext) -> Bitmap:
    """The picture or sound of a part.

    Raises
    ------
    TypeError, ValueError, MtmdError
    """
    from moebind.mtmd.bitmap import Bitmap  # most programs need none

    if isinstance(part, Bitmap):
        return part
    if isinstance(part, Owner):
        raise TypeError(f"{name} is {shown(part)}; it takes a dict, or a Bitmap")
    kind = part["type"]
    held = part.get(_PARTS[kind])
    place = f"{name}[{_PARTS[kind]!r}]"
    if isinstance(held, Mapping):
        inner = "data" if kind == "input_audio" else "url"
        held, place = held.get(inner), f"{place}[{inner!r}]"
    if isinstance(held, Bitmap):
        return held
    if not isinstance(held, str):
        raise TypeError(f"{place} is {shown(held)}; it takes a data URL, or a Bitmap")
    try:
        return Bitmap.from_buffer(_bytes(place, held, kind == "input_audio"), mtmd)
    except MtmdError as error:
        raise MtmdError(str(error).replace("data", place, 1) if str(error).startswith("data") else str(error)) from None


def _bytes(name: str, text: str, plain: bool) -> bytes:
    from moebind.mtmd.bitmap import BYTES_MAX

    begin = _DATA_URL.match(text[:256])
    if begin is None and not plain:
        if re.match(r"[\w+.-]+:", text[:32]) and not text.startswith("data:"):
            raise ValueError(
                f"{name} is {shown(text[:200])}; no address is fetched: get the file yourself, and give a data URL "
                "(data:image/png;base64,...) or a Bitmap"
            )
        raise ValueError(f"{name} is {shown(text[:200])}; it takes a data URL: data:image/png;base64,...")
    start = 0 if begin is None else begin.end()
    if (len(text) - start) * 3 // 4 > BYTES_MAX + 3:
        raise MtmdError(f"{name} has more than {BYTES_MAX} bytes: make it smaller, or give a Bitmap")
    try:
        return base64.b64decode(text[start:].encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise ValueError(f"{name} is no base64: base64.b64encode(data).decode() writes it") from None
