"""Headers of models: read once, and what they are refused for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import moebind
from conftest import SMALL
from moebind import Device, Gguf, LoadMode, Model, ModelLoadError, ModelNotFoundError, ModelParams
from moebind.placement.header import TensorInfo, read_header

MakeTiny = Callable[..., Path]


def test_the_vocabulary_changes_nothing(tiny_path: MakeTiny, device: Device) -> None:
    # A plan gives llama.cpp a header without the vocabulary; the whole file, with no_alloc, says the same.
    for arch in ("llama", "deepseek", "granite_swa", "grovemoe"):
        path = tiny_path(arch=arch, n_expert=4)
        params = ModelParams(devices=(device,), load_mode=LoadMode.NONE)
        plan = moebind.plan(path, params, SMALL)
        with Model.load_from_file(path, params.with_no_alloc(True)) as model, model.new_context(SMALL) as context:
            assert plan.devices == context.memory_breakdown().devices


def test_a_split_model(tiny_path: MakeTiny) -> None:
    one = moebind.plan(tiny_path(n_expert=4), ModelParams(), SMALL, devices=["1GiB"])
    three = moebind.plan(tiny_path(3, n_expert=4), ModelParams(), SMALL, devices=["1GiB"])
    assert one.devices[0] == three.devices[0]
    assert one.places == three.places


def test_a_file_that_changed_is_read_again(tmp_path: Path, tiny_path: MakeTiny) -> None:
    path = tmp_path / "model.gguf"
    sizes = []
    for n_expert in (2, 6):
        path.write_bytes(tiny_path(n_expert=n_expert).read_bytes())
        sizes.append(moebind.plan(path, ModelParams(), SMALL, devices=["1GiB"]).expert_bytes)
    assert sizes[1] == 3 * sizes[0]


def test_a_truncated_file_is_refused(tmp_path: Path, tiny_path: MakeTiny) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_path(n_expert=4).read_bytes()[:-64])
    with pytest.raises(ModelLoadError, match="cut off"):
        moebind.plan(path)


def test_files_that_are_no_models(tmp_path: Path) -> None:
    empty = tmp_path / "empty.gguf"
    empty.touch()
    for path, error in [(tmp_path / "gone", ModelNotFoundError), (tmp_path, ModelLoadError), (empty, ModelLoadError)]:
        for function in (moebind.plan, moebind.experts, moebind.fit):
            with pytest.raises(error):
                function(path)


@pytest.mark.parametrize(
    ("name", "layer", "expert"),
    [
        ("blk.12.ffn_gate_up_exps.weight", 12, True),
        ("blk.0.ffn_down_chexps.bias", 0, True),
        ("blk.0.ffn_up_shexp.weight", 0, False),
        ("blk.3.attn_q.weight", 3, False),
        ("output.weight", None, False),
        ("enc.blk.3.attn_q.weight", None, False),
    ],
)
def test_what_names_of_tensors_tell(name: str, layer: int | None, expert: bool) -> None:
    info = TensorInfo(name, 0, (1,), 4, 0, 0)
    assert (info.layer, info.is_expert) == (layer, expert)


def test_a_header_is_the_file_without_its_vocabulary(tiny_path: MakeTiny) -> None:
    path = tiny_path(n_expert=4, n_layer=3)
    header = read_header(str(path))
    file = Gguf.from_file(path)
    assert header.architecture == "llama"
    assert header.paths == (str(path),)
    assert {name: info.nbytes for name, info in header.tensors.items()} == {
        name: tensor.nbytes for name, tensor in file.tensors.items()
    }
    assert header.integer("block_count") == 3
    assert header.integer("none", 7) == 7
    assert list(header.experts) == [0, 1, 2]
    assert sum(size for layer in header.experts.values() for size in layer.values()) == moebind.experts(path).nbytes
    stand_in = Gguf.from_file(header.path)
    assert "tokenizer.ggml.tokens" not in stand_in
    # It claims the weights' size, without holding them.
    claimed = os.stat(header.path)
    assert moebind.experts(path).total_nbytes < claimed.st_size < path.stat().st_size
    assert claimed.st_blocks * 512 < claimed.st_size // 2


def test_a_header_is_kept_as_long_as_the_file_is_the_same(tiny_path: MakeTiny, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(tiny_path(n_expert=4).read_bytes())
    first = read_header(str(path))
    assert read_header(str(path)) is first
    os.utime(path, ns=(1, 1))
    assert read_header(str(path)) is not first
    path.unlink()
    with pytest.raises(ModelNotFoundError):
        read_header(str(path))
