"""``moebind quantize``: a model's file with smaller weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from moebind.cli import options as o
from moebind.cli.model_argument import Hub, on_hub
from moebind.cli.output import show, show_json
from moebind.enums import Ftype, GgmlType
from moebind.files.quantize import quantize

EnumT = TypeVar("EnumT", Ftype, GgmlType)

#: Other names of types, as llama-quantize has them.
_ALSO = {"F32": Ftype.ALL_F32, "Q3_K": Ftype.Q3_K_M, "Q4_K": Ftype.Q4_K_M, "Q5_K": Ftype.Q5_K_M}
#: Changes nothing: it joins the files of a split model.
_COPY = "COPY"

Arguments = Annotated[
    list[str],
    typer.Argument(metavar="SRC [DST] TYPE", help="The model, the new file, and a type such as Q4_K_M, or COPY."),
]
Types = Annotated[
    list[str] | None,
    typer.Option(
        "--tensor-type", metavar="PATTERN=TYPE", help="A type for tensors whose names match; several times for several."
    ),
]
TypeFile = Annotated[
    Path | None, typer.Option("--tensor-type-file", metavar="FILE", help="The same from a file, a line or word each.")
]
Imatrix = Annotated[str | None, typer.Option("--imatrix", metavar="FILE", help="How much each column matters.")]
OutputType = Annotated[str | None, typer.Option("--output-tensor-type", metavar="TYPE", help="For output.weight.")]
EmbeddingType = Annotated[
    str | None, typer.Option("--token-embedding-type", metavar="TYPE", help="For the token embeddings.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--override-kv", metavar="KEY=TYPE:VALUE", help="Metadata to write; TYPE is int, float, bool, str."),
]
Pruned = Annotated[str | None, typer.Option("--prune-layers", metavar="N,N", help="Layers to leave out.")]
BufferSize = Annotated[
    int, typer.Option("--max-buffer-size", metavar="MIB", min=0, help="Of one tensor in memory; 0: 8192.")
]


def command(
    arguments: Arguments,
    hf_repo: Hub = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing; tell the size.")] = False,
    imatrix: Imatrix = None,
    tensor_type: Types = None,
    tensor_type_file: TypeFile = None,
    output_tensor_type: OutputType = None,
    token_embedding_type: EmbeddingType = None,
    leave_output_tensor: Annotated[bool, typer.Option("--leave-output-tensor", help="Keep output.weight.")] = False,
    pure: Annotated[bool, typer.Option("--pure", help="One type for all tensors.")] = False,
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="Take tensors that are quantised already; they lose more.")
    ] = False,
    keep_split: Annotated[bool, typer.Option("--keep-split", help="Write as many files as there are.")] = False,
    prune_layers: Pruned = None,
    override_kv: Overrides = None,
    max_buffer_size: BufferSize = 0,
    threads: Annotated[
        int | None, typer.Option("--threads", "-t", metavar="N", help="How many compute.", show_default="one per core")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there already.")] = False,
    as_json: o.AsJson = False,
) -> None:
    """Write a copy of a model's file with smaller weights.

    Example: moebind quantize moe-f16.gguf moe-q4_k_m.gguf Q4_K_M --dry-run
    """
    if hf_repo is not None:
        arguments = [on_hub(hf_repo), *arguments]
    if len(arguments) not in {2, 3}:
        given = "is 1 argument" if len(arguments) == 1 else f"are {len(arguments)} arguments"
        raise ValueError(f"there {given}; it takes SRC DST TYPE, or SRC TYPE with --dry-run")
    if arguments[0].upper() in {*Ftype.__members__, *_ALSO, _COPY} and not os.path.exists(arguments[0]):
        raise ValueError(f"SRC is {arguments[0]!r}, which is a type: TYPE comes last, as in SRC DST TYPE")
    if len(arguments) == 2 and not dry_run:
        raise ValueError(f"there is no file to write to: moebind quantize {arguments[0]} DST {arguments[1]}")
    kind = arguments[-1]
    copied = kind.upper() == _COPY
    rules = [*(tensor_type or ()), *([] if tensor_type_file is None else tensor_type_file.read_text("utf-8").split())]
    done = quantize(
        arguments[0],
        arguments[1] if len(arguments) == 3 else None,
        Ftype.ALL_F32 if copied else _ftype(kind),
        imatrix=imatrix,
        tensor_types=dict(_rule(each) for each in rules) or None,
        n_threads=threads,
        dry_run=dry_run,
        allow_requantize=allow_requantize,
        pure=pure,
        quantize_output_tensor=not leave_output_tensor,
        output_tensor_type=None if output_tensor_type is None else _type("--output-tensor-type", output_tensor_type),
        token_embedding_type=(
            None if token_embedding_type is None else _type("--token-embedding-type", token_embedding_type)
        ),
        keep_split=keep_split,
        only_copy=copied,
        prune_layers=() if prune_layers is None else _layers(prune_layers),
        kv_overrides=dict(_override(each) for each in override_kv or ()) or None,
        max_buf_size=max_buffer_size * 2**20,
        overwrite=overwrite,
    )
    if as_json:
        show_json(done.to_dict())
        return
    show(done)
    if done.needs_imatrix:
        count = len(done.needs_imatrix)
        show(f"{count} tensors take an importance matrix, such as {done.needs_imatrix[0]}: give --imatrix.")
    for path in done.paths:
        show(path)


def _ftype(given: str) -> Ftype:
    known = {**Ftype.__members__, **_ALSO}
    if given.upper() in known:
        return known[given.upper()]
    if given.isdecimal() and given.isascii() and int(given) in [int(each) for each in known.values()]:
        return Ftype(int(given))
    allowed = [name for name in known if name not in {"GUESSED", "NVFP4", "ALL_F32"}]
    raise ValueError(f"TYPE is {given!r}; it takes one of {', '.join([*allowed, _COPY])}")


def _type(option: str, given: str) -> GgmlType:
    if given.upper() not in GgmlType.__members__:
        raise ValueError(f"{option} is {given!r}; it takes one of {', '.join(GgmlType.__members__)}")
    return GgmlType[given.upper()]


def _rule(given: str) -> tuple[str, GgmlType]:
    pattern, equals, kind = given.rpartition("=")
    if not equals or not pattern:
        raise ValueError(f"--tensor-type is {given!r}; it takes PATTERN=TYPE, such as ffn_down_exps=q3_k")
    return pattern, _type("--tensor-type", kind)


def _layers(given: str) -> list[int]:
    try:
        return [int(each) for each in given.split(",")]
    except ValueError:
        raise ValueError(f"--prune-layers is {given!r}; it takes numbers with commas between them") from None


def _override(given: str) -> tuple[str, bool | int | float | str]:
    key, _, typed = given.partition("=")
    kind, colon, value = typed.partition(":")
    try:
        if key and colon and kind == "str":
            return key, value
        if key and colon and kind == "bool":
            return key, {"true": True, "false": False}[value]
        if key and colon and kind in {"int", "float"}:
            return key, int(value) if kind == "int" else float(value)
    except (ValueError, KeyError):
        pass
    raise ValueError(f"--override-kv is {given!r}; it takes KEY=TYPE:VALUE, such as general.name=str:mine")
