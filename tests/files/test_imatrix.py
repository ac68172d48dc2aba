"""Importance matrices: from files of both kinds and arrays, and what is none."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path

import gguf as reference
import numpy as np
import pytest
from quantizing import importance, quantize

from moebind import Ftype, Gguf, QuantizeError

MakeTiny = Callable[..., Path]


def write_imatrix(path: Path, weights: dict[str, np.ndarray], experts: int = 2) -> Path:
    writer = reference.GGUFWriter(path, "imatrix")
    for name, values in weights.items():
        matrices = experts if "exps" in name else 1
        writer.add_tensor(f"{name}.in_sum2", values.reshape(matrices, -1) * 10)
        writer.add_tensor(f"{name}.counts", np.full((matrices, 1), 10, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_legacy(path: Path, weights: dict[str, np.ndarray]) -> Path:
    parts = [struct.pack("<i", len(weights))]
    for name, values in weights.items():
        parts.append(struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 10, values.size))
        parts.append((values * 10).astype(np.float32).tobytes())
    path.write_bytes(b"".join([*parts, struct.pack("<ii", 3, 4), b"text"]))
    return path


def test_importance_from_files_and_arrays(one_layer: Path, tmp_path: Path) -> None:
    weights = importance(one_layer)
    sources = [
        weights,
        write_imatrix(tmp_path / "imatrix.gguf", weights),
        write_legacy(tmp_path / "imatrix.dat", weights),
    ]
    files = []
    for at, source in enumerate(sources):
        quantize(one_layer, tmp_path / f"{at}.gguf", Ftype.IQ2_S, imatrix=source)
        files.append(Gguf.from_file(tmp_path / f"{at}.gguf").tensors["blk.0.ffn_up_exps.weight"].data())
    # The mean of a sum differs from the number in the last bit at most.
    for other in files[1:]:
        assert np.mean(files[0] == other) > 0.99
    quantize(one_layer, tmp_path / "plain.gguf", Ftype.Q4_0)
    quantize(one_layer, tmp_path / "weighted.gguf", Ftype.Q4_0, imatrix=weights)
    assert (tmp_path / "plain.gguf").read_bytes() != (tmp_path / "weighted.gguf").read_bytes()


@pytest.mark.parametrize("values", [[], [1, math.nan], [math.inf], [-1.0] * 256, [3e38], ["a"], [[1], [2, 3]]])
def test_importance_that_is_no_number(wide: Path, values: object) -> None:
    with pytest.raises(ValueError, match=r"imatrix\['blk.0.attn_q.weight'\]"):
        quantize(wide, None, dry_run=True, imatrix={"blk.0.attn_q.weight": values})


@pytest.mark.parametrize("fill", [0.0, 1e20])
def test_extreme_importance(tiny_path: MakeTiny, tmp_path: Path, fill: float) -> None:
    wide = tiny_path(n_embd=256, n_ff=256, n_layer=1)
    weights = {name: np.full_like(values, fill) for name, values in importance(wide).items()}
    for ftype in (Ftype.IQ2_XXS, Ftype.IQ3_S, Ftype.Q4_K_M, Ftype.Q2_K):
        done = quantize(wide, tmp_path / "small.gguf", ftype, imatrix=weights, n_threads=2, overwrite=True)
        assert Gguf.from_file(done.paths[0]).tensors


def test_imatrix_files_that_are_none(wide: Path, tmp_path: Path) -> None:
    legacy = write_legacy(tmp_path / "good.dat", importance(wide)).read_bytes()
    broken = tmp_path / "bad.dat"
    for content in (b"", b"\0\0\0\0", b"\xff" * 64, struct.pack("<ii", 1, 2**31 - 1), legacy[:100], legacy[:-4000]):
        broken.write_bytes(content)
        with pytest.raises(QuantizeError, match="importance matrix"):
            quantize(wide, None, dry_run=True, imatrix=broken)
    with pytest.raises(QuantizeError, match="holds no importance matrix"):
        quantize(wide, None, dry_run=True, imatrix=wide)
    with pytest.raises(FileNotFoundError):
        quantize(wide, None, dry_run=True, imatrix=tmp_path / "none.dat")
    with pytest.raises(TypeError, match="imatrix"):
        quantize(wide, None, dry_run=True, imatrix=3)
