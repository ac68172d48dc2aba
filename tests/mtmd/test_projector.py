"""Projectors: loading, and what they make of pictures and sound, compared with numpy."""

from __future__ import annotations

import gc
import hashlib
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import projectors
import pytest
from native_calls import lock_given_up, stopped_by_ctrl_c

sys.path.insert(0, str(Path(__file__).parent))
import bounds
import projected

import moebind
from conftest import CPU
from moebind import FlashAttnType, Model, ModelParams
from moebind.errors import ClosedError, MtmdError
from moebind.mtmd import Bitmap, InputChunk, InputChunks, InputChunkType, MtmdContext, MtmdContextParams

SeeingMaker = Callable[[str], projectors.Seeing]
KINDS = sorted(projectors.MODELS)
#: GELU is looked up by halves in two layers (``bounds._GELU``), and Whisper's convolutions round what comes in to
#: halves; what is made of it is of size 1.
ROUNDED = bounds.GELU


def media(chunks: InputChunks) -> list[InputChunk]:
    return [chunk for chunk in chunks if chunk.chunk_type != InputChunkType.TEXT]


@pytest.mark.parametrize(("kind", "width", "height"), [("gemma3", 56, 56), ("qwen2vl_merger", 112, 84)])
def test_pictures_against_numpy(seeing: SeeingMaker, kind: str, width: int, height: int) -> None:
    mtmd = seeing(kind).mtmd
    pixels = projectors.pixels(width, height)
    (chunk,) = media(mtmd.tokenize([Bitmap.from_image_data(pixels), "x"]))
    expected = projected.embeddings(kind, pixels, projectors.tensors(kind))
    assert 0.3 < expected.std() < 3
    np.testing.assert_allclose(mtmd.encode_chunk(chunk), expected, atol=ROUNDED)


def test_parts_of_a_picture_against_numpy(seeing: SeeingMaker) -> None:
    """Idefics 3 cuts it into four, row by row, and adds the whole."""
    mtmd = seeing("idefics3").mtmd
    pixels = projectors.pixels(112, 112)
    chunks = media(mtmd.tokenize([Bitmap.from_image_data(pixels), "x"]))
    assert len(chunks) == 5
    for number, chunk in enumerate(chunks[:4]):
        top, left = 56 * (number // 2), 56 * (number % 2)
        part = pixels[top : top + 56, left : left + 56]
        expected = projected.embeddings("idefics3", part, projectors.tensors("idefics3"))
        np.testing.assert_allclose(mtmd.encode_chunk(chunk), expected, atol=ROUNDED)


def test_sound_against_numpy(seeing: SeeingMaker) -> None:
    mtmd = seeing("ultravox").mtmd
    assert mtmd.audio_sample_rate == projected.RATE
    samples = np.random.default_rng(4).uniform(-1, 1, 48_000).astype(np.float32)
    (chunk,) = media(mtmd.tokenize([Bitmap.from_audio_data(samples), "x"]))
    assert chunk.chunk_type == InputChunkType.AUDIO
    expected = projected.embeddings("ultravox", samples, projectors.tensors("ultravox"))
    np.testing.assert_allclose(mtmd.encode_chunk(chunk), expected, atol=ROUNDED)


def test_long_sound_is_cut(seeing: SeeingMaker) -> None:
    mtmd = seeing("ultravox").mtmd
    samples = np.random.default_rng(4).uniform(-1, 1, 31 * projected.RATE).astype(np.float32)
    assert [chunk.n_tokens for chunk in media(mtmd.tokenize([Bitmap.from_audio_data(samples), "x"]))] == [188, 188]


def test_very_short_sound_and_very_small_pictures(seeing: SeeingMaker) -> None:
    for samples in (2, 3, 100, 400):
        bitmap = Bitmap.from_audio_data(np.ones(samples, np.float32))
        (chunk,) = media(seeing("ultravox").mtmd.tokenize([bitmap, "x"]))
        assert np.isfinite(seeing("ultravox").mtmd.encode_chunk(chunk)).all()
    for kind in ("gemma3", "idefics3", "qwen2vl_merger"):
        mtmd = seeing(kind).mtmd
        for width, height in ((1, 1), (1, 200), (3000, 2)):
            if kind == "idefics3" and width != height:  # it keeps the proportions, in which nothing is left
                with pytest.raises(MtmdError, match="resize target .* is out of range"):
                    mtmd.tokenize([Bitmap.from_image_data(projectors.pixels(width, height)), "x"])
                continue
            for chunk in media(mtmd.tokenize([Bitmap.from_image_data(projectors.pixels(width, height)), "x"])):
                assert np.isfinite(mtmd.encode_chunk(chunk)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_several_at_once(seeing: SeeingMaker, kind: str) -> None:
    see = seeing(kind)
    chunks = media(see.mtmd.tokenize([see.bitmap(1), "and", see.bitmap(2), see.bitmap(3), "x"]))
    together = see.mtmd.encode_chunks(chunks)
    assert len(together) == len(chunks) >= 3
    for chunk, rows in zip(chunks, together, strict=True):
        np.testing.assert_allclose(rows, see.mtmd.encode_chunk(chunk), atol=ROUNDED)
    assert see.mtmd.encode_chunks([]) == []


def test_markers(seeing: SeeingMaker) -> None:
    mtmd, bitmap = seeing("gemma3").mtmd, seeing("gemma3").bitmap()
    by_marker = mtmd.tokenize("a<__media__>b", [bitmap])
    in_parts = mtmd.tokenize(["a", bitmap, "b"])
    for one, other in zip(by_marker, in_parts, strict=True):
        assert one.chunk_type == other.chunk_type
        if one.text_tokens is not None:
            np.testing.assert_array_equal(one.text_tokens, other.text_tokens)
    # No text of a list is a marker.
    assert len(media(mtmd.tokenize(["a<__media__>b", bitmap, "c"]))) == 1
    for text, bitmaps in (("a", [bitmap]), ("<__media__>", []), ("<__media__><__media__>", [bitmap])):
        with pytest.raises(MtmdError, match=r"text has \d times the marker '<__media__>', for \d bitmaps"):
            mtmd.tokenize(text, bitmaps)


def test_special_tokens(seeing: SeeingMaker) -> None:
    model, mtmd = seeing("gemma3")
    (plain,) = mtmd.tokenize("a </s>")
    np.testing.assert_array_equal(plain.text_tokens, model.str_to_token("a </s>"))
    (bare,) = mtmd.tokenize("a </s>", add_special=False, parse_special=False)
    np.testing.assert_array_equal(
        bare.text_tokens, model.str_to_token("a </s>", add_special=False, parse_special=False)
    )
    assert len(mtmd.tokenize("", add_special=False)) == 0
    assert mtmd.tokenize("with\0zero").total_tokens == model.str_to_token("with\0zero").size


def test_what_it_does_not_take(seeing: SeeingMaker) -> None:
    eyes, ears = seeing("gemma3"), seeing("ultravox")
    with pytest.raises(MtmdError, match="takes no sound: use a model and projector that hear"):
        eyes.mtmd.tokenize([ears.bitmap(), "x"])
    with pytest.raises(MtmdError, match="takes no pictures: use a model and projector that see"):
        ears.mtmd.tokenize([eyes.bitmap(), "x"])
    for text, bitmaps, error, told in [
        (["a", 5], (), TypeError, r"text\[1\] is 5; it takes a text or a Bitmap"),
        (5, (), TypeError, "text is 5; it takes text, or a list"),
        ("<__media__>", ["x"], TypeError, r"bitmaps\[0\] is 'x'; it takes a Bitmap"),
        ("<__media__>", eyes.bitmap(), TypeError, "it takes a list of Bitmap"),
        (["a"], [eyes.bitmap()], MtmdError, "besides a list"),
        ("\ud800", (), ValueError, "lone surrogate"),
    ]:
        with pytest.raises(error, match=told):
            eyes.mtmd.tokenize(text, bitmaps)  # type: ignore[arg-type]
    text_chunk = eyes.mtmd.tokenize("a")[0]
    with pytest.raises(MtmdError, match="is text, which is not encoded"):
        eyes.mtmd.encode_chunk(text_chunk)
    (chunk,) = media(eyes.mtmd.tokenize([eyes.bitmap(), "x"]))
    for mtmd in (ears.mtmd, seeing("idefics3").mtmd):
        with pytest.raises(MtmdError, match="was not tokenized by"):
            mtmd.encode_chunk(chunk)
    with pytest.raises(TypeError, match="it takes an InputChunk"):
        eyes.mtmd.encode_chunk(eyes.bitmap())  # type: ignore[arg-type]
    closed = eyes.bitmap()
    closed.close()
    with pytest.raises(ClosedError):
        eyes.mtmd.tokenize([closed, "x"])


def load(path: Path, model: Model, **params: object) -> MtmdContext:
    return MtmdContext.init_from_file(path, model, MtmdContextParams(warmup=False, n_threads=1, **params))  # type: ignore[arg-type]


def test_files_that_are_no_projectors(seeing: SeeingMaker, tmp_path: Path) -> None:
    model = seeing("gemma3").model
    (tmp_path / "empty.gguf").write_bytes(b"")
    (tmp_path / "text.gguf").write_bytes(b"GGUF" + bytes(3))
    whole = projectors.write(tmp_path / "whole.gguf", "gemma3").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    projectors.write(tmp_path / "lacking.gguf", "gemma3", without="mm.input_projection.weight")
    projectors.write(tmp_path / "unnormed.gguf", "gemma3", without="v.patch_embd.weight")
    projectors.write(tmp_path / "unknown.gguf", "gemma3", projector_type="mind-reader")
    for name in ("empty", "text", "cut", "lacking", "unknown"):
        with pytest.raises(MtmdError, match=f"{name}.gguf"):
            load(tmp_path / f"{name}.gguf", model)
    # What is missing is found where it is used.
    with load(tmp_path / "unnormed.gguf", model) as mtmd:
        (chunk,) = media(mtmd.tokenize([seeing("gemma3").bitmap(), "x"]))
        with pytest.raises(MtmdError, match="lacks a tensor that its graph uses"):
            mtmd.encode_chunk(chunk)
    with pytest.raises(MtmdError, match="is no projector, but of the architecture 'llama'"):
        load(Path(model.path), model)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load(tmp_path / "nothing.gguf", model)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MtmdError):
        load(tmp_path / "pipe", model)


def test_a_projector_of_another_model(tiny_path: Callable[..., Path], tmp_path: Path) -> None:
    path = projectors.write(tmp_path / "mmproj.gguf", "gemma3")
    with Model.load_from_file(tiny_path(n_embd=32), CPU) as model, pytest.raises(MtmdError, match="n_embd = 32"):
        load(path, model)
    with Model.load_from_file(tiny_path(), CPU.with_vocab_only(True)) as model:
        with pytest.raises(MtmdError, match="without weights"):
            load(path, model)
        with pytest.raises(TypeError, match="it takes a Model"):
            MtmdContext.init_from_file(path, "model")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="it takes MtmdContextParams"):
            MtmdContext.init_from_file(path, model, ModelParams())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"loaded by MtmdContext\.init_from_file"):
        MtmdContext()


@pytest.mark.parametrize(
    ("params", "error", "told"),
    [
        ({"n_threads": 0}, ValueError, "n_threads is 0; it takes 1 to 512"),
        ({"media_marker": ""}, ValueError, "media_marker is empty"),
        ({"media_marker": "a\0"}, ValueError, "NUL"),
        ({"use_gpu": 1}, TypeError, "it takes True or False"),
        ({"device": "CPU"}, TypeError, r"it takes one of moebind\.devices\(\)"),
        ({"flash_attn_type": 7}, ValueError, "FlashAttnType"),
        ({"image_min_tokens": 0}, ValueError, "image_min_tokens is 0"),
        ({"image_min_tokens": 9, "image_max_tokens": 8}, ValueError, "more than image_max_tokens, 8"),
        ({"batch_max_tokens": 0}, ValueError, "batch_max_tokens is 0"),
    ],
)
def test_parameters_that_are_wrong(params: dict[str, object], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        MtmdContextParams(**params)  # type: ignore[arg-type]


def test_parameters(seeing: SeeingMaker, tmp_path: Path) -> None:
    assert repr(MtmdContextParams()) == "MtmdContextParams()"
    threads = MtmdContextParams().n_threads + 1  # another number than this machine's
    changed = MtmdContextParams(n_threads=threads, warmup=False)
    assert repr(changed) == f"MtmdContextParams(n_threads={threads}, warmup=False)"
    assert MtmdContextParams(n_threads=3) == MtmdContextParams(n_threads=3) != MtmdContextParams(n_threads=2)
    see = seeing("qwen2vl_merger")
    path = projectors.write(tmp_path / "mmproj.gguf", "qwen2vl_merger")
    cpu = next(device for device in moebind.devices() if device.name == "CPU")
    with load(
        path,
        see.model,
        image_max_tokens=12,
        image_min_tokens=12,
        media_marker="[here]",
        device=cpu,
        flash_attn_type=FlashAttnType.ENABLED,
    ) as mtmd:
        assert mtmd.marker == "[here]"
        (chunk,) = media(mtmd.tokenize("a[here]b", [see.bitmap()]))
        assert 8 <= chunk.n_tokens <= 15
        assert np.isfinite(mtmd.encode_chunk(chunk)).all()
    with MtmdContext.init_from_file(projectors.write(tmp_path / "b.gguf", "gemma3"), seeing("gemma3").model) as warm:
        assert warm.params.warmup


def test_on_the_device_of_its_model(seeing: SeeingMaker, tmp_path: Path) -> None:
    see = seeing("gemma3")
    text = projectors.text_model(tmp_path / "text.gguf", "gemma3")
    path = projectors.write(tmp_path / "mmproj.gguf", "gemma3")
    (chunk,) = media(see.mtmd.tokenize([see.bitmap(), "x"]))
    expected = see.mtmd.encode_chunk(chunk)
    with moebind.loopback_device() as device:
        with Model.load_from_file(text, ModelParams(devices=[device])) as model, load(path, model) as mtmd:
            (chunk,) = media(mtmd.tokenize([see.bitmap(), "x"]))
            np.testing.assert_allclose(mtmd.encode_chunk(chunk), expected, atol=ROUNDED)


def test_lifetimes(tmp_path: Path) -> None:
    gc.collect()
    alive = moebind.lib.moebind_owned_alive()
    see = projectors.load(tmp_path, "gemma3")
    chunks = see.mtmd.tokenize(["a", see.bitmap(), "b"])
    rows = see.mtmd.encode_chunk(chunks[1])
    see.model.close()
    assert see.mtmd.closed
    with pytest.raises(ClosedError, match="model"):
        see.mtmd.encode_chunk(chunks[1])
    assert chunks[1].n_tokens == len(rows) == 4
    assert repr(see.mtmd) == "<MtmdContext, closed>"
    del see, chunks, rows
    gc.collect()
    assert moebind.lib.moebind_owned_alive() == alive


def test_the_model_lives_as_long_as_its_projector(tmp_path: Path) -> None:
    see = projectors.load(tmp_path, "gemma3")
    mtmd, bitmap = see.mtmd, see.bitmap()
    del see
    gc.collect()
    (chunk,) = media(mtmd.tokenize([bitmap, "x"]))
    assert np.isfinite(mtmd.encode_chunk(chunk)).all()
    mtmd.model.close()


def test_several_threads(seeing: SeeingMaker) -> None:
    see = seeing("gemma3")
    wanted = {seed: see.mtmd.encode_chunk(media(see.mtmd.tokenize([see.bitmap(seed), "x"]))[0]) for seed in range(4)}
    wrong: list[int] = []

    def work(seed: int) -> None:
        for _ in range(20):
            (chunk,) = media(see.mtmd.tokenize([see.bitmap(seed), "x"]))
            if not np.array_equal(see.mtmd.encode_chunk(chunk), wanted[seed]):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_other_threads_go_on_while_it_encodes(seeing: SeeingMaker) -> None:
    see = seeing("qwen2vl_merger")
    chunks = media(see.mtmd.tokenize([Bitmap.from_image_data(projectors.pixels(500, 500)), "x"]))
    assert lock_given_up("mtmd_encode_chunk", lambda: see.mtmd.encode_chunk(chunks[0]))
    assert lock_given_up("mtmd_batch_encode", lambda: see.mtmd.encode_chunks(chunks))
    assert not lock_given_up("sum", lambda: sum(range(10**5)), tries=3)  # which keeps the lock


def test_ctrl_c_stops_an_encoder(seeing: SeeingMaker) -> None:
    see = seeing("qwen2vl_merger")
    chunks = media(see.mtmd.tokenize([Bitmap.from_image_data(projectors.pixels(1000, 1000)), "x"]))
    (small,) = media(see.mtmd.tokenize([see.bitmap(), "x"]))
    expected = see.mtmd.encode_chunk(small)
    assert stopped_by_ctrl_c("mtmd_encode_chunk", lambda: see.mtmd.encode_chunk(chunks[0]))
    assert stopped_by_ctrl_c("mtmd_batch_encode", lambda: see.mtmd.encode_chunks(chunks))
    np.testing.assert_array_equal(see.mtmd.encode_chunk(small), expected)
    # This takes no notice of it before its end.
    assert not stopped_by_ctrl_c("pbkdf2_hmac", lambda: hashlib.pbkdf2_hmac("sha256", b"", b"", 10**5), tries=3)


def test_a_fork_closes_it(seeing: SeeingMaker) -> None:
    see = seeing("gemma3")
    child = os.fork()
    if child == 0:
        try:
            see.mtmd.tokenize("a")
        except ClosedError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert not see.mtmd.closed


def test_a_failed_load_is_quiet(seeing: SeeingMaker, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(MtmdError):
        load(tmp_path / "x.gguf", seeing("gemma3").model)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
