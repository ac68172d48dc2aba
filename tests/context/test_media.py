"""Texts that go on from pictures and sound: the same with a prefix that is reused, and without."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import projectors
import pytest
from native_calls import stopped_by_ctrl_c

from moebind import ContextParams, Sampler, ffi, lib
from moebind.errors import BatchError, ClosedError, MtmdError, SpeculativeError
from moebind.mtmd import Bitmap, MtmdContext, projector

SeeingMaker = Callable[[str], projectors.Seeing]
KINDS = sorted(projectors.MODELS)


def ids(context: Any, prompt: object, see: projectors.Seeing, **options: Any) -> list[int]:
    pieces = context.generate(prompt, mtmd=see.mtmd, max_tokens=6, **options)
    return [piece.token for piece in pieces]


@pytest.mark.parametrize("kind", KINDS)
def test_a_prefix_is_reused_by_what_it_shows(seeing: SeeingMaker, kind: str) -> None:
    see = seeing(kind)
    one, other = see.bitmap(1), see.bitmap(2)
    one.id = other.id = "the same name"
    with see.context(n_ctx=2048) as context:
        # No text ends by itself, so that all have as many tokens.
        chain = Sampler.chain_simple([Sampler.logit_bias({2: -1e9}), Sampler.greedy()])

        def run(prompt: list[str | Bitmap], reuse: bool = True) -> tuple[list[int], int]:
            pieces = context.generate(prompt, mtmd=see.mtmd, max_tokens=6, sampler=chain, reuse_prefix=reuse)
            return [piece.token for piece in pieces], pieces.usage.cached_tokens

        first, cached = run(["Look: ", one, " so"])
        assert cached == 0
        again, cached = run(["Look: ", one, " so"])
        whole = see.mtmd.tokenize(["Look: ", one, " so"])
        assert again == first
        assert cached == whole.total_tokens - 1
        # Another text after it: the picture is not computed again. Then another picture: it is.
        longer, cached = run(["Look: ", one, " so what"])
        assert cached >= whole.total_tokens - whole[-1].n_tokens
        assert longer == run(["Look: ", one, " so what"], reuse=False)[0]
        changed, cached = run(["Look: ", other, " so"])
        assert cached == whole[0].n_tokens
        assert changed == run(["Look: ", other, " so"], reuse=False)[0]
        # Twice the same, and once: the second is another one.
        twice, cached = run(["Look: ", other, other, " so"])
        assert twice == run(["Look: ", other, other, " so"], reuse=False)[0]
        assert one.id == other.id == "the same name"


def test_the_same_picture_made_again_is_the_same(seeing: SeeingMaker) -> None:
    see = seeing("gemma3")
    with see.context() as context:
        ids(context, ["a ", see.bitmap(3), " b"], see)
        pieces = context.generate(["a ", see.bitmap(3), " b"], mtmd=see.mtmd, max_tokens=1)
        pieces.complete()
        assert pieces.usage.cached_tokens == pieces.usage.prompt_tokens - 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_as_by_hand(seeing: SeeingMaker, kind: str) -> None:
    see = seeing(kind)
    prompt = ["Look: ", see.bitmap(), " so"]
    with see.context() as context:
        chosen = ids(context, prompt, see)
        context.kv_cache_clear()
        after = see.mtmd.tokenize(prompt).eval_chunks(see.mtmd, context)
        assert int(np.argmax(context.get_logits_ith(-1))) == chosen[0]
        assert after == see.mtmd.tokenize(prompt).total_positions


def test_what_it_looks_at_matters(seeing: SeeingMaker) -> None:
    see = seeing("gemma3")
    with see.context() as context:
        rows = []
        for seed in range(2):
            next(iter(context.generate(["x", see.bitmap(seed), "y"], mtmd=see.mtmd, max_tokens=1)))
            rows.append(context.get_logits_ith(-1).copy())
    assert np.abs(rows[0] - rows[1]).max() > 0.01


def test_a_prompt_that_does_not_fit(seeing: SeeingMaker) -> None:
    see = seeing("ultravox")
    with see.context(n_ctx=256) as context, pytest.raises(ValueError, match="prompt has [23].. tokens; .* takes 256"):
        context.generate(["x y " * 25, see.bitmap(), "y"], mtmd=see.mtmd)
    # As cells of the cache, not as positions, of which these have fewer.
    wide = seeing("qwen2vl_merger")
    picture = Bitmap.from_image_data(projectors.pixels(28 * 40, 28 * 20))
    with wide.context(n_ctx=512) as context, pytest.raises(ValueError, match="takes 512"):
        context.generate(["x", picture, "y"], mtmd=wide.mtmd)


def test_a_full_context_ends_a_text(seeing: SeeingMaker) -> None:
    see = seeing("qwen2vl_merger")
    with see.context(n_ctx=256) as context:
        picture = Bitmap.from_image_data(projectors.pixels(28 * 14, 28 * 12))
        chain = Sampler.chain_simple([Sampler.logit_bias({2: -1e9}), Sampler.greedy()])
        pieces = context.generate(["x", picture, "y"], mtmd=see.mtmd, sampler=chain)
        completion = pieces.complete()
        assert completion.stop_reason == "context"
        assert pieces.usage.prompt_tokens + pieces.usage.generated_tokens <= 257


def test_prompts_that_are_wrong(seeing: SeeingMaker) -> None:
    see, other = seeing("gemma3"), seeing("idefics3")
    bitmap = see.bitmap()
    with see.context() as context:
        for prompt, options, error, told in [
            (["a", bitmap, "b"], {}, ValueError, "it takes mtmd="),
            (["a", bitmap, 5], {"mtmd": see.mtmd}, TypeError, r"prompt\[2\] is 5"),
            (["a", bitmap, "b"], {"mtmd": other.mtmd}, MtmdError, "loaded for another model"),
            (
                ["a", bitmap, "b"],
                {"mtmd": "mmproj.gguf"},
                TypeError,
                "it takes an MtmdContext: ",
            ),
            (["a", bitmap], {"mtmd": other.mtmd}, MtmdError, "loaded for another model"),
        ]:
            with pytest.raises(error, match=told):
                context.generate(prompt, **options)
        assert len(ids(context, ["only ", "text"], see)) >= 1
        assert ids(context, "text", see) == [piece.token for piece in context.generate("text", max_tokens=6)]
    ears = seeing("ultravox")
    with ears.context() as context, pytest.raises(MtmdError, match="it takes text after it"):
        context.generate(["a", ears.bitmap()], mtmd=ears.mtmd)


def test_many_texts_at_once_are_texts(seeing: SeeingMaker) -> None:
    see = seeing("gemma3")
    with see.context() as context, pytest.raises(ValueError, match=r"prompts\[1\] has pictures or sound, .* generate"):
        context.generate_many(["a", ["b", see.bitmap(), "c"]])


def test_a_batch_that_is_too_small(seeing: SeeingMaker) -> None:
    see = seeing("gemma3")
    with see.context(n_batch=3, n_ubatch=3) as context, pytest.raises(BatchError, match="looks at at once"):
        context.generate(["a", see.bitmap(), "b"], mtmd=see.mtmd)


def test_penalties_and_grammars_and_logprobs(seeing: SeeingMaker) -> None:
    see = seeing("gemma3")
    with see.context() as context:
        pieces = context.generate(
            ["a", see.bitmap(), "b"], mtmd=see.mtmd, max_tokens=4, repeat_penalty=1.3, temperature=0, logprobs=2
        )
        assert all(len(piece.top) == 2 for piece in pieces if piece.top is not None)
        text = context.generate(
            ["a", see.bitmap(), "b"], mtmd=see.mtmd, max_tokens=20, json_schema={"type": "boolean"}
        ).complete()
        assert text.text in {"true", "false"}


def test_states_do_not_hold_what_stands_for_pictures(seeing: SeeingMaker, tmp_path: Path) -> None:
    see = seeing("gemma3")
    bitmap = see.bitmap()
    with see.context(n_seq_max=2, kv_unified=True) as context:
        expected = ids(context, ["Look ", bitmap, " so"], see)
        context.state_seq_save_file(tmp_path / "state", 0)
        saved = context.state_seq_load_file(tmp_path / "state", 1)
        assert saved.size == see.mtmd.tokenize(["Look ", bitmap, " so"])[0].n_tokens
        assert (saved >= 0).all()
        pieces = context.generate(["Look ", bitmap, " so"], mtmd=see.mtmd, max_tokens=6, seq_id=1)
        assert [piece.token for piece in pieces] == expected
        state = context.state_seq_get(0)
    with see.context() as another:
        another.state_seq_set(state)
        pieces = another.generate(["Look ", bitmap, " so"], mtmd=see.mtmd, max_tokens=6)
        assert [piece.token for piece in pieces] == expected
        assert pieces.usage.cached_tokens == pieces.usage.prompt_tokens - 1


def test_asynchronously(seeing: SeeingMaker) -> None:
    see = seeing("gemma3")
    prompt = ["Look ", see.bitmap(), " so"]
    with see.context() as context:
        expected = context.generate(prompt, mtmd=see.mtmd, max_tokens=6).complete().text

        async def run() -> str:
            return (await context.agenerate(prompt, mtmd=see.mtmd, max_tokens=6).complete()).text

        assert asyncio.run(run()) == expected
        with pytest.raises(TypeError, match="it takes an MtmdContext"):
            context.agenerate(prompt, mtmd=5)


class Replaced:
    """The library with other functions in the place of some."""

    def __init__(self, **functions: object) -> None:
        self.__dict__.update(functions)

    def __getattr__(self, name: str) -> Any:
        return getattr(lib, name)


def encoded(see: projectors.Seeing, bitmap: Bitmap) -> bytes:
    """What becomes of a picture that is encoded to its end, by a projector of its own: no memory has it afterwards."""
    with MtmdContext.init_from_file(see.mtmd.path, see.model, see.mtmd.params) as another:
        (chunk,) = (each for each in another.tokenize([bitmap]) if each.text_tokens is None)
        return another.encode_chunk(chunk).tobytes()


def test_a_generation_that_is_left_stops_its_encoder(seeing: SeeingMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    see = seeing("qwen2vl_merger")
    large = Bitmap.from_image_data(projectors.pixels(700, 700))
    with see.context(n_ctx=4096) as context:
        expected = ids(context, ["a", see.bitmap(), "b"], see)
        whole, cut = encoded(see, large), list[bool]()

        async def run() -> None:
            loop, encodes = asyncio.get_running_loop(), asyncio.Event()

            def encode(native: Any, chunk: Any) -> int:
                loop.call_soon_threadsafe(encodes.set)
                code = int(lib.mtmd_encode_chunk(native, chunk))
                cut.append(code != 0 or bytes(ffi.buffer(lib.mtmd_get_output_embd(native), len(whole))) != whole)
                return code

            monkeypatch.setattr(projector, "lib", Replaced(mtmd_encode_chunk=encode))
            task = asyncio.ensure_future(context.agenerate(["a", large, "b"], mtmd=see.mtmd, max_tokens=2).complete())
            await encodes.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        for _ in range(20):  # it may be left too late, if the processor is busy
            asyncio.run(run())
            monkeypatch.undo()
            if any(cut):
                break
        assert any(cut)
        assert ids(context, ["a", see.bitmap(), "b"], see) == expected


def test_ctrl_c_while_a_picture_is_encoded(seeing: SeeingMaker) -> None:
    see = seeing("qwen2vl_merger")
    large = Bitmap.from_image_data(projectors.pixels(1000, 1000))
    with see.context(n_ctx=4096) as context:
        prompt = ["a", see.bitmap(), "b"]
        expected = ids(context, prompt, see)
        assert stopped_by_ctrl_c("mtmd_encode_chunk", lambda: ids(context, ["c", large, "d"], see))
        assert ids(context, prompt, see, reuse_prefix=False) == expected
        assert ids(context, prompt, see) == expected


def test_a_sequence_that_is_taken_over_while_a_picture_is_encoded(
    seeing: SeeingMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    see = seeing("qwen2vl_merger")
    large = Bitmap.from_image_data(projectors.pixels(600, 600))
    with see.context(n_ctx=4096) as context:
        raised: list[BaseException] = []
        encodes, taken_over = threading.Event(), threading.Event()

        def encode(native: Any, chunk: Any) -> int:
            encodes.set()
            code = int(lib.mtmd_encode_chunk(native, chunk))
            taken_over.wait()  # however soon it is done
            return code

        monkeypatch.setattr(projector, "lib", Replaced(mtmd_encode_chunk=encode))

        def work() -> None:
            try:
                context.generate(["a", large, "b"], mtmd=see.mtmd, max_tokens=2).complete()
            except ClosedError as error:
                raised.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        encodes.wait()
        context.kv_cache_clear()
        taken_over.set()
        thread.join()
        assert len(raised) == 1


def test_embeddings_are_computed_of_all_tokens(seeing: SeeingMaker) -> None:
    see = seeing("idefics3")
    params = ContextParams(n_ctx=1024, n_threads=1, embeddings=True, n_outputs_max=3)
    with see.model.new_context(params) as context:
        chunks = see.mtmd.tokenize([see.bitmap(), "abc"])
        picture = next(chunk for chunk in chunks if chunk.text_tokens is None)
        rows = see.mtmd.encode_chunk(picture)
        assert len(rows) > 3
        with context._exclusive() as native:
            context._decode_media(native, see.mtmd, picture, rows, 0, 0, 512)
        assert context.kv_cache_seq_pos_max(0) == len(rows) - 1


def test_pictures_are_not_drafted_for(seeing: SeeingMaker) -> None:
    see = seeing("gemma3")
    with see.context() as context:
        with pytest.raises(SpeculativeError, match="pictures or sound"):
            context.generate(["a ", see.bitmap(3)], mtmd=see.mtmd, speculative="ngram-simple")
        # What follows in the same sequence, in text, is: it begins anew where the picture was.
        ids(context, ["a ", see.bitmap(3), " b"], see)
        drafted = context.generate("a b a b a b", max_tokens=8, speculative="ngram-simple").complete()
        plain = context.generate("a b a b a b", max_tokens=8, reuse_prefix=False).complete()
        assert drafted.tokens == plain.tokens
