"""What drafts for a context, made of a description."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import CPU, EXACT
from moebind import (
    Context,
    Draft,
    Model,
    ModelNotFoundError,
    ModelParams,
    MtpSpeculative,
    Speculative,
    SpeculativeError,
)
from moebind.context.drafted_by import drafted_by

MakeTiny = Callable[..., Path]


@pytest.fixture(scope="module")
def path(tiny_path: MakeTiny) -> Path:
    return tiny_path(arch="glm4moe", n_layer=4, n_expert=4, n_mtp=1, n_head_kv=4)


@pytest.mark.parametrize(("kinds", "made"), [(["draft-mtp"], MtpSpeculative), ([], Speculative)])
def test_own_layers(path: Path, kinds: list[str], made: type[Speculative]) -> None:
    with (
        Model.load_from_file(path, CPU.with_load_mtp(True)) as model,
        model.new_context(EXACT) as context,
        drafted_by(context, Draft(), kinds, n_max=2) as speculative,
    ):
        assert type(speculative) is made
        drafts = speculative.draft_context
        text = context.generate([1, 5, 6], max_tokens=6, speculative=speculative).complete()
        assert context.timings().n_drafted > 0
        assert text.tokens == context.generate([1, 5, 6], max_tokens=6).complete().tokens
    assert isinstance(drafts, Context)
    assert drafts.closed


def test_a_file_is_loaded_by_who_asks(moe: Model, tiny_path: MakeTiny) -> None:
    loaded: list[Model] = []

    def load(path: str, params: ModelParams) -> Model:
        loaded.append(Model.load_from_file(path, params))
        return loaded[0]

    draft = Draft(str(tiny_path(n_layer=1)))
    with moe.new_context(EXACT) as context:
        with drafted_by(context, draft, load=load, n_max=2) as speculative:
            context.generate([1, 5, 6], max_tokens=6, speculative=speculative).complete()
            assert context.timings().n_drafted > 0
        assert speculative.closed
    assert [each.closed for each in loaded] == [True]


def test_what_cannot_draft(moe: Model, tmp_path: Path) -> None:
    with moe.new_context(EXACT) as context:
        with pytest.raises(SpeculativeError, match="no layers that predict"), drafted_by(context, Draft()):
            pass
        with pytest.raises(ModelNotFoundError), drafted_by(context, Draft(str(tmp_path / "none.gguf"))):
            pass
        with drafted_by(context, None, ["ngram-simple"]) as speculative:
            assert speculative.draft_context is None
