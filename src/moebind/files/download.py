"""Files of models from the Hugging Face Hub."""

from __future__ import annotations

import os
from collections.abc import Sequence

from moebind._core import checks
from moebind._core.arguments import explained
from moebind._core.shown import shown

__all__ = ["download", "local_file", "local_files"]


def local_file(path: str) -> str:
    """The file that a path names; where it is an address on the Hugging Face Hub, downloaded unless it is in the cache.

    Of a split model, the first file.

    Raises
    ------
    ModelNotFoundError, ModelLoadError, ImportError
        For an address, as :func:`download`.
    """
    return download(path)[0] if checks.on_hub(path) else path


def local_files(paths: Sequence[str]) -> list[str]:
    """The files that paths name, in their order; those on the Hugging Face Hub are downloaded unless in the cache.

    The address that has the name of a file is that file, though it is one of a split model; any other, such as that of
    a quantisation, is all files of its model. Nothing is downloaded before all are known to be on the Hub.

    Raises
    ------
    ModelNotFoundError, ModelLoadError, ImportError
        For an address, as :func:`download`.
    """
    if not any(map(checks.on_hub, paths)):
        return list(paths)
    from moebind.files import hub

    found = {path: hub.find(hub.Address.parse(path)) for path in paths if checks.on_hub(path)}
    result: list[str] = []
    for path in paths:
        if path not in found:
            result.append(path)
            continue
        names = [name for name, _ in found[path].files]
        files = hub.download(found[path])
        wanted = found[path].address.wanted
        result += [files[names.index(wanted)]] if wanted in names else files
    return result


@explained(other_names={"file": "filename", "repo": "repo_id", "hf_token": "token"})
def download(
    repo_id: str,
    filename: str | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    endpoint: str | None = None,
) -> tuple[str, ...]:
    """Download a model's files from the Hugging Face Hub, unless they are in the cache.

    Parameters
    ----------
    repo_id
        The repository, ``"OWNER/NAME"``; or the address of a file, ``"hf://OWNER/NAME/FILE.gguf"``, without
        ``filename`` and ``revision`` then.
    filename, revision, token, cache_dir, local_files_only, endpoint
        As for :meth:`Model.from_pretrained`.

    Returns
    -------
    tuple[str, ...]
        The files in the cache, all of a split model; functions that take a model take the first.

    Raises
    ------
    ModelNotFoundError, ModelLoadError, ImportError
        As for :meth:`Model.from_pretrained`.

    Notes
    -----
    Uses ``huggingface_hub.hf_hub_download``, with its progress bars and retries. After Ctrl-C, complete files stay in
    the cache.

    Examples
    --------
    >>> path, *more = moebind.download("someone/demo-moe-GGUF", "Q4_1")
    """
    from moebind.files import hub

    if isinstance(repo_id, str) and checks.on_hub(repo_id):
        if filename is not None or revision is not None:
            raise ValueError(
                f"repo_id is the address {shown(repo_id)}, which says which file: leave filename and revision out"
            )
        address = hub.Address.parse(repo_id)
    else:
        address = hub.Address(repo_id, filename, revision)
    folder = None if cache_dir is None else checks.path("cache_dir", cache_dir)
    for name, value, kinds in (("token", token, (str, bool)), ("endpoint", endpoint, (str,))):
        if value is not None and not isinstance(value, kinds):
            raise TypeError(f"{name} is a {type(value).__name__}; it takes a str, or None")
        if isinstance(value, str) and not (value.isascii() and value.isprintable() and value):
            raise ValueError(f"{name} has characters that none has")  # no quotation: a token is a secret
    only = checks.boolean("local_files_only", local_files_only)
    found = hub.find(address, token=token, cache_dir=folder, local_files_only=only, endpoint=endpoint)
    return hub.download(found, folder)
