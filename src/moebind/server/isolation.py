"""What llama-server gets of this machine's settings: nothing that changes what was asked of it.

llama.cpp's programs read options from ``/etc/llama.cpp/config.ini``, from the user's ``config.ini`` and from variables
of the environment, and list what is in the Hugging Face cache. Some of these only add (an API key, an override): no
argument takes them back.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence

__all__ = ["Folder", "environment"]

#: Variables that change what llama-server does, or that it has no use for, by how they begin.
_SCRUBBED = (
    "LLAMA_",
    "LLAMACPP_",
    "HF_",
    "HUGGING",
    "AIP_",
    "MODEL_ENDPOINT",
    "MTMD_BACKEND_DEVICE",
    "XDG_CONFIG_HOME",
)


def environment() -> dict[str, str]:
    """The variables of this process, without those that would change what llama-server does."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(_SCRUBBED)},
        "LLAMA_NO_CONFIG_FILES": "1",  # vendor/patches/config-files.patch
        "XDG_CONFIG_HOME": os.devnull,  # the user's file alone, where that patch was left out
        "GGML_NO_BACKTRACE": "1",  # so that the last lines of a failure are its reason
        # Whoever can reach the server could otherwise have it download models: this is nobody's address.
        "MODEL_ENDPOINT": "http://127.0.0.1:9/",
    }


class Folder:
    """A folder that only this user can read, for what llama-server is told in files; and its environment.

    Keys are in a file there, whose name is in the environment: neither is on a command line. The processes that serve
    one model each inherit it, and so ask for a key themselves; llama-server would have them listen without.
    """

    def __init__(self, keys: Sequence[str] = ()) -> None:
        self.path = tempfile.mkdtemp(prefix="moebind-server-")
        self._starter = os.getpid()
        if keys:
            self.write("keys", "".join(f"{key}\n" for key in keys))
        self._keys = bool(keys)

    def write(self, name: str, text: str) -> str:
        """Write a file: its path."""
        path = os.path.join(self.path, name)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        return path

    def environment(self) -> dict[str, str]:
        """The variables that llama-server gets."""
        own = {"LLAMA_CACHE": self.path}  # no models that were not asked for
        if self._keys:
            own["LLAMA_ARG_API_KEY_FILE"] = os.path.join(self.path, "keys")
        return {**environment(), **own}

    def remove(self) -> None:
        """Remove it, unless this is the child of a fork."""
        if os.getpid() == self._starter:
            shutil.rmtree(self.path, ignore_errors=True)
