"""Control vectors: what is added to the residual stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import bounds
import numpy as np
import pytest
import tiny
from lora import EXACT, TOKENS, logits

from conftest import CPU
from moebind import ClosedError, Context, Device, Model, ModelParams

MakeTiny = Callable[..., Path]
SHAPE = tiny.Shape(n_layer=4)


@pytest.fixture(scope="module")
def model(tiny_path: MakeTiny) -> Iterator[Model]:
    with Model.load_from_file(tiny_path(n_layer=4), CPU) as model:
        yield model


@pytest.fixture
def exact(model: Model) -> Iterator[Context]:
    with model.new_context(EXACT) as context:
        yield context


def vectors(seed: int = 3) -> np.ndarray:
    data = np.random.default_rng(seed).standard_normal((SHAPE.n_layer, SHAPE.n_embd)).astype(np.float32)
    data[0] = 0
    return data


def test_a_vector_changes_logits_and_none_restores_them(exact: Context) -> None:
    plain = logits(exact)
    exact.set_control_vector(vectors())
    changed = logits(exact)
    assert np.abs(changed - plain).max() > 0.1
    exact.set_control_vector(-vectors())
    assert np.abs(logits(exact) - changed).max() > 0.1
    exact.set_control_vector(None)
    np.testing.assert_array_equal(logits(exact), plain)
    exact.set_control_vector(None)
    exact.set_control_vector(np.zeros((4, 64)))
    np.testing.assert_allclose(logits(exact), plain, atol=bounds.ORDER)


def llama(tensors: dict[str, np.ndarray], tokens: list[int], add: np.ndarray) -> np.ndarray:
    """The tiny dense model in numpy, with a vector added to what each layer gives out."""
    n_head, n_head_kv, d = SHAPE.n_head, SHAPE.n_head_kv, SHAPE.n_embd // SHAPE.n_head

    def norm(x: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)

    def rotate(x: np.ndarray) -> np.ndarray:  # (n, heads, d), pairs of neighbours
        angle = np.arange(len(x))[:, None] * 10000.0 ** (-np.arange(0, d, 2) / d)
        sin, cos = np.sin(angle)[:, None], np.cos(angle)[:, None]
        turned = np.empty_like(x)
        turned[..., 0::2] = x[..., 0::2] * cos - x[..., 1::2] * sin
        turned[..., 1::2] = x[..., 0::2] * sin + x[..., 1::2] * cos
        return turned

    x = tensors["token_embd.weight"][tokens].astype(np.float64)
    n = len(tokens)
    for layer in range(SHAPE.n_layer):
        w = {name.split(".")[2]: value for name, value in tensors.items() if name.startswith(f"blk.{layer}.")}
        h = norm(x)
        q = rotate((h @ w["attn_q"].T).reshape(n, n_head, d))
        k = rotate((h @ w["attn_k"].T).reshape(n, n_head_kv, d)).repeat(n_head // n_head_kv, 1)
        v = (h @ w["attn_v"].T).reshape(n, n_head_kv, d).repeat(n_head // n_head_kv, 1)
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(d)
        scores[:, ~np.tri(n, dtype=bool)] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        x = x + np.einsum("hqk,khd->qhd", weights, v).reshape(n, -1) @ w["attn_output"].T
        h = norm(x)
        gate = h @ w["ffn_gate"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w["ffn_up"].T)) @ w["ffn_down"].T + add[layer]
    return norm(x) @ tensors["output.weight"].T


@pytest.mark.parametrize(("first", "last"), [(1, 3), (2, 2), (3, 3), (1, 2)])
def test_it_is_added_to_the_residual_stream(exact: Context, first: int, last: int) -> None:
    tensors = tiny._tensors(SHAPE, np.random.default_rng(SHAPE.seed))
    add = vectors()
    np.testing.assert_allclose(logits(exact), llama(tensors, TOKENS, np.zeros((4, 64))), atol=bounds.ORDER)
    exact.set_control_vector(add, il_start=first, il_end=last)
    add[:first] = add[last + 1 :] = 0
    np.testing.assert_allclose(logits(exact), llama(tensors, TOKENS, add), atol=bounds.ORDER)


def test_rows_from_layer_1_as_llama_cpp_has_them(exact: Context) -> None:
    exact.set_control_vector(vectors())
    expected = logits(exact)
    exact.set_control_vector(None)
    exact.set_control_vector(vectors()[1:])
    np.testing.assert_array_equal(logits(exact), expected)


@pytest.mark.parametrize(
    "given",
    [
        lambda data: data.astype(np.float64),
        lambda data: np.asfortranarray(data),
        lambda data: np.repeat(data, 2, axis=1)[:, ::2],
        lambda data: data.tolist(),
        lambda data: data[::-1][::-1],
    ],
)
def test_arrays_of_every_kind(exact: Context, given: Callable[[np.ndarray], np.ndarray]) -> None:
    exact.set_control_vector(vectors())
    expected = logits(exact)
    exact.set_control_vector(vectors(4))
    exact.set_control_vector(given(vectors()))
    np.testing.assert_array_equal(logits(exact), expected)


def test_integers(exact: Context) -> None:
    whole = np.rint(vectors()).astype(np.int8)
    exact.set_control_vector(whole.astype(np.float32))
    expected = logits(exact)
    exact.set_control_vector(whole)
    np.testing.assert_array_equal(logits(exact), expected)


def test_on_a_device(tiny_path: MakeTiny, device: Device, exact: Context) -> None:
    exact.set_control_vector(vectors())
    expected = logits(exact)
    params = ModelParams(devices=[device])
    with Model.load_from_file(tiny_path(n_layer=4), params) as model, model.new_context(EXACT) as context:
        context.set_control_vector(vectors())
        np.testing.assert_allclose(logits(context), expected, atol=bounds.ORDER)


def test_a_change_makes_generate_decode_its_prompt_again(exact: Context, model: Model) -> None:
    prompt = [1, *range(10, 40)]
    with model.new_context(EXACT) as fresh:
        fresh.set_control_vector(5 * vectors())
        expected = [piece.token for piece in fresh.generate(prompt, max_tokens=8)]
    list(exact.generate(prompt, max_tokens=8))
    exact.set_control_vector(5 * vectors())
    assert [piece.token for piece in exact.generate(prompt, max_tokens=8)] == expected


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (np.zeros((5, 64)), ValueError, "shape"),
        (np.zeros((2, 64)), ValueError, "shape"),
        (np.zeros((4, 63)), ValueError, "shape"),
        (np.zeros(256), ValueError, "shape"),
        (np.zeros((1, 4, 64)), ValueError, "shape"),
        (np.zeros(0), ValueError, "shape"),
        (3.0, ValueError, "shape"),
        ([[1.0], [1.0, 2.0]], ValueError, "array"),
        ("abc", TypeError, "dtype"),
        (object(), TypeError, "dtype"),
        (np.zeros((4, 64), complex), TypeError, "dtype"),
        (np.zeros((4, 64), bool), TypeError, "dtype"),
        (np.full((4, 64), np.nan), ValueError, "not finite"),
        (np.full((3, 64), np.inf), ValueError, "not finite"),
        (np.full((3, 64), 1e300), ValueError, "not finite"),
        (np.ones((4, 64)), ValueError, "layer 0"),
    ],
)
def test_what_is_no_vector(exact: Context, data: object, error: type[Exception], message: str) -> None:
    exact.set_control_vector(vectors())
    expected = logits(exact)
    with pytest.raises(error, match=message):
        exact.set_control_vector(data)  # type: ignore[arg-type]
    np.testing.assert_array_equal(logits(exact), expected)


@pytest.mark.parametrize(
    ("first", "last"), [(0, 3), (-1, 3), (4, 4), (1, 4), (3, 2), (1, 2**40), (True, 3), ("1", 3), (1.0, 3), (1, "3")]
)
def test_layers_that_there_are_not(exact: Context, first: int, last: int) -> None:
    with pytest.raises((ValueError, TypeError), match="il_"):
        exact.set_control_vector(vectors(), il_start=first, il_end=last)


def test_a_model_of_one_layer(tiny_path: MakeTiny) -> None:
    with Model.load_from_file(tiny_path(n_layer=1), CPU) as model, model.new_context(EXACT) as context:
        for data in (np.zeros((1, 64)), np.zeros((0, 64))):
            with pytest.raises(ValueError, match="one layer"):
                context.set_control_vector(data)
        context.set_control_vector(None)


def test_closed_contexts(model: Model) -> None:
    context = model.new_context(EXACT)
    context.close()
    for data in (None, vectors()):
        with pytest.raises(ClosedError):
            context.set_control_vector(data)
