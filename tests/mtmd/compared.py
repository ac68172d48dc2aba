"""Projectors against transformers: what both are given, and moebind's side of it. Run it to see the figures:

    python tests/mtmd/compared.py

It needs moebind and gguf. ``make_projectors.py`` says where the files in ``data/`` come from.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import bounds

DATA = Path(__file__).resolve().parent / "data"
#: The width of the text model, which is that of ``tests/projectors.py``.
N_OUT = 64
PATCH, SIDE = 14, 56
MEAN, DEVIATION = (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)
RATE = 16_000
#: Less than thirty, so that both fill up with silence.
LONG, SHORT = 29, 3
HEARING = ("qwen2a", "voxtral")
#: Of the tokens that sound makes, every so many are kept in the files.
EVERY = 5
#: Sizes (width, height) that need no scaling.
_SIZES = {"idefics3": (112, 112), "pixtral": (112, 84), "qwen2vl": (112, 84), "qwen2.5vl": (168, 140)}
#: What ``projectors.text_model`` writes for them; for all others a llama.
_TEXT = {"idefics3": "idefics3", "qwen2vl": "qwen2vl_merger", "qwen2.5vl": "qwen2vl_merger"}


def picture(name: str) -> np.ndarray:
    """Random pixels, uint8 ``(height, width, 3)``, of a size that this projector does not scale."""
    width, height = _SIZES.get(name, (SIDE, SIDE))
    return np.random.RandomState(1).randint(0, 256, (height, width, 3)).astype(np.uint8)


def parts(pixels: np.ndarray) -> list[np.ndarray]:
    """The four squares into which Idefics 3 cuts it."""
    return [pixels[top : top + SIDE, left : left + SIDE] for top in (0, SIDE) for left in (0, SIDE)]


def sound(seconds: int) -> np.ndarray:
    """Noise that swells and fades."""
    samples = np.random.RandomState(2).uniform(-1, 1, seconds * RATE)
    return (samples * np.sin(np.arange(samples.size) / 20_000)).astype(np.float32)


@dataclass(frozen=True)
class Comparison:
    """A projector, what it is compared with, and the largest difference of an embedding of size 1 that is allowed."""

    name: str
    #: Which array of the file: what computed it.
    reference: str
    bound: float
    #: Of sound.
    seconds: int = LONG

    def __str__(self) -> str:
        return f"{self.name}-{self.reference}"

    def expected(self) -> np.ndarray:
        """float32, ``(n_tokens, N_OUT)``; of sound some."""
        with np.load(DATA / f"{self.name}.npz") as arrays:
            return arrays[self.reference]

    def computed(self) -> np.ndarray:
        """What moebind makes of the same."""
        import projectors

        from moebind import Model, ModelParams
        from moebind.mtmd import Bitmap, InputChunkType, MtmdContext

        hears = self.name in HEARING
        given = Bitmap.from_audio_data(sound(self.seconds)) if hears else Bitmap.from_image_data(picture(self.name))
        with tempfile.TemporaryDirectory() as folder:
            text = projectors.text_model(Path(folder) / "text.gguf", _TEXT.get(self.name, "gemma3"))
            with (
                Model.load_from_file(text, ModelParams(n_gpu_layers=0, devices=())) as model,
                MtmdContext.init_from_file(DATA / f"{self.name}.gguf", model, projectors.PARAMS) as mtmd,
            ):
                chunks = [each for each in mtmd.tokenize([given, "x"]) if each.chunk_type != InputChunkType.TEXT]
                # Idefics 3 adds the whole picture, scaled.
                rows = np.concatenate([mtmd.encode_chunk(chunk) for chunk in chunks[:4]])
        return rows[::EVERY] if hears else rows


COMPARISONS = (
    # How often GELU is looked up: in each layer and in the projector. LLaVA leaves out the last of the three layers;
    # Pixtral and Qwen2.5-VL have SiLU in the layers. Four projectors have GELU itself where llama.cpp approximates it.
    Comparison("llava", "transformers", bounds.encoder(lookups=3) + bounds.TANH),
    Comparison("gemma3", "transformers", bounds.encoder(lookups=3, roundings=1)),
    Comparison("idefics3", "order", bounds.encoder(lookups=3)),
    Comparison("pixtral", "transformers", bounds.encoder(lookups=1) + bounds.TANH),
    Comparison("qwen2vl", "transformers", bounds.encoder(lookups=4) + bounds.TANH),
    Comparison("qwen2.5vl", "transformers", bounds.encoder(lookups=1) + bounds.TANH),
    # Whisper's two convolutions are computed from halves.
    Comparison("qwen2a", "transformers", bounds.encoder(roundings=2)),
    Comparison("voxtral", "transformers", bounds.encoder(roundings=2)),
)
#: Where llama.cpp differs from transformers; docs/images.md says why.
DIFFERING = (
    Comparison("idefics3", "transformers", np.inf),
    Comparison("qwen2a", "masked", np.inf, SHORT),
)


def measured(each: Comparison) -> tuple[int, float, float]:
    """Tokens, the largest difference, and the size of differences relative to that of embeddings."""
    expected = each.expected()
    computed = each.computed()
    if each in DIFFERING:  # without the silence after it
        computed = computed[: len(expected)]
    off = computed - expected
    return len(expected), float(np.abs(off).max()), float(off.std() / expected.std())


def main() -> None:
    """Print the table of docs/images.md."""
    print("| projector | compared with | tokens | largest difference | relative | allowed |")
    print("| --- | --- | --- | --- | --- | --- |")
    for each in (*COMPARISONS, *DIFFERING):
        tokens, largest, relative = measured(each)
        allowed = "-" if each in DIFFERING else f"{each.bound:.0e}"
        print(f"| {each.name} | `{each.reference}` | {tokens} | {largest:.0e} | {relative:.0e} | {allowed} |")


if __name__ == "__main__":
    main()
