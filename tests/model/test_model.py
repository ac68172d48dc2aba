"""Models: loading, what they are, closing."""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from held import make_room_for_names

import moebind
from conftest import CPU, SMALL
from moebind import (
    ClosedError,
    Device,
    Ftype,
    Model,
    ModelLoadError,
    ModelParams,
    MoebindError,
    RopeType,
    SplitMode,
    VocabType,
)

MakeTiny = Callable[..., Path]


# --- loading ---


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.gguf does not exist") as caught:
        Model.load_from_file(tmp_path / "none.gguf")
    assert isinstance(caught.value, ModelLoadError)
    assert isinstance(caught.value, MoebindError)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 64, b"not a model" * 100])
def test_files_that_are_not_models(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match="not a GGUF file"):
        Model.load_from_file(path, CPU)


def test_a_pipe_or_a_directory_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    for path in (tmp_path / "pipe.gguf", tmp_path):
        with pytest.raises(ModelLoadError, match="not a regular file"):
            Model.load_from_file(path, CPU)


def test_a_truncated_model_says_what_is_missing(tmp_path: Path, tiny_path: MakeTiny) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(tiny_path(n_expert=4).read_bytes()[:-5000])
    with pytest.raises(ModelLoadError, match=r"cut.gguf is cut off: its tensor \S+ ends beyond the end of the file"):
        Model.load_from_file(path, CPU)


def test_llama_cpp_is_quoted_after_a_colon(tmp_path: Path) -> None:
    path = tmp_path / "no.gguf"
    path.write_bytes(b"no model")
    with pytest.raises(ModelLoadError, match=r"that this llama.cpp can read:\n  llama.cpp: gguf_init"):
        Model.load_from_file(path, CPU)


@pytest.mark.parametrize("path", [3, None, b"x.gguf", ["x.gguf"]])
def test_paths_of_the_wrong_type(path: object) -> None:
    with pytest.raises(TypeError, match="path"):
        Model.load_from_file(path)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_paths_that_cannot_be(path: str) -> None:
    with pytest.raises(ValueError, match="path"):
        Model.load_from_file(path)


def test_params_of_the_wrong_type(tiny_path: MakeTiny) -> None:
    with pytest.raises(TypeError, match="ModelParams"):
        Model.load_from_file(tiny_path(), {"n_gpu_layers": 0})  # type: ignore[arg-type]


def test_models_are_made_by_loading() -> None:
    with pytest.raises(TypeError, match="load_from_file"):
        Model()


def test_split_models_load_from_any_of_their_files(tiny_path: MakeTiny, moe: Model) -> None:
    first = tiny_path(split=3, n_expert=4)
    with Model.load_from_file(first, CPU) as model:
        assert model.n_params == moe.n_params
    parts = sorted(first.parent.glob(f"{first.name[:-19]}*-of-00003.gguf"))
    with Model.load_from_splits(parts, CPU) as model:
        assert model.size == moe.size
    with Model.load_from_file(parts[1], CPU) as model:
        assert model.path == str(first)


def test_a_missing_split_is_named(tmp_path: Path) -> None:
    first = tiny.write(tmp_path / "m.gguf", tiny.Shape(), split=2)
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(FileNotFoundError, match="m-00002-of-00002.gguf does not exist"):
        Model.load_from_file(first, CPU)
    with pytest.raises(TypeError, match="load_from_file"):
        Model.load_from_splits(first, CPU)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="empty"):
        Model.load_from_splits([], CPU)


def test_progress_is_told_and_can_stop(tiny_path: MakeTiny, capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[float] = []
    with Model.load_from_file(tiny_path(n_expert=4), CPU.with_progress_callback(seen.append)) as model:  # type: ignore[arg-type]
        assert model.n_expert == 4
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    with pytest.raises(ModelLoadError, match="the progress callback stopped the load"):
        Model.load_from_file(tiny_path(n_expert=4), CPU.with_progress_callback(lambda fraction: False))
    assert capfd.readouterr().err == ""  # what somebody asked for is no news


def test_progress_bar(tiny_path: MakeTiny, capsys: pytest.CaptureFixture[str]) -> None:
    with Model.load_from_file(tiny_path(n_expert=4), CPU.with_progress_callback(True)):
        pass
    assert "100%" in capsys.readouterr().err


def test_vocab_only(tiny_path: MakeTiny) -> None:
    with Model.load_from_file(tiny_path(), CPU.with_vocab_only(True)) as model:
        assert model.tokens_to_str(model.str_to_token("a b")).strip() == "a b"
        with pytest.raises(moebind.ContextCreationError, match="vocab_only"):
            model.new_context()


def test_a_missing_gpu_is_told_once(tiny_path: MakeTiny) -> None:
    """In a process of its own: the others may have had a device."""
    code = f"""
import warnings
from moebind import DeviceType, Model, ModelParams, devices, fit
path = {str(tiny_path())!r}
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    Model.load_from_file(path, ModelParams(n_gpu_layers=0)).close()
    Model.load_from_file(path, ModelParams(devices=())).close()
    Model.load_from_file(path, fit(path).model_params).close()
    assert not told
    Model.load_from_file(path).close()
    Model.load_from_file(path).close()
gpu = any(device.type in (DeviceType.GPU, DeviceType.IGPU) for device in devices())
print(gpu, *(str(warning.message) for warning in told), *(warning.filename for warning in told), sep="\\n")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    gpu, *told = done.stdout.splitlines()
    if gpu == "False":
        message, filename = told
        assert message.startswith("n_gpu_layers is -1, but no device can take layers: ")
        for name in ("CUDA", "Vulkan"):
            assert re.search(name + r" is (not in this build|not used: )", message)
        assert "moebind.doctor() says more" in message
        assert filename == "<string>"
    else:
        assert told == []


def test_no_alloc_models_cannot_compute(tiny_path: MakeTiny) -> None:
    with Model.load_from_file(tiny_path(n_expert=4), CPU.with_no_alloc(True)) as model:
        assert model.n_layer == 2
        with model.new_context(SMALL) as context, pytest.raises(moebind.BatchError, match="no_alloc"):
            context.decode(moebind.Batch.get_one([1]))


# --- what it is ---


def test_properties(moe: Model) -> None:
    assert (moe.n_layer, moe.n_embd, moe.n_embd_inp, moe.n_embd_out) == (2, 64, 64, 64)
    assert (moe.n_head, moe.n_head_kv, moe.n_ctx_train, moe.n_swa) == (4, 2, 512, 0)
    assert (moe.n_expert, moe.n_expert_used) == (4, 2)
    assert moe.n_vocab == len(tiny.TOKENS)
    assert moe.vocab_type is VocabType.SPM
    assert moe.rope_type is RopeType.NORM
    assert moe.has_decoder
    assert not (moe.has_encoder or moe.is_recurrent or moe.is_hybrid or moe.is_diffusion)
    assert moe.devices == []
    assert moe.placement == ()
    assert moe.size > moe.n_params > 0
    assert moe.ftype in list(Ftype) or moe.ftype & Ftype.GUESSED
    assert Path(moe.path).is_file()
    assert moe.params == CPU
    assert "llama" in repr(moe)


def test_without_layers_on_devices_there_are_none(tiny_path: Callable[..., Path], device: Device) -> None:
    with Model.load_from_file(tiny_path(n_expert=4), ModelParams(n_gpu_layers=0)) as model:
        assert model.devices == []
    with Model.load_from_file(tiny_path(n_expert=4), ModelParams(n_gpu_layers=1)) as model:
        assert device.name in [each.name for each in model.devices]


# --- closing ---


def test_closing_twice_and_use_after(tiny_path: MakeTiny) -> None:
    model = Model.load_from_file(tiny_path(), CPU)
    context = model.new_context(SMALL)
    assert not model.closed
    model.close()
    model.close()
    assert model.closed
    assert context.closed
    for use in (
        lambda: model.n_layer,
        lambda: model.meta,
        lambda: model.str_to_token("a"),
        model.new_context,
        model.__enter__,
    ):
        with pytest.raises(ClosedError, match="closed"):
            use()
    for use in (lambda: context.n_ctx, context.timings, context.kv_cache_clear, context.abort):
        with pytest.raises(ClosedError, match="its model was closed"):
            use()
    assert repr(model) == "<Model, closed>"


def test_a_context_that_was_closed_before_its_model(tiny_path: MakeTiny) -> None:
    with Model.load_from_file(tiny_path(), CPU) as model:
        context = model.new_context(SMALL)
        context.close()
    with pytest.raises(ClosedError, match="this Context cannot be used: it was closed"):
        context.timings()


def test_a_context_keeps_its_model(tiny_path: MakeTiny) -> None:
    context = Model.load_from_file(tiny_path(), CPU).new_context(SMALL)
    gc.collect()
    with context:
        context.decode(moebind.Batch.get_one([1, 2]))
        assert context.model.n_layer == 2
        context.model.close()


def test_what_was_never_closed_is_told(tiny_path: MakeTiny) -> None:
    model = Model.load_from_file(tiny_path(), CPU)
    gone = weakref.ref(model)
    with pytest.warns(ResourceWarning, match="never closed"):
        del model
        gc.collect()
    assert gone() is None


def test_memory_returns(tiny_path: MakeTiny) -> None:
    import psutil

    path, process, sizes = tiny_path(n_expert=4), psutil.Process(), []
    make_room_for_names()
    for _ in range(60):
        with Model.load_from_file(path, CPU) as model, model.new_context(SMALL) as context:
            list(context.generate("hello", max_tokens=2))
        sizes.append(process.memory_info().rss)
    assert sizes[-1] - sizes[20] < 2**20


def test_ctrl_c_during_a_load(demo_path: Path) -> None:
    def progress(fraction: float) -> bool:
        if not pressed:
            pressed.append(True)
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.002)
        return True

    pressed: list[bool] = []
    with pytest.raises(KeyboardInterrupt):
        Model.load_from_file(demo_path, CPU.with_use_mmap(False).with_progress_callback(progress))
    Model.load_from_file(demo_path, CPU).close()


def test_tensors_that_are_cut_up(tiny_path: MakeTiny) -> None:
    """With ``SplitMode.TENSOR``, llama.cpp has a device of its own that stands for all of them, in no backend."""
    path = tiny_path(n_expert=4)
    with moebind.loopback_device() as one, moebind.loopback_device() as two:
        params = ModelParams(devices=[one, two], split_mode=SplitMode.TENSOR)
        with Model.load_from_file(path, params) as model:
            assert model.devices == [one, two]
            with model.new_context(SMALL) as context:
                assert [piece.index for piece in context.generate([1, 5, 9], max_tokens=3)] == [0, 1, 2]
    with pytest.raises(ModelLoadError, match="needs >= 1 devices"):
        Model.load_from_file(path, ModelParams(devices=[], split_mode=SplitMode.TENSOR))
