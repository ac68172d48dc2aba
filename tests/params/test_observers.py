"""Eval callbacks: tensors of a graph, while they are computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import bounds
import numpy as np
import pytest

from conftest import EXACT, SMALL
from moebind import (
    AbortedError,
    Batch,
    ClosedError,
    ContextParams,
    Device,
    EvalTensor,
    GgmlType,
    Model,
    ModelParams,
    TensorObserver,
    ffi,
    lib,
)

TOKENS = [1, 7, 8, 9, 10, 61]


@pytest.fixture
def moe_path(tiny_path: Callable[..., Path]) -> Path:
    return tiny_path(n_expert=4)


def observed(model: Model, tensors: object, params: ContextParams = SMALL) -> dict[str, np.ndarray]:
    """What those tensors held while TOKENS were decoded, all of them with outputs."""
    seen: dict[str, np.ndarray] = {}

    def keep(tensor: EvalTensor) -> None:
        seen[tensor.name] = tensor.numpy()

    with model.new_context(params.with_eval_callback(TensorObserver(tensors, keep))) as context:  # type: ignore[arg-type]
        batch = Batch(len(TOKENS))
        batch.add_sequence(TOKENS, 0, logits_all=True)
        context.decode(batch)
        seen["logits"] = context.get_logits().copy()
    return seen


def test_the_result_is_the_logits(moe: Model) -> None:
    seen = observed(moe, ["result_output"])
    assert set(seen) == {"result_output", "logits"}
    np.testing.assert_array_equal(seen["result_output"], seen["logits"])
    assert seen["logits"].shape == (len(TOKENS), moe.n_vocab)


def test_patterns_are_searched_in_names(moe: Model) -> None:
    seen = observed(moe, r"^ffn_moe_topk-\d+$")
    assert set(seen) == {"ffn_moe_topk-0", "ffn_moe_topk-1", "logits"}
    for layer in range(2):
        experts = seen[f"ffn_moe_topk-{layer}"]
        assert experts.shape == (len(TOKENS), moe.n_expert_used)
        assert experts.dtype == np.int32
        assert experts.min() >= 0
        assert experts.max() < moe.n_expert
        assert all(len(set(row)) == moe.n_expert_used for row in experts.tolist())


def test_the_experts_are_those_with_the_highest_router_logits(moe: Model) -> None:
    # topk is a view into sorted rows: its rows are not next to each other.
    seen = observed(moe, "ffn_moe_(topk|logits)-0")
    order = np.argsort(-seen["ffn_moe_logits-0"], axis=1)[:, : moe.n_expert_used]
    np.testing.assert_array_equal(np.sort(seen["ffn_moe_topk-0"], axis=1), np.sort(order, axis=1))


def test_tensors_tell_what_they_are(dense: Model) -> None:
    told: dict[str, tuple[object, ...]] = {}

    def look(tensor: EvalTensor) -> None:
        told[tensor.name] = (tensor.op, tensor.type, tensor.shape, tensor.nbytes, tensor.is_host, repr(tensor))
        assert ffi.string(tensor.native.name).decode() == tensor.name

    params = SMALL.with_eval_callback(TensorObserver(["result_output", "ffn_out-0"], look))
    with dense.new_context(params) as context:
        context.decode(Batch.get_one([1]))
    n = dense.n_vocab
    assert told["result_output"] == (
        "MUL_MAT",
        GgmlType.F32,
        (1, n),
        4 * n,
        True,
        f"<EvalTensor result_output = MUL_MAT, F32 (1, {n})>",
    )
    assert told["ffn_out-0"][2] == (1, dense.n_embd)


@pytest.mark.parametrize("flash", [0, 1])
def test_every_tensor_can_be_read(dense: Model, flash: int) -> None:
    # Transposed, permuted, with gaps, F16, masks, views of weights and of the cache.
    seen: dict[str, tuple[tuple[int, ...], bool]] = {}
    params = SMALL.with_flash_attn_type(flash)

    def look(tensor: EvalTensor) -> None:
        array = tensor.numpy()
        assert array.shape == tensor.shape
        seen[tensor.name] = array.shape, bool(lib.ggml_is_contiguous(tensor.native))

    with dense.new_context(params.with_eval_callback(TensorObserver(".", look))) as context:
        context.decode(Batch.get_one(TOKENS))
    assert len(seen) > 20
    assert any(not contiguous for _, contiguous in seen.values())


def test_strides_are_those_of_the_graph(dense: Model) -> None:
    # Qcur is permuted before attention: (head, token, width) over what is (token, head, width) in memory.
    seen = observed(dense, r"^(Qcur-0.*|q-0|.*\(permuted\).*)$", SMALL.with_flash_attn_type(0))
    plain = [array for name, array in seen.items() if name.startswith("Qcur-0") and "permuted" not in name]
    permuted = [array for name, array in seen.items() if name.startswith("Qcur-0") and "permuted" in name]
    assert permuted, sorted(seen)
    rotated = plain[-1].reshape(len(TOKENS), dense.n_head, -1)
    np.testing.assert_array_equal(permuted[-1].reshape(dense.n_head, len(TOKENS), -1), rotated.transpose(1, 0, 2))


def test_a_function_is_asked_first(dense: Model) -> None:
    asked, computed = [], []

    def fn(tensor: EvalTensor, ask: bool) -> bool | None:
        if ask:
            asked.append(tensor.name)
            with pytest.raises(RuntimeError, match="not computed yet"):
                tensor.numpy()
            return tensor.name == "result_norm"
        computed.append((tensor.name, tensor.numpy().shape))
        return None

    with dense.new_context(SMALL.with_eval_callback(fn)) as context:
        context.decode(Batch.get_one(TOKENS))
    assert computed == [("result_norm", (1, dense.n_embd))]
    assert {"result_norm", "result_output", "ffn_out-0"} <= set(asked)


def test_names_are_decided_without_python(dense: Model) -> None:
    calls = []
    params = SMALL.with_eval_callback(TensorObserver(["result_output", "no such tensor"], calls.append))
    with dense.new_context(params) as context:
        for _ in range(3):
            context.decode(Batch.get_one([1]))
    assert len(calls) == 3


def test_tensors_end_with_the_call(dense: Model) -> None:
    kept: list[EvalTensor] = []
    arrays = []

    def keep(tensor: EvalTensor) -> None:
        kept.append(tensor)
        arrays.append(tensor.numpy())

    with dense.new_context(SMALL.with_eval_callback(TensorObserver(["result_output"], keep))) as context:
        context.decode(Batch.get_one(TOKENS))
        logits = context.get_logits().copy()
        context.decode(Batch.get_one(TOKENS[::-1]))
    for use in ("name", "op", "type", "shape", "nbytes", "is_host", "native"):
        with pytest.raises(ClosedError, match="call that it was made for is over"):
            getattr(kept[0], use)
    with pytest.raises(ClosedError):
        kept[0].numpy()
    assert repr(kept[0]) == "<EvalTensor, over>"
    np.testing.assert_array_equal(arrays[0], logits)  # a copy stays
    with pytest.raises(TypeError, match="eval callbacks"):
        EvalTensor()


class Oops(Exception):
    pass


@pytest.mark.parametrize("name", ["ffn_out-0", "result_output"])
def test_exceptions_reach_the_caller(dense: Model, name: str) -> None:
    fail = True

    def look(tensor: EvalTensor) -> None:
        if fail:
            raise Oops(tensor.name)

    with dense.new_context(EXACT.with_eval_callback(TensorObserver([name], look))) as context:
        with pytest.raises(Oops, match=name):
            context.decode(Batch.get_one(TOKENS))
        context.kv_cache_clear()
        fail = False
        context.decode(Batch.get_one(TOKENS))
        after = context.get_logits_ith(-1).copy()
    with dense.new_context(EXACT) as context:
        context.decode(Batch.get_one(TOKENS))
        np.testing.assert_allclose(after, context.get_logits_ith(-1), atol=bounds.ORDER)


@pytest.mark.parametrize("name", ["ffn_out-0", "result_output"])
@pytest.mark.parametrize("kind", ["observer", "function"])
def test_false_stops(dense: Model, name: str, kind: str) -> None:
    callback: object = TensorObserver([name], lambda tensor: False)
    if kind == "function":

        def callback(tensor: EvalTensor, ask: bool) -> bool:
            return ask and tensor.name == name

    with dense.new_context(SMALL.with_eval_callback(callback)) as context:  # type: ignore[arg-type]
        for _ in range(2):  # the flag that stopped it is forgotten
            with pytest.raises(AbortedError):
                context.decode(Batch.get_one(TOKENS))
        with pytest.raises(IndexError):
            context.get_logits_ith(-1)


def test_callbacks_do_not_call_their_context(dense: Model) -> None:
    contexts = []

    def look(tensor: EvalTensor) -> None:
        contexts[0].decode(Batch.get_one([1]))

    with dense.new_context(SMALL.with_eval_callback(TensorObserver(["result_output"], look))) as context:
        contexts.append(context)
        with pytest.raises(RuntimeError, match="in the middle of a call"):
            context.decode(Batch.get_one([1]))


def test_generating_is_observed(dense: Model) -> None:
    names: list[str] = []
    params = SMALL.with_eval_callback(TensorObserver("^result_output$", lambda tensor: names.append(tensor.name)))
    with dense.new_context(params) as context:
        pieces = list(context.generate([1, 5], max_tokens=3))
    assert len(names) == len(pieces)


def test_quantised_elements_are_read_as_numbers(demo: Model) -> None:
    seen: dict[GgmlType, np.ndarray] = {}

    def look(tensor: EvalTensor) -> bool:
        if tensor.type not in seen:
            array = tensor.numpy()
            assert np.isfinite(array[np.isfinite(array)]).all()
            seen[tensor.type] = array
        return True

    with demo.new_context(SMALL.with_eval_callback(TensorObserver(".", look))) as context:
        context.decode(Batch.get_one([1, 2, 3]))
    assert GgmlType.F32 in seen


def test_tensors_on_a_device(moe_path: Path, device: Device) -> None:
    params = ModelParams(n_gpu_layers=-1, devices=[device])
    with Model.load_from_file(moe_path, params) as model:
        seen = observed(model, ["result_output", "ffn_moe_topk-0"])
    np.testing.assert_array_equal(seen["result_output"], seen["logits"])
    assert seen["ffn_moe_topk-0"].shape == (len(TOKENS), 2)


@pytest.mark.parametrize(
    ("tensors", "fn", "error", "message"),
    [
        ("a", 3, TypeError, "fn is 3"),
        (3, print, TypeError, "names of tensors"),
        (b"a", print, TypeError, "names of tensors"),
        ("", print, ValueError, "pattern"),
        ("(", print, ValueError, "regular expression"),
        ("(a*)*", print, ValueError, "repeats"),
        ("a\0", print, ValueError, "NUL"),
        ("\ud800", print, ValueError, "surrogate"),
        ([], print, ValueError, "empty"),
        ([3], print, TypeError, "str"),
        (["a\0b"], print, ValueError, "NUL"),
        (["\ud800"], print, ValueError, "surrogate"),
    ],
)
def test_bad_observers(tensors: object, fn: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TensorObserver(tensors, fn)  # type: ignore[arg-type]


def test_observers_show_what_they_observe() -> None:
    assert TensorObserver("a.b", print).tensors == "a.b"
    observer = TensorObserver(iter(["a", "b"]), print)
    assert observer.tensors == ("a", "b")
    assert observer.fn is print
    assert repr(observer) == f"TensorObserver(('a', 'b'), {print!r})"
    params = ContextParams().with_eval_callback(observer)
    assert params == ContextParams(eval_callback=observer)
    assert hash(params) == hash(ContextParams(eval_callback=observer))
