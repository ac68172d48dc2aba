"""Writing a loaded model to a file: a part of ``Model``."""

from __future__ import annotations

import os

from moebind._core import checks, log
from moebind._core.atomic_files import same_file, staged
from moebind._core.model_base import ModelBase
from moebind._core.native import decoded, lib
from moebind.errors import ModelLoadError, MoebindError, NativeError
from moebind.files.gguf import Gguf

__all__ = ["Saving"]


class Saving(ModelBase):
    """A model that can be written to a file. :class:`moebind.Model` is one."""

    def save_to_file(self, path: str | os.PathLike[str]) -> None:
        """Write the model to one GGUF file: its metadata as it was loaded, overrides included, and its tensors.

        The file is written beside ``path`` under another name and then renamed, so it is never there half-written.

        Parameters
        ----------
        path
            Where to write it; an existing file is replaced.

        Raises
        ------
        ValueError
            If it is the file that the model was loaded from, or the model cannot be written: it was loaded with
            ``vocab_only`` or ``no_alloc``, or the CPU keeps its weights in a layout that cannot be read back (load it
            with ``use_extra_bufts=False``).
        MoebindError
            If llama.cpp cannot write a model of this architecture.
        OSError
            If the file cannot be written.

        Notes
        -----
        Uses ``llama_model_save_to_file``. llama.cpp writes only the metadata that it knows: chat templates and
        other texts that it merely passes on are lost, and so are tensors that it did not load.
        """
        pointer = self._open()
        target = os.path.realpath(checks.local_path("path", path, "the path of a file that is to be written"))
        loaded = same_file(target, self._paths)
        if loaded is not None:
            raise ValueError(f"path is {target}, the file that the model is loaded from ({loaded}): choose another")
        if self._without_weights:
            raise ValueError(f"the model was loaded with {self._without_weights}: it has no weights to write")
        unreadable = lib.moebind_model_unreadable(pointer)
        if unreadable:
            raise ValueError(
                f"{decoded(unreadable)} is kept in a layout that cannot be read back: load the model with "
                "use_extra_bufts=False"
            )
        with staged(target) as folder:
            written = os.path.join(folder, os.path.basename(target))
            with log.quoted():
                try:
                    lib.llama_model_save_to_file(pointer, os.fsencode(written))
                except NativeError as error:
                    said = f"{error.message}{log.recent_lines()}"
                    raise MoebindError(f"llama.cpp cannot write this model: {said}") from error
            try:
                # It returns nothing, whatever happened.
                tensors = Gguf.from_file(written).tensors.values()
                end = max((tensor.offset + tensor.nbytes for tensor in tensors), default=0)
            except ModelLoadError as error:
                raise OSError(f"{target} could not be written: {error}") from error
            if os.path.getsize(written) < end:
                raise OSError(f"{target} could not be written whole: is the disk full?")
