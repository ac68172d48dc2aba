"""LoRA adapters, changed between two requests without loading the model again.

    python examples/lora.py
    python examples/lora.py -m moe.gguf french.gguf pirate.gguf

Without adapters it makes two of random numbers, which change what the model says, but teach it nothing. llama.cpp's
`convert_lora_to_gguf.py` makes a file from an adapter that was trained.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import gguf
import numpy as np
from arguments import ModelParser

from moebind import ContextParams, Model


def random_adapter(path: Path, model: Model, seed: int, rank: int = 8) -> Path:
    """Write an adapter that changes the output of one layer's attention."""
    random = np.random.default_rng(seed)
    width, name = model.n_embd, f"blk.{model.n_layer // 2}.attn_output.weight"
    writer = gguf.GGUFWriter(path, model.meta["general.architecture"])
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))
    writer.add_tensor(f"{name}.lora_a", random.standard_normal((rank, width)).astype(np.float32) / 2)
    writer.add_tensor(f"{name}.lora_b", random.standard_normal((width, rank)).astype(np.float32) / 2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def main() -> None:
    """Answer without an adapter, with each, with both, and without again."""
    parser = ModelParser(__doc__, max_tokens=12)
    parser.add_argument("adapters", nargs="*", help="GGUF files")
    parser.add_argument("-p", "--prompt", default="The capital of France is")
    arguments = parser.parsed()

    with (
        tempfile.TemporaryDirectory() as folder,
        Model.load_from_file(arguments.model) as model,
        model.new_context(ContextParams(n_ctx=512)) as context,
    ):
        paths = arguments.adapters or [
            random_adapter(Path(folder, f"random-{seed}.gguf"), model, seed) for seed in (1, 2)
        ]
        loaded = {Path(path).stem: model.lora_adapter_init(path) for path in paths}
        choices = [{}, *({name: 1.0} for name in loaded), dict.fromkeys(loaded, 0.5), {}]
        for choice in choices:
            # From the next decode on. The cache still has what other weights computed, so generate computes it anew.
            context.set_lora_adapters({loaded[name]: scale for name, scale in choice.items()})
            text = context.generate(arguments.prompt, max_tokens=arguments.max_tokens).complete().text
            print(f"{', '.join(f'{name} x {scale}' for name, scale in choice.items()) or 'no adapter'}: {text!r}")


if __name__ == "__main__":
    main()
