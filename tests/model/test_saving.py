"""Model.save_to_file: a round trip, and what cannot be written."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny

from conftest import CPU, SMALL
from moebind import Batch, ClosedError, Ftype, Gguf, Model, lib, quantize

MakeTiny = Callable[..., Path]


def logits(model: Model) -> np.ndarray:
    with model.new_context(SMALL) as context:
        context.decode(Batch.get_one([1, 5, 40]))
        return np.array(context.get_logits_ith(-1))


@pytest.mark.parametrize(
    "fields", [{}, {"n_expert": 4}, {"arch": "deepseek", "n_expert": 4, "n_dense_layers": 1}], ids=str
)
def test_a_saved_model_is_the_same(tiny_path: MakeTiny, tmp_path: Path, fields: dict[str, object]) -> None:
    path, target = tiny_path(**fields), tmp_path / "saved.gguf"
    with Model.load_from_file(path, CPU) as model:
        model.save_to_file(target)
        assert os.listdir(tmp_path) == ["saved.gguf"]
        # What llama.cpp writes passes our own checks, and again what is made of that.
        with Model.load_from_file(target, CPU) as saved:
            assert np.array_equal(logits(saved), logits(model))
            assert saved.n_params == model.n_params
            assert saved.str_to_token("the cat").tolist() == model.str_to_token("the cat").tolist()
            saved.save_to_file(tmp_path / "again.gguf")
    before, after = Gguf.from_file(path), Gguf.from_file(tmp_path / "again.gguf")
    assert set(after.tensors) == set(before.tensors)
    for name, tensor in before.tensors.items():
        assert np.array_equal(tensor.data(), after.tensors[name].data())


def test_splits_and_overrides_are_joined(tiny_path: MakeTiny, tmp_path: Path) -> None:
    params = CPU.with_kv_override("llama.expert_used_count", 1)
    with Model.load_from_file(tiny_path(split=3, n_expert=4), params) as model:
        model.save_to_file(tmp_path / "saved.gguf")
    file = Gguf.from_file(tmp_path / "saved.gguf")
    assert file["llama.expert_used_count"] == 1
    assert len(file.paths) == 1


def test_the_loaded_file_is_never_written_over(tmp_path: Path) -> None:
    path = tiny.write(tmp_path / "t.gguf", tiny.Shape())
    content = path.read_bytes()
    os.link(path, tmp_path / "hard.gguf")
    (tmp_path / "soft.gguf").symlink_to(path)
    with Model.load_from_file(path, CPU) as model:
        for target in (path, tmp_path / "hard.gguf", tmp_path / "soft.gguf"):
            with pytest.raises(ValueError, match="loaded from"):
                model.save_to_file(target)
        assert np.isfinite(logits(model)).all()
    assert path.read_bytes() == content


def test_models_without_weights(tiny_path: MakeTiny, tmp_path: Path) -> None:
    for params, name in ((CPU.with_vocab_only(True), "vocab_only"), (CPU.with_no_alloc(True), "no_alloc")):
        with Model.load_from_file(tiny_path(), params) as model:
            with pytest.raises(ValueError, match=name):
                model.save_to_file(tmp_path / "saved.gguf")
    with pytest.raises(ClosedError):
        model.save_to_file(tmp_path / "saved.gguf")
    assert os.listdir(tmp_path) == []


def test_repacked_weights_cannot_be_read_back(tiny_path: MakeTiny, tmp_path: Path) -> None:
    """libllama would call a null pointer."""
    quantize(tiny_path(n_embd=256), tmp_path / "q4.gguf", Ftype.Q4_0, n_threads=1, progress=False)
    with Model.load_from_file(tmp_path / "q4.gguf", CPU.with_use_extra_bufts(False)) as model:
        model.save_to_file(tmp_path / "saved.gguf")
    with Model.load_from_file(tmp_path / "q4.gguf", CPU) as model:
        if lib.moebind_model_unreadable(model.native):
            with pytest.raises(ValueError, match="use_extra_bufts=False"):
                model.save_to_file(tmp_path / "again.gguf")
        else:  # a CPU without repacking kernels
            model.save_to_file(tmp_path / "again.gguf")


def test_places_that_cannot_be_written(dense: Model, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="the folder of"):
        dense.save_to_file(tmp_path / "none" / "saved.gguf")
    with pytest.raises(IsADirectoryError):
        dense.save_to_file(tmp_path)
    for wrong in (3, None, b"a"):
        with pytest.raises(TypeError, match="path"):
            dense.save_to_file(wrong)  # type: ignore[arg-type]
    for broken in ("", "a\0b"):
        with pytest.raises(ValueError, match="path"):
            dense.save_to_file(broken)


def test_a_full_disk_leaves_what_was_there(tiny_path: MakeTiny, tmp_path: Path) -> None:
    target = tmp_path / "saved.gguf"
    target.write_bytes(b"old")
    code = (
        "import resource, signal, sys, moebind\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "with moebind.Model.load_from_file(sys.argv[1], moebind.ModelParams(n_gpu_layers=0)) as model:\n"
        "    try:\n"
        "        model.save_to_file(sys.argv[2])\n"
        "    except (OSError, moebind.MoebindError) as error:\n"
        "        print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tiny_path(), target], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "refused"
    assert os.listdir(tmp_path) == ["saved.gguf"]
    assert target.read_bytes() == b"old"
