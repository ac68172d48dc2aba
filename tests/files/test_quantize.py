"""Quantising: types, sizes, splits, and what is refused before ggml could fail at it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import gguf as reference
import numpy as np
import pytest
import tiny
from quantizing import importance, quantize

from conftest import CPU, SMALL
from moebind import Batch, Ftype, GgmlType, Gguf, Model, ModelLoadError, QuantizeError

MakeTiny = Callable[..., Path]
NEED_IMATRIX = {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S"}
FTYPES = [name for name in Ftype.__members__ if name not in {"GUESSED", "NVFP4"}]


@pytest.mark.thorough
@pytest.mark.parametrize("name", FTYPES)
def test_every_ftype(one_layer: Path, tmp_path: Path, name: str) -> None:
    target = tmp_path / "small.gguf"
    imatrix = importance(one_layer) if name in NEED_IMATRIX else None
    planned = quantize(one_layer, None, Ftype[name], dry_run=True, imatrix=imatrix)
    assert os.listdir(tmp_path) == []
    done = quantize(one_layer, target, Ftype[name], imatrix=imatrix)
    assert os.listdir(tmp_path) == ["small.gguf"]
    assert done.paths == (str(target),)
    assert planned.paths == ()
    assert (done.tensors, done.ftype, done.nbytes) == (planned.tensors, Ftype[name], planned.nbytes)
    written = Gguf.from_file(target)
    assert [(each.name, each.type, each.nbytes) for each in written.tensors.values()] == [
        (each.name, each.type, each.nbytes) for each in done.tensors
    ]
    assert sum(each.nbytes for each in written.tensors.values()) == done.nbytes
    assert done.source_nbytes == sum(each.nbytes for each in Gguf.from_file(one_layer).tensors.values())
    with Model.load_from_file(target, CPU) as model, model.new_context(SMALL) as context:
        assert model.ftype is Ftype[name]
        context.decode(Batch.get_one([1, 5, 40]))
        assert np.isfinite(context.get_logits_ith(-1)).all()


@pytest.mark.parametrize(
    ("name", "most"),
    [("Q8_0", 0.01), ("Q6_K", 0.03), ("Q5_K_M", 0.06), ("Q4_K_M", 0.1), ("Q4_0", 0.12), ("BF16", 0.004)],
)
def test_weights_are_those_of_the_source_within_bounds(wide: Path, tmp_path: Path, name: str, most: float) -> None:
    """By the gguf package's own arithmetic: relative root mean square error."""
    quantize(wide, tmp_path / "small.gguf", Ftype[name])
    before = {each.name: each for each in reference.GGUFReader(wide).tensors}
    for tensor in reference.GGUFReader(tmp_path / "small.gguf").tensors:
        source = before[tensor.name].data.astype(np.float32)
        weights = reference.dequantize(tensor.data, tensor.tensor_type).reshape(source.shape)
        if tensor.tensor_type == reference.GGMLQuantizationType.F32:
            assert np.array_equal(weights, source)
        else:
            assert np.sqrt(np.mean((weights - source) ** 2) / np.mean(source**2)) < most


def test_types_by_pattern(wide: Path, tmp_path: Path) -> None:
    types = {r"ffn_down_exps": GgmlType.Q3_K, r"blk\.1\.": GgmlType.Q8_0, "attn_q": int(GgmlType.NVFP4)}
    done = quantize(wide, tmp_path / "small.gguf", Ftype.Q4_K_S, tensor_types=types)
    found = {each.name: each.type for each in done.tensors}
    assert found["blk.1.ffn_down_exps.weight"] is GgmlType.Q3_K  # the first match wins
    assert found["blk.1.attn_q.weight"] is GgmlType.Q8_0
    assert found["blk.0.attn_q.weight"] is GgmlType.NVFP4
    assert found["blk.0.ffn_norm.weight"] is GgmlType.F32


def test_several_threads_write_the_same(wide: Path, tmp_path: Path) -> None:
    for threads in (1, 2):
        quantize(wide, tmp_path / f"{threads}.gguf", Ftype.Q4_K_M, n_threads=threads)
    assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "2.gguf").read_bytes()
    small = quantize(wide, tmp_path / "slabs.gguf", Ftype.Q4_K_M, max_buf_size=4096)
    assert (tmp_path / "slabs.gguf").read_bytes() == (tmp_path / "1.gguf").read_bytes()
    assert small.bits_per_weight < 6


def test_metadata(wide: Path, tmp_path: Path) -> None:
    quantize(wide, tmp_path / "small.gguf", kv_overrides={"general.name": "new", "llama.expert_used_count": 1})
    file, source = Gguf.from_file(tmp_path / "small.gguf"), Gguf.from_file(wide)
    assert (file["general.name"], file["llama.expert_used_count"]) == ("new", 1)
    assert file["general.file_type"] == Ftype.Q8_0
    assert file["tokenizer.ggml.tokens"] == source["tokenizer.ggml.tokens"]
    with pytest.raises(ModelLoadError, match="expert_used_count"):
        quantize(wide, None, dry_run=True, kv_overrides={"llama.expert_used_count": 9})
    with pytest.raises(ValueError, match="general.alignment"):
        quantize(wide, None, dry_run=True, kv_overrides={"general.alignment": 64})


def test_another_alignment_is_not_carried_on(tmp_path: Path) -> None:
    """llama.cpp would write the source's alignment into a file that it aligns to 32."""
    wide = tiny.realigned(tiny.write(tmp_path / "t.gguf", tiny.Shape(n_expert=4)), 256)
    assert Gguf.from_file(wide).alignment == 256
    quantize(wide, tmp_path / "small.gguf")
    assert Gguf.from_file(tmp_path / "small.gguf").alignment == 32
    with Model.load_from_file(tmp_path / "small.gguf", CPU) as model:
        assert model.n_layer == 2


# --- files ---


def test_the_source_is_never_written_over(wide: Path, tmp_path: Path) -> None:
    source = tmp_path / "source.gguf"
    source.write_bytes(wide.read_bytes())
    os.link(source, tmp_path / "hard.gguf")
    (tmp_path / "soft.gguf").symlink_to(source)
    for target in ("source.gguf", "hard.gguf", "soft.gguf"):
        for overwrite in (False, True):
            with pytest.raises(ValueError, match="same file as the source"):
                quantize(source, tmp_path / target, overwrite=overwrite)
    assert source.read_bytes() == wide.read_bytes()


def test_a_file_that_is_there_stays_unless_it_is_to_be_replaced(wide: Path, tmp_path: Path) -> None:
    target = tmp_path / "small.gguf"
    target.write_bytes(b"old")
    (tmp_path / "link.gguf").symlink_to(target)
    (tmp_path / "new-00002-of-00003.gguf").write_bytes(b"old")
    split = tiny.write(tmp_path / "m.gguf", tiny.Shape(n_expert=2, n_embd=256, n_ff=256), split=3)
    for src, dst, options in (
        (wide, "small.gguf", {}),
        (wide, "link.gguf", {}),
        (split, "new.gguf", {"keep_split": True}),
    ):
        with pytest.raises(FileExistsError, match="^dst is there already, .*: choose another, or pass overwrite=True$"):
            quantize(src, tmp_path / dst, **options)
        quantize(src, tmp_path / dst, dry_run=True, **options)
        assert target.read_bytes() == (tmp_path / "new-00002-of-00003.gguf").read_bytes() == b"old"
    quantize(wide, tmp_path / "link.gguf", overwrite=True)  # what it points to
    assert (tmp_path / "link.gguf").is_symlink()
    assert Gguf.from_file(target).tensors
    kept = quantize(split, tmp_path / "new.gguf", keep_split=True, overwrite=True)
    assert len(kept.paths) == 3
    with pytest.raises(TypeError, match="overwrite is 1"):
        quantize(wide, target, overwrite=1)


def test_places_that_cannot_be_written(wide: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="the folder of"):
        quantize(wide, tmp_path / "none" / "small.gguf")
    with pytest.raises(IsADirectoryError):
        quantize(wide, tmp_path)
    with pytest.raises(TypeError, match="dst is None; it takes the path of the new file, or dry_run=True"):
        quantize(wide, None)
    with pytest.raises(ValueError, match="dst is empty"):
        quantize(wide, "")
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_what_was_there(wide: Path, tmp_path: Path) -> None:
    target = tmp_path / "small.gguf"
    target.write_bytes(b"old")
    code = (
        "import resource, signal, sys, moebind\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
        "try:\n"
        "    moebind.quantize(sys.argv[1], sys.argv[2], moebind.Ftype.Q8_0, n_threads=1, overwrite=True)\n"
        "except (OSError, moebind.QuantizeError) as error:\n"
        "    print(type(error).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, wide, target], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in {"OSError", "QuantizeError"}
    assert os.listdir(tmp_path) == ["small.gguf"]
    assert target.read_bytes() == b"old"


def test_splits(wide: Path, tmp_path: Path) -> None:
    first = tiny.write(tmp_path / "m.gguf", tiny.Shape(n_expert=2, n_embd=256, n_ff=256), split=3)
    joined = quantize(first.with_name("m-00002-of-00003.gguf"), tmp_path / "joined.gguf", only_copy=True)
    assert joined.source_nbytes == joined.nbytes
    whole = {each.name: each for each in Gguf.from_file(wide).tensors.values()}
    for name, tensor in Gguf.from_file(tmp_path / "joined.gguf").tensors.items():
        assert np.array_equal(tensor.data(), whole[name].data())
    kept = quantize(first, tmp_path / "new.gguf", keep_split=True)
    assert [Path(path).name for path in kept.paths] == [f"new-0000{at}-of-00003.gguf" for at in (1, 2, 3)]
    with Model.load_from_file(kept.paths[1], CPU) as model:
        assert model.size == kept.nbytes
    with pytest.raises(ValueError, match="same file as the source"):
        quantize(first, tmp_path / "m.gguf", keep_split=True)
    alone = quantize(wide, tmp_path / "alone.gguf", keep_split=True)
    assert alone.paths == (str(tmp_path / "alone.gguf"),)


def test_a_part_without_tensors_cannot_be_kept(tmp_path: Path) -> None:
    """llama.cpp would follow a null pointer."""
    first = tiny.write(tmp_path / "m.gguf", tiny.Shape(), split=30)
    with pytest.raises(ValueError, match="would have no tensors"):
        quantize(first, None, keep_split=True, dry_run=True)
    assert quantize(first, tmp_path / "joined.gguf").paths


def test_layers_can_be_left_out(tiny_path: MakeTiny, tmp_path: Path) -> None:
    source = tiny_path(n_layer=4, n_expert=4)
    done = quantize(source, tmp_path / "small.gguf", Ftype.Q8_0, prune_layers=[2, np.int64(1), 2])
    assert Gguf.from_file(tmp_path / "small.gguf")["llama.block_count"] == 2
    with Model.load_from_file(tmp_path / "small.gguf", CPU) as model:
        assert (model.n_layer, model.size) == (2, done.nbytes)
    kept = quantize(source, tmp_path / "copy.gguf", only_copy=True, prune_layers=[0, 1, 2])
    before, after = Gguf.from_file(source).tensors, Gguf.from_file(tmp_path / "copy.gguf").tensors
    assert np.array_equal(before["blk.3.attn_q.weight"].data(), after["blk.0.attn_q.weight"].data())
    assert len(kept.tensors) == len(after)
    for wrong in ([4], [-1], range(4)):
        with pytest.raises(ValueError, match="prune_layers"):
            quantize(source, None, dry_run=True, prune_layers=wrong)
    for wrong in ("12", 3, [1.5], [None]):
        with pytest.raises(TypeError, match="prune_layers"):
            quantize(source, None, dry_run=True, prune_layers=wrong)


# --- progress, stopping ---


def test_progress(wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    quantize(wide, tmp_path / "small.gguf", progress=seen.append)
    assert len(seen) == 24
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0.0, 1.0)
    quantize(wide, tmp_path / "second.gguf", progress=True)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    quantize(wide, tmp_path / "third.gguf", progress=True)


def test_the_progress_callback_can_stop_it(wide: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match="the progress callback stopped it"):
        quantize(wide, tmp_path / "small.gguf", progress=lambda fraction: fraction < 0.5)

    def broken(fraction: float) -> bool:
        if fraction > 0.5:
            raise LookupError("mine")
        return True

    with pytest.raises(LookupError, match="mine"):
        quantize(wide, tmp_path / "small.gguf", progress=broken, n_threads=2)
    assert os.listdir(tmp_path) == []
    # Nothing is left behind in libllama either.
    assert quantize(wide, tmp_path / "small.gguf", n_threads=2).nbytes


def test_ctrl_c(wide: Path, tmp_path: Path) -> None:
    def interrupt(fraction: float) -> None:
        if fraction > 0.3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        quantize(wide, tmp_path / "small.gguf", progress=interrupt)
    assert os.listdir(tmp_path) == []
    assert quantize(wide, tmp_path / "small.gguf").nbytes


def test_two_at_once(wide: Path, tmp_path: Path) -> None:
    targets = [tmp_path / f"{at}.gguf" for at in range(3)]
    threads = [threading.Thread(target=quantize, args=(wide, target, Ftype.Q4_0)) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({target.read_bytes() for target in targets}) == 1
    assert len(os.listdir(tmp_path)) == 3


# --- what is refused ---


@pytest.mark.parametrize("kind", [4, 5, 31, 36, 43, -1, 99, GgmlType.I32, GgmlType.F64, GgmlType.Q8_1, GgmlType.Q8_K])
@pytest.mark.parametrize("name", ["output_tensor_type", "token_embedding_type", "tensor_types"])
def test_types_that_cannot_be_made(wide: Path, name: str, kind: int) -> None:
    value = {"attn_q": kind} if name == "tensor_types" else kind
    with pytest.raises(ValueError, match=f"{name}.*takes one of GgmlType"):
        quantize(wide, None, dry_run=True, **{name: value})


@pytest.mark.parametrize("ftype", [Ftype.GUESSED, Ftype.NVFP4, -1, 4, 99, 10**9])
def test_ftypes_that_are_none(wide: Path, ftype: int) -> None:
    with pytest.raises(ValueError, match="ftype"):
        quantize(wide, None, ftype, dry_run=True)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"ftype": "Q4_0"}, TypeError),
        ({"ftype": GgmlType.Q4_0}, TypeError),
        ({"ftype": None}, TypeError),
        ({"n_threads": 0}, ValueError),
        ({"n_threads": 513}, ValueError),
        ({"n_threads": 2**40}, ValueError),
        ({"n_threads": 1.5}, TypeError),
        ({"max_buf_size": -1}, ValueError),
        ({"pure": 1}, TypeError),
        ({"only_copy": None}, TypeError),
        ({"tensor_types": [("a", 2)]}, TypeError),
        ({"tensor_types": {"nothing_like_it": GgmlType.Q4_0}}, ValueError),
        ({"tensor_types": {"(.*)*x": GgmlType.Q4_0}}, ValueError),
        ({"tensor_types": {"(": GgmlType.Q4_0}}, ValueError),
        ({"tensor_types": {"a\0": GgmlType.Q4_0}}, ValueError),
        ({"tensor_types": {"attn_q": GgmlType.Q4_0}, "ftype": Ftype.F16}, ValueError),
        ({"tensor_types": {"attn_q": GgmlType.Q4_0}, "only_copy": True}, ValueError),
        ({"imatrix": {"a\0b": [1.0]}}, ValueError),
        ({"imatrix": {3: [1.0]}}, TypeError),
        ({"kv_overrides": {"": 1}}, ValueError),
    ],
    ids=str,
)
def test_arguments_that_are_refused(wide: Path, options: dict[str, object], error: type[Exception]) -> None:
    ftype = options.pop("ftype", Ftype.Q4_0) if "ftype" in options else Ftype.Q4_0
    with pytest.raises(error):
        quantize(wide, None, ftype, dry_run=True, **options)


def test_quantised_sources(demo_path: Path, wide: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match="quantised already.*allow_requantize"):
        quantize(demo_path, None, Ftype.Q8_0, dry_run=True)
    assert quantize(demo_path, None, Ftype.Q8_0, dry_run=True, allow_requantize=True).nbytes
    assert quantize(demo_path, None, only_copy=True, dry_run=True).nbytes
    quantize(wide, tmp_path / "q8.gguf", Ftype.Q8_0)
    done = quantize(tmp_path / "q8.gguf", tmp_path / "q4.gguf", Ftype.Q4_0, allow_requantize=True)
    assert GgmlType.Q4_0 in {each.type for each in done.tensors}


def test_sources_that_are_none(tmp_path: Path, wide: Path) -> None:
    with pytest.raises(FileNotFoundError):
        quantize(tmp_path / "none.gguf", None, dry_run=True)
    with pytest.raises(ModelLoadError, match="not a regular file"):
        quantize("/dev/zero", None, dry_run=True)
    (tmp_path / "cut.gguf").write_bytes(wide.read_bytes()[:-1000])
    with pytest.raises(ModelLoadError, match="cut off"):
        quantize(tmp_path / "cut.gguf", tmp_path / "small.gguf")
    for wrong in (3, None, b"a"):
        with pytest.raises(TypeError, match="src"):
            quantize(wrong, None, dry_run=True)
