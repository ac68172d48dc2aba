"""What lies beside a model, in its folder or in its repository: a projector, or what drafts for it."""

from __future__ import annotations

import os

from moebind._core import checks
from moebind.files.model_files import nearest

__all__ = ["beside"]


def beside(path: str, kind: str) -> str | None:
    """The file of a kind (:func:`sidecar_kind`) beside a model, of several the :func:`nearest` by name; None: none.

    Parameters
    ----------
    path
        The model's file, or its address on the Hugging Face Hub.
    kind
        Such as ``"mmproj"`` or ``"mtp"``.

    Returns
    -------
    str or None
        A path for a path, and an address for an address.

    Raises
    ------
    ModelNotFoundError, ModelLoadError, ImportError
        For an address, if the Hub does not know it, or cannot be asked.
    """
    if checks.on_hub(path):
        from moebind.files.hub import sidecar_in

        return sidecar_in(path, kind)
    folder = os.path.dirname(os.path.abspath(path))
    names = os.listdir(folder) if os.path.isdir(folder) else ()
    name = nearest(path, (name for name in names if name.endswith(".gguf")), kind)
    return None if name is None else os.path.join(folder, name)
