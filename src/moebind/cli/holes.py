"""Files of models in which weights were never written: a header with a hole behind it, or half a download."""

from __future__ import annotations

import errno
import os

from moebind._core import checks
from moebind._core.sizes import show_size
from moebind.errors import ModelLoadError

__all__ = ["check_written"]


def check_written(model: str) -> None:
    """Refuse to compute with a file whose second half is a hole: it would be read as zeros, and there would be no text.

    An address on the Hub, and a file that cannot be opened, are left to the load.

    Raises
    ------
    ModelLoadError
        How large the file is, and what it is good for.
    """
    if checks.on_hub(model):
        return
    try:
        file = os.open(model, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return
    try:
        size = os.fstat(file).st_size
        if size:
            os.lseek(file, size // 2, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:  # there is nothing but a hole from there on
            raise ModelLoadError(
                f"{model} has no weights in its second half: nothing was ever written there, though the file is "
                f"{show_size(size)} long. It can be planned and fitted, but not computed with; if it is a download, "
                "download it again"
            ) from None
    finally:
        os.close(file)
