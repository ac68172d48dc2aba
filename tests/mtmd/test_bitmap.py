"""Bitmaps: made of arrays, their views and names, and arguments that are wrong."""

from __future__ import annotations

import gc
import hashlib
import os
from pathlib import Path

import numpy as np
import projectors
import pytest
from PIL import Image

from moebind.errors import ClosedError, MtmdError
from moebind.mtmd import Bitmap

PIXELS = projectors.pixels(6, 4)
SAMPLES = np.linspace(-1, 1, 50, dtype=np.float32)


def test_a_picture_of_an_array() -> None:
    bitmap = Bitmap.from_image_data(PIXELS)
    assert (bitmap.nx, bitmap.ny, bitmap.is_audio, bitmap.id) == (6, 4, False, "")
    assert repr(bitmap) == "<Bitmap of 6 x 4 pixels>"
    np.testing.assert_array_equal(bitmap.data, PIXELS)
    assert not bitmap.data.flags.writeable
    assert not bitmap.data.flags.owndata
    # Of another order, and of another array's part.
    np.testing.assert_array_equal(Bitmap.from_image_data(PIXELS[::-1, ::2]).data, PIXELS[::-1, ::2])


def test_sound_of_an_array() -> None:
    bitmap = Bitmap.from_audio_data(SAMPLES)
    assert (bitmap.nx, bitmap.ny, bitmap.is_audio) == (50, 1, True)
    assert repr(bitmap) == "<Bitmap of 50 samples>"
    np.testing.assert_array_equal(bitmap.data, SAMPLES)


def test_a_view_keeps_the_memory() -> None:
    bitmap = Bitmap.from_image_data(PIXELS)
    view = bitmap.data
    bitmap.close()
    bitmap.close()
    del bitmap
    gc.collect()
    np.testing.assert_array_equal(view, PIXELS)


def test_closed() -> None:
    bitmap = Bitmap.from_image_data(PIXELS)
    with bitmap:
        pass
    assert repr(bitmap) == "<Bitmap, closed>"
    for use in (lambda: bitmap.data, lambda: bitmap.nx, lambda: bitmap.id, lambda: bitmap.is_audio):
        with pytest.raises(ClosedError):
            use()


def test_the_id_of_a_file_is_what_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "picture"
    Image.fromarray(PIXELS).save(path, "PNG")
    bitmap = Bitmap.from_file(path)
    assert bitmap.id == hashlib.sha256(path.read_bytes()).hexdigest()
    bitmap.id = "my cat"
    assert bitmap.id == "my cat"
    with pytest.raises(ValueError, match="NUL"):
        bitmap.id = "a\0b"
    with pytest.raises(TypeError):
        bitmap.id = 5  # type: ignore[assignment]


def test_content_is_told_apart() -> None:
    one, other = Bitmap.from_image_data(PIXELS), Bitmap.from_image_data(255 - PIXELS)
    wide = Bitmap.from_image_data(PIXELS.reshape(2, 12, 3))
    again = Bitmap.from_image_data(PIXELS.copy())
    again.id = "another name"
    assert one._content() == again._content()
    assert len({one._content(), other._content(), wide._content()}) == 3


@pytest.mark.parametrize(
    ("data", "error", "told"),
    [
        ([[1, 2, 3]], TypeError, "takes an array of uint8"),
        (PIXELS.astype(np.float32), TypeError, "an array of float32; it takes an array of uint8"),
        (PIXELS[..., 0], ValueError, r"shape \(4, 6\); it takes \(height, width, 3\)"),
        (np.zeros((4, 6, 4), np.uint8), ValueError, r"leave out its transparency, data\[..., :3\]"),
        (np.zeros((0, 6, 3), np.uint8), MtmdError, "6 times 0 pixels; it takes at least one"),
        (np.zeros((1, 46_001, 3), np.uint8), MtmdError, "a side takes at most 46000"),
    ],
)
def test_arrays_that_are_no_pictures(data: np.ndarray, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        Bitmap.from_image_data(data)


@pytest.mark.parametrize(
    ("data", "error", "told"),
    [
        ([0.0, 1.0], TypeError, "takes an array of float32"),
        (SAMPLES.astype(float), TypeError, "an array of float64; it takes an array of float32"),
        (SAMPLES.reshape(25, 2), ValueError, r"shape \(25, 2\); it takes \(n_samples,\)"),
        (SAMPLES[:1], ValueError, "1 samples; it takes 2 or more"),
        (np.array([0, np.nan, 1], np.float32), ValueError, "the sample nan at 1; it takes finite numbers"),
    ],
)
def test_arrays_that_are_no_sound(data: np.ndarray, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        Bitmap.from_audio_data(data)


def test_other_arguments(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"a Bitmap is made by Bitmap\.from_file"):
        Bitmap()
    with pytest.raises(FileNotFoundError):
        Bitmap.from_file(tmp_path / "nothing.png")
    with pytest.raises(FileNotFoundError):
        Bitmap.from_file("http://127.0.0.1:9/x.png")
    with pytest.raises(TypeError, match="it takes bytes"):
        Bitmap.from_buffer("text")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_pixels is 0"):
        Bitmap.from_buffer(b"x", max_pixels=0)
    with pytest.raises(ValueError, match="max_bytes is 0"):
        Bitmap.from_buffer(b"x", max_bytes=0)
    os.mkfifo(tmp_path / "pipe")  # nobody writes
    with pytest.raises(MtmdError, match="is no file"):
        Bitmap.from_file(tmp_path / "pipe")


def test_it_is_not_pickled() -> None:
    import pickle

    with pytest.raises(TypeError, match="make it there from its data"):
        pickle.dumps(Bitmap.from_image_data(PIXELS))
