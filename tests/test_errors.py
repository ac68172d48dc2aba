"""Errors: what they say, and what they are beside moebind's own."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

import moebind
from moebind import errors

KINDS = [getattr(errors, name) for name in errors.__all__]


def test_all_are_exported_and_of_one_family() -> None:
    defined = {
        name for name, kind in vars(errors).items() if inspect.isclass(kind) and kind.__module__ == "moebind.errors"
    }
    assert defined == set(errors.__all__)
    for kind in KINDS:
        assert getattr(moebind, kind.__name__) is kind
        assert issubclass(kind, errors.MoebindError)
        assert kind.__doc__


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.ModelNotFoundError, FileNotFoundError),
        (errors.StateNotFoundError, FileNotFoundError),
        (errors.LoraNotFoundError, FileNotFoundError),
        (errors.BatchError, ValueError),
        (errors.GrammarError, ValueError),
        (errors.TokenizeError, ValueError),
    ],
)
def test_some_are_what_python_calls_them(kind: type[Exception], builtin: type[Exception]) -> None:
    assert issubclass(kind, builtin)
    assert str(kind("what is wrong")) == "what is wrong"


#: Those that tell more than a message.
MORE: dict[type[Exception], tuple[str, object]] = {
    errors.RpcServerError: ("endpoint", "localhost:1"),
    errors.DecodeError: ("code", -3),
    errors.NoKvSlotError: ("code", 1),
    errors.AbortedError: ("code", 2),
    errors.EncodeError: ("code", -1),
    errors.FitError: ("missing", {"CUDA0": 2**30}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_they_go_from_process_to_process(kind: type[Exception]) -> None:
    name, value = MORE.get(kind, (None, None))
    error = kind("what is wrong") if name is None else kind("what is wrong", value)
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301
        assert type(other) is kind
        assert str(other) == str(error) == "what is wrong"
        if name is not None:
            assert getattr(other, name) == value


def test_what_a_failed_assertion_says() -> None:
    assert errors.NativeError("a.cpp:3: GGML_ASSERT(x) failed").message == "a.cpp:3: GGML_ASSERT(x) failed"
    assert errors.NativeError().message == ""
