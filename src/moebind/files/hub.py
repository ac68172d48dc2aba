"""The Hugging Face Hub, through huggingface_hub: its cache, its progress bars, its retries, its tokens.

Imported only where something of the Hub is asked for. Files are downloaded by ``hf_hub_download``; headers are read by
ranges through ``HfFileSystem``, as many bytes as they take, into a file in memory.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

from moebind._core.native import lib
from moebind._core.shown import shown
from moebind.errors import ModelLoadError, ModelNotFoundError, NativeError
from moebind.files.hub_address import Address, choose
from moebind.files.model_files import ModelFiles, gathered, nearest, sidecar_kind

if TYPE_CHECKING:
    from huggingface_hub import HfFileSystem

__all__ = [
    "HEADERS_MAX",
    "Address",
    "FetchedHeader",
    "HubFiles",
    "download",
    "fetched_headers",
    "find",
    "in_cache",
    "sidecar_in",
]

#: Bytes that the headers of one model may take, all files together. Vocabularies make them 1 to 20 MiB.
HEADERS_MAX = 2**26
#: Bytes of the first request for a model, for its further files (which have no vocabulary), and at most for more.
_FIRST, _FURTHER, _STEP = 2**18, 2**16, 2**22
#: Errors of the operating system when there is no more room.
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

#: Exceptions of HTTP libraries when nothing came back; these names have outlived three of them.
_UNREACHABLE = {"ConnectError", "ConnectionError", "ProxyError", "Timeout", "TimeoutException"}
#: How hf_xet tells of an error of the operating system.
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_LINK = re.compile(r"For more information check: \S+")
_LOG_IN = "run `hf auth login`, or set HF_TOKEN to a token that may read it"


@dataclass(frozen=True)
class HubFiles:
    """The files of one model, at one commit, with their sizes.

    ``paths`` are those in the cache, if all of them are; ``beside`` is what else lies in the repository, for models.
    """

    address: Address
    commit: str
    files: tuple[tuple[str, int], ...]
    paths: tuple[str, ...] = ()
    beside: tuple[tuple[str, int], ...] = ()
    endpoint: str | None = None
    token: str | bool | None = field(default=None, repr=False)


class FetchedHeader(NamedTuple):
    """The header of a file: where it can be read, its address, the size of the whole, and how many bytes were read."""

    path: str
    name: str
    size: int
    nbytes: int


def _library() -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as error:
        raise ImportError(
            "the Hugging Face Hub is reached through huggingface_hub: pip install 'moebind[hub]'"
        ) from error
    return huggingface_hub


def find(
    address: Address,
    *,
    token: str | bool | None = None,
    cache_dir: str | None = None,
    local_files_only: bool = False,
    endpoint: str | None = None,
) -> HubFiles:
    """Ask the Hub for the files of a model; where it cannot be reached, look into the cache.

    Raises
    ------
    ModelNotFoundError
        If there is no such repository, revision or file, or more than one model is meant.
    ModelLoadError
        If the Hub cannot be reached, or refuses.
    ImportError
        Without huggingface_hub.
    """
    library = _library()
    # huggingface_hub reads it when it is imported, which may be long ago.
    endpoint = endpoint or os.environ.get("HF_ENDPOINT") or None
    sizes: dict[str, int] | None = None
    failure: ModelLoadError | None = None
    commit = ""
    if not local_files_only:
        try:
            with _errors_explained(address, unreachable=_UnreachableError):
                info = library.HfApi(endpoint=endpoint, token=token).model_info(
                    address.repo,
                    revision=address.revision,
                    files_metadata=True,
                    timeout=library.constants.HF_HUB_ETAG_TIMEOUT,
                )
            commit, sizes = str(info.sha), {each.rfilename: each.size or 0 for each in info.siblings or ()}
        except _UnreachableError as error:
            failure = ModelLoadError(*error.args)
            failure.__cause__ = error.__cause__
    if sizes is None:
        folder = _cached_snapshot(address, cache_dir)
        if folder is None:
            if failure is not None:
                raise ModelLoadError(
                    f"{failure}; {address.repo}{_at_revision(address)} is not in the cache"
                ) from failure.__cause__
            raise ModelNotFoundError(
                f"{address.repo}{_at_revision(address)} is not in the cache, and local_files_only leaves the Hub alone"
            )
        commit, sizes = os.path.basename(folder), _sizes_in(folder)
    try:
        chosen = choose(sizes, address.wanted, address.repo + _at_revision(address))
    except ModelNotFoundError as error:
        if failure is None:
            raise
        raise ModelLoadError(f"{failure}; of what is in the cache, {error}") from failure.__cause__
    files = tuple((name, sizes[name]) for name in chosen)
    beside = tuple((name, sizes[name]) for name in sorted(sizes) if _lies_beside(name) and name not in chosen)
    cached = _cached(address.repo, commit, files, cache_dir)
    return HubFiles(address, commit, files, cached, beside, endpoint, token)


def download(found: HubFiles, cache_dir: str | None = None) -> tuple[str, ...]:
    """Bring the files into the cache, where they are not there already: their paths.

    After an interruption the files that came whole are in the cache, and no other.

    Raises
    ------
    ModelLoadError
        If the Hub refuses, the connection breaks for good, or there is no room.
    """
    if found.paths:
        return found.paths
    library, address = _library(), found.address
    total = sum(size for _, size in found.files)
    paths: list[str] = []
    with _errors_explained(address, cache_dir or library.constants.HF_HUB_CACHE, total):
        for name, _ in found.files:
            paths.append(
                library.hf_hub_download(
                    address.repo,
                    name,
                    revision=address.revision,
                    cache_dir=cache_dir,
                    token=found.token,
                    endpoint=found.endpoint,
                )
            )
    folders = {path[: -len(name)] for path, (name, _) in zip(paths, found.files, strict=True)}
    if len(folders) > 1:
        raise ModelLoadError(f"{address.repo}{_at_revision(address)} changed while it was downloaded: do it again")
    return tuple(paths)


def fetched_headers(found: HubFiles) -> Generator[FetchedHeader, None, None]:
    """Read the header of each file, and little else. A file in memory has it until the next is asked for.

    Raises
    ------
    ModelLoadError
        If a header takes more than any model's does, or the Hub refuses or breaks off.
    """
    library = _library()
    files = library.HfFileSystem(endpoint=found.endpoint, token=found.token, skip_instance_cache=True)
    left = HEADERS_MAX
    for number, (name, size) in enumerate(found.files):
        descriptor = os.memfd_create("moebind-hub")
        try:
            with _errors_explained(found.address):
                read = _read_header(files, found, number, descriptor, left)
            left -= read
            yield FetchedHeader(f"/proc/self/fd/{descriptor}", found.address.name_of(name), size, read)
        finally:
            os.close(descriptor)


def _read_header(files: HfFileSystem, found: HubFiles, number: int, descriptor: int, most: int) -> int:
    name, size = found.files[number]
    where = found.address.name_of(name)
    path = f"/proc/self/fd/{descriptor}".encode()
    known, target = 0, min(_FURTHER if number else _FIRST, size, most)
    options = {"revision": found.commit, "size": size, "cache_type": "none"}
    with files.open(f"{found.address.repo}/{name}", "rb", **options) as file:
        while True:
            data = file.read(target - known)
            if len(data) != target - known:
                raise ModelLoadError(
                    f"{where}: {target - known} bytes were asked for, and {len(data)} came: the file is not as long as "
                    "the Hub says, or the server does not answer requests for parts of a file"
                )
            os.pwrite(descriptor, data, known)
            known = target
            try:
                end = int(lib.moebind_gguf_header_end(path, size))
            except NativeError as error:
                raise ModelLoadError(f"{where} cannot be read: {error.message}") from error
            if end <= known:
                break
            if end > most:
                raise ModelLoadError(
                    f"{where} has a header of at least {end} bytes; at most {HEADERS_MAX} are read of a model's files"
                )
            target = min(max(end, min(3 * known, known + _STEP)), size, most)
    if end:
        # A damaged header ends where the known bytes end; zeros would go on.
        os.ftruncate(descriptor, size)
    return known


# --- what lies beside models ---


def _lies_beside(name: str) -> bool:
    return name.endswith(".gguf") and name.isprintable() and sidecar_kind(os.path.basename(name)) is not None


def sidecar_in(address: str, kind: str) -> str | None:
    """The address of a file of a kind in a model's repository, of several the nearest by name; None: there is none."""
    found = find(Address.parse(address))
    name = nearest(found.files[0][0], (name for name, _ in found.beside), kind)
    return None if name is None else found.address.name_of(name)


# --- the cache ---


def in_cache(cache_dir: str | None = None) -> list[ModelFiles]:
    """The GGUF files in the cache, under their addresses; of each repository, those of the revisions that it has there.

    Raises
    ------
    ImportError
        Without huggingface_hub.
    """
    library = _library()
    try:
        scanned = library.scan_cache_dir(cache_dir or library.constants.HF_HUB_CACHE)
    except library.errors.CacheNotFound:
        return []
    found: dict[str, str] = {}
    for repo in sorted(scanned.repos, key=lambda each: str(each.repo_id)):
        for revision in repo.revisions if repo.repo_type == "model" else ():
            address = Address(repo.repo_id, revision=_name_of(revision.commit_hash, revision.refs))
            for file in revision.files:
                name = os.path.relpath(file.file_path, revision.snapshot_path)
                if name.endswith(".gguf"):
                    found[address.name_of(name)] = str(file.file_path)
    return gathered(found)


def _name_of(commit: str, refs: Collection[str]) -> str | None:
    """How an address names a revision: as a branch or tag, if it is one; None: ``main``."""
    if not refs:
        return commit
    return None if "main" in refs else min(refs).replace("/", "%2F")


def _cached(repo: str, commit: str, files: tuple[tuple[str, int], ...], cache_dir: str | None) -> tuple[str, ...]:
    library = _library()
    paths: list[str] = []
    for name, size in files:
        path = library.try_to_load_from_cache(repo, name, cache_dir=cache_dir, revision=commit)
        if not isinstance(path, str) or os.path.getsize(path) != size:
            return ()
        paths.append(path)
    return tuple(paths)


def _cached_snapshot(address: Address, cache_dir: str | None) -> str | None:
    """The folder of a revision in the cache, with those of its files that were downloaded."""
    library = _library()
    try:
        folder: str = library.snapshot_download(
            address.repo,
            revision=address.revision,
            cache_dir=cache_dir,
            local_files_only=True,
            allow_patterns=[],  # none: what is there will do
        )
    except library.errors.LocalEntryNotFoundError:
        return None
    return folder


def _sizes_in(folder: str) -> dict[str, int]:
    paths = [os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names]
    return {os.path.relpath(path, folder): os.path.getsize(path) for path in paths if os.path.exists(path)}


# --- failures ---


class _UnreachableError(ModelLoadError):
    """There was no answer; the cache may have one."""


@contextmanager
def _errors_explained(
    address: Address,
    cache_dir: str | None = None,
    total: int = 0,
    *,
    unreachable: type[ModelLoadError] = ModelLoadError,
) -> Iterator[None]:
    """Turn errors of huggingface_hub into ones that say what to do; those that may pass become ``unreachable``."""
    errors = _library().errors
    # The base of all errors of its HTTP library, which was requests, then httpx, then httpx2.
    http_error: type[Exception] = errors.HfHubHTTPError.__bases__[0]
    repo = address.repo
    try:
        yield
    except (ModelLoadError, errors.HFValidationError):
        raise
    except errors.GatedRepoError as error:
        raise ModelLoadError(
            f"{repo} is gated: ask for access on its page on the Hub, then {_LOG_IN} ({_reason(error)})"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelNotFoundError(
            f"the Hub has no repository of models {repo}, or a private one: for that, {_LOG_IN} ({_reason(error)})"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelNotFoundError(f"{repo} has no revision {shown(address.revision)}") from error
    except errors.LocalTokenNotFoundError as error:
        raise ModelLoadError(f"token is True, but there is none: {_LOG_IN}") from error
    except errors.LocalEntryNotFoundError as error:
        raise unreachable(f"{repo} cannot be downloaded: {_reason(error.__cause__ or error)}") from error
    except errors.EntryNotFoundError as error:
        raise ModelNotFoundError(f"{repo} has no such file any more ({_reason(error)})") from error
    except errors.OfflineModeIsEnabled as error:
        raise unreachable(f"{repo}: the Hub is not asked, since HF_HUB_OFFLINE is set") from error
    except (OSError, http_error) as error:
        number = error.errno if isinstance(error, OSError) else None
        if number is not None and cache_dir is not None and not isinstance(error, ConnectionError):
            raise _unwritable(repo, cache_dir, number, total) from error
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise ModelLoadError(f"{repo}: the Hub refuses; {_LOG_IN} ({_reason(error)})") from error
        if _UNREACHABLE & {kind.__name__ for kind in type(error).__mro__}:
            problem = "the Hub cannot be reached (is there a network, and is HF_ENDPOINT right?)"
        else:
            problem = "the Hub does not answer as it should"
        raise unreachable(f"{repo}: {problem}: {_reason(error)}") from error
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ModelLoadError(f"{repo}: the Hub answered what huggingface_hub does not understand: {error!r}") from error
    except RuntimeError as error:  # from hf_xet, which fetches files in chunks
        said = _OS_ERROR.search(str(error))
        if said is not None and int(said[1]) in _DISK_FULL and cache_dir is not None:
            raise _unwritable(repo, cache_dir, int(said[1]), total) from error
        raise ModelLoadError(
            f"{repo} cannot be downloaded: hf_xet says: {_reason(error)}; with HF_HUB_DISABLE_XET=1 in the environment "
            "it is not used"
        ) from error


def _unwritable(repo: str, cache_dir: str, number: int, total: int) -> ModelLoadError:
    message = f"{repo} cannot be written to {cache_dir}: {os.strerror(number)}"
    if number in _DISK_FULL:
        message += f". {total / 2**30:.2f} GiB are needed, {_free_bytes(cache_dir) / 2**30:.2f} are free; "
        message += "give another cache_dir, or set HF_HUB_CACHE"
    return ModelLoadError(message)


def _reason(error: BaseException) -> str:
    """The message of an error in one line, without the HTTP library's link to an explanation of the status."""
    return " ".join(_LINK.sub("", str(error)).split()) or type(error).__name__


def _at_revision(address: Address) -> str:
    return "" if address.revision is None else f"@{address.revision}"


def _free_bytes(folder: str) -> int:
    while not os.path.isdir(folder) and os.path.dirname(folder) != folder:
        folder = os.path.dirname(folder)
    return shutil.disk_usage(folder).free
