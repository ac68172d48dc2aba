"""What drafts tokens, as a part of a configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import moebind
from conftest import CPU, EXACT, SMALL
from moebind import Context, Model, ModelNotFoundError, MtpSpeculative, SpeculativeError, SpeculativeType
from moebind.tuning.speculation import Speculation

MakeTiny = Callable[..., Path]
NGRAM = Speculation("ngram-simple")
MTP = Speculation("draft-mtp", n_max=2)


@pytest.fixture(scope="module")
def path(tiny_path: MakeTiny) -> Path:
    return tiny_path(arch="glm4moe", n_layer=4, n_expert=4, n_mtp=1, n_head_kv=4)


@pytest.fixture(scope="module")
def small(tiny_path: MakeTiny) -> Speculation:
    return Speculation(draft=str(tiny_path(n_layer=1)), n_max=2)


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[Model]:
    with Model.load_from_file(path, CPU.with_load_mtp(True)) as loaded:
        yield loaded


@pytest.fixture
def context(model: Model) -> Iterator[Context]:
    with model.new_context(EXACT) as made:
        yield made


def test_it_is_told_in_words_and_as_options() -> None:
    draft = Speculation(draft="/models/small.gguf", n_max=1)
    assert [each.name for each in (NGRAM, MTP, draft)] == [
        "ngram-simple drafts",
        "up to 2 tokens drafted by the model's own layers",
        "up to 1 token drafted by small.gguf",
    ]
    assert NGRAM.options == ["--spec-type", "ngram-simple"]
    assert MTP.options == ["--spec-type", "draft-mtp", "--spec-draft-n-max", "2"]
    assert draft.options == ["--spec-draft-model", "/models/small.gguf", "--spec-draft-n-max", "1"]
    assert Speculation(draft="a/b.gguf").name == "tokens drafted by b.gguf"
    assert NGRAM.counted is None
    assert MTP.counted == moebind.Draft()
    assert draft.counted == moebind.Draft("/models/small.gguf")


@pytest.mark.parametrize("each", [NGRAM, MTP, Speculation(draft="a", n_max=3)])
def test_it_comes_back_from_plain_values(each: Speculation) -> None:
    assert Speculation.from_dict(each.to_dict()) == each


@pytest.mark.parametrize("damage", [{"kind": 3}, {"draft": ["a"]}, {"n_max": "many"}, {"more": 1}])
def test_what_is_damaged_is_refused(damage: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        Speculation.from_dict({**NGRAM.to_dict(), **damage})


def test_it_drafts_and_the_text_is_the_same(context: Context, small: Speculation) -> None:
    prompt = "the cat the cat the cat the cat the cat the cat the cat the cat"
    expected = context.generate(prompt, max_tokens=24).complete().tokens
    kinds = {NGRAM: "NGRAM_SIMPLE", MTP: "DRAFT_MTP", small: "DRAFT_SIMPLE", replace(small, kind="draft-simple"): ""}
    for each, kind in kinds.items():
        with each.opened(context) as speculative:
            assert speculative.kinds == (SpeculativeType[kind or "DRAFT_SIMPLE"],)
            pieces = context.generate(prompt, max_tokens=24, reuse_prefix=False, speculative=speculative)
            assert pieces.complete().tokens == expected
            draft = speculative.draft_context
        assert speculative.closed
        assert draft is None or draft.closed


def test_a_draft_with_layers_that_predict_further_ahead_is_a_file_all_the_same() -> None:
    draft = Speculation("draft-mtp", "mtp-moe.gguf", 3)
    assert not draft.own_layers
    assert MTP.own_layers
    assert draft.counted == moebind.Draft("mtp-moe.gguf")
    assert draft.name == "up to 3 tokens drafted by mtp-moe.gguf"
    assert draft.values == {"spec_type": "draft-mtp", "model_draft": "mtp-moe.gguf", "spec_draft_n_max": 3}
    assert draft.python[0] == "draft = moebind.Draft('mtp-moe.gguf')"


def test_what_cannot_draft_says_so(context: Context, path: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError), Speculation(draft=str(tmp_path / "none.gguf")).opened(context):
        pass
    with (
        Model.load_from_file(path, CPU) as bare,
        bare.new_context(SMALL) as without,
        pytest.raises((SpeculativeError, moebind.ContextCreationError)),
        MTP.opened(without),
    ):
        pass


def test_lines_of_python_make_it(model: Model, context: Context, small: Speculation) -> None:
    for each, kind in ((NGRAM, moebind.Speculative), (MTP, MtpSpeculative), (small, moebind.Speculative)):
        names: dict[str, Any] = {"moebind": moebind, "Model": Model, "model": model, "context": context}
        exec("\n".join(each.python), names)  # noqa: S102  # what users would run
        with ExitStack() as stack:
            for name in ("draft_model", "draft_context"):
                if name in names:
                    stack.enter_context(names[name])
            speculative = stack.enter_context(names["speculative"])
            assert type(speculative) is kind
            assert speculative.n_max == (each.n_max or speculative.n_max)
