"""Drafts by multi-token prediction, in a loop of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from drafts import Drafting, prompts, write_mtp

from conftest import CPU, EXACT
from moebind import Batch, Context, ContextType, Model, MtpSpeculative, MtpSpeculativeParams, SpeculativeError

SHAPE = {"arch": "glm4moe", "n_layer": 4, "n_expert": 4, "n_mtp": 1, "n_head_kv": 4}


@pytest.fixture(scope="module")
def model(tiny_path: Callable[..., Path]) -> Iterator[Model]:
    with Model.load_from_file(tiny_path(**SHAPE), CPU.with_load_mtp(True)) as loaded:
        yield loaded


@pytest.fixture
def target(model: Model) -> Iterator[Context]:
    with model.new_context(EXACT) as context:
        yield context


def batch_of(tokens: list[int], pos: int, every: bool = True) -> Batch:
    batch = Batch(len(tokens))
    batch.add_sequence(tokens, 0, every, pos)
    return batch


def test_it_makes_a_context_and_generates(target: Context, model: Model) -> None:
    with MtpSpeculative(target, params=MtpSpeculativeParams(n_max=2)) as mtp, model.new_context(EXACT) as reference:
        draft = mtp.draft_context
        assert isinstance(draft, Context)
        assert draft.params.ctx_type == ContextType.MTP
        assert (mtp.target_context, mtp.n_max) == (target, 2)
        Drafting(target, reference, mtp).check(prompts(12), max_tokens=20)
        assert target.timings().n_drafted > 0
    assert draft.closed
    assert not target.closed


def test_layers_in_a_file_of_their_own(tmp_path: Path) -> None:
    trunk, heads = write_mtp(tmp_path / "a.gguf", ahead=False), write_mtp(tmp_path / "mtp-a.gguf", trunk=False)
    with (
        Model.load_from_file(trunk, CPU) as model,
        Model.load_from_file(heads, CPU.with_load_mtp(True)) as layers,
        model.new_context(EXACT) as target,
        model.new_context(EXACT) as reference,
        layers.new_context(EXACT.with_ctx_type(ContextType.MTP)) as ahead,
    ):
        with pytest.raises(
            SpeculativeError, match=r"has no layers that predict further ahead \(MTP\): those in a file"
        ):
            MtpSpeculative(target)
        with MtpSpeculative(target, ahead) as mtp:
            Drafting(target, reference, mtp).check(prompts(6), max_tokens=20)
            assert target.timings().n_accepted > 0
        assert not ahead.closed


def test_a_loop_of_ones_own(target: Context, model: Model) -> None:
    prompt = model.str_to_token("the a of to").tolist()
    expected = target.generate("the a of to", max_tokens=24).complete().tokens
    target.kv_cache_clear()
    with MtpSpeculative(target) as mtp:
        batch = batch_of(prompt, 0, False)
        target.decode(batch)
        mtp.process(batch)
        mtp.begin(0, prompt)
        text, n_past = [int(target.get_logits_ith(-1).argmax())], len(prompt)
        while len(text) < 24:
            drafted = mtp.draft(0, n_past, text[-1])
            assert drafted.dtype == np.int32
            assert drafted.size <= 3
            batch = batch_of([text[-1], *drafted.tolist()], n_past)
            target.decode(batch)
            mtp.process(batch)
            likeliest = target.get_logits().argmax(axis=1).tolist()
            right = next((i for i, token in enumerate(drafted) if token != likeliest[i]), drafted.size)
            mtp.accept(0, right)
            text += likeliest[: right + 1]
            n_past += right + 1
            target.kv_cache_seq_rm(0, n_past, None)
    assert tuple(text[:24]) == expected


def test_what_was_not_seen(target: Context, model: Model) -> None:
    with MtpSpeculative(target) as mtp:
        batch = batch_of([5, 6, 7], 0, False)
        with pytest.raises(SpeculativeError, match="decoded last"):
            mtp.process(batch)
        target.decode(batch)
        with pytest.raises(SpeculativeError, match="n_past is 3, but process"):
            mtp.draft(0, 3, 8)
        mtp.process(batch)
        with pytest.raises(SpeculativeError, match="decoded last"):
            mtp.process(batch_of([5, 6, 7, 8], 0, False))
        with pytest.raises(ValueError, match="n_accepted is 1"):
            mtp.accept(0, 1)
        with pytest.raises(ValueError, match="seq_id is 1"):
            mtp.draft(1, 3, 8)
        with pytest.raises(TypeError, match="takes a Batch"):
            mtp.process([5])  # type: ignore[arg-type]
        target.kv_cache_clear()
        automatic = Batch.get_one([5])
        target.decode(automatic)
        with pytest.raises(SpeculativeError, match="no positions"):
            mtp.process(automatic)


def test_models_without_such_layers(moe: Model, tiny_path: Callable[..., Path], target: Context) -> None:
    with moe.new_context(EXACT) as context, pytest.raises(SpeculativeError, match="has no layers that predict further"):
        MtpSpeculative(context)
    with Model.load_from_file(tiny_path(**SHAPE), CPU) as unloaded, unloaded.new_context(EXACT) as context:
        with pytest.raises(SpeculativeError, match="with_load_mtp"):
            MtpSpeculative(context)
    with pytest.raises(TypeError, match="it takes a Context"):
        MtpSpeculative(moe)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="MtpSpeculativeParams"):
        MtpSpeculative(target, params=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [{"n_max": 0}, {"n_min": 4}, {"p_min": 1.5}])
def test_numbers(given: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(given))):
        MtpSpeculativeParams(**given)  # type: ignore[arg-type]
