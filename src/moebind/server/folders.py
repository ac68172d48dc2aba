"""Models that are to be served: files, and what is in folders."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from moebind._core import checks
from moebind._core.shown import shown
from moebind.errors import ModelNotFoundError
from moebind.files.hub_address import Address
from moebind.files.model_files import Split, sidecar_kind

__all__ = ["Found", "find", "in_folder", "of_file"]

#: Letters that end a name somewhere: in the file of presets, or in a list of names.
_NOT_IN_NAMES = re.compile(r"[][,:;#\s]+")
#: Names that mean something else in the file of presets.
_TAKEN = {"*", "default"}


@dataclass(frozen=True)
class Found:
    """A model's file, or its first one, its name for clients, and its projector, which lets it see or hear."""

    name: str
    path: str
    mmproj: str | None = None


def of_file(path: str | os.PathLike[str], mmproj: str | os.PathLike[str] | None = None) -> Found:
    """A model that was named.

    Raises
    ------
    ModelNotFoundError
        If there is no such file, or it is a folder.
    """
    file = checks.absolute(checks.path("model", path))
    projector = None if mmproj is None else checks.absolute(checks.path("mmproj", mmproj))
    if projector is not None and os.path.isdir(projector):
        raise ModelNotFoundError(f"mmproj is {shown(projector)}, a folder; it takes a file")
    for each in (file, projector):
        if each is not None and not checks.on_hub(each) and not os.path.isfile(each):
            what = "is a folder; give it as models_dir" if os.path.isdir(each) else "does not exist"
            raise ModelNotFoundError(f"{each} {what}")
    return Found(_name(_file_on_hub(file) if checks.on_hub(file) else file), file, projector)


def in_folder(folder: str | os.PathLike[str]) -> list[Found]:
    """The models of a folder and of the folders in it, by name; in these, a projector belongs to the models beside it.

    Raises
    ------
    ModelNotFoundError
        If there is no such folder, or no model in it.
    ValueError
        If it is an address on the Hub.
    """
    takes = "a folder of this machine; give the address as model"
    path = os.path.abspath(checks.local_path("models_dir", folder, takes))
    if not os.path.isdir(path):
        raise ModelNotFoundError(f"the folder {path} does not exist")
    inner = sorted(entry.path for entry in os.scandir(path) if entry.is_dir())
    found = [*_models(path, with_projector=False), *(model for each in inner for model in _models(each))]
    if not found:
        raise ModelNotFoundError(f"there is no model (*.gguf) in {path}, nor in a folder in it")
    return found


def find(
    models: Sequence[str | os.PathLike[str]],
    folders: Sequence[str | os.PathLike[str]],
    mmproj: str | os.PathLike[str] | None = None,
) -> list[Found]:
    """All of them, each once, under names of their own.

    Raises
    ------
    ModelNotFoundError
        If one is missing.
    ValueError
        If there is none, or a projector for more than one.
    """
    if not models and not folders:
        raise ValueError("there is no model; give one, several, or a folder of them")
    if mmproj is not None and (folders or len(models) != 1):
        raise ValueError("mmproj belongs to one model: put several models with theirs into a folder each")
    named = [of_file(each, mmproj) for each in models]
    return list(_distinct([*named, *(model for each in folders for model in in_folder(each))]))


def _models(folder: str, with_projector: bool = True) -> Iterator[Found]:
    names = sorted(name for name in os.listdir(folder) if name.endswith(".gguf"))
    projectors = [name for name in names if sidecar_kind(name) == "mmproj"] if with_projector else []
    mmproj = os.path.join(folder, projectors[0]) if projectors else None
    for name in names:
        split = Split.of(name)
        path = os.path.join(folder, name)
        if sidecar_kind(name) is None and (split is None or split.number == 1) and os.path.isfile(path):
            yield Found(_name(path), path, mmproj)


def _file_on_hub(address: str) -> str:
    """The name of the file of an address; where it names a quantisation, after the repository."""
    found = Address.parse(address)
    if found.wanted is not None and found.wanted.endswith(".gguf"):
        return found.wanted
    return "-".join([found.repo.rpartition("/")[2], *([] if found.wanted is None else [found.wanted])])


def _name(path: str) -> str:
    file = os.path.basename(path)
    split = Split.of(file)
    stem = file.removesuffix(".gguf") if split is None else split.stem
    name = _NOT_IN_NAMES.sub("-", stem).strip("-") or "model"
    return f"{name}-model" if name in _TAKEN else name


def _distinct(found: Iterable[Found]) -> Iterator[Found]:
    taken: dict[str, str] = {}
    for model in found:
        if model.path in taken.values():
            continue
        name, number = model.name, 1
        while name in taken:
            number += 1
            name = f"{model.name}-{number}"
        taken[name] = model.path
        yield replace(model, name=name)
