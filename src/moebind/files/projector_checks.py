"""Projector files: what is looked at before libmtmd does.

libmtmd ends the process with some of what it takes for granted.
"""

from __future__ import annotations

from moebind._core.shown import shown
from moebind.errors import ModelLoadError, ModelNotFoundError, MtmdError, MtmdNotFoundError
from moebind.files.gguf import Gguf

__all__ = ["check", "is_projector"]

#: The architecture of a projector's file.
ARCHITECTURE = "clip"
#: More layers than any encoder has: libmtmd makes room for so many.
LAYERS_MAX = 1024
#: Kinds of projectors that divide by the side of their pictures; others take 0 for any.
_SQUARE = {"mlp", "ldp", "ldpv2", "resampler", "adapter", "gemma3", "idefics3", "internvl", "llama4", "lfm2", "cogvlm"}
_SQUARE |= {"janus_pro", "minicpmv4_6", "nemotron_v2_vl", "cohere2v", "yasa2", "granite4_vision", "step3vl", "d1omni_v"}
#: Kinds whose encoder is Whisper's, which has learned positions.
_WHISPER = {"ultravox", "qwen2a", "glma", "voxtral", "meralion", "musicflamingo", "qwen2.5o"}


def is_projector(file: Gguf) -> bool:
    """Whether a file is a projector, and no model."""
    return file.get("general.architecture") == ARCHITECTURE


def check(path: str) -> None:
    """Raise unless a file is a projector that libmtmd can look at.

    Raises
    ------
    MtmdNotFoundError
        If there is no such file.
    MtmdError
        If it is something else, or something in it would end the process.
    """
    try:
        file = Gguf.from_file(path)
    except ModelNotFoundError:
        raise MtmdNotFoundError(
            f"there is no file {shown(path)}: the name of a projector's file often begins with mmproj"
        ) from None
    except ModelLoadError as error:
        raise MtmdError(f"{path} could not be loaded: {error}") from None
    if not is_projector(file):
        kind = file.get("general.architecture")
        raise MtmdError(f"{path} is no projector, but of the architecture {shown(kind)}: its projector is another file")
    names = set(file.tensors)
    for sense in ("vision", "audio"):
        if file.get(f"clip.has_{sense}_encoder") is not True:
            continue
        kind = file.get("clip.projector_type") or file.get(f"clip.{sense}.projector_type")
        for key, low, high in (("block_count", 1, LAYERS_MAX), ("attention.head_count", 1, 2**16)):
            value = file.get(f"clip.{sense}.{key}")
            if isinstance(value, int) and not low <= value <= high:
                raise MtmdError(f"{path} has a clip.{sense}.{key} of {value}; it takes {low} to {high}")
        if kind in _SQUARE and file.get("clip.vision.image_size") == 0:
            raise MtmdError(f"{path} has a clip.vision.image_size of 0, which projectors of the kind {kind} divide by")
        if kind in _WHISPER and sense == "audio" and "a.position_embd.weight" not in names:
            raise MtmdError(f"{path} lacks the tensor a.position_embd.weight")
        if kind == "mlp" and not ({"mm.2.weight"} <= names or {"mm.3.weight", "mm.3.bias"} <= names):
            raise MtmdError(f"{path} lacks the tensor mm.2.weight")
