"""Compares our GGUF files with what llama.cpp's own converter writes: every tensor, and all of the model's metadata.

    tar xzf ~/.cache/moebind/xllamacpp-*.tar.gz -C /tmp
    /tmp/references/bin/python tests/numerics/check_converter.py /tmp/xllamacpp-*/thirdparty/llama.cpp

The archive is the one that moebind is built from; the converter in it is not among what is vendored.
``make_references.py`` says how the environment is made.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import make_references  # and with it everything that is not llama.cpp's
import numpy as np
import torch
from torch import nn


def convert(model: nn.Module, folder: Path) -> Path:
    """Save the model as transformers does, and convert it."""
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class
    from gguf import LlamaFileType

    model.save_pretrained(folder)
    config = folder / "config.json"
    fields = json.loads(config.read_text())
    # The class has another name in transformers than in the published model.
    fields["architectures"] = [name.replace("Phimoe", "PhiMoE") for name in fields["architectures"]]
    config.write_text(json.dumps(fields))
    with torch.inference_mode():
        architecture = get_model_architecture(ModelBase.load_hparams(folder, False), ModelType.TEXT)
        converter = get_model_class(architecture)(folder, LlamaFileType.ALL_F32, folder / "converted.gguf")
        converter.set_vocab = lambda: None  # there is no tokenizer
        converter.write()
    return folder / "converted.gguf"


def contents(path: Path) -> dict[str, object]:
    """Metadata of the architecture, and tensors."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    ours = ("GGUF.", "general.", "tokenizer.")
    found: dict[str, object] = {
        key: field.contents()
        for key, field in reader.fields.items()
        if key == "general.architecture" or not key.startswith(ours)
    }
    return found | {tensor.name: np.array(tensor.data) for tensor in reader.tensors}


def main() -> int:
    """Convert each model, and print what differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="llama.cpp's source")
    source = parser.parse_args().source
    sys.path[:0] = [str(source), str(source / "gguf-py")]
    for name in [name for name in sys.modules if name.partition(".")[0] == "gguf"]:
        del sys.modules[name]  # the converter needs its own
    wrong = 0
    for name in make_references.architectures.configs():
        with tempfile.TemporaryDirectory() as folder:
            theirs = contents(convert(make_references.finished(name), Path(folder)))
        ours = contents(make_references.DATA / f"{name}.gguf")
        differing = [key for key in theirs.keys() | ours.keys() if not np.array_equal(theirs.get(key), ours.get(key))]
        wrong += len(differing)
        print(f"{name}: {len(theirs)} keys and tensors, differing: {sorted(differing) or 'none'}")
    return wrong > 0


if __name__ == "__main__":
    sys.exit(main())
