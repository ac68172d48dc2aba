"""Options of a load that change what is read, and when: lazy tensors, and layers that predict further ahead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from conftest import CPU, SMALL
from moebind import (
    Batch,
    BatchError,
    BatchExt,
    Context,
    ContextCreationError,
    ContextType,
    Gguf,
    LazyMode,
    LoadMode,
    Model,
    ModelParams,
    lib,
)

MakeTiny = Callable[..., Path]

#: What gemma4 looks up for each layer, row by row: the tensor that llama.cpp marks as one to read on demand.
LAZY = "per_layer_token_embd.weight"


def mapped(path: Path) -> bool:
    """Whether this process has the file mapped."""
    return str(path) in Path("/proc/self/maps").read_text(encoding="utf-8")


def logits_of(model: Model) -> np.ndarray:
    with model.new_context(SMALL) as context:
        context.decode(Batch.get_one([1, 5, 270, 9]))
        return context.get_logits_ith(-1).copy()


def weights_of(model: Model) -> dict[str, int]:
    """Bytes of weights in each kind of host memory."""
    with model.new_context(SMALL) as context:
        return {buffer.name: buffer.model for buffer in context.memory_breakdown().host.buffers if buffer.model}


@pytest.fixture(scope="module")
def gemma(tiny_path: MakeTiny) -> Path:
    return tiny_path(arch="gemma4")


@pytest.mark.parametrize("load_mode", [LoadMode.NONE, LoadMode.DIRECT_IO])
def test_a_lazy_tensor_is_mapped_when_the_rest_is_read(gemma: Path, load_mode: LoadMode) -> None:
    size = Gguf.from_file(gemma).tensors[LAZY].nbytes
    params = CPU.with_load_mode(load_mode)
    with Model.load_from_file(gemma, params.with_lazy_mode(LazyMode.OFF)) as read:
        assert not mapped(gemma)
        everything, expected = weights_of(read), logits_of(read)
        assert everything.keys() == {"CPU"}
    with Model.load_from_file(gemma, params.with_lazy_mode(LazyMode.ON)) as lazy:
        assert mapped(gemma)
        assert weights_of(lazy) == {"CPU": everything["CPU"] - size, "CPU_Mapped": size}
        np.testing.assert_array_equal(logits_of(lazy), expected)


def test_auto_is_lazy_for_large_tensors_only(gemma: Path) -> None:
    assert Gguf.from_file(gemma).tensors[LAZY].nbytes < 4 << 30
    with Model.load_from_file(gemma, CPU.with_load_mode(LoadMode.NONE)) as model:
        assert model.params.lazy_mode is LazyMode.AUTO
        assert not mapped(gemma)


@pytest.mark.parametrize("lazy_mode", LazyMode)
def test_nothing_is_lazy_that_the_architecture_does_not_look_up(lazy_mode: LazyMode, tiny_path: MakeTiny) -> None:
    path = tiny_path(seed=31)  # which no other test holds open
    with Model.load_from_file(path, CPU.with_load_mode(LoadMode.NONE).with_lazy_mode(lazy_mode)) as model:
        assert not mapped(path)
        assert weights_of(model).keys() == {"CPU"}


#: What the layers that predict further ahead are loaded for.
AHEAD = SMALL.with_ctx_type(ContextType.MTP)


def predicted(context: Context, token: int = 9, size: float = 1) -> np.ndarray:
    """Logits after two tokens with hidden states, of which the second has that size."""
    state = np.sin(np.arange(64)).astype(np.float32)
    with BatchExt(context) as batch:
        batch.add(0, 0, token=1, state=state)
        batch.add(0, 1, token=token, state=size * state, output=True)
        context.process(batch)
    return context.get_logits_ith(-1).copy()


@pytest.fixture(scope="module")
def glm(tiny_path: MakeTiny) -> Path:
    """A model whose last layer predicts the token after the next."""
    return tiny_path(arch="glm4moe", n_layer=3, n_expert=4, n_mtp=1)


@pytest.fixture
def both(glm: Path) -> tuple[ModelParams, ModelParams]:
    """Without the layer, and with it. Read, so that what is allocated is what was asked for."""
    params = CPU.with_load_mode(LoadMode.NONE)
    return params.with_load_mtp(False), params.with_load_mtp(True)


def test_the_layers_that_predict_further_are_loaded_if_asked_for(
    glm: Path, both: tuple[ModelParams, ModelParams]
) -> None:
    extra = [tensor.nbytes for name, tensor in Gguf.from_file(glm).tensors.items() if name.startswith("blk.2.")]
    assert len(extra) == 18
    held, logits = [], []
    for params in both:
        with Model.load_from_file(glm, params) as model:
            assert (model.n_layer, model.n_layer_nextn) == (2, 1)
            (size,) = weights_of(model).values()
            held.append(size)
            logits.append(logits_of(model))
    without, whole = held
    assert 0 <= whole - without - sum(extra) < lib.GGML_MEM_ALIGN * len(extra)  # each begins at a multiple
    np.testing.assert_array_equal(*logits)  # they have no part in them
    assert ModelParams().load_mtp is False


def test_a_context_that_predicts_further_needs_its_layers(glm: Path, both: tuple[ModelParams, ModelParams]) -> None:
    without, whole = both
    with Model.load_from_file(glm, whole) as model, model.new_context(AHEAD) as context:
        assert np.abs(predicted(context) - logits_of(model)).max() > 0.1  # another layer's
    with Model.load_from_file(glm, without) as model:
        with pytest.raises(ContextCreationError, match="load the model with load_mtp"):
            model.new_context(AHEAD)


def test_what_it_predicts_depends_on_tokens_and_hidden_states(glm: Path, both: tuple[ModelParams, ModelParams]) -> None:
    with Model.load_from_file(glm, both[1]) as model:
        found = []
        for token, size in ((9, 1.0), (9, 1.0), (8, 1.0), (9, -1.0)):
            with model.new_context(AHEAD) as context:
                found.append(predicted(context, token, size))
        first, again, *others = found
        np.testing.assert_array_equal(first, again)
        assert all(np.abs(first - other).max() > 0.1 for other in others)


def test_a_context_that_predicts_further_takes_hidden_states(glm: Path, both: tuple[ModelParams, ModelParams]) -> None:
    # libllama would compute with whatever is in that memory.
    with Model.load_from_file(glm, both[1]) as model, model.new_context(AHEAD) as context:
        with pytest.raises(BatchError, match="hidden states"):
            context.decode(Batch.get_one([1, 5]))
        with BatchExt(context) as batch:
            batch.add(0, 0, token=1, output=True)
            with pytest.raises(BatchError, match="hidden states"):
                context.process(batch)
        with pytest.raises(BatchError, match="cannot generate text"):
            context.generate([1, 5])
        with pytest.raises(BatchError, match="cannot generate text"):
            context.generate_many([[1, 5]])
