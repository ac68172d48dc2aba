"""Tiny projectors with random weights, made from a seed, for tiny models.

Three see, of which one cuts pictures up, and one hears.

    python tests/projectors.py FOLDER          # one that sees, with its model and a photo, to try out pictures
"""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
import tiny

from moebind import Context, ContextParams, FlashAttnType, Model, ModelParams
from moebind.mtmd import Bitmap, MtmdContext, MtmdContextParams

#: Of the encoder, and of what it gives to the model (``tiny.Shape.n_embd``).
N_EMBD, N_FF, N_HEAD, N_LAYER, N_OUT = 32, 48, 2, 2, 64
PATCH, N_MEL, STACK = 14, 80, 8
#: The sides of the pictures that a projector takes; 0: any.
SIDES = {"gemma3": 56, "idefics3": 56, "qwen2vl_merger": 0}
#: Patches of each side that become one token.
MERGED = 2
#: A text model that goes with a projector.
MODELS = {"gemma3": "llama", "idefics3": "llama", "ultravox": "llama", "qwen2vl_merger": "qwen2vl"}
#: Tokens that idefics3 puts around the parts of a picture.
AROUND = ("\n\n", "<fake_token_around_image>", "<global-img>")
MEAN, DEVIATION = (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)
EPS = 1e-6


def metadata(kind: str) -> dict[str, object]:
    """What the file of a projector says."""
    sense = "audio" if kind == "ultravox" else "vision"
    found: dict[str, object] = {
        "clip.projector_type": kind,
        f"clip.has_{sense}_encoder": True,
        "clip.use_gelu": True,
        f"clip.{sense}.embedding_length": N_EMBD,
        f"clip.{sense}.feed_forward_length": N_FF,
        f"clip.{sense}.block_count": N_LAYER,
        f"clip.{sense}.projection_dim": N_OUT,
        f"clip.{sense}.attention.head_count": N_HEAD,
        f"clip.{sense}.attention.layer_norm_epsilon": EPS,
    }
    if kind == "ultravox":
        return {**found, "clip.audio.num_mel_bins": N_MEL, "clip.audio.projector.stack_factor": STACK}
    found |= {"clip.vision.image_size": SIDES[kind] or 56, "clip.vision.patch_size": PATCH}
    found |= {"clip.vision.image_mean": list(MEAN), "clip.vision.image_std": list(DEVIATION)}
    if kind in {"gemma3", "idefics3"}:
        found["clip.vision.projector.scale_factor"] = MERGED
    if kind == "idefics3":
        found["clip.vision.preproc_image_size"] = 112
    return found


def tensors(kind: str, seed: int = 5) -> dict[str, np.ndarray]:
    """The weights of a projector."""
    random = np.random.default_rng(seed)

    def weights(*size: int) -> np.ndarray:
        return (random.standard_normal(size) / np.sqrt(np.prod(size[1:]) or 1)).astype(np.float32)

    def near_one(size: int) -> np.ndarray:
        return (1 + random.standard_normal(size) / 8).astype(np.float32)

    prefix = "a" if kind == "ultravox" else "v"
    found: dict[str, np.ndarray] = {}
    for layer in range(N_LAYER):
        b = f"{prefix}.blk.{layer}."
        for part in ("q", "k", "v", "out"):
            found[f"{b}attn_{part}.weight"] = weights(N_EMBD, N_EMBD)
            if kind != "ultravox" or part != "k":
                found[f"{b}attn_{part}.bias"] = weights(N_EMBD) / 4
        found |= {f"{b}ffn_up.weight": weights(N_FF, N_EMBD), f"{b}ffn_up.bias": weights(N_FF) / 4}
        found |= {f"{b}ffn_down.weight": weights(N_EMBD, N_FF), f"{b}ffn_down.bias": weights(N_EMBD) / 4}
        for norm in ("ln1", "ln2"):
            found |= {f"{b}{norm}.weight": near_one(N_EMBD), f"{b}{norm}.bias": weights(N_EMBD) / 4}
    found |= {f"{prefix}.post_ln.weight": near_one(N_EMBD), f"{prefix}.post_ln.bias": weights(N_EMBD) / 4}
    if kind == "ultravox":
        found |= {"a.conv1d.1.weight": weights(N_EMBD, N_MEL, 3), "a.conv1d.1.bias": weights(N_EMBD, 1) / 4}
        found |= {"a.conv1d.2.weight": weights(N_EMBD, N_EMBD, 3), "a.conv1d.2.bias": weights(N_EMBD, 1) / 4}
        found["a.position_embd.weight"] = weights(1500, N_EMBD)
        found |= {"mm.a.norm_pre.weight": near_one(STACK * N_EMBD), "mm.a.norm_mid.weight": near_one(N_EMBD)}
        found |= {"mm.a.mlp.1.weight": weights(2 * N_EMBD, STACK * N_EMBD), "mm.a.mlp.2.weight": weights(N_OUT, N_EMBD)}
        return found
    found["v.patch_embd.weight"] = weights(N_EMBD, 3, PATCH, PATCH)
    if kind == "qwen2vl_merger":
        found["v.patch_embd.weight.1"] = weights(N_EMBD, 3, PATCH, PATCH)
        found |= {"mm.0.weight": weights(4 * N_EMBD, 4 * N_EMBD), "mm.0.bias": weights(4 * N_EMBD) / 4}
        found |= {"mm.2.weight": weights(N_OUT, 4 * N_EMBD), "mm.2.bias": weights(N_OUT) / 4}
        return found
    found["v.patch_embd.bias"] = weights(N_EMBD) / 4
    found["v.position_embd.weight"] = weights((SIDES[kind] // PATCH) ** 2, N_EMBD)
    if kind == "gemma3":
        found |= {"mm.input_projection.weight": weights(N_EMBD, N_OUT), "mm.soft_emb_norm.weight": near_one(N_EMBD)}
    else:
        found["mm.model.fc.weight"] = weights(N_OUT, MERGED**2 * N_EMBD)
    return found


def write(path: Path, kind: str, *, without: str = "", **changed: object) -> Path:
    """Write a projector; ``changed`` replaces metadata, by the end of its key."""
    said = metadata(kind)
    for end, value in changed.items():
        (key,) = [key for key in said if key.endswith(end)]
        said[key] = value
    held = {name: data for name, data in tensors(kind).items() if name != without}
    return write_file(path, said, held)


def write_file(path: Path, said: Mapping[str, object], held: Mapping[str, np.ndarray]) -> Path:
    """Write a projector's file."""
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    tiny.describe(writer, said)
    tiny.finish(writer, held)
    return path


def text_model(path: Path, kind: str, **shape: object) -> Path:
    """Write a text model that a projector of this kind goes with."""
    made = tiny.Shape(arch=MODELS[kind], n_embd=N_OUT, n_ctx_train=4096, **shape)  # type: ignore[arg-type]
    said = tiny._metadata(made)
    if kind == "idefics3":
        # It looks for these in the vocabulary; text has bytes for the letters that they replace.
        said["tokenizer.ggml.tokens"] = [*tiny.TOKENS[: -len(AROUND)], *AROUND]
    tiny._write_file(path, made.arch, said, tiny._tensors(made, np.random.default_rng(made.seed)))
    return path


#: As exact as libmtmd computes, and without a picture of thousands of tokens at first.
PARAMS = MtmdContextParams(warmup=False, n_threads=1, flash_attn_type=FlashAttnType.DISABLED)


class Seeing(NamedTuple):
    """A tiny model with its projector."""

    model: Model
    mtmd: MtmdContext

    def context(self, n_ctx: int = 1024, **params: object) -> Context:
        """A context that pictures and sound fit into."""
        made = ContextParams(n_ctx=n_ctx, n_threads=1, n_threads_batch=1, **params)  # type: ignore[arg-type]
        return self.model.new_context(made)

    def bitmap(self, seed: int = 1) -> Bitmap:
        """Something that the projector takes, another one for each seed."""
        random = np.random.default_rng(seed)
        if self.mtmd.support_audio:
            return Bitmap.from_audio_data(random.uniform(-1, 1, 16_000).astype(np.float32))
        return Bitmap.from_image_data(pixels(150, 100, seed))


def load(folder: Path, kind: str) -> Seeing:
    """Write and load a model and its projector."""
    text = text_model(folder / "text.gguf", kind)
    model = Model.load_from_file(text, ModelParams(n_gpu_layers=0, devices=()))
    return Seeing(model, MtmdContext.init_from_file(write(folder / "mmproj.gguf", kind), model, PARAMS))


def pixels(width: int, height: int, seed: int = 1) -> np.ndarray:
    """Random pixels, uint8 ``(height, width, 3)``."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def photo(path: Path) -> Path:
    """Write a JPEG of a few colours, 96 pixels wide and 64 high."""
    from PIL import Image

    small = Image.fromarray(pixels(6, 4))
    small.resize((96, 64), Image.Resampling.BICUBIC).save(path, "JPEG")
    return path


def wav(samples: np.ndarray, rate: int = 16_000, channels: int = 1) -> bytes:
    """A WAV file of 16-bit samples."""
    import wave

    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(channels)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes(np.round(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return file.getvalue()


def put_seeing_model(folder: Path) -> None:
    """Write a tiny model that sees, its projector and a photo into a folder."""
    text_model(folder / "seeing.gguf", "gemma3")
    write(folder / "mmproj-seeing.gguf", "gemma3")
    photo(folder / "photo.jpg")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    chosen = Path(sys.argv[1])
    chosen.mkdir(parents=True, exist_ok=True)
    put_seeing_model(chosen)
