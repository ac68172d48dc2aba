"""Which files on the Hugging Face Hub are meant: by name, pattern or quantisation, all splits of a model."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from moebind._core.checks import HUB, on_hub
from moebind._core.shown import shown
from moebind.errors import ModelNotFoundError
from moebind.files.model_files import Split, sidecar_kind

__all__ = ["Address", "choose", "meant"]

_REPO = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
#: The other kinds of repositories, as addresses name them.
_OTHER_KINDS = {"buckets", "datasets", "kernels", "spaces"}
#: Revisions with a slash in them; others write it as %2F.
_REFS = re.compile(r"refs/(?:pr/\d+|convert/\w+)(?=/|$)")
#: A letter and a digit, which all names of quantisations have: Q4_K_M, BF16, UD-IQ2_XXS.
_QUANTISED = re.compile(r"[A-Za-z]\d")
#: Addresses as browsers have them; path objects make one slash of two.
_PAGE = re.compile(
    r"https?:/{1,2}(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<repo>[\w.-]+/[\w.-]+)"
    r"(?:/(?:resolve|blob|raw|tree)/(?P<revision>[^/?#]+)(?:/(?P<file>[^?#]+))?)?/?(?:[?#].*)?",
    re.ASCII | re.IGNORECASE,
)
#: As llama.cpp and Ollama write it: a repository and a quantisation.
_TAGGED = re.compile(r"(?:(?:hf|huggingface)\.co/)?(?P<repo>[\w.-]+/[\w.-]+):(?P<file>[\w.-]+)", re.ASCII)
#: More are not listed in a message.
_LISTED_MAX = 20


@dataclass(frozen=True)
class Address:
    """A repository, which of its revisions, and what is wanted of it; ``wanted`` is what :func:`choose` takes."""

    repo: str
    wanted: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        for name, value in (("filename", self.wanted), ("revision", self.revision)):
            if value is not None and (not isinstance(value, str) or not value):
                kind = ValueError if value == "" else TypeError
                raise kind(f"{name} is {shown(value)}; it takes a name, or None")
            if value is not None and not value.isprintable():
                raise ValueError(f"{name} is {shown(value)}, with characters that no name has")
        if not isinstance(self.repo, str):
            raise TypeError(f"repo_id is {shown(self.repo)} ({type(self.repo).__name__}); it takes a str, 'OWNER/NAME'")
        is_file = self.repo.lower().endswith(".gguf") and (self.repo.startswith(".") or os.path.isfile(self.repo))
        if is_file or not _REPO.fullmatch(self.repo):
            hint = ""
            address = meant(self.repo)
            if address is not None and ("//" in self.repo or on_hub(self.repo)):
                hint = f": Model.load_from_file, plan and fit take an address, so write {address}"
            elif self.repo.lower().endswith(".gguf"):
                hint = f": a file is loaded with Model.load_from_file({shown(self.repo)})"
            elif ":" in self.repo:
                hint = ": give what follows the colon as filename"
            elif "@" in self.repo:
                hint = ": give what follows the @ as revision"
            raise ValueError(f"repo_id is {shown(self.repo)}; it takes 'OWNER/NAME'{hint}")

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``hf://OWNER/REPO[@REVISION][/FILE]``.

        Raises
        ------
        ValueError
            If it is none.
        """
        owner, _, rest = text.removeprefix(HUB).removeprefix(HUB[:-1]).partition("/")
        name, _, wanted = rest.partition("/")
        revision = None
        if "@" in name:
            name, _, after = rest.partition("@")
            special = _REFS.match(after)
            revision, _, wanted = (
                after.partition("/") if special is None else (special[0], "", after[special.end() + 1 :])
            )
            revision = re.sub("%2f", "/", revision, flags=re.IGNORECASE)
        if owner in _OTHER_KINDS or not _REPO.fullmatch(f"{owner}/{name}") or revision == "":
            raise ValueError(
                f"{shown(text)} is not the address of a file on the Hugging Face Hub: addresses look like "
                "hf://OWNER/REPO/FILE.gguf or hf://OWNER/REPO@REVISION/FILE.gguf, in repositories of models"
            )
        return cls(f"{owner}/{name}", wanted or None, revision)

    def name_of(self, file: str) -> str:
        """The address of one file."""
        revision = "" if self.revision is None else f"@{self.revision}"
        if self.revision is not None and not _REFS.fullmatch(self.revision):
            revision = revision.replace("/", "%2F")
        return f"{HUB}{self.repo}{revision}/{file}"


def meant(text: str) -> str | None:
    """The address on the Hub that a text seems to be, with ``hf://``; None if it is like none.

    Only addresses with ``hf://`` are taken; others could be paths.
    """
    if text.lower().startswith(HUB[:-1]):
        return HUB + text[len(HUB) - 1 :].lstrip("/")
    found = _PAGE.fullmatch(text) or _TAGGED.fullmatch(text)
    if found is None:
        return None
    parts = found.groupdict()
    revision = parts.get("revision")
    at = f"@{revision}" if revision not in {None, "main"} else ""
    file = f"/{parts['file']}" if parts["file"] else ""
    return f"{HUB}{parts['repo']}{at}{file}"


def choose(sizes: Mapping[str, int], wanted: str | None, where: str) -> tuple[str, ...]:
    """The files of the one model that is wanted, in their order.

    Parameters
    ----------
    sizes
        All files of the repository, with their sizes in bytes.
    wanted
        The name of a file, or of any one of a split model, or that without ``-00001-of-00002``; a pattern with ``*``,
        ``?`` or ``[...]``; what a model is quantised as, such as ``Q4_K_M``, in any case; None: the only one there is.
    where
        The repository, for messages.

    Raises
    ------
    ModelNotFoundError
        If nothing matches, several models do, or one of its files is missing; the message lists what there is.
    """
    models: dict[_Model, list[str]] = {}
    for name in sorted(sizes):
        if name.endswith(".gguf") and name.isprintable() and not {"", ".", ".."} & {*re.split(r"[/\\]", name)}:
            models.setdefault(_model_of(name), []).append(name)
    if not models:
        raise ModelNotFoundError(f"{where} has no GGUF file")
    if wanted in sizes and wanted is not None:
        found = [_model_of(wanted)] if wanted.endswith(".gguf") else []
    else:
        found = [model for model, names in models.items() if _matches(model.name, names, wanted)]
        # A pattern may match what lies beside a model, and means it only where it matches nothing else.
        found = [model for model in found if not sidecar_kind(model.name)] or found
    if len(found) == 1:
        return _complete(found[0], models[found[0]], where)
    asked = "" if wanted is None else f" {shown(wanted)}"
    if not found:
        what = "that is a model by itself" if wanted is None else f"that matches{asked}"
        raise ModelNotFoundError(f"{where} has no GGUF file {what}; there is\n{_listed(models, models, sizes)}")
    message = f"{where} has {len(found)} models{asked and f' that match{asked}'}; give the name of one"
    raise ModelNotFoundError(f"{message}:\n{_listed(found, models, sizes)}")


class _Model(NamedTuple):
    """The name of a model, common to all its files, and how many files there are; 0: it is not split."""

    name: str
    n_files: int


def _model_of(file: str) -> _Model:
    split = Split.of(file)
    return _Model(file, 0) if split is None else _Model(f"{split.stem}.gguf", split.n_files)


def _matches(model: str, names: Iterable[str], wanted: str | None) -> bool:
    if wanted is None:
        return not sidecar_kind(model)
    if wanted == model:
        return True
    if any(character in wanted for character in "*?["):
        return any(fnmatch.fnmatchcase(name, wanted) for name in names)
    if not _QUANTISED.search(wanted) or wanted.endswith(".gguf") or sidecar_kind(model):
        return False
    # Q4_K is not Q4_K_M, and Q4_XS not IQ4_XS.
    pattern = rf"(?<![A-Za-z0-9]){re.escape(wanted)}(?![A-Za-z0-9_])"
    return re.search(pattern, model.removesuffix(".gguf"), re.IGNORECASE) is not None


def _complete(model: _Model, names: list[str], where: str) -> tuple[str, ...]:
    if model.n_files or names != [model.name]:
        # From as many names as there are: a name may claim a hundred thousand files.
        numbers = {split.number for name in names if (split := Split.of(name))}
        missing = next((number for number in range(1, model.n_files + 1) if number not in numbers), None)
        if missing is not None or len(names) != model.n_files:
            raise ModelNotFoundError(
                f"{where} has {len(names)} files of {model.name}, which say that they are {model.n_files}"
                + ("" if missing is None else f"; number {missing} is missing")
            )
    return tuple(names)


def _listed(chosen: Iterable[_Model], models: Mapping[_Model, list[str]], sizes: Mapping[str, int]) -> str:
    lines = []
    for model in chosen:
        names = models[model]
        size = sum(sizes[name] for name in names)
        shown_size = f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
        lines.append(f"  {names[0]} ({shown_size}{f', {len(names)} files' if len(names) > 1 else ''})")
    more = len(lines) - _LISTED_MAX
    return "\n".join([*lines[:_LISTED_MAX], *([f"  and {more} more"] if more > 0 else [])])
