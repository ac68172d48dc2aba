"""Names of other libraries: the error says what there is instead."""

from __future__ import annotations

import copy
import pickle
import re

import pytest

import moebind
import moebind.mtmd
import moebind.server
from conftest import SMALL
from moebind import Model
from moebind._core.other_names import _CALLED, _ENGINES, _MODULE, _OBJECTS, SETTINGS, missing


@pytest.mark.parametrize(
    ("name", "here"),
    [
        ("Llama", "Model.load_from_file(path, params), and a context of it"),
        ("LlamaGrammar", "Sampler.grammar(model, text)"),
        ("LlamaModel", "moebind.Model;"),
        ("AutoModelForCausalLM", "Model.from_pretrained(repo_id"),
        ("MtmdContext", "moebind.mtmd.MtmdContext;"),
        ("Server", "moebind.server.Server;"),
        ("LlamaBatch", "moebind.Batch;"),
        ("LlamaModelParams", "moebind.ModelParams;"),
        ("llama_decode", "moebind.lib.llama_decode;"),
    ],
)
def test_names_of_the_module(name: str, here: str) -> None:
    said = re.escape(f"'{name}'") + ".*Here it is " + re.escape(here)
    with pytest.raises(AttributeError, match=f"^module 'moebind' has no attribute {said}"):
        getattr(moebind, name)
    with pytest.raises(ImportError, match=f"^cannot import name {said}.*migrating"):
        exec(f"from moebind import {name}")  # noqa: S102
    assert not hasattr(moebind, name)


def test_other_names_are_as_in_any_module() -> None:
    for name in ("nothing", "LlamaNothing", "llama_nothing"):
        with pytest.raises(AttributeError, match=f"^module 'moebind' has no attribute '{name}'$"):
            getattr(moebind, name)
        with pytest.raises(ImportError, match=f"cannot import name '{name}' from 'moebind' "):
            exec(f"from moebind import {name}")  # noqa: S102


def test_names_of_objects(dense: Model) -> None:
    with dense.new_context(SMALL) as context:
        for owner, name, here in (
            (dense, "create_chat_completion", r"context\.chat\(messages\)\.complete\(\); docs/migrating"),
            (dense, "generate", r"context\.generate\(prompt\), with context = model\.new_context\(params\)"),
            (context, "tokenize", r"model\.str_to_token\(text\)"),
            (context, "scores", r"context\.get_logits_ith\(i\)"),
            (context, "input_ids", "what you decoded"),
            (context, "n_tokens", r"context\.kv_cache_seq_pos_max\(seq_id\) \+ 1"),
        ):
            kind = type(owner).__name__
            with pytest.raises(AttributeError, match=f"^'{kind}' object has no attribute '{name}'. Here it is {here}"):
                getattr(owner, name)
        for each in (context, dense):
            with pytest.raises(AttributeError, match="object has no attribute 'nothing'$") as raised:
                getattr(each, "nothing")  # noqa: B009  # type checkers know it
            assert (raised.value.name, raised.value.obj) == ("nothing", each)
            assert not hasattr(each, "__array__")


def test_objects_that_are_called(dense: Model) -> None:
    pool = moebind.ContextPool([dense.new_context(SMALL)])
    with dense.new_context(SMALL) as context, moebind.Engine(dense, SMALL) as engine:
        for owner, here in (
            (engine, "engine.generate(prompt).complete(), or engine.chat(messages).complete()"),
            (dense, "context.generate(prompt).complete(), with context = model.new_context(params)"),
            (context, "context.generate(prompt).complete(), or context.chat(messages).complete()"),
            (pool, "await pool.agenerate(prompt).complete(), or await pool.achat(messages).complete()"),
        ):
            kind = type(owner).__name__
            for arguments in ((), ("Hi",)):
                with pytest.raises(TypeError) as raised:
                    owner(*arguments, max_tokens=3)  # type: ignore[operator]
                told = f"'{kind}' object is not callable. Here it is {here}; docs/migrating.md has more"
                assert str(raised.value) == told
    pool.close()


def test_names_of_engines(dense: Model) -> None:
    with moebind.Engine(dense, SMALL) as engine:
        for name, here in (
            ("generate_many", "[engine.generate(p) for p in prompts]"),
            ("create_completion", "engine.generate(prompt).complete();"),
            ("context", "engine.generate(prompt) and engine.chat(messages): its context is its own;"),
            ("n_ctx", "engine.n_ctx_seq"),
            ("tokenize", "model.str_to_token(text)"),
        ):
            said = f"'Engine' object has no attribute '{name}'. Here it is {here}"
            with pytest.raises(AttributeError, match="^" + re.escape(said)):
                getattr(engine, name)

        class Own(moebind.Engine):
            pass

        assert str(missing(Own.__new__(Own), "generate_many")).startswith("'Own' object has no attribute")
        assert "[engine.generate(p)" in str(missing(Own.__new__(Own), "generate_many"))


def test_names_of_other_modules() -> None:
    for module in (moebind.mtmd, moebind.server):
        for name in set(module.__all__) - set(moebind.__all__):
            assert _MODULE[name] == f"{module.__name__}.{name}"


def test_names_of_texts(dense: Model) -> None:
    with dense.new_context(SMALL) as context:
        completion = context.generate("a", max_tokens=1).complete()
    for owner in (completion, *completion.pieces):
        kind = type(owner).__name__
        with pytest.raises(
            AttributeError, match=f"^'{kind}' object has no attribute 'finish_reason'. Here it is stop_reason"
        ):
            owner.finish_reason  # type: ignore[attr-defined]  # noqa: B018
        with pytest.raises(AttributeError, match="has no attribute 'nothing'$"):
            owner.nothing  # type: ignore[attr-defined]  # noqa: B018
        assert copy.deepcopy(owner) == pickle.loads(pickle.dumps(owner)) == owner  # noqa: S301
    usage = completion.usage
    for name, here in (("completion_tokens", "generated_tokens"), ("prompt_tokens_details", "cached_tokens")):
        said = f"^'Usage' object has no attribute '{name}'. Here it is usage.{here};"
        with pytest.raises(AttributeError, match=said):
            getattr(usage, name)
    assert copy.deepcopy(usage) == pickle.loads(pickle.dumps(usage)) == usage  # noqa: S301


def test_the_answers_are_there() -> None:
    kinds = {"model": moebind.Model, "context": moebind.Context, "engine": moebind.Engine, "moebind": moebind}
    for answers in (_MODULE, _OBJECTS, _ENGINES, SETTINGS, _CALLED):
        for answer in answers.values():
            for owner, name in re.findall(r"\b(model|context|engine|Model|Sampler|moebind)\.([a-z]\w*)", answer):
                kind = kinds.get(owner)
                assert hasattr(kind or getattr(moebind, owner), name), answer


def test_names_that_are_nearly_those_of_the_module() -> None:
    with pytest.raises(AttributeError, match=r"loadmodel'\. Here it is Model\.load_from_file"):
        moebind.loadmodel  # noqa: B018
    with pytest.raises(AttributeError, match="did you mean 'Context'"):
        moebind.Contex  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'zzzz'$"):
        moebind.zzzz  # noqa: B018


def test_a_fit_says_where_its_parameters_are(dense: Model) -> None:
    fit = moebind.fit(dense.path, devices=[])
    with pytest.raises(AttributeError, match=r"fit\.model_params, and fit\.context_params"):
        fit.params  # noqa: B018
    assert copy.copy(fit) == fit
    with pytest.raises(AttributeError, match=r"model\.new_context\(params\)"):
        dense.create_context  # noqa: B018
