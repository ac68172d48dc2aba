"""Which model a state is of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from states import fill, what_follows

from conftest import CPU, SMALL
from moebind import Model, StateError

MakeTiny = Callable[..., Path]


def test_another_model_of_equal_shape(other: Model, saved: tuple[bytes, np.ndarray]) -> None:
    with other.new_context(SMALL) as context:
        fill(context)
        expected = what_follows(context)
        with pytest.raises(StateError, match="another model"):
            context.state_set(saved[0])
        np.testing.assert_array_equal(what_follows(context), expected)


def test_another_model_of_another_shape(dense: Model, saved: tuple[bytes, np.ndarray]) -> None:
    with dense.new_context(SMALL) as context, pytest.raises(StateError, match="another model"):
        context.state_set(saved[0])


def test_a_model_with_changed_metadata(tiny_path: MakeTiny, saved: tuple[bytes, np.ndarray]) -> None:
    changed = CPU.with_kv_override("llama.attention.layer_norm_rms_epsilon", 1e-3)
    with Model.load_from_file(tiny_path(n_expert=4), changed) as model, model.new_context(SMALL) as context:
        with pytest.raises(StateError, match="another model"):
            context.state_set(saved[0])


def test_the_same_model_in_several_files(tiny_path: MakeTiny, saved: tuple[bytes, np.ndarray]) -> None:
    with Model.load_from_file(tiny_path(n_expert=4, split=3), CPU) as model, model.new_context(SMALL) as context:
        context.state_set(saved[0])
        np.testing.assert_array_equal(what_follows(context), saved[1])


def test_the_models_file_must_still_be_there(tiny_path: MakeTiny, tmp_path: Path) -> None:
    path = tmp_path / "gone.gguf"
    path.write_bytes(tiny_path(n_expert=4).read_bytes())
    with Model.load_from_file(path, CPU) as model, model.new_context(SMALL) as context:
        path.unlink()
        with pytest.raises(StateError, match="cannot be read any more"):
            context.state_get()
        path.write_bytes(tiny_path(n_expert=4, seed=2).read_bytes())
        with pytest.raises(StateError, match="was changed"):
            context.state_get()
