"""Models: loading, what they are, text and tokens, closing."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

import moebind
from conftest import CPU, SMALL
from moebind import (
    ClosedError,
    FlashAttnType,
    Ftype,
    GgmlType,
    Model,
    ModelLoadError,
    MoebindError,
    RopeType,
    TokenAttr,
    VocabType,
    lib,
)
from moebind.model.hyperparameters import _in_short

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


def test_sizes_that_llama_cpp_has_no_name_for(dense: Model) -> None:
    assert " ?B " in dense.desc
    assert repr(dense) == f"<Model {dense.desc.replace('?B', f'{dense.n_params / 1000:.0f}K')}>"


@pytest.mark.parametrize(
    ("count", "text"), [(7, "7"), (1234, "1.2K"), (691_500_000, "692M"), (1_000_000, "1.0M"), (235_000_000_000, "235B")]
)
def test_counts_in_short(count: int, text: str) -> None:
    assert _in_short(count) == text


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
    parts = sorted(first.parent.glob(f"{first.name[:-20]}*-of-00003.gguf"))
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


SIZES = "size n_params n_ctx_train n_embd n_layer n_layer_nextn n_head n_head_kv n_expert n_expert_used rope_type"


@pytest.mark.parametrize(
    "shape",
    [
        {"n_expert": 4},
        {"n_head_kv": 4},
        {"arch": "deepseek", "n_expert": 4},
        {"arch": "mamba"},
        {"arch": "bert", "n_head_kv": 4},
    ],
)
def test_vocab_only_tells_the_same_as_a_whole_model(tiny_path: MakeTiny, shape: dict[str, object]) -> None:
    path = tiny_path(**shape)
    names = [*SIZES.split(), "is_recurrent", "is_hybrid", "has_encoder", "has_decoder", "n_vocab", "meta"]
    with Model.load_from_file(path, CPU) as whole, Model.load_from_file(path, CPU.with_vocab_only(True)) as words:
        for name in names:
            assert getattr(words, name) == getattr(whole, name), name
        assert "vocabulary" in words.desc
        assert words.desc in repr(words)


def test_vocab_only_with_overrides(tiny_path: MakeTiny) -> None:
    params = CPU.with_vocab_only(True).with_kv_override("llama.context_length", 77)
    with Model.load_from_file(tiny_path(), params.with_kv_override("general.file_type", 7)) as model:
        assert model.n_ctx_train == 77
        assert model.ftype == moebind.Ftype.Q8_0


@pytest.mark.parametrize(
    "name",
    ["n_embd_inp", "n_embd_out", "n_swa", "n_cls_out", "cls_labels", "rope_freq_scale_train", "decode_start_token"],
)
def test_vocab_only_does_not_guess(tiny_path: MakeTiny, name: str) -> None:
    with Model.load_from_file(tiny_path(), CPU.with_vocab_only(True)) as model:
        with pytest.raises(moebind.MoebindError, match="vocab_only"):
            getattr(model, name)
    with pytest.raises(moebind.ClosedError):
        getattr(model, name)


def test_kv_overrides_are_applied(tiny_path: MakeTiny) -> None:
    params = CPU.with_kv_override("llama.expert_used_count", 1).with_kv_override("general.name", "other")
    with Model.load_from_file(tiny_path(n_expert=4), params) as model:
        with model.new_context(SMALL) as context:
            context.decode(moebind.Batch.get_one([1, 5, 7]))
            one = context.get_logits_ith(-1).copy()
    with Model.load_from_file(tiny_path(n_expert=4), CPU) as model, model.new_context(SMALL) as context:
        context.decode(moebind.Batch.get_one([1, 5, 7]))
        assert np.abs(context.get_logits_ith(-1) - one).max() > 0.01


def test_overrides_count_where_a_model_tells_its_numbers(tiny_path: MakeTiny) -> None:
    path = tiny_path(n_expert=4)
    for used in (1, 3):
        with Model.load_from_file(path, CPU.with_kv_override("llama.expert_used_count", used)) as model:
            assert model.n_expert_used == used
    with Model.load_from_file(path, CPU.with_vocab_only(True)) as model:
        assert model.n_expert_used == 2
    # Four heads of 16 numbers, or two of 32: a block of Q8_0 is 32.
    context = SMALL.with_type_k(GgmlType.Q8_0).with_flash_attn_type(FlashAttnType.DISABLED)
    wider = CPU.with_kv_override("llama.attention.head_count", 2).with_kv_override("llama.attention.head_count_kv", 1)
    wider = wider.with_kv_override("llama.rope.dimension_count", 32)
    with Model.load_from_file(path, wider) as model:
        model.new_context(context).close()
    moebind.plan(path, wider, context)
    with (
        Model.load_from_file(path, CPU) as model,
        pytest.raises(moebind.ContextCreationError, match="keys have 16 numbers"),
    ):
        model.new_context(context)
    with pytest.raises(moebind.ContextCreationError, match="keys have 16 numbers"):
        moebind.plan(path, CPU, context)


def test_a_missing_gpu_is_told_once(tiny_path: MakeTiny) -> None:
    """In a process of its own: the others may have had a device."""
    code = f"""
import warnings
from moebind import DeviceType, Model, ModelParams, devices
path = {str(tiny_path())!r}
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    Model.load_from_file(path, ModelParams(n_gpu_layers=0)).close()
    Model.load_from_file(path, ModelParams(devices=())).close()
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
        assert re.match("n_gpu_layers is -1, but no device can take layers: .*CUDA is (in|out): ", message)
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


def test_dense_models_have_no_experts(dense: Model) -> None:
    assert (dense.n_expert, dense.n_expert_used) == (0, 0)


def test_meta_is_a_mapping(moe: Model) -> None:
    assert moe.meta["general.architecture"] == "llama"
    assert moe.meta["llama.expert_count"] == "4"
    assert "none" not in moe.meta
    assert len(moe.meta) == len(list(moe.meta))
    with pytest.raises(KeyError):
        moe.meta["none"]
    with pytest.raises(TypeError):
        moe.meta["a"] = "b"  # type: ignore[index]


def test_long_metadata_is_whole(demo: Model) -> None:
    template = demo.meta["tokenizer.chat_template"]
    assert len(template) > 256
    assert template == demo.chat_template()


def test_chat_template_that_is_not_there(moe: Model) -> None:
    with pytest.raises(moebind.ChatTemplateError, match="no chat template"):
        moe.chat_template()
    with pytest.raises(moebind.ChatTemplateError, match="tool_use"):
        moe.chat_template("tool_use")


def test_special_tokens(moe: Model, demo: Model) -> None:
    assert (moe.token_bos, moe.token_eos) == (1, 2)
    assert moe.token_mask is moe.token_fim_pre is None
    assert demo.token_eot is not None
    assert demo.is_eog_token(demo.token_eot)
    assert moe.is_control_token(1)
    assert not moe.is_control_token(5)
    assert moe.token_attr(1) is TokenAttr.CONTROL
    assert moe.token_attr(3) is TokenAttr.BYTE
    assert moe.token_score(7) == -7.0
    for name in ("token_nl", "token_sep", "token_pad", "token_fim_suf", "token_fim_mid"):
        assert getattr(demo, name) is None or 0 <= getattr(demo, name) < demo.n_vocab


# --- text ---


#: This vocabulary lacks the tokens for some control characters and for bytes from 0xF1.
DEMO_TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=0x3FFFF, exclude_categories=["Cs"]) | st.just("\n"))


@given(text=st.text().filter(lambda text: "\u2581" not in text), special=st.booleans())
def test_any_text_makes_a_round_trip_with_sentencepiece(moe: Model, text: str, special: bool) -> None:
    tokens = moe.str_to_token(text, add_special=special, parse_special=False)
    assert tokens.dtype == np.int32
    assert moe.tokens_to_str(tokens) == text


@given(text=DEMO_TEXT, special=st.booleans())
def test_any_text_makes_a_round_trip_with_bpe(demo: Model, text: str, special: bool) -> None:
    tokens = demo.str_to_token(text, add_special=special, parse_special=False)
    assert demo.tokens_to_str(tokens) == text


@given(text=DEMO_TEXT)
def test_pieces_make_the_text(demo: Model, text: str) -> None:
    import codecs

    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    tokens = demo.str_to_token(text, add_special=False, parse_special=False)
    pieces = [demo.token_to_piece(token, decoder) for token in tokens]
    assert "".join(pieces) + decoder.decode(b"", True) == text
    assert b"".join(demo.token_to_bytes(token) for token in tokens) == text.encode()


def test_special_tokens_in_text(demo: Model) -> None:
    text = "<|im_start|>user"
    special = demo.str_to_token(text, add_special=False)
    plain = demo.str_to_token(text, add_special=False, parse_special=False)
    assert special.size < plain.size
    assert demo.tokens_to_str(special) == "user"
    assert demo.tokens_to_str(special, special=True) == text
    assert demo.token_to_str(special[0], special=True) == "<|im_start|>"
    assert demo.token_to_str(special[0]) == ""


def test_bos_is_added_on_request(moe: Model) -> None:
    assert moe.str_to_token("a")[0] == moe.token_bos
    assert moe.str_to_token("a", add_special=False)[0] != moe.token_bos


def test_long_text(moe: Model) -> None:
    text = "the cat " * 20_000
    assert moe.tokens_to_str(moe.str_to_token(text, add_special=False)).strip() == text.strip()


def test_tokens_goes_through_the_vocabulary(moe: Model) -> None:
    tokens = list(moe.tokens())
    assert [token for token, _ in tokens] == list(range(moe.n_vocab))
    assert tokens[3 + ord("a")][1] == b"a"


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_lone_surrogates_are_refused(moe: Model, text: str) -> None:
    with pytest.raises(ValueError, match="lone surrogate"):
        moe.str_to_token(text)


@pytest.mark.parametrize("text", [None, b"a", 3, ["a"]])
def test_text_of_the_wrong_type(moe: Model, text: object) -> None:
    with pytest.raises(TypeError, match="text"):
        moe.str_to_token(text)  # type: ignore[arg-type]


@pytest.mark.parametrize("token", [-1, len(tiny.TOKENS), 2**31, -(2**40)])
def test_tokens_out_of_range(moe: Model, token: int) -> None:
    for call in (
        moe.token_to_str,
        moe.token_to_bytes,
        moe.token_attr,
        moe.token_score,
        moe.is_eog_token,
        moe.is_control_token,
    ):
        with pytest.raises(ValueError, match="token is"):
            call(token)
    with pytest.raises(ValueError, match=r"tokens\[1\]"):
        moe.tokens_to_str([0, token])


@pytest.mark.parametrize("tokens", ["ab", [1.5], [[1, 2]], None])
def test_tokens_of_the_wrong_kind(moe: Model, tokens: object) -> None:
    with pytest.raises((TypeError, ValueError), match="tokens"):
        moe.tokens_to_str(tokens)  # type: ignore[arg-type]


def test_arrays_of_any_integers(moe: Model) -> None:
    tokens = np.arange(260, 280)
    expected = moe.tokens_to_str(tokens.tolist())
    for array in (tokens.astype(np.uint16), tokens.astype(np.int64), np.repeat(tokens, 2)[::2], tokens[::-1][::-1]):
        assert moe.tokens_to_str(array) == expected
    assert moe.tokens_to_str([]) == ""


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
    for _ in range(60):
        with Model.load_from_file(path, CPU) as model, model.new_context(SMALL) as context:
            list(context.generate("hello", max_tokens=2))
        sizes.append(process.memory_info().rss)
    assert sizes[-1] - sizes[20] < 2**20


def test_process_level_functions() -> None:
    moebind.init()
    moebind.init()
    with pytest.raises(MoebindError, match="too late"):
        moebind.init(moebind.NumaStrategy.DISTRIBUTE)
    cpu = moebind.devices()[0]
    assert cpu.type is moebind.DeviceType.CPU
    assert 0 < cpu.memory_free <= cpu.memory_total == cpu.capacity
    assert moebind.max_devices() == 16
    assert moebind.supports_mmap()
    assert moebind.supports_rpc()
    assert isinstance(moebind.supports_mlock(), bool)
    assert isinstance(moebind.supports_gpu_offload(), bool)
    assert moebind.time_us() <= moebind.time_us()
    assert "CPU" in moebind.system_info()
    assert moebind.llama_cpp_version == bytes(moebind.ffi.string(lib.llama_version())).decode()
    with pytest.raises(NotADirectoryError):
        moebind.load_backends("/nowhere")
