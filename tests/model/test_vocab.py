"""Vocabularies of every kind: text there and back, long texts, and what a model knows about its tokens."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_vocab
from hypothesis import example, given
from hypothesis import strategies as st

from moebind import ClosedError, Model, ModelParams, TokenAttr, TokenizeError, VocabType

HERE = Path(__file__).parents[1]
VOCAB_ONLY = ModelParams(n_gpu_layers=0, vocab_only=True)
Load = Callable[..., Model]
#: This vocabulary lacks the tokens for some control characters and for bytes from 0xF1.
DEMO_TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=0x3FFFF, exclude_categories=["Cs"]) | st.just("\n"))


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Load]:
    """Loads a vocabulary, each once."""
    folder = tmp_path_factory.mktemp("vocab")
    loaded: dict[str, Model] = {}

    def load(name: str, vocabulary: dict[str, object], **more: object) -> Model:
        if name not in loaded:
            path = tiny_vocab.write(folder / f"{name}.gguf", vocabulary, **more)
            loaded[name] = Model.load_from_file(path, VOCAB_ONLY)
        return loaded[name]

    yield load
    for model in loaded.values():
        model.close()


# --- there and back ---


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2", "deepseek-llm", "tekken", "superbpe", "default"])
def test_any_text_makes_a_round_trip_with_byte_level_bpe(load: Load, pre: str) -> None:
    model = load(pre, tiny_vocab.bpe(pre))

    @given(st.text())
    @example("1 . 2 ! 3 ? 4 , 5")  # llama_detokenize takes spaces away from these
    @example("it 's , ' and 'm 're 've ' '")
    def check(text: str) -> None:
        tokens = model.str_to_token(text, add_special=False, parse_special=False)
        assert model.tokens_to_str(tokens) == text
        assert b"".join(model.token_to_bytes(token) for token in tokens) == text.encode()

    check()


@given(st.text())
@example("a<s><s>b")  # the text of a control token, which llama.cpp takes for the token
def test_any_text_makes_a_round_trip_with_rwkv(load: Load, text: str) -> None:
    model = load("rwkv", tiny_vocab.rwkv())
    assert model.vocab_type is VocabType.RWKV
    assert model.tokens_to_str(model.str_to_token(text, parse_special=False)) == text


@pytest.mark.parametrize(("name", "kind"), [("wpm", VocabType.WPM), ("ugm", VocabType.UGM)])
def test_any_text_can_be_read_by_vocabularies_that_lack_some(load: Load, name: str, kind: VocabType) -> None:
    """WordPiece and unigram have no token for a character that they do not know: it becomes the unknown token."""
    model = load(name, getattr(tiny_vocab, name)())
    assert model.vocab_type is kind

    @given(st.text())
    def check(text: str) -> None:
        tokens = model.str_to_token(text, add_special=False, parse_special=False)
        assert ((tokens >= 0) & (tokens < model.n_vocab)).all()
        model.tokens_to_str(tokens)

    check()
    assert model.tokens_to_str(model.str_to_token("a b ab", add_special=False)).strip() == "a b ab"


def test_pieces_without_leading_spaces(moe: Model) -> None:
    the = tiny.TOKENS.index("▁the")
    assert moe.token_to_piece_bytes(the) == moe.token_to_bytes(the) == b" the"
    assert moe.token_to_piece_bytes(the, lstrip=1) == moe.token_to_piece_bytes(the, lstrip=5) == b"the"
    assert moe.token_to_piece_bytes(1) == b""
    assert moe.token_to_piece_bytes(1, special=True) == b"<s>"
    assert moe.token_text(the) == "▁the"


# --- long texts ---
RUNS = ["a", "1", " ", "\n", "!", "中", "aB", "é "]
IN_A_CHILD = """
import sys
sys.path.insert(0, {tests!r})
import tiny_vocab
from pathlib import Path
from moebind import Model, ModelParams
path = tiny_vocab.write(Path({folder!r}) / "child.gguf", tiny_vocab.bpe({pre!r}))
model = Model.load_from_file(path, ModelParams(n_gpu_layers=0, vocab_only=True))
for unit in {units!r}:
    text = unit * ({size} // len(unit.encode()))
    assert model.tokens_to_str(model.str_to_token(text)) == text, unit
model.close()
print("done")
"""


def in_a_child(folder: Path, pre: str, units: list[str], size: int) -> None:
    program = IN_A_CHILD.format(tests=str(HERE), folder=str(folder), pre=pre, units=units, size=size)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-2000:]


def test_runs_of_a_megabyte(tmp_path: Path) -> None:
    """This pre-tokenizer is a std::regex, which recurses over each run: 8 MiB of stack end after some 26,000."""
    in_a_child(tmp_path, "deepseek-llm", ["a"], 2**20)


@pytest.mark.parametrize("pre", ["tekken", "default"])
def test_runs_that_overflow_a_usual_stack(tmp_path: Path, pre: str) -> None:
    in_a_child(tmp_path, pre, RUNS, 40_000)


def test_long_runs_with_little_stack_of_ones_own(load: Load) -> None:
    model = load("deepseek-llm", tiny_vocab.bpe("deepseek-llm"))
    import threading

    before = threading.stack_size(64 * 1024)
    try:
        found: list[str] = []
        text = "word " * 3000 + "a" * 30_000
        threads = [
            threading.Thread(target=lambda: found.append(model.tokens_to_str(model.str_to_token(text))))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        threading.stack_size(before)
    assert found == [text] * 3


def test_numbers_that_would_take_for_ever(load: Load) -> None:
    model = load("superbpe", tiny_vocab.bpe("superbpe"))
    assert model.tokens_to_str(model.str_to_token("1" * 2000)) == "1" * 2000
    with pytest.raises(TokenizeError, match="a number of more than 2000 digits"):
        model.str_to_token("1" * 2001)


# --- what a model knows ---


def test_flags(load: Load, moe: Model) -> None:
    assert moe.add_bos
    assert not moe.add_eos
    assert not moe.add_sep
    wpm = load("wpm", tiny_vocab.wpm())
    assert wpm.str_to_token("a")[0] == wpm.token_bos
    plain = load("gpt-2", tiny_vocab.bpe("gpt-2"))
    keys = ("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token")
    wanted = VOCAB_ONLY.with_kv_override(keys[0], True).with_kv_override(keys[1], True)
    with Model.load_from_file(plain.path, wanted) as both:
        assert both.add_bos
        assert both.add_eos
        tokens = both.str_to_token("a")
        assert (tokens[0], tokens[-1]) == (both.token_bos, both.token_eos)


def test_tokens_for_filling_in(load: Load, moe: Model) -> None:
    names = ("pre", "suf", "mid", "pad", "rep", "sep")
    more = {f"tokenizer.ggml.fim_{name}_token_id": number for number, name in enumerate(names)}
    model = load("fim", tiny_vocab.bpe("gpt-2"), **more)
    assert [getattr(model, f"token_fim_{name}") for name in names] == list(range(6))
    assert [getattr(moe, f"token_fim_{name}") for name in names] == [None] * 6


def test_kinds_of_tokens(load: Load) -> None:
    model = load("gpt-2", tiny_vocab.bpe("gpt-2"))
    end = model.n_vocab - 1
    assert model.is_control_token(end)
    assert model.is_eog_token(end)
    assert model.token_attr(end) is TokenAttr.CONTROL
    assert model.token_text(end) == "<|end|>"
    assert model.token_text(0) == "Ā"
    assert model.token_to_bytes(0) == b"\0"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"token": -1}, ValueError, "token is -1"),
        ({"token": 10**6}, ValueError, "token is 1000000"),
        ({"token": "a"}, TypeError, "token is 'a'"),
        ({"special": 1}, TypeError, "special"),
        ({"lstrip": -1}, ValueError, "lstrip"),
        ({"lstrip": 2**31}, ValueError, "lstrip"),
        ({"lstrip": None}, TypeError, "lstrip"),
    ],
)
def test_bad_arguments(moe: Model, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        moe.token_to_piece_bytes(**{"token": 5, **options})


@pytest.mark.parametrize("token", [-1, 10**6, 2**40])
def test_texts_of_tokens_that_are_not(moe: Model, token: int) -> None:
    with pytest.raises(ValueError, match="token is"):
        moe.token_text(token)


def test_a_closed_model_knows_nothing(tmp_path: Path) -> None:
    model = Model.load_from_file(tiny_vocab.write(tmp_path / "a.gguf", tiny_vocab.bpe("gpt-2")), VOCAB_ONLY)
    model.close()
    names = ["token_fim_pad", "token_fim_rep", "token_fim_sep", "add_bos", "add_eos", "add_sep", "suppress_tokens"]
    names += ["n_cls_out", "cls_labels", "decode_start_token", "n_layer_nextn", "rope_freq_scale_train"]
    for name in [*names, "sampling_meta", "chat_template_names"]:
        with pytest.raises(ClosedError):
            getattr(model, name)


def test_a_model_without_a_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "none.gguf"
    tiny_vocab.write(path, {"tokenizer.ggml.model": "no_vocab", "llama.vocab_size": 32})
    with Model.load_from_file(path, VOCAB_ONLY) as model:
        assert model.vocab_type is VocabType.NONE
        assert model.suppress_tokens.size == 0
        for use in (
            lambda: model.token_text(0),
            lambda: model.token_to_piece_bytes(0),
            lambda: model.str_to_token("a"),
        ):
            with pytest.raises(TokenizeError, match="no vocabulary"):
                use()


# --- text and tokens ---


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
