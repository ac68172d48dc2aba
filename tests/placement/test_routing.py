"""Which experts get how many tokens: against the routers' own logits."""

from __future__ import annotations

import gc
import math
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import bounds
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import moebind
from conftest import CPU, EXACT, SMALL
from moebind import (
    AbortedError,
    Batch,
    ClosedError,
    Context,
    ContextParams,
    Device,
    EvalTensor,
    Model,
    ModelParams,
    RoutingRecorder,
    TensorObserver,
)

MakeTiny = Callable[..., Path]
PROMPT = [1, 7, 8, 9, 10, 61]

#: Every kind of router: what makes it, and which of its layers are dense.
KINDS: dict[str, dict[str, object]] = {
    "softmax": {"n_expert": 4},
    "one expert used": {"n_expert": 4, "n_expert_used": 1},
    "all experts used": {"n_expert": 4, "n_expert_used": 4},
    "shared experts": {"arch": "deepseek", "n_layer": 3, "n_dense_layers": 1, "n_expert": 4},
    "fused": {"arch": "granite_swa", "n_expert": 4},
    "two choices a layer": {"arch": "grovemoe", "n_expert": 8, "n_expert_used": 3},
    "sigmoid": {"arch": "dots1", "n_head_kv": 4, "n_layer": 3, "n_dense_layers": 1, "n_expert": 6},
    "groups": {"arch": "dots1", "n_head_kv": 4, "n_expert": 8, "n_expert_groups": 4, "n_expert_used": 3},
}


class Recomputed:
    """Counts what numpy chooses from the routers' logits (and the file's biases), as the papers say."""

    def __init__(self, model: Model, groups: int = 0) -> None:
        self.counts = np.zeros((model.n_layer, model.n_expert), np.int64)
        self.n_tokens = np.zeros(model.n_layer, np.int64)
        self.used, self.groups = model.n_expert_used, groups

    def __call__(self, tensor: EvalTensor) -> None:
        name, _, layer = tensor.name.rpartition("-")
        scores = tensor.numpy().astype(np.float64)
        if self.groups:
            assert name == "ffn_moe_probs_biased"
            grouped = scores.reshape(len(scores), self.groups, -1)
            best = np.sort(grouped, axis=2)[:, :, -2:].sum(axis=2)
            kept = np.argsort(-best, axis=1)[:, :2]
            mask = np.full(grouped.shape, -np.inf)
            np.put_along_axis(mask, kept[:, :, None], 0.0, axis=1)
            scores = (grouped + mask).reshape(scores.shape)
        for row in np.argsort(-scores, axis=1)[:, : self.used]:
            self.counts[int(layer), row] += 1
        self.n_tokens[int(layer)] += len(scores)


def run(context: Context) -> None:
    """A prompt whose tokens all have outputs, one of which one has, decodes, and several sequences in a batch."""
    batch = Batch(64, 4)
    batch.add_sequence(PROMPT, 0, logits_all=True)
    context.decode(batch)
    context.decode(Batch.get_one([5, 6, 7]))
    for token in (70, 71, 9):
        context.decode(Batch.get_one([token]))
    batch.clear()
    for seq in range(1, 4):
        batch.add_sequence(PROMPT[: 2 + seq], seq)
    context.decode(batch)


def recorded(model: Model) -> RoutingRecorder:
    recorder = RoutingRecorder()
    with model.new_context(SMALL.with_n_seq_max(4).with_eval_callback(recorder)) as context:
        run(context)
    return recorder


def recomputed(model: Model, groups: int = 0) -> Recomputed:
    # What is added to the logits or probabilities before the choice has a name of its own.
    biased = model.meta["general.architecture"] in {"dots1", "grovemoe"}
    known = Recomputed(model, groups)
    observer = TensorObserver(rf"^ffn_moe_{'probs_biased' if biased else 'logits'}-\d+$", known)
    with model.new_context(SMALL.with_n_seq_max(4).with_eval_callback(observer)) as context:
        run(context)
    if model.meta["general.architecture"] == "grovemoe":  # it is computed for the groups once more
        known.counts //= 2
        known.n_tokens //= 2
    return known


# --- what is counted ---


@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_what_the_logits_say(tiny_path: MakeTiny, kind: str) -> None:
    with Model.load_from_file(tiny_path(**KINDS[kind]), CPU) as model:
        recorder, known = recorded(model), recomputed(model, int(KINDS[kind].get("n_expert_groups", 0)))
        n_dense = int(KINDS[kind].get("n_dense_layers", 0))
        np.testing.assert_array_equal(recorder.counts, known.counts)
        np.testing.assert_array_equal(recorder.n_tokens, known.n_tokens)
        assert recorder.counts.dtype == recorder.n_tokens.dtype == np.int64
        assert recorder.counts.shape == (model.n_layer, model.n_expert)
        # Six tokens, three, one by one three, and 3 + 4 + 5; of which the last layer computes those with outputs.
        expected = [0] * n_dense + [24] * (model.n_layer - n_dense - 1) + [6 + 1 + 3 + 3]
        assert recorder.n_tokens.tolist() == expected
        np.testing.assert_array_equal(recorder.counts.sum(axis=1), recorder.n_tokens * model.n_expert_used)
        assert (recorder.counts[n_dense:] > 0).sum() > model.n_expert_used


@pytest.mark.parametrize(
    "params",
    [
        ModelParams(),
        ModelParams().with_cpu_moe_all(),
        ModelParams().with_tensor_override(r"blk\.1\.ffn_(up|gate_up)_exps", "CPU"),
    ],
)
@pytest.mark.parametrize("kind", ["softmax", "shared experts", "fused", "two choices a layer", "groups"])
def test_counts_do_not_depend_on_where_experts_are(
    tiny_path: MakeTiny, device: Device, params: ModelParams, kind: str
) -> None:
    path = tiny_path(**KINDS[kind])
    with Model.load_from_file(path, CPU) as model:
        on_host = recorded(model)
    with Model.load_from_file(path, params.with_devices((device,)).with_n_gpu_layers(-1)) as model:
        np.testing.assert_array_equal(recorded(model).counts, on_host.counts)


def test_micro_batches_count_as_their_batch(tiny_path: MakeTiny) -> None:
    with Model.load_from_file(tiny_path(**KINDS["two choices a layer"]), CPU) as model:
        counts = []
        for n_ubatch in (64, 5):
            recorder = RoutingRecorder()
            with model.new_context(SMALL.with_n_ubatch(n_ubatch).with_eval_callback(recorder)) as context:
                batch = Batch(64)
                batch.add_sequence(list(range(3, 45)), 0, logits_all=True)
                context.decode(batch)
            counts.append(recorder.counts)
            assert recorder.n_tokens.tolist() == [42, 42]
        np.testing.assert_array_equal(*counts)


def test_two_choices_in_the_only_layer_with_experts(tiny_path: MakeTiny) -> None:
    # Graphs follow each other with nothing between; batches of other sizes have other graphs.
    with Model.load_from_file(tiny_path(arch="grovemoe", n_layer=1, n_expert=4), CPU) as model:
        recorder = RoutingRecorder()
        with model.new_context(SMALL.with_eval_callback(recorder)) as context:
            sizes = [1, 1, 6, 1, 3, 3, 6, 1, 1]
            for size in sizes:
                batch = Batch(8)
                batch.add_sequence(PROMPT[:size], 0, logits_all=True)
                context.kv_cache_clear()
                context.decode(batch)
        assert recorder.n_tokens.tolist() == [sum(sizes)]


def test_a_dense_model_routes_nothing(dense: Model) -> None:
    recorder = recorded(dense)
    assert recorder.counts.shape == recorder.fractions().shape == (dense.n_layer, 0)
    assert recorder.n_tokens.tolist() == [0] * dense.n_layer
    assert np.isnan(recorder.entropy()).all() and np.isnan(recorder.imbalance()).all()
    assert str(recorder) == f"{dense.n_layer} layers of 0 experts, 0 choices"
    # It says nothing about others.
    with dense.new_context(SMALL.with_eval_callback(recorder)):
        pass


def test_the_demo_model(demo: Model) -> None:
    recorder = RoutingRecorder()
    with demo.new_context(SMALL.with_eval_callback(recorder)) as context:
        n_prompt = len(demo.str_to_token("Once upon a time"))
        n = len(list(context.generate("Once upon a time", max_tokens=6)))
    # The last token is not decoded.
    assert recorder.n_tokens.tolist() == [n_prompt + n - 1] * (demo.n_layer - 1) + [n]
    np.testing.assert_array_equal(recorder.counts.sum(axis=1), recorder.n_tokens * demo.n_expert_used)


def test_generating_and_embedding_are_counted(moe: Model) -> None:
    recorder = RoutingRecorder()
    with moe.new_context(SMALL.with_embeddings(True).with_eval_callback(recorder)) as context:
        context.decode(Batch.get_one(PROMPT))
    assert recorder.n_tokens.tolist() == [len(PROMPT)] * 2  # all of them have outputs


def test_contexts_add_up_and_a_recorder_can_be_reset(moe: Model) -> None:
    recorder = recorded(moe)
    once = recorder.counts
    with moe.new_context(SMALL.with_n_seq_max(4).with_eval_callback(recorder)) as context:
        run(context)
        np.testing.assert_array_equal(recorder.counts, 2 * once)
        recorder.reset()
        assert not recorder.counts.any() and not recorder.n_tokens.any()
        assert recorder.counts.shape == once.shape
        context.kv_cache_clear()
        run(context)
    np.testing.assert_array_equal(recorder.counts, once)


def test_recording_changes_no_result(moe: Model) -> None:
    logits = []
    for params in (EXACT, EXACT.with_eval_callback(RoutingRecorder())):
        with moe.new_context(params) as context:
            context.decode(Batch.get_one(PROMPT))
            logits.append(context.get_logits_ith(-1).copy())
    np.testing.assert_allclose(*logits, rtol=0, atol=bounds.ORDER)


# --- what is told ---


def test_results_are_copies(moe: Model) -> None:
    recorder = recorded(moe)
    for read in (lambda: recorder.counts, lambda: recorder.n_tokens, recorder.fractions):
        before = read()
        changed = read()
        changed[:] = 7
        np.testing.assert_array_equal(read(), before)


def of_counts(counts: object, n_tokens: object) -> RoutingRecorder:
    recorder = RoutingRecorder()
    recorder._counts, recorder._n_tokens = np.array(counts, np.int64), np.array(n_tokens, np.int64)
    recorder._size = recorder._counts.shape
    return recorder


def test_figures() -> None:
    recorder = of_counts([[2, 2, 2, 2], [8, 0, 0, 0], [0, 0, 0, 0], [4, 4, 0, 0]], [4, 8, 0, 4])
    np.testing.assert_array_equal(recorder.fractions()[3], [0.5, 0.5, 0, 0])
    np.testing.assert_allclose(recorder.entropy(), [1, 0, math.nan, 0.5])
    np.testing.assert_allclose(recorder.imbalance(), [1, 4, math.nan, 2])
    assert str(recorder).splitlines() == [
        "4 layers of 4 experts, 24 choices",
        "layer  tokens  entropy  busiest  its share  times even  never used",
        "    0       4    1.000        0      25.0%        1.00           0",
        "    1       8    0.000        0     100.0%        4.00           3",
        "    3       4    0.500        0      50.0%        2.00           2",
    ]
    assert repr(recorder) == "<RoutingRecorder, 4 layers of 4 experts, 24 choices>"


@given(st.lists(st.lists(st.integers(0, 2**40), min_size=3, max_size=3), min_size=1, max_size=5))
def test_figures_are_within_their_bounds(counts: list[list[int]]) -> None:
    recorder = of_counts(counts, [sum(row) for row in counts])
    routed = recorder.n_tokens > 0
    np.testing.assert_allclose(recorder.fractions().sum(axis=1), routed)
    entropy, imbalance = recorder.entropy(), recorder.imbalance()
    assert (np.isnan(entropy) == ~routed).all() and (np.isnan(imbalance) == ~routed).all()
    assert ((entropy[routed] >= 0) & (entropy[routed] <= 1)).all()
    assert ((imbalance[routed] >= 1 - 1e-12) & (imbalance[routed] <= 3)).all()
    assert len(str(recorder).splitlines()) == (2 + routed.sum() if routed.any() else 1)


def test_a_recorder_without_a_model() -> None:
    recorder = RoutingRecorder()
    assert recorder.counts.shape == recorder.fractions().shape == (0, 0)
    assert recorder.n_tokens.shape == recorder.entropy().shape == recorder.imbalance().shape == (0,)
    assert str(recorder) == "0 layers of 0 experts, 0 choices"
    recorder.reset()


def test_recorders_add_up(moe: Model) -> None:
    one, two = recorded(moe), recorded(moe)
    both = one + two
    np.testing.assert_array_equal(both.counts, 2 * one.counts)
    np.testing.assert_array_equal(both.n_tokens, one.n_tokens + two.n_tokens)
    for empty in (RoutingRecorder() + one, one + RoutingRecorder()):
        np.testing.assert_array_equal(empty.counts, one.counts)
    before = one.counts
    one.merge(two)
    one.merge(one)
    np.testing.assert_array_equal(one.counts, 4 * before)
    # The sum records on.
    with moe.new_context(SMALL.with_eval_callback(both)) as context:
        context.decode(Batch.get_one([5]))
    assert both.n_tokens.tolist() == [2 * 24 + 1, 2 * 13 + 1]


def test_layers_beyond_those_of_the_model() -> None:
    # Those for multi-token prediction have numbers after n_layer.
    recorder, more = of_counts([[1, 1]], [1]), of_counts([[1, 1], [0, 4]], [1, 2])
    more._size = recorder._size
    for both in (recorder + more, more + recorder):
        assert both.counts.tolist() == [[2, 2], [0, 4]]
        assert both.n_tokens.tolist() == [2, 2]


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_a_picture(moe: Model, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"routing.{ending}"
    figure = recorded(moe).plot(path)
    assert path.stat().st_size > 4000
    axes, bar = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel(), bar.get_ylabel()) == ("expert", "layer", "times an even share")


def test_a_picture_shows_what_was_counted(tmp_path: Path) -> None:
    from matplotlib import image

    figure = of_counts([[0, 0, 0], [9, 3, 0], [4, 4, 4]], [0, 6, 6]).plot(str(tmp_path / "routing.png"))
    shown = figure.axes[0].images[0].get_array()
    assert np.ma.getmaskarray(shown).tolist() == [[True] * 3, [False] * 3, [False] * 3]
    np.testing.assert_allclose(shown[1:], [[2.25, 0.75, 0], [1, 1, 1]])
    pixels = image.imread(tmp_path / "routing.png")
    assert pixels.shape[2] == 4
    assert (pixels[..., 3] == 0).any()  # transparent where nothing is drawn
    assert len(np.unique(pixels[pixels[..., 3] == 1], axis=0)) > 4


@pytest.mark.parametrize("size", [(1, 1), (94, 512)])
def test_pictures_fit_on_a_screen(tmp_path: Path, size: tuple[int, int]) -> None:
    figure = of_counts(np.ones(size), np.ones(size[0])).plot(tmp_path / "routing.png")
    width, height = figure.get_size_inches()
    assert 2 < height < 10 and 4 < width < 12


def test_pictures_need_matplotlib_and_nothing_else_does() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import moebind\n"
        "recorder = moebind.RoutingRecorder()\n"
        "print(recorder)\n"
        "try:\n    recorder.plot()\n"
        "except ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "moebind[plot]" in done.stdout


# --- threads, failures, closed things ---


def test_it_is_read_while_others_decode(moe: Model) -> None:
    recorder, failures, done = RoutingRecorder(), [], threading.Event()

    def read() -> None:
        while not done.is_set():
            counts, n_tokens = recorder._read()
            if (counts.sum(axis=1) != n_tokens * 2).any():
                failures.append((counts, n_tokens))
            str(recorder), repr(recorder), recorder.entropy(), recorder + recorder

    def decode() -> None:
        with moe.new_context(SMALL.with_eval_callback(recorder)) as context:
            for token in range(3, 60):
                context.decode(Batch.get_one([token]))

    readers = [threading.Thread(target=read)]
    writers = [threading.Thread(target=decode) for _ in range(2)]
    for thread in readers + writers:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    readers[0].join()
    assert not failures
    assert recorder.n_tokens.tolist() == [114, 114]


def test_a_choice_after_one_that_was_stopped(tiny_path: MakeTiny) -> None:
    # Of two choices of a layer the second was never made: the next decode's first one counts all the same.
    stop = threading.Event()

    class Stopping(RoutingRecorder):
        def _count(self, tensor: EvalTensor) -> None:
            super()._count(tensor)
            if stop.is_set():
                raise KeyError("enough")

    with Model.load_from_file(tiny_path(arch="grovemoe", n_layer=1, n_expert=4), CPU) as model:
        recorder, tokens = Stopping(), 0
        with model.new_context(SMALL.with_eval_callback(recorder)) as context:
            for size in (1, 6, 3):
                stop.set()
                with pytest.raises(KeyError, match="enough"):
                    context.decode(Batch.get_one([5]))
                stop.clear()
                batch = Batch(8)
                batch.add_sequence(PROMPT[:size], 0, logits_all=True)
                context.kv_cache_clear()
                context.decode(batch)
                context.kv_cache_clear()
                tokens += 1 + size
        assert recorder.n_tokens.tolist() == [tokens]


def test_a_stopped_decode_has_counted_what_was_computed(moe: Model) -> None:
    class Stopping(RoutingRecorder):
        def _count(self, tensor: EvalTensor) -> bool:  # type: ignore[override]
            super()._count(tensor)
            return False

    recorder = Stopping()
    with moe.new_context(SMALL.with_eval_callback(recorder)) as context:
        with pytest.raises(AbortedError):
            context.decode(Batch.get_one(PROMPT))
    assert recorder.n_tokens.tolist() == [6, 0]


def test_a_closed_context_leaves_its_counts(moe: Model) -> None:
    recorder = RoutingRecorder()
    context = moe.new_context(SMALL.with_eval_callback(recorder))
    context.decode(Batch.get_one(PROMPT))
    counts = recorder.counts
    context.close()
    with pytest.raises(ClosedError):
        context.decode(Batch.get_one([5]))
    np.testing.assert_array_equal(recorder.counts, counts)


def test_nothing_keeps_a_recorder_alive(moe: Model) -> None:
    recorder = RoutingRecorder()
    with moe.new_context(SMALL.with_eval_callback(recorder)) as context:
        context.decode(Batch.get_one([5]))
    counts = weakref.ref(recorder._counts)
    del recorder, context
    gc.collect()
    assert counts() is None


# --- what it refuses ---


def test_models_of_another_size(tiny_path: MakeTiny, moe: Model) -> None:
    recorder = recorded(moe)
    counts = recorder.counts
    for fields in ({"n_expert": 8}, {"n_expert": 4, "n_layer": 3}, {}):
        with Model.load_from_file(tiny_path(**fields), CPU) as other:
            with pytest.raises(ValueError, match="counts 2 layers of 4 experts, the model has"):
                other.new_context(SMALL.with_eval_callback(recorder))
    with pytest.raises(ValueError, match="4 layers of 2 experts cannot be added to 2 layers of 4 experts"):
        recorder.merge(of_counts(np.ones((4, 2)), np.ones(4)))
    with pytest.raises(ValueError, match="cannot be added"):
        recorder + of_counts(np.ones((2, 5)), np.ones(2))
    np.testing.assert_array_equal(recorder.counts, counts)


@pytest.mark.parametrize(
    "other", [None, 3, "x", np.zeros((2, 4), np.int64), RoutingRecorder, TensorObserver("a", print)]
)
def test_what_is_no_recorder(other: object) -> None:
    with pytest.raises(TypeError, match="RoutingRecorder"):
        RoutingRecorder().merge(other)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        RoutingRecorder() + other  # type: ignore[operator]


@pytest.mark.parametrize(
    ("path", "error"),
    [
        (3, TypeError),
        (b"x.png", TypeError),
        ("", ValueError),
        ("a\0.png", ValueError),
        ("routing.no-such-format", ValueError),
        ("no-such-folder/routing.png", OSError),
    ],
)
def test_bad_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: object, error: type[Exception]) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error):
        of_counts([[1, 2]], [1]).plot(path)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_picture_of_nothing(dense: Model) -> None:
    for recorder in (RoutingRecorder(), recorded(dense), of_counts([[0, 0]], [0])):
        with pytest.raises(ValueError, match="nothing was counted"):
            recorder.plot()


def test_it_takes_no_arguments() -> None:
    with pytest.raises(TypeError):
        RoutingRecorder(4)  # type: ignore[call-arg]
    assert ContextParams(eval_callback=(recorder := RoutingRecorder())).eval_callback is recorder
    assert moebind.RoutingRecorder is RoutingRecorder
