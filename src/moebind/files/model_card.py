"""What a model is, from the headers of its files: sizes, types, experts, context, vocabulary, template."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moebind._core import checks
from moebind._core.sizes import show_size
from moebind._core.tables import Column, number_ranges, text_table
from moebind.enums import Ftype, GgmlType
from moebind.errors import ModelLoadError
from moebind.files.gguf import Gguf, GgufTensor
from moebind.files.header_checks import check_model
from moebind.files.model_files import Split
from moebind.files.tensor_patterns import experts_pattern

__all__ = ["ModelCard", "TypeSummary", "inspect", "printable", "show_count"]

_LAYER = re.compile(r"blk\.(\d+)\.")
_AHEAD = re.compile(r"blk\.(\d+)\.nextn\.")
_VOCABULARY = "tokenizer.ggml.tokens"
_TEMPLATE = "tokenizer.chat_template"
#: Lines of a chat template that a card shows, and characters of each.
_LINES_SHOWN, _CHARACTERS_SHOWN = 3, 100


@dataclass(frozen=True)
class TypeSummary:
    """The tensors of one type.

    Attributes
    ----------
    type : GgmlType
        How their numbers are stored.
    n_tensors : int
        How many there are.
    n_params : int
        Their numbers.
    nbytes : int
        Their bytes.
    """

    type: GgmlType
    n_tensors: int
    n_params: int
    nbytes: int


@dataclass(frozen=True)
class ModelCard:
    """What a model is. Made by :func:`inspect`; printing it gives a page.

    Numbers that a file does not have are 0, and texts None.

    Attributes
    ----------
    path : str
        The model's file, or the first one that is there.
    paths, missing : tuple[str, ...]
        Its files that are there, and those of a split model that are not.
    nbytes : int
        Bytes of the files that are there.
    kind : str
        What the file says that it is: ``"model"``, or for example ``"mmproj"``, ``"adapter"`` or ``"imatrix"``.
    name, architecture : str or None
        The model's name, and llama.cpp's name for what it computes.
    ftype : Ftype or None
        The mixture of types that it was quantised to.
    n_params, n_params_active : int
        Numbers in its tensors; and of these, those that work on a token: of experts those that are used, of layers that
        only predict further ahead none.
    types : tuple[TypeSummary, ...]
        What its tensors are stored as, most bytes first.
    n_layer, n_embd, n_head, n_head_kv : int
        Layers, the width between them, and heads; where layers differ, the most.
    n_ctx_train : int
        Tokens of context that it was trained with.
    n_vocab : int
        Tokens of its vocabulary.
    vocab_type : str or None
        The kind of its tokenizer, such as ``"gpt2"``.
    n_expert, n_expert_used : int
        Experts in a layer, and how many of them work on each token.
    expert_layers : Mapping[int, int]
        How many experts the layers have that have some.
    expert_nbytes : int
        Bytes of all experts; :func:`experts` has them layer by layer.
    chat_template : str or None
        The template of its chats.
    problems : tuple[str, ...]
        Why it cannot be loaded, as far as the headers tell.
    bytes_read : int or None
        How many bytes were read from the Hugging Face Hub; None for files that are here.
    tensors : Mapping[str, GgufTensor]
        All tensors, by name.
    """

    path: str
    paths: tuple[str, ...]
    missing: tuple[str, ...]
    nbytes: int
    kind: str
    name: str | None
    architecture: str | None
    ftype: Ftype | None
    n_params: int
    n_params_active: int
    types: tuple[TypeSummary, ...]
    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    n_ctx_train: int
    n_vocab: int
    vocab_type: str | None
    n_expert: int
    n_expert_used: int
    expert_layers: Mapping[int, int]
    expert_nbytes: int
    chat_template: str | None
    problems: tuple[str, ...]
    bytes_read: int | None
    tensors: Mapping[str, GgufTensor] = field(repr=False)

    def to_dict(self) -> dict[str, object]:
        """The card as plain values, for JSON; sizes are bytes, and ``tensors`` is a list."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            **values,
            "paths": list(self.paths),
            "missing": list(self.missing),
            "ftype": None if self.ftype is None else self.ftype.name,
            "types": [
                {"type": each.type.name, "n_tensors": each.n_tensors, "n_params": each.n_params, "nbytes": each.nbytes}
                for each in self.types
            ],
            "expert_layers": {str(layer): count for layer, count in self.expert_layers.items()},
            "problems": list(self.problems),
            "tensors": [
                {
                    "name": each.name,
                    "shape": list(each.shape),
                    "type": each.type.name,
                    "nbytes": each.nbytes,
                    "offset": each.offset,
                    "path": each.path,
                }
                for each in self.tensors.values()
            ],
        }

    def __str__(self) -> str:
        facts = [(what, printable(text)) for what, text in self._facts() if text]
        width = max(len(what) for what, _ in facts)
        lines = [f"{what:{width}}  {text}" for what, text in facts]
        if self.chat_template is not None:
            lines += ["", *self._template_lines()]
        if self.types:
            columns = [Column("type"), Column("tensors"), Column("parameters"), Column("MiB", ".1f"), Column("share")]
            total = sum(each.nbytes for each in self.types)
            rows = [
                (
                    each.type.name,
                    each.n_tensors,
                    show_count(each.n_params),
                    each.nbytes / 2**20,
                    f"{each.nbytes / max(total, 1):.1%}",
                )
                for each in self.types
            ]
            lines += ["", *text_table(columns, rows)]
        lines += ["", *self.problems] if self.problems else []
        if self.bytes_read is not None:
            lines += ["", f"{show_size(self.bytes_read)} were read from the Hugging Face Hub; nothing was downloaded."]
        return "\n".join([os.path.basename(self.path), *lines])

    def _facts(self) -> list[tuple[str, str]]:
        n_files = len(self.paths)
        parts = f" in {n_files} files" if n_files > 1 else ""
        active = (
            "" if self.n_params_active == self.n_params else f", {show_count(self.n_params_active)} work on a token"
        )
        experts = ""
        if self.n_expert:
            experts = f"{self.n_expert}, {self.n_expert_used} work on a token; in layers "
            experts += f"{number_ranges(self.expert_layers)}; {show_size(self.expert_nbytes)}"
        heads = "" if self.n_head_kv in {0, self.n_head} else f", {self.n_head_kv} for keys and values"
        return [
            ("name", self.name or ""),
            ("kind", "" if self.kind == "model" else self.kind),
            ("architecture", self.architecture or ""),
            ("parameters", f"{show_count(self.n_params)}{active}"),
            ("size", f"{show_size(self.nbytes)}{parts}"),
            ("quantised as", "" if self.ftype is None else self.ftype.name),
            ("experts", experts),
            ("context", f"{self.n_ctx_train} tokens" if self.n_ctx_train else ""),
            ("layers", f"{self.n_layer}, {self.n_embd} wide" if self.n_layer else ""),
            ("heads", f"{self.n_head}{heads}" if self.n_head else ""),
            ("vocabulary", f"{self.n_vocab} tokens, {self.vocab_type}" if self.n_vocab else ""),
        ]

    def _template_lines(self) -> list[str]:
        every = [printable(line.replace("\t", " ")) for line in (self.chat_template or "").splitlines()]
        lines = [line if len(line) <= _CHARACTERS_SHOWN else f"{line[:_CHARACTERS_SHOWN]}…" for line in every]
        more = len(every) - _LINES_SHOWN
        return [
            f"chat template, {len(self.chat_template or '')} characters:",
            *(f"  {line}" for line in lines[:_LINES_SHOWN]),
            *([f"  … and {more} more line{'s' * (more != 1)}"] if more > 0 else []),
        ]


def inspect(path: str | os.PathLike[str]) -> ModelCard:
    """Tell what a model is, from the headers of its files. Loads nothing.

    Parameters
    ----------
    path
        A GGUF file, or any file of a split model, of which some may be missing; or an address on the Hugging Face Hub,
        as for :meth:`Gguf.from_file`.

    Returns
    -------
    ModelCard
        Also of a file that is no model, or that cannot be loaded: ``problems`` says why.

    Raises
    ------
    ModelNotFoundError
        If there is no such file.
    ModelLoadError
        If it is no GGUF file, or its header is damaged.

    Examples
    --------
    >>> card = moebind.inspect("moe.gguf")
    >>> card.architecture, card.n_expert, card.n_params_active < card.n_params
    ('llama', 32, True)
    """
    given = checks.path("path", path)
    file, missing = _read(given)
    fields = _Fields(file)
    tensors = tuple(file.tensors.values())
    experts = re.compile(experts_pattern())
    used = fields.integer("expert_used_count")
    layers: dict[int, int] = {}
    n_active = expert_nbytes = 0
    ahead = {match[1] for name in file.tensors if (match := _AHEAD.match(name))}
    for tensor in tensors:
        layer = _LAYER.match(tensor.name)
        is_expert = experts.search(tensor.name) is not None
        if is_expert:
            expert_nbytes += tensor.nbytes
        if layer is not None and is_expert and tensor.name.endswith(".weight") and len(tensor.shape) > 2:
            layers[int(layer[1])] = max(layers.get(int(layer[1]), 0), tensor.shape[2])
        if layer is None or layer[1] not in ahead:
            count = tensor.shape[-1] if is_expert else 0
            n_active += tensor.n_elements * min(used, count) // count if count else tensor.n_elements
    kind = fields.text("general.type") or "model"
    return ModelCard(
        path=file.path,
        paths=file.paths,
        missing=missing,
        nbytes=sum(file._sizes()),
        kind=kind,
        name=fields.text("general.name"),
        architecture=fields.text("general.architecture"),
        ftype=fields.ftype(),
        n_params=sum(tensor.n_elements for tensor in tensors),
        n_params_active=n_active,
        types=_types(tensors),
        n_layer=fields.integer("block_count"),
        n_embd=fields.integer("embedding_length"),
        n_head=fields.integer("attention.head_count"),
        n_head_kv=fields.integer("attention.head_count_kv"),
        n_ctx_train=fields.integer("context_length"),
        n_vocab=fields.n_vocab(),
        vocab_type=fields.text("tokenizer.ggml.model"),
        n_expert=max(layers.values(), default=0),
        n_expert_used=used if layers else 0,
        expert_layers=dict(sorted(layers.items())),
        expert_nbytes=expert_nbytes,
        chat_template=fields.text(_TEMPLATE),
        problems=_problems(file, missing, kind, fields.architecture),
        bytes_read=file.bytes_read,
        tensors=file.tensors,
    )


def printable(text: str) -> str:
    """Without what would move a terminal's cursor: a file may hold anything."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def show_count(count: int) -> str:
    """A number of parameters, in short: ``30.5B``."""
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= size:
            return f"{count / size:.3g}{unit}" if count < 1000 * size else f"{count / size:.0f}{unit}"
    return str(count)


def _read(path: str) -> tuple[Gguf, tuple[str, ...]]:
    """The headers that are there, and the files of a split model that are not."""
    split = None if checks.on_hub(path) or not os.path.exists(path) else Split.of(path)
    if split is not None and 1 <= split.number <= split.n_files:
        every = [split.path(number) for number in range(1, split.n_files + 1)]
        missing = tuple(each for each in every if not os.path.exists(each))
        if missing:
            return Gguf._from_files([each for each in every if each not in missing]), missing
    return Gguf.from_file(path), ()


def _types(tensors: tuple[GgufTensor, ...]) -> tuple[TypeSummary, ...]:
    kinds: dict[GgmlType, list[GgufTensor]] = {}
    for tensor in tensors:
        kinds.setdefault(tensor.type, []).append(tensor)
    found = [
        TypeSummary(kind, len(each), sum(t.n_elements for t in each), sum(t.nbytes for t in each))
        for kind, each in kinds.items()
    ]
    return tuple(sorted(found, key=lambda each: -each.nbytes))


def _problems(file: Gguf, missing: tuple[str, ...], kind: str, architecture: str) -> tuple[str, ...]:
    if missing:
        names = ", ".join(map(os.path.basename, missing[:3])) + ", ..." * (len(missing) > 3)
        count = len(missing) + len(file.paths)
        return (f"{len(missing)} of {count} files are missing: {names}",)
    if kind != "model":
        return ()
    if not architecture:
        return (f"{os.path.basename(file.path)} does not say which architecture it is: it is no model",)
    try:
        check_model(file, {})
    except ModelLoadError as error:
        return (str(error),)
    return ()


class _Fields:
    """Metadata of a type that is expected, or nothing."""

    def __init__(self, file: Gguf) -> None:
        self._file = file
        self.architecture = self.text("general.architecture") or ""

    def text(self, key: str) -> str | None:
        value = self._file.get(key)
        return value if isinstance(value, str) else None

    def integer(self, name: str) -> int:
        """A number of the architecture's; of an array, the largest."""
        value: Any = self._file.get(f"{self.architecture}.{name}")
        if isinstance(value, np.ndarray):
            return int(value.max()) if value.size and value.dtype.kind in "iub" else 0
        return value if isinstance(value, int) else 0

    def ftype(self) -> Ftype | None:
        value = self._file.get("general.file_type")
        known = {int(each) for each in Ftype}
        return Ftype(value) if isinstance(value, int) and value in known else None

    def n_vocab(self) -> int:
        """Tokens, which are counted and not read."""
        return self._file._length(_VOCABULARY) or self.integer("vocab_size")
