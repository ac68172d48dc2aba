"""Names that classes do not have: the error says what there is instead."""

from __future__ import annotations

import inspect

import pytest

from moebind import Context, Model, Sampler
from moebind._core.other_names import _CLASSES

OWNERS = {"Sampler": Sampler, "Model": Model, "Context": Context}


@pytest.mark.parametrize(
    ("owner", "name", "said"),
    [
        (Sampler, "temperature", "Here it is Sampler.temp(t)"),
        (Sampler, "seed_", "has no attribute 'seed_'; did you mean 'seed'?"),
        (Sampler, "topk", "did you mean 'top_k'?"),
        (Model, "load", "Here it is Model.load_from_file(path, params)"),
        (Model, "from_pretraind", "did you mean 'from_pretrained'?"),
        (Context, "create", "Here it is model.new_context(params)"),
    ],
)
def test_what_there_is_instead(owner: type, name: str, said: str) -> None:
    with pytest.raises(AttributeError) as caught:
        getattr(owner, name)
    assert str(caught.value).startswith(f"type object {owner.__name__!r} has no attribute {name!r}")
    assert said in str(caught.value)
    assert (caught.value.name, caught.value.obj) == (name, owner)


def test_what_resembles_nothing_is_told_as_python_does() -> None:
    for owner in OWNERS.values():
        for name in ("xyzzy", "__fspath__", "_load_from_fil"):
            assert not hasattr(owner, name)
            with pytest.raises(AttributeError, match=f"^type object '{owner.__name__}' has no attribute '{name}'$"):
                getattr(owner, name)


def test_what_is_there_is_not_explained() -> None:
    for owner, names in _CLASSES.items():
        here = {name for name, _ in inspect.getmembers(OWNERS[owner])}
        assert not here & names.keys() - {"seed"}
        for written in names.values():
            called = written.partition("(")[0].partition(".")[2]
            assert hasattr(OWNERS[owner] if owner != "Context" else Model, called)


def test_python_itself_calls_methods_by_the_class_that_has_them() -> None:
    calls: list[tuple[str, object]] = [
        ("Sampler.json_schema() missing 1 required", lambda: Sampler.json_schema(schema={})),  # type: ignore[call-arg]
        ("Sampler.top_k() takes 2 positional", lambda: Sampler.top_k(3, 4)),  # type: ignore[call-arg]
        ("chain_simple() takes samplers by position", lambda: Sampler.chain_simple(1, 2)),  # type: ignore
    ]
    for begin, call in calls:
        with pytest.raises(TypeError) as raised:
            call()  # type: ignore[operator]
        assert str(raised.value).startswith(begin)
