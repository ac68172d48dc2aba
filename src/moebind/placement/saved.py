"""Parameters in a file: what a fit found, and for which model.

The file is JSON. Only ``model_params`` and ``context_params`` have to be there, either of them, as their ``to_dict``
gives them; so it can be written by hand, too. A fit's has all the keys of :meth:`Saved.to_dict`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from moebind._core import atomic_files, checks
from moebind._core.native import llama_cpp_version
from moebind._core.shown import shown
from moebind._core.sizes import show_size
from moebind._core.version import __version__
from moebind.backend.devices import Device, describe
from moebind.params.draft import Draft
from moebind.params.params import ContextParams, ModelParams
from moebind.params.serialize import device_of
from moebind.placement.described_devices import described_device, is_description, written
from moebind.placement.header import Header, read_header

__all__ = ["LONGEST", "Identity", "Saved"]

#: The form of the file, and its number, which grows when an older moebind could no longer read it.
FORMAT, VERSION = "moebind fit", 1
#: Bytes of a file that are read; who gives a longer one has given a model.
LONGEST = 2**24
#: Keys that say nothing about where tensors go, and differ between a model in one file and the same in several.
_LEFT_OUT = ("tokenizer.", "split.")


@dataclass(frozen=True)
class Identity:
    """A model, told from others by its metadata and the table of its tensors; no weights are read.

    Attributes
    ----------
    name : str
        The name of its file, for people.
    size : int
        Bytes of its tensors.
    header : str
        A hash of metadata and tensors, the same whether it is in one file or in several.
    """

    name: str = field(compare=False)
    size: int
    header: str

    @classmethod
    def of(cls, header: Header) -> Identity:
        """The model with this header."""
        import hashlib  # rarely needed, and slow to import

        digest = hashlib.blake2b(digest_size=16)
        for key in sorted(header.gguf):
            if not key.startswith(_LEFT_OUT):
                value: Any = header.gguf[key]
                plain = (value.dtype.str, value.tobytes()) if isinstance(value, np.ndarray) else value
                digest.update(repr((key, plain)).encode())
        for name in sorted(header.tensors):
            info = header.tensors[name]
            digest.update(repr((name, info.type, info.ne)).encode())
        size = sum(info.nbytes for info in header.tensors.values())
        return cls(os.path.basename(header.paths[0]), size, digest.hexdigest())


@dataclass(frozen=True)
class Saved:
    """Parameters with what they were found for.

    Attributes
    ----------
    model_params, context_params : ModelParams, ContextParams
        The parameters; when read, without ``devices`` if those are given here, and all of them are used.
    path : str
        The model's file, or the first one, as it was called then; empty if the file names no model.
    identity : Identity or None
        The model.
    devices : tuple[str | int, ...] or None
        Devices that were given: their names, or the descriptions of those that need not be in this machine.
    host : int or None
        The memory of the host, if it was only described.
    budgets : Mapping[str, int]
        Bytes that each device was allowed to take.
    explanation : str
        What was chosen, and why.
    mmproj : str or None
        The projector that was counted.
    draft : Draft or None
        What was counted to draft, as it was given.
    """

    model_params: ModelParams
    context_params: ContextParams
    path: str = ""
    identity: Identity | None = None
    devices: tuple[str | int, ...] | None = None
    host: int | None = None
    budgets: Mapping[str, int] = field(default_factory=dict)
    explanation: str = ""
    mmproj: str | None = None
    draft: Draft | None = None

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Saved:
        """Read a file.

        Raises
        ------
        OSError
            If it cannot be read.
        ValueError
            If it is no such file, or a newer moebind's, or has an unknown parameter or a wrong value.
        """
        name = checks.path("path", path)
        if os.path.isfile(name) and os.path.getsize(name) > LONGEST:
            raise ValueError(f"{name} has {show_size(os.path.getsize(name))}, and no parameters: is it the model?")
        try:
            found = json.loads(atomic_files.read_whole(name))
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{name} does not exist: Fit.save and Tuning.save write such files (moebind fit --save, tune --save)"
            ) from None
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{name} is not JSON, as parameters are saved in: {error}. Fit.save and Tuning.save write such files "
                "(moebind fit --save, tune --save); a preset, which tune --preset writes, is for llama-server itself"
            ) from None
        if not isinstance(found, Mapping) or not {"model_params", "context_params"} & set(found):
            raise ValueError(f"{name} has neither model_params nor context_params: it is no saved fit")
        by = f", which moebind {found['moebind']} wrote" if "moebind" in found else ""
        if found.get("format", FORMAT) != FORMAT or found.get("version", VERSION) != VERSION:
            raise ValueError(
                f"{name}{by}, has the format {shown(found.get('format'))}, version {shown(found.get('version'))}; this "
                f"moebind ({__version__}) reads {shown(FORMAT)}, version {VERSION}: read it with that one, or fit again"
            )
        try:
            return cls._from(found)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{name}{by}: {error}") from error
        except (KeyError, AttributeError) as error:
            raise ValueError(f"{name}{by}, is damaged: it lacks {error}") from error

    @classmethod
    def _from(cls, found: Mapping[str, Any]) -> Saved:
        model, devices, host = found.get("model"), found.get("devices"), found.get("host")
        params = found.get("model_params", {})
        used = params.get("devices") if isinstance(params, Mapping) else None
        if devices is not None and isinstance(params, Mapping):
            # The same by name: another machine may lack them, and be told of others.
            params = {name: value for name, value in params.items() if name != "devices"}
        return cls(
            _with_devices(ModelParams.from_dict(params), used, devices),
            ContextParams.from_dict(found.get("context_params", {})),
            checks.path("model.path", model["path"]) if model else "",
            Identity(str(model["name"]), checks.integer("model.size", model["size"], 0, 2**62), str(model["header"]))
            if model
            else None,
            None if devices is None else tuple(_device(at, each) for at, each in enumerate(devices)),
            None if host is None else checks.integer("host", host, 1, 2**62),
            {
                str(name): checks.integer(f"budgets[{shown(name)}]", size, 0, 2**62)
                for name, size in found.get("budgets", {}).items()
            },
            str(found.get("explanation", "")),
            None if found.get("mmproj") is None else checks.path("mmproj", found["mmproj"]),
            _draft(found.get("draft"), devices),
        )

    def to_dict(self) -> dict[str, object]:
        """The content of the file.

        Raises
        ------
        ValueError
            If the parameters hold callbacks.
        """
        told = self.identity
        return {
            "format": FORMAT,
            "version": VERSION,
            "moebind": __version__,
            "llama_cpp": llama_cpp_version,
            "model": told and {"name": told.name, "path": self.path, "size": told.size, "header": told.header},
            "devices": None if self.devices is None else list(self.devices),
            "host": self.host,
            "budgets": dict(self.budgets),
            "model_params": self.model_params.to_dict(),
            "context_params": self.context_params.to_dict(),
            "mmproj": None if self.mmproj is None else checks.absolute(self.mmproj),
            "draft": None if self.draft is None else self.draft.to_dict(),
            "explanation": self.explanation,
        }

    def check(self, header: Header, where: str) -> None:
        """Refuse another model than that which the parameters were found for; ``where`` says what is read.

        Raises
        ------
        ValueError
        """
        found = Identity.of(header)
        if self.identity is not None and found != self.identity:
            raise ValueError(
                f"{where} is a fit for {self.identity.name} ({show_size(self.identity.size)} of tensors), and "
                f"{header.paths[0]} ({show_size(found.size)}) is another model: fit that one"
            )

    def natives(self) -> list[Device | str | int] | None:
        """The devices as :func:`moebind.plan` takes them."""
        if self.devices is None:
            return None
        return [each if _is_described(each) else _there(str(each)) for each in self.devices]


def read_for(source: str | os.PathLike[str], model: str | os.PathLike[str]) -> Saved:
    """Read parameters for a model.

    Raises
    ------
    ValueError
        If they are another model's, or as for :meth:`Saved.read`.
    """
    found = Saved.read(source)
    if found.identity is not None:
        found.check(read_header(checks.path("path", model)), os.fspath(source))
    return found


def write(path: str | os.PathLike[str], content: Mapping[str, object]) -> None:
    """Write a file, whole or not at all, and never over a model.

    Raises
    ------
    OSError
        If it cannot be written.
    ValueError
        If there is a model.
    """
    target = checks.path("path", path)
    if os.path.isfile(target):
        with open(target, "rb") as file:
            if file.read(4) == b"GGUF":
                raise ValueError(f"{target} is a model; a fit is saved in a file of its own, such as fit.json")
    folder = os.path.dirname(target) or os.curdir
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{target} cannot be saved: there is no folder {folder}")
    atomic_files.write_whole(target, [json.dumps(content, indent=2).encode() + b"\n"])


def described(devices: Sequence[Device | str | int] | None) -> tuple[str | int, ...] | None:
    """Devices as a file has them: their names, or the descriptions of those that are only described."""
    if devices is None:
        return None
    return tuple(each.name if isinstance(each, Device) else written(at, each) for at, each in enumerate(devices))


def _with_devices(params: ModelParams, used: object, devices: Sequence[str | int] | None) -> ModelParams:
    """The parameters with the devices that a fit uses, where it leaves out some of those that were given."""
    if devices is None or not isinstance(used, Sequence) or len(used) >= len(devices):
        return params
    return params.with_devices(_named(used, devices))


def _named(used: Sequence[str], devices: Sequence[str | int]) -> list[Device]:
    """Those of the devices that were given, of these names."""
    return [
        describe(at, described_device(at, each)) if _is_described(each) else _there(str(each))
        for at, each in enumerate(devices)
        if (f"GPU{at}" if _is_described(each) else each) in used
    ]


def _draft(found: Any, devices: Sequence[str | int] | None) -> Draft | None:
    """A draft, which may name devices that were only described."""
    if found is None:
        return None
    if not isinstance(found, Mapping):
        raise TypeError(f"draft is {shown(found)}; it takes an object with path, model_params and context_params")
    params = found.get("model_params")
    if not isinstance(params, Mapping) or params.get("devices") is None:
        return Draft.from_dict(found)
    used = params["devices"]
    if not isinstance(used, list) or not all(isinstance(name, str) for name in used):
        raise TypeError(f"the draft's devices are {shown(used)}; it takes a list of names")
    bare = {name: value for name, value in params.items() if name != "devices"}
    read = Draft.from_dict({**found, "model_params": bare})
    there = [_there(name) for name in used] if devices is None else _named(used, devices)
    if len(there) < len(used):
        raise ValueError(f"the draft's devices are {', '.join(used)}, of which some are not among those of the fit")
    return replace(read, model_params=None if read.model_params is None else read.model_params.with_devices(there))


def _there(name: str) -> Device:
    """The device of that name.

    Raises
    ------
    ValueError
        If there is none, with what to do.
    """
    try:
        return device_of(name)
    except ValueError as error:
        raise ValueError(
            f"{error}. The fit is for it: add what was there then (add_rpc_server, loopback_device), before the fit is "
            "read, or fit again"
        ) from None


def _is_described(each: str | int) -> bool:
    return isinstance(each, int) or is_description(each)


def _device(at: int, value: object) -> str | int:
    return value if isinstance(value, str) else checks.integer(f"devices[{at}]", value, 1, 2**62)  # type: ignore[arg-type]
