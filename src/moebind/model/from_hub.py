"""Models of the Hugging Face Hub."""

from __future__ import annotations

import os
from abc import ABCMeta, abstractmethod
from typing import TYPE_CHECKING

from moebind._core.model_base import ModelBase
from moebind._core.shown import shown
from moebind.files.download import download
from moebind.files.gguf import Gguf
from moebind.files.hub_address import Address
from moebind.params.misplaced import explained_with_fields
from moebind.params.params import ModelParams

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Pretrained", "checked_params"]


def checked_params(params: ModelParams | None) -> ModelParams:
    """Check that the argument ``params`` is :class:`ModelParams`, and replace None by the defaults.

    Raises
    ------
    TypeError
    """
    chosen = ModelParams() if params is None else params
    if not isinstance(chosen, ModelParams):
        raise TypeError(f"params is {shown(chosen)}; it takes ModelParams, such as ModelParams(n_gpu_layers=-1)")
    return chosen


class Pretrained(ModelBase, metaclass=ABCMeta):
    """A model that can be downloaded. :class:`moebind.Model` is one."""

    @classmethod
    @abstractmethod
    def _load(cls, file: Gguf, params: ModelParams | None, split: bool) -> Self:
        """Load the model of a file, or of files."""

    @classmethod
    @explained_with_fields(model="Model.from_pretrained(repo_id, filename, {})")
    def from_pretrained(
        cls,
        repo_id: str,
        filename: str | None = None,
        params: ModelParams | None = None,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        endpoint: str | None = None,
    ) -> Self:
        """Download a model from the Hugging Face Hub, unless it is in the cache, and load it.

        Parameters
        ----------
        repo_id
            The repository, ``"OWNER/NAME"``.
        filename
            Which of its GGUF files: a file's name, the common name of a split model's files (``"NAME.gguf"`` for
            ``NAME-00001-of-00004.gguf``), a pattern (``"*Q4_K_M*"``), or a quantisation (``"Q4_K_M"``). None: the only
            model in the repository; files for images and importance matrices do not count. All files of a split model
            are downloaded.
        params
            As for :meth:`load_from_file`.
        revision
            A branch, a tag or a commit; None: ``main``.
        token
            For private and gated repositories; None: ``HF_TOKEN``, or that of ``hf auth login``. False: none.
        cache_dir
            Where to keep it; None: ``HF_HUB_CACHE``, which all programs that use huggingface_hub share.
        local_files_only
            Load from the cache and do not ask the Hub, as with ``HF_HUB_OFFLINE``.
        endpoint
            Another server with the Hub's interface; None: ``HF_ENDPOINT``.

        Returns
        -------
        Model
            Its ``path`` is in the cache.

        Raises
        ------
        ModelNotFoundError
            If there is no such repository, revision or file, or several models match; the message lists those that
            exist.
        ModelLoadError
            If the Hub cannot be reached and the cache does not have the model, the Hub refuses, or the disk is full;
            and as for :meth:`load_from_file`.
        ImportError
            If huggingface_hub is missing; it comes with the extra ``hub``.

        Notes
        -----
        Uses ``huggingface_hub.hf_hub_download``, with its progress bars and retries. After Ctrl-C, complete files stay
        in the cache. :func:`plan`, :func:`fit` and :func:`experts` work before a download;
        :func:`download` downloads alone.
        """
        chosen = checked_params(params)
        Address(repo_id, filename, revision)  # refuses the address of a file, which download takes
        paths = download(
            repo_id,
            filename,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            endpoint=endpoint,
        )
        return cls._load(Gguf._from_local(paths[0]), chosen, split=False)
