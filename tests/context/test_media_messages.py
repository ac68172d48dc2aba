"""Messages with pictures and sound: OpenAI's form, bitmaps, and what is refused; nothing is fetched."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import projectors
import pytest
from PIL import Image

from conftest import SMALL
from moebind import Model
from moebind.context.media_messages import Pictures, with_markers, without_media
from moebind.errors import ChatTemplateError, MtmdError
from moebind.mtmd.bitmap import Bitmap

SeeingMaker = Callable[[str], projectors.Seeing]
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


def png(seed: int = 1) -> str:
    file = io.BytesIO()
    Image.fromarray(projectors.pixels(150, 100, seed)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def user(*parts: object) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def text(said: str) -> dict[str, str]:
    return {"type": "text", "text": said}


def image(url: object) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url}}


def test_all_forms_are_the_same(seeing: SeeingMaker) -> None:
    see = seeing("gemma3")
    bitmap = see.bitmap()
    forms = [
        image(png()),
        {"type": "image_url", "image_url": png()},
        {"type": "image_url", "image_url": bitmap},
        image(bitmap),
        {"type": "image", "image": bitmap},
        bitmap,
    ]
    with see.context() as context:
        replies = []
        for form in forms:
            reply = context.chat(user(text("What?"), form), mtmd=see.mtmd, template=TEMPLATE, max_tokens=5)
            replies.append(reply.complete()["content"])
            assert reply.usage.prompt_tokens > 40
            assert "<moebind-media-" in reply.prompt.prompt
        assert len(set(replies)) == 1
        # The picture was seen once.
        assert reply.usage.cached_tokens == reply.usage.prompt_tokens - 1


def test_sound(seeing: SeeingMaker) -> None:
    see = seeing("ultravox")
    data = base64.b64encode(projectors.wav(np.sin(np.arange(8000) / 10).astype(np.float32))).decode()
    part = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    with see.context() as context:
        reply = context.chat(user(part, text("?")), mtmd=see.mtmd, template=TEMPLATE, max_tokens=3)
        reply.complete()
        assert reply.usage.prompt_tokens > 188


def test_several_messages(seeing: SeeingMaker) -> None:
    see = seeing("gemma3")
    messages = [*user(text("a"), see.bitmap(1)), {"role": "assistant", "content": "b"}, *user(see.bitmap(2), text("c"))]
    with see.context() as context:
        reply = context.chat(messages, mtmd=see.mtmd, template=TEMPLATE, max_tokens=3)
        reply.complete()
        pieces = reply.prompt.prompt.split("<moebind-media-")
        assert len(pieces) == 3
        # They stand where they were put.
        assert pieces[0].endswith("a")
        assert pieces[2].endswith("c\nassistant:")


def test_a_marker_in_a_text_is_text(seeing: SeeingMaker) -> None:
    see = seeing("gemma3")
    with see.context() as context:
        said = text("<__media__> and <moebind-media-00>")
        reply = context.chat(user(said, see.bitmap()), mtmd=see.mtmd, template=TEMPLATE, max_tokens=2)
        reply.complete()
        assert "<__media__> and <moebind-media-00>" in reply.prompt.prompt


def test_asynchronously(seeing: SeeingMaker) -> None:
    see = seeing("gemma3")
    messages = user(text("What?"), image(png()))
    with see.context() as context:
        expected = context.chat(messages, mtmd=see.mtmd, template=TEMPLATE, max_tokens=4).complete()

        async def run() -> Any:
            return await context.achat(messages, mtmd=see.mtmd, template=TEMPLATE, max_tokens=4).complete()

        assert asyncio.run(run()) == expected


@pytest.mark.parametrize(
    ("part", "error", "told"),
    [
        (image("http://127.0.0.1:9/cat.png"), ValueError, "no address is fetched"),
        (image("https://example.org/cat.png"), ValueError, "no address is fetched"),
        (image("file:///etc/passwd"), ValueError, "no address is fetched"),
        (image("/etc/passwd"), ValueError, "it takes a data URL"),
        (image("data:image/png,plain"), ValueError, "it takes a data URL"),
        (image("data:image/png;base64,***"), ValueError, "is no base64"),
        (image("data:image/png;base64,aGVsbG8="), MtmdError, r"\['url'\] is of another format"),
        (image(png()[:200]), (ValueError, MtmdError), "base64|cut off"),
        (image(None), TypeError, "is None; it takes a data URL, or a Bitmap"),
        ({"type": "image_url"}, TypeError, r"messages\[0\]\['content'\]\[0\]\['image_url'\] is None"),
        ({"type": "image", "image": 5}, TypeError, "is 5; it takes a data URL, or a Bitmap"),
        ({"type": "video_url", "video_url": {"url": "x"}}, ValueError, "is of type 'video_url'"),
        ({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}, MtmdError, "is empty"),
    ],
)
def test_what_is_no_picture(seeing: SeeingMaker, part: object, error: type[Exception], told: str) -> None:
    see = seeing("gemma3")
    with see.context() as context, pytest.raises(error, match=told):
        context.chat(user(part, text("?")), mtmd=see.mtmd, template=TEMPLATE)


def test_without_a_projector(seeing: SeeingMaker) -> None:
    see = seeing("gemma3")
    with see.context() as context:
        with pytest.raises(ValueError, match=r"image_url.*need mtmd=\.\.\."):
            context.chat(user(image(png()), text("?")), template=TEMPLATE)
        with pytest.raises(ValueError, match=r"Bitmap.*it takes mtmd=\.\.\."):
            context.chat(user(see.bitmap(), text("?")), template=TEMPLATE)
        with pytest.raises(MtmdError, match="takes no sound"):
            context.chat(user(seeing("ultravox").bitmap(), text("?")), mtmd=see.mtmd, template=TEMPLATE)


def test_a_template_that_leaves_pictures_out(seeing: SeeingMaker) -> None:
    see = seeing("gemma3")
    messages = [*user(see.bitmap(), text("a")), *user(text("b"))]
    with see.context() as context, pytest.raises(ChatTemplateError, match="writes 0 of 1 pictures"):
        context.chat(messages, mtmd=see.mtmd, template="{{ messages[-1].content }}:")


def test_markers_differ_each_time_and_messages_are_left_alone(seeing: SeeingMaker) -> None:
    see = seeing("gemma3")
    assert Pictures().marker != Pictures().marker
    messages = user(text("a"), see.bitmap())
    replaced, pictures = with_markers(messages, see.mtmd)
    assert replaced[0]["content"] == [text("a"), {"type": "media_marker", "text": pictures.marker}]
    assert messages[0]["content"][1] is pictures.bitmaps[0]
    assert without_media(messages)[0]["content"][1] == {"type": "text", "text": "-"}
    for odd in (None, 5, "text", [5], [{"role": "user"}], [{"content": 5}]):
        assert with_markers(odd, see.mtmd)[0] == odd
        assert without_media(odd) == odd


def test_a_bitmap_without_what_looks_at_it(dense: Model) -> None:
    picture = Bitmap.from_image_data(np.zeros((2, 2, 3), np.uint8))
    with dense.new_context(SMALL) as context:
        for call in (context.chat, context.generate):
            with pytest.raises(ValueError, match=r"messages\[0\]\['content'\]\[0\] is .*: it takes mtmd=\.\.\."):
                call(user(picture, text("What is this?")))
