"""Makes ``data/``: tiny random projectors as GGUF files, and the embeddings that transformers computes for them.

    python -m venv /tmp/references
    /tmp/references/bin/pip install torch transformers==4.57.6 gguf pillow
    tar xzf ~/.cache/moebind/xllamacpp-VERSION.tar.gz -C /tmp
    /tmp/references/bin/python tests/mtmd/make_projectors.py /tmp/xllamacpp-VERSION/thirdparty/llama.cpp

The archive is the one that moebind is built from, which ``vendor/llama.cpp.lock`` names. Its converter writes the
files, as it does those that people use, so names, permutations and metadata are llama.cpp's own; it is not among what
is vendored. ``--check`` writes nothing: it makes everything anew, and says whether what is committed is still that. The
tests need neither torch nor transformers.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import compared  # which lets the next be found
import numpy as np
import torch
import transformers
from committed_references import write_or_check
from torch import Tensor, nn

SEED = 3

#: Of the text model, of which only the width matters, and Pixtral's token for the end of a row.
_TEXT = {
    "vocab_size": 64,
    "hidden_size": compared.N_OUT,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_IMG_BREAK = 12
#: The converter knows the number in ``merger.mlp.2`` only from three layers on.
_ENCODER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
#: What the converter writes as F16, whatever it is told.
_HALVES = ("conv1.weight", "conv2.weight", "mm_input_projection_weight")
_HEARING = {"num_mel_bins": 80, "max_source_positions": 1500}


def models() -> dict[str, nn.Module]:
    """Untrained models, by the name of their files."""
    seeing = _ENCODER | {"patch_size": compared.PATCH}
    square = seeing | {"image_size": compared.SIDE}
    llama, mistral = ({"model_type": name, **_TEXT} for name in ("llama", "mistral"))
    pixtral = {"model_type": "pixtral", "hidden_act": "silu", **seeing, "image_size": 112}
    qwen2vl = {"depth": 3, "embed_dim": 32, "hidden_size": compared.N_OUT, "num_heads": 2, "mlp_ratio": 2}
    qwen25vl = {"depth": 3, "hidden_size": 32, "out_hidden_size": compared.N_OUT, "num_heads": 2}
    qwen25vl |= {"intermediate_size": 48, "window_size": 112, "fullatt_block_indexes": [1]}
    qwen2a = {"d_model": 32, "encoder_layers": 3, "encoder_attention_heads": 2, "encoder_ffn_dim": 48, **_HEARING}
    # Four frames become one row, which is as long as the encoder's inner layer.
    voxtral = _ENCODER | {"intermediate_size": 128, **_HEARING}
    made = {
        "llava": transformers.LlavaForConditionalGeneration(
            transformers.LlavaConfig(vision_config={"model_type": "clip_vision_model", **square}, text_config=llama)
        ),
        "gemma3": transformers.Gemma3ForConditionalGeneration(
            transformers.Gemma3Config(vision_config=square, text_config=_TEXT, mm_tokens_per_image=4)
        ),
        "idefics3": transformers.Idefics3ForConditionalGeneration(
            transformers.Idefics3Config(vision_config=square, text_config=llama, scale_factor=2, pad_token_id=0)
        ),
        "pixtral": transformers.Mistral3ForConditionalGeneration(
            transformers.Mistral3Config(vision_config=pixtral, text_config=mistral, spatial_merge_size=2)
        ),
        "qwen2vl": transformers.Qwen2VLForConditionalGeneration(
            transformers.Qwen2VLConfig(vision_config=qwen2vl, text_config=_TEXT)
        ),
        "qwen2.5vl": transformers.Qwen2_5_VLForConditionalGeneration(
            transformers.Qwen2_5_VLConfig(vision_config=qwen25vl, text_config=_TEXT)
        ),
        "qwen2a": transformers.Qwen2AudioForConditionalGeneration(
            transformers.Qwen2AudioConfig(audio_config=qwen2a, text_config={"model_type": "qwen2", **_TEXT})
        ),
        "voxtral": transformers.VoxtralForConditionalGeneration(
            transformers.VoxtralConfig(audio_config=voxtral, text_config=llama)
        ),
    }
    return {name: seeded(model.float().eval()) for name, model in made.items()}


def seeded(model: nn.Module) -> nn.Module:
    """Give it weights from the seed: norms that are not 1, biases that are not 0, rows of length 1."""
    random = np.random.RandomState(SEED)  # whose numbers, unlike a Generator's, never change
    for name, parameter in sorted(model.named_parameters()):
        values = random.standard_normal(tuple(parameter.shape))
        if parameter.ndim == 1 and not name.endswith(("bias", "class_embedding")):
            values = 1 + 0.2 * values
        elif name.endswith("bias"):
            values *= 0.3
        elif "embed" not in name or parameter.ndim > 2:
            values /= math.sqrt(math.prod(parameter.shape[1:]))
        if name.endswith(_HALVES):
            values = values.astype(np.float16)
        parameter.data = torch.from_numpy(values.astype(np.float32))
    model.tie_weights()
    return model


def normalised(pixels: np.ndarray) -> Tensor:
    """``(1, 3, height, width)``."""
    scaled = (pixels / np.float32(255) - np.float32(compared.MEAN)) / np.float32(compared.DEVIATION)
    return torch.from_numpy(scaled.astype(np.float32).transpose(2, 0, 1)[None])


def embeddings(name: str, model: Any) -> Tensor:
    """What transformers makes of ``compared.picture`` or ``compared.sound``: ``(n_tokens, N_OUT)``."""
    if name in compared.HEARING:
        mel = spectrogram(compared.sound(compared.LONG))["input_features"]
        if name == "voxtral":
            return model.get_audio_features(mel)[:: compared.EVERY]
        return model.multi_modal_projector(model.audio_tower(mel).last_hidden_state)[0, :: compared.EVERY]
    pixels = compared.picture(name)
    if name.startswith("qwen"):
        mean, deviation = list(compared.MEAN), list(compared.DEVIATION)
        processor = transformers.Qwen2VLImageProcessor(
            do_resize=False, image_mean=mean, image_std=deviation, patch_size=compared.PATCH
        )
        patches = processor(pixels, return_tensors="pt")
        return model.visual(patches["pixel_values"], grid_thw=patches["image_grid_thw"])
    if name == "pixtral":
        sizes = torch.tensor([pixels.shape[:2]])
        features = model.get_image_features(pixel_values=normalised(pixels), image_sizes=sizes, vision_feature_layer=-1)
        return with_breaks(torch.cat(list(features)), model, pixels.shape[1])
    if name == "idefics3":
        parts = torch.stack([normalised(part) for part in compared.parts(pixels)], dim=1)
        return model.model.get_image_features(parts).flatten(0, 1)
    return torch.cat(list(model.get_image_features(pixel_values=normalised(pixels))))


def with_breaks(features: Tensor, model: Any, width: int) -> Tensor:
    """Pixtral's rows, and between them the token that ends a row, which is text in transformers."""
    rows = features.split(width // (2 * compared.PATCH))
    end = model.get_input_embeddings().weight[_IMG_BREAK][None]
    return torch.cat([part for row in rows for part in (row, end)][:-1])


def spectrogram(sound: np.ndarray) -> Any:
    """Whisper's input for thirty seconds."""
    extractor = transformers.WhisperFeatureExtractor(feature_size=80)
    return extractor(sound, sampling_rate=compared.RATE, return_tensors="pt", return_attention_mask=True)


def masked(model: Any) -> Tensor:
    """Qwen2-Audio as it is used: without the silence that fills the thirty seconds, which llama.cpp encodes too."""
    heard = spectrogram(compared.sound(compared.SHORT))
    lengths = heard["attention_mask"].sum(-1)
    frames, rows = model.audio_tower._get_feat_extract_output_lengths(lengths)
    outside = torch.arange(1500)[None] >= frames[:, None]
    mask = torch.zeros(1, 1, 1500, 1500).masked_fill(outside[:, None, None], -torch.inf)
    states = model.audio_tower(heard["input_features"], attention_mask=mask).last_hidden_state
    return model.multi_modal_projector(states)[0, : rows[0] : compared.EVERY]


def set_in_order(model: Any) -> None:
    """Give each of Idefics 3's patches its own position.

    Since 4.55.1 transformers gives them 0, 0, 1, 2, ... of each row and column in float32, since it takes a little from
    fractions that are to reach a boundary (https://github.com/huggingface/transformers/issues/41190).
    """
    embedded = model.model.vision_model.embeddings

    def forward(pixel_values: Tensor, patch_attention_mask: Tensor) -> Tensor:
        patches = embedded.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        return patches + embedded.position_embedding.weight

    embedded.forward = forward


def references(name: str, model: nn.Module) -> dict[str, np.ndarray]:
    """What llama.cpp's embeddings are compared with, by name."""
    with torch.no_grad():
        found = {"transformers": embeddings(name, model)}
        if name == "qwen2a":
            found["masked"] = masked(model)
        if name == "idefics3":
            set_in_order(model)
            found["order"] = embeddings(name, model)
    return {key: values.float().numpy() for key, values in found.items()}


def pixtral_converter() -> type:
    """With the token that ends a row, which the converter asks for but leaves out with all of the language model."""
    from conversion.llava import LlavaVisionModel

    class Pixtral(LlavaVisionModel):
        @classmethod
        def filter_tensors(cls, item: tuple[str, Any]) -> tuple[str, Any] | None:
            return item if item[0].endswith("embed_tokens.weight") else super().filter_tensors(item)

    return Pixtral


def llava_converter() -> type:
    """LLaVA with CLIP, which only llama.cpp's older scripts convert, with their names."""
    import gguf
    from conversion.base import MmprojModel

    class Llava(MmprojModel):
        def set_gguf_parameters(self) -> None:
            super().set_gguf_parameters()
            self.gguf_writer.add_string("clip.projector_type", "mlp")
            self.gguf_writer.add_vision_attention_layernorm_eps(self.hparams["layer_norm_eps"])
            # Counted from the layers' input on; transformers' -2 of three layers.
            self.gguf_writer.add_array("clip.vision.feature_layer", [2])

        def modify_tensors(self, data_torch: Tensor, name: str, bid: int | None) -> Iterator[tuple[str, Tensor]]:
            if "post_layernorm" in name or name.startswith("lm_head"):
                return  # the layer before the last is used, without a norm
            if name.startswith("multi_modal_projector.linear_"):
                place, kind = name.removeprefix("multi_modal_projector.linear_").split(".")
                yield f"mm.{2 * int(place) - 2}.{kind}", data_torch
            elif name.endswith("class_embedding"):
                yield gguf.TENSOR_NAMES[gguf.MODEL_TENSOR.V_ENC_EMBD_CLS], data_torch
            else:
                yield self.map_tensor_name(name), data_torch

    return Llava


def convert(name: str, model: Any, folder: Path, path: Path) -> None:
    """Save the model as transformers does, and let llama.cpp's converter write its projector."""
    from conversion import get_model_class
    from gguf import LlamaFileType

    model.save_pretrained(folder)
    prepared = {"image_mean": compared.MEAN, "image_std": compared.DEVIATION, "size": {"longest_edge": 112}}
    prepared["image_seq_length"] = 4  # Gemma 3's tokens
    (folder / "preprocessor_config.json").write_text(json.dumps(prepared))
    token = {"content": "[IMG_BREAK]", "id": _IMG_BREAK}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {str(_IMG_BREAK): token}}))
    with torch.inference_mode():
        special = {"llava": llava_converter, "pixtral": pixtral_converter}.get(name)
        converter = special() if special else get_model_class(type(model).__name__, mmproj=True)
        converter(folder, LlamaFileType.ALL_F32, path).write()


def make(name: str, model: nn.Module, folder: Path) -> None:
    """Write one projector and its references."""
    with tempfile.TemporaryDirectory() as saved:
        # The folder's name becomes the model's.
        convert(name, model, Path(saved) / name, folder / f"{name}.gguf")
    computed = references(name, model)
    np.savez(folder / f"{name}.npz", **computed)
    for key, values in computed.items():
        print(f"{name:10}{key:14}{values.shape} standard deviation {values.std():.2f}")


def main() -> int:
    """Write the data, or check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="llama.cpp's source, whole")
    parser.add_argument("--check", action="store_true", help="compare with what is committed")
    arguments = parser.parse_args()
    sys.path[:0] = [str(arguments.source), str(arguments.source / "gguf-py")]
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()

    def make_all(folder: Path) -> None:
        for name, model in models().items():
            make(name, model, folder)

    return write_or_check(make_all, compared.DATA, check=arguments.check)


if __name__ == "__main__":
    sys.exit(main())
