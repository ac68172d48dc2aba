"""moebind quantize."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest
from commands import Capture, run
from hub_server import Hub
from quantizing import importance
from typist import MOEBIND, typing

import moebind
from moebind import Ftype, GgmlType, Gguf
from moebind.cli.quantize import _ftype, _override


def test_a_file(wide: Path, tmp_path: Path, capsys: Capture) -> None:
    target = tmp_path / "small.gguf"
    assert run("quantize", wide, target, "q8_0", "-t", 1) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == str(target)
    assert "bits per weight" in said.out
    assert said.err == ""
    assert moebind.inspect(target).ftype == Ftype.Q8_0


def test_a_file_that_is_there_is_kept(wide: Path, tmp_path: Path, capsys: Capture) -> None:
    target = tmp_path / "small.gguf"
    target.write_bytes(b"old")
    assert run("quantize", wide, target, "Q8_0", "-t", 1) == 1
    told = f"moebind: DST is there already, {target}: choose another, or give --overwrite\n"
    assert capsys.readouterr() == ("", told)
    assert target.read_bytes() == b"old"
    assert run("quantize", wide, target, "Q8_0", "-t", 1, "--overwrite") == 0
    assert target.stat().st_size > 1000
    capsys.readouterr()
    assert run("quantize", target, target, "F32", "--overwrite", "--allow-requantize") == 2
    assert "the same file as the source" in capsys.readouterr().err


def test_a_dry_run(wide: Path, tmp_path: Path, capsys: Capture) -> None:
    assert run("quantize", wide, "Q4_K_M", "--dry-run", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ftype"] == "Q4_K_M"
    assert told["paths"] == []
    assert told["nbytes"] == sum(each["nbytes"] for each in told["tensors"]) < told["source_nbytes"]
    assert run("quantize", wide, tmp_path / "small.gguf", "Q4_K_M", "--dry-run") == 0
    assert list(tmp_path.iterdir()) == []
    capsys.readouterr()
    assert run("quantize", wide, "IQ2_XXS", "--dry-run") == 0
    assert "give --imatrix" in capsys.readouterr().out


def test_types_by_tensor(wide: Path, tmp_path: Path, capsys: Capture) -> None:
    rules = tmp_path / "rules.txt"
    rules.write_text("attn_k=q5_0 attn_v=q5_1\n", encoding="utf-8")
    target = tmp_path / "small.gguf"
    options = ["--tensor-type", "ffn_down_exps=q3_k", "--tensor-type-file", rules, "--token-embedding-type", "q4_0"]
    options += ["--output-tensor-type", "Q6_K"]
    assert run("quantize", wide, target, "Q8_0", *options, "-t", 1) == 0
    tensors = Gguf.from_file(target).tensors
    assert tensors["blk.0.ffn_down_exps.weight"].type == GgmlType.Q3_K
    assert tensors["blk.0.attn_k.weight"].type == GgmlType.Q5_0
    assert tensors["blk.0.attn_v.weight"].type == GgmlType.Q5_1
    assert tensors["token_embd.weight"].type == GgmlType.Q4_0
    assert tensors["output.weight"].type == GgmlType.Q6_K
    assert tensors["blk.0.attn_q.weight"].type == GgmlType.Q8_0


def test_metadata_layers_and_the_output(wide: Path, tmp_path: Path) -> None:
    target = tmp_path / "small.gguf"
    options = ["--override-kv", "general.name=str:mine: own", "--prune-layers", "1", "--leave-output-tensor", "--pure"]
    assert run("quantize", wide, target, "Q8_0", *options, "--max-buffer-size", 1, "-t", 1) == 0
    file = Gguf.from_file(target)
    assert file["general.name"] == "mine: own"
    assert not any(name.startswith("blk.1.") for name in file.tensors)
    assert file.tensors["output.weight"].type == GgmlType.F32
    again = tmp_path / "again.gguf"
    assert run("quantize", target, again, "Q4_0", "--allow-requantize", "-t", 1) == 0
    assert moebind.inspect(again).ftype == Ftype.Q4_0


def test_copies_join_what_is_split(tiny_path: object, tmp_path: Path) -> None:
    split = tiny_path(3, n_expert=4)  # type: ignore[operator]
    assert run("quantize", split, tmp_path / "whole.gguf", "COPY") == 0
    assert moebind.inspect(tmp_path / "whole.gguf").types == moebind.inspect(split).types
    assert run("quantize", split, tmp_path / "q.gguf", "Q8_0", "--keep-split", "-t", 1) == 0
    assert len(moebind.inspect(tmp_path / "q-00001-of-00003.gguf").paths) == 3


def test_an_importance_matrix(one_layer: Path, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "imatrix.gguf"
    writer = gguf.GGUFWriter(file, "imatrix")
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", ["text"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    shapes = {each.name: each.shape for each in Gguf.from_file(one_layer).tensors.values()}
    for name, values in importance(one_layer).items():
        experts = shapes[name][2] if len(shapes[name]) > 2 else 1
        writer.add_tensor(f"{name}.in_sum2", values.reshape(experts, -1).astype(np.float32))
        writer.add_tensor(f"{name}.counts", np.ones((experts, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    target = tmp_path / "small.gguf"
    assert run("quantize", one_layer, target, "IQ2_XS", "-t", 1) == 1
    assert "takes an importance matrix" in capsys.readouterr().err
    assert run("quantize", one_layer, target, "IQ2_XS", "--imatrix", file, "-t", 1) == 0
    assert moebind.inspect(target).ftype == Ftype.IQ2_XS


def test_a_bar_on_a_terminal(wide: Path, tmp_path: Path) -> None:
    target = tmp_path / "small.gguf"
    # A terminal has a size.
    with typing("bash", "-c", f"stty cols 80 rows 24; exec {MOEBIND} quantize {wide} {target} Q8_0 -t 1") as typist:
        seen = typist.wait_for("100%")
        assert seen.lstrip().startswith("small.gguf:")
        assert str(target) in typist.wait_for(str(target))
        typist.ends_with(0)
    command = [MOEBIND, "quantize", wide, "Q8_0", "-t", "1", "--dry-run"]
    assert "%|" not in subprocess.run(command, capture_output=True, text=True, check=True).stderr


def test_a_model_of_the_hub(hub: Hub, capsys: Capture) -> None:
    assert run("quantize", "-hf", "someone/tiny:F32", "Q8_0", "--dry-run") == 0
    told = capsys.readouterr().out
    assert run("quantize", "hf://someone/tiny/F32", "Q8_0", "--dry-run") == 0
    assert capsys.readouterr().out == told


@pytest.mark.parametrize(
    ("text", "kind"),
    [("Q4_K_M", Ftype.Q4_K_M), ("q4_k", Ftype.Q4_K_M), ("f32", Ftype.ALL_F32), ("7", Ftype.Q8_0), ("bf16", Ftype.BF16)],
)
def test_names_of_types(text: str, kind: Ftype) -> None:
    assert _ftype(text) == kind


def test_values_of_metadata() -> None:
    given = ["a=int:-3", "a=float:0.5", "a=bool:true", "a=bool:false", "a=str:", "a=str:x=y:z"]
    assert [_override(each)[1] for each in given] == [-3, 0.5, True, False, "", "x=y:z"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["SRC"], 2, "there is 1 argument; it takes SRC DST TYPE"),
        (["q4_k_m", "SRC", "DST"], 2, "SRC is 'q4_k_m', which is a type: TYPE comes last, as in SRC DST TYPE"),
        (["COPY", "SRC"], 2, "TYPE comes last"),
        (["SRC", "a", "Q8_0", "4"], 2, "there are 4 arguments"),
        (["SRC", "Q8_0"], 2, "there is no file to write to"),
        (["SRC", "DST", "Q9"], 2, "TYPE is 'Q9'; it takes one of F16, Q4_0"),
        (["SRC", "DST", "99"], 2, "TYPE is '99'"),
        (["SRC", "SRC", "Q8_0"], 2, "DST is"),
        (["SRC", "DST", "Q8_0", "--tensor-type", "q4_0"], 2, "--tensor-type is 'q4_0'"),
        (["SRC", "DST", "Q8_0", "--tensor-type", "attn=x"], 2, "--tensor-type is 'x'"),
        (["SRC", "DST", "Q8_0", "--tensor-type", "nowhere=q4_0"], 2, "matches none of"),
        (["SRC", "DST", "Q8_0", "--output-tensor-type", "x"], 2, "--output-tensor-type is 'x'"),
        (["SRC", "DST", "Q8_0", "--prune-layers", "a"], 2, "--prune-layers is 'a'"),
        (["SRC", "DST", "Q8_0", "--prune-layers", "9"], 2, "9"),
        (["SRC", "DST", "Q8_0", "--override-kv", "a=int:x"], 2, "--override-kv is 'a=int:x'"),
        (["SRC", "DST", "Q8_0", "--override-kv", "a=x"], 2, "--override-kv is 'a=x'"),
        (["SRC", "DST", "Q8_0", "-t", "0"], 2, "--threads is 0"),
        (["nowhere.gguf", "DST", "Q8_0"], 1, "nowhere.gguf does not exist"),
        (["SRC", "DST", "Q8_0", "--imatrix", "nowhere.dat"], 1, "nowhere.dat"),
        (["SRC", "/nowhere/x.gguf", "Q8_0"], 1, "/nowhere"),
    ],
)
def test_misuse(wide: Path, tmp_path: Path, arguments: list[str], status: int, message: str, capsys: Capture) -> None:
    places = {"SRC": wide, "DST": tmp_path / "small.gguf"}
    assert run("quantize", *[places.get(each, each) for each in arguments]) == status
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err
    assert said.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_what_is_quantised_already_takes_an_option(demo_path: Path, capsys: Capture) -> None:
    assert run("quantize", demo_path, "Q2_K", "--dry-run") == 1
    assert "give --allow-requantize" in capsys.readouterr().err
