"""Where results are kept, by model, machine and build, and how the one for a model is found again."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from moebind._core.native import decoded, lib
from moebind.backend.devices import local_gpus
from moebind.placement.header import read_header
from moebind.placement.saved import LONGEST, Identity
from moebind.tuning.configuration import Process
from moebind.tuning.machine import conditions, differences
from moebind.tuning.result import read_fields
from moebind.tuning.speculation import Speculation

__all__ = ["Kept", "find", "folder", "here", "place", "settings_of"]


class Kept(NamedTuple):
    """The file with a model's parameters, if there is one for this machine, and a sentence about it."""

    path: str | None
    sentence: str


class Settings(NamedTuple):
    """What is set for the process, and what drafts tokens."""

    process: Process
    speculation: Speculation | None


def folder() -> str:
    """``tuned`` in ``$MOEBIND_CACHE``, else in ``moebind`` in the user's cache folder."""
    chosen = os.environ.get("MOEBIND_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(chosen or os.path.join(base, "moebind"), "tuned")


def here() -> dict[str, Any]:
    """The conditions of a program that uses all GPUs of this machine."""
    names = [decoded(lib.ggml_backend_dev_name(native)) for native in local_gpus()]
    return conditions([{"kind": "local", "name": name} for name in names])


def place(identity: Identity, about: Mapping[str, object]) -> str:
    """The file for a model under such conditions."""
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", identity.name.removesuffix(".gguf")).strip("-")[:60]
    return os.path.join(folder(), f"{readable}-{identity.header[:16]}-{_known_by(about)}.json")


def _known_by(about: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]


def _kept(identity: Identity, known_by: str = "*") -> list[tuple[str, dict[str, Any]]]:
    """Files for a model, whatever it was called, with what is in them; the latest last."""
    pattern = f"*-{identity.header[:16]}-{known_by}.json"
    paths = glob.glob(os.path.join(glob.escape(folder()), pattern))
    found = [(path, fields) for path in sorted(paths) if (fields := _valid(path)) is not None]
    return sorted(found, key=lambda each: str(each[1]["conditions"].get("date", "")))


def find(model: str | os.PathLike[str], about: Mapping[str, Any] | None = None) -> Kept:
    """Look for the result for a model; without conditions, those of this machine's GPUs.

    Raises
    ------
    ModelLoadError
        If the model cannot be read.
    """
    identity = Identity.of(read_header(os.fspath(model)))
    now = here() if about is None else about
    for path, fields in reversed(_kept(identity, _known_by(now))):
        date = str(fields["conditions"].get("date", ""))
        return Kept(path, f"tuned for {fields['goal'].get('name')} on {date[:10]}: {path}")
    found = _kept(identity)
    again = f"moebind tune {os.fspath(model)} finds what is fastest here"
    if not found:
        return Kept(None, f"{identity.name} was not tuned, and the defaults are used: {again}")
    before = found[-1][1]["conditions"]
    differ = differences(before, now)
    if not differ:
        devices = " and ".join(before.get("devices", ())) or "the processor alone"
        return Kept(None, f"{identity.name} was tuned for {devices}, and the defaults are used: {again}")
    return Kept(
        None, f"{identity.name} was tuned with another {' and '.join(differ)}, and the defaults are used: {again}"
    )


def settings_of(path: str) -> Settings:
    """What a file of parameters says besides them; nothing if it is not of a search, or no such file.

    Raises
    ------
    ValueError
        If it is damaged.
    """
    try:
        # What is longer is no file of parameters, and whoever reads it as one says so.
        fields = read_fields(path) if os.path.getsize(path) <= LONGEST else None
    except (OSError, ValueError, RecursionError):
        fields = None
    if fields is None:
        return Settings(Process(), None)
    try:
        drafts = fields.get("speculation")  # older results have none
        return Settings(Process.from_dict(fields["process"]), None if drafts is None else Speculation.from_dict(drafts))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _valid(path: str) -> dict[str, Any] | None:
    try:
        fields = read_fields(path)
    except (OSError, ValueError):
        return None
    known = fields is not None and isinstance(fields.get("conditions"), dict) and isinstance(fields.get("goal"), dict)
    return fields if known else None
