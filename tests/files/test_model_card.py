"""What a model is, from its headers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from hub_server import Hub

import moebind
from moebind import Ftype, GgmlType, Model, ModelLoadError, ModelNotFoundError, ModelParams
from moebind.files.model_card import show_count

MakeTiny = Callable[..., Path]


def test_it_says_what_a_loaded_model_says(tiny_path: MakeTiny) -> None:
    path = tiny_path(n_expert=4, n_layer=3)
    card = moebind.inspect(path)
    with Model.load_from_file(path, ModelParams(n_gpu_layers=0, devices=())) as model:
        for name in ("n_params", "n_layer", "n_embd", "n_head", "n_head_kv", "n_ctx_train", "n_vocab"):
            assert getattr(card, name) == getattr(model, name), name
        assert (card.n_expert, card.n_expert_used) == (model.n_expert, model.n_expert_used) == (4, 2)
        assert sum(each.nbytes for each in card.types) == model.size
    assert (card.name, card.architecture, card.kind, card.vocab_type) == ("tiny", "llama", "model", "llama")
    assert card.nbytes == path.stat().st_size
    assert not card.problems
    assert not card.missing


@pytest.mark.parametrize(
    "fields",
    [
        {"n_expert": 4},
        {"arch": "deepseek", "n_expert": 4, "n_dense_layers": 1, "n_layer": 3},
        {"arch": "grovemoe", "n_expert": 8, "n_expert_groups": 4},
    ],
    ids=["llama", "deepseek", "grovemoe"],
)
def test_experts_are_those_of_experts(tiny_path: MakeTiny, fields: dict[str, object]) -> None:
    path = tiny_path(**fields)
    card, summary = moebind.inspect(path), moebind.experts(path)
    assert card.expert_nbytes == summary.nbytes
    assert card.expert_layers == {layer.layer: layer.n_expert for layer in summary if layer.n_expert}
    assert card.n_expert == summary.n_expert


def test_active_parameters_leave_out_what_a_token_does_not_use(tiny_path: MakeTiny) -> None:
    card = moebind.inspect(tiny_path(n_expert=4, n_expert_used=1, n_layer=2))
    in_experts = sum(each.n_elements for each in card.tensors.values() if "_exps" in each.name)
    assert card.n_params - card.n_params_active == in_experts * 3 // 4 > 0
    dense = moebind.inspect(tiny_path())
    assert dense.n_params == dense.n_params_active
    assert (dense.n_expert, dense.n_expert_used, dense.expert_layers) == (0, 0, {})
    # Layers that predict further ahead are in the file, and do not work on a token.
    ahead = moebind.inspect(tiny_path(arch="glm4moe", n_expert=4, n_expert_used=4, n_layer=3, n_mtp=1))
    last = sum(each.n_elements for each in ahead.tensors.values() if each.name.startswith("blk.2."))
    assert ahead.n_params - ahead.n_params_active == last > 0


def test_types(demo_path: Path) -> None:
    card = moebind.inspect(demo_path)
    assert card.ftype == Ftype.Q4_1
    assert card.types[0].type == GgmlType.Q4_1
    assert [each.nbytes for each in card.types] == sorted((each.nbytes for each in card.types), reverse=True)
    assert sum(each.n_tensors for each in card.types) == len(card.tensors)
    assert sum(each.n_params for each in card.types) == card.n_params
    assert card.chat_template is not None
    text = str(card)
    assert "8, 2 work on a token; in layers 0-29" in text
    assert f"chat template, {len(card.chat_template)} characters" in text
    assert card.chat_template not in text
    assert "  … and 3 more lines" in text


def test_splits_and_missing_parts(tiny_path: MakeTiny, tmp_path: Path) -> None:
    whole = tiny_path(3, n_expert=4)
    card = moebind.inspect(whole.with_name(whole.name.replace("00001", "00002")))
    assert len(card.paths) == 3
    assert card.n_params == moebind.inspect(tiny_path(n_expert=4)).n_params
    assert "in 3 files" in str(card)
    there = [whole.name.replace("00001", f"0000{number}") for number in (1, 3)]
    for name in there:
        (tmp_path / name).symlink_to(whole.with_name(name))
    part = moebind.inspect(tmp_path / there[1])
    assert part.paths == tuple(str(tmp_path / name) for name in there)
    assert part.missing == (str(tmp_path / whole.name.replace("00001", "00002")),)
    assert 0 < part.n_params < card.n_params
    assert part.architecture == "llama"
    assert part.problems == (f"1 of 3 files are missing: {whole.name.replace('00001', '00002')}",)
    (tmp_path / there[0]).unlink()
    last = moebind.inspect(tmp_path / there[1])  # which has no metadata
    assert last.n_layer == last.n_vocab == 0
    assert "2 of 3 files are missing" in str(last)


def test_on_the_hub(hub: Hub, tiny_path: MakeTiny) -> None:
    card = moebind.inspect("hf://someone/tiny/F32")
    assert card.n_params == moebind.inspect(tiny_path(n_expert=4)).n_params
    assert card.bytes_read is not None
    assert 0 < card.bytes_read <= card.nbytes
    assert "nothing was downloaded" in str(card)
    with pytest.raises(ModelNotFoundError):
        moebind.inspect("hf://someone/tiny/Q2_K")


def test_what_cannot_be_loaded_says_why(tiny_path: MakeTiny, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_path(n_expert=4).read_bytes()[:-64])
    card = moebind.inspect(cut)
    assert "is cut off" in card.problems[0]
    assert card.problems[0] in str(card)


def test_what_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "x")
    writer.add_string("general.type", "adapter")
    writer.add_string("general.name", "bad\x1b[2Jname")
    writer.add_array("x.attention.head_count", [2, 8, 4])
    writer.add_string("x.block_count", "many")
    writer.add_tensor("a", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    card = moebind.inspect(path)
    assert (card.kind, card.n_head, card.n_layer, card.n_vocab) == ("adapter", 8, 0, 0)
    assert not card.problems
    text = str(card)
    assert "\x1b" not in text
    assert "adapter" in text


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "junk.gguf").write_bytes(b"junk, not a model")
    with pytest.raises(ModelLoadError, match="not a GGUF file"):
        moebind.inspect(tmp_path / "junk.gguf")
    for missing in ("none.gguf", "none-00001-of-00002.gguf"):
        with pytest.raises(ModelNotFoundError, match="does not exist"):
            moebind.inspect(tmp_path / missing)
    with pytest.raises(TypeError):
        moebind.inspect(3)  # type: ignore[arg-type]


def test_plain_values(tiny_path: MakeTiny) -> None:
    card = moebind.inspect(tiny_path(n_expert=4))
    values = json.loads(json.dumps(card.to_dict()))
    assert values["n_params"] == card.n_params
    assert values["types"][0]["type"] == "F32"
    assert [each["name"] for each in values["tensors"]] == list(card.tensors)
    assert set(values) == set(card.__dataclass_fields__)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1K"),
        (28_300_000, "28.3M"),
        (30_532_122_624, "30.5B"),
        (1_026_000_000_000, "1.03T"),
    ],
)
def test_counts_are_short(count: int, text: str) -> None:
    assert show_count(count) == text
