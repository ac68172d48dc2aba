"""Quantising: a model's file with smaller weights."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, SupportsIndex

from moebind._core import checks
from moebind._core.arguments import explained
from moebind._core.atomic_files import same_file, staged
from moebind._core.native import CData, Hooks, ffi, lib
from moebind._core.progress import progress_bar
from moebind._core.shown import shown
from moebind.backend.devices import init
from moebind.enums import Ftype, GgmlType
from moebind.errors import ModelLoadError, QuantizeError
from moebind.files import tensor_patterns
from moebind.files.download import local_file
from moebind.files.gguf import Gguf
from moebind.files.header_checks import check_model
from moebind.files.imatrix import importances
from moebind.files.metadata_overrides import KvOverrides, native_kv_overrides
from moebind.files.quantize_plan import EMBEDDINGS, OUTPUT, TARGETS, QuantizeResult, check_plan, plan, run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

__all__ = ["quantize"]

#: llama.cpp names NVFP4 but makes no such file: it is for files that were trained so. tensor_types takes it.
_FTYPES = tuple(kind for kind in Ftype.__members__.values() if kind not in {Ftype.GUESSED, Ftype.NVFP4})
#: The alignment that llama.cpp writes, whatever the source had.
_ALIGNMENT = 32
#: The names of llama-quantize, and of llama.cpp's parameters, for arguments.
_ELSEWHERE = {
    "nthread": "n_threads",
    "nthreads": "n_threads",
    "tensor_type": "tensor_types",
    "override_kv": "kv_overrides",
    "type": "ftype",
    "quant_type": "ftype",
}


@explained(other_names=_ELSEWHERE)
def quantize(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str] | None,
    ftype: Ftype | int,
    *,
    imatrix: str | os.PathLike[str] | Mapping[str, ArrayLike] | None = None,
    tensor_types: Mapping[str, GgmlType | int] | None = None,
    n_threads: int | None = None,
    dry_run: bool = False,
    progress: Callable[[float], bool | None] | bool = True,
    allow_requantize: bool = False,
    pure: bool = False,
    quantize_output_tensor: bool = True,
    output_tensor_type: GgmlType | int | None = None,
    token_embedding_type: GgmlType | int | None = None,
    keep_split: bool = False,
    only_copy: bool = False,
    prune_layers: Iterable[SupportsIndex] = (),
    kv_overrides: Mapping[str, bool | int | float | str] | None = None,
    max_buf_size: int = 0,
    overwrite: bool = False,
) -> QuantizeResult:
    r"""Write a copy of a model's file with smaller weights.

    The new file is written beside ``dst`` under another name and then renamed, so it is never there half-written.

    Parameters
    ----------
    src
        A GGUF file, preferably in F32, F16 or BF16; for a split model, any of its files. Or the address of one on the
        Hugging Face Hub, which is downloaded unless it is in the cache, for a dry run, too.
    dst
        Where to write it. A dry run takes None.
    ftype
        The type of most tensors. Mixtures such as ``Q4_K_M`` keep some tensors at more bits.
    imatrix
        How much each column matters: a file of ``llama-imatrix``, its address on the Hugging Face Hub, or a mapping
        from tensor names to float arrays of ``columns * experts`` numbers. The smallest types need one.
    tensor_types
        Types for tensors by regular expression (C++'s ``std::regex``, searched for in the name), such as
        ``{r"ffn_down_exps": GgmlType.Q3_K}``; the first match wins. If a row's length is not a multiple of a type's
        block, llama.cpp takes another, larger type.
    n_threads
        How many threads compute, 1 to 512; None: as many as there are physical cores.
    dry_run
        Write nothing, and tell what would happen to each tensor.
    progress
        True: a bar, if tqdm is installed and standard error is a terminal. Or a function that is called with a fraction
        from 0.0 to 1.0 before each tensor; returning False stops.
    allow_requantize
        Accept tensors that are already quantised; they lose more.
    pure
        Make all tensors the same type, instead of a mixture.
    quantize_output_tensor
        Whether ``output.weight`` is quantised too.
    output_tensor_type, token_embedding_type
        Types for ``output.weight`` and for the token embeddings.
    keep_split
        Write as many files as the source has, ``NAME-00001-of-0000N.gguf`` for the ``dst`` ``NAME.gguf``.
    only_copy
        Change no tensor. This joins the files of a split model.
    prune_layers
        Layers to leave out.
    kv_overrides
        Metadata to write instead of the source's.
    max_buf_size
        The most bytes of a tensor in memory at once; 0: 8 GiB.
    overwrite
        Replace a file that is there already. Never the source.

    Returns
    -------
    QuantizeResult

    Raises
    ------
    ModelLoadError
        If the source cannot be read, or contains something that llama.cpp would not survive.
    QuantizeError
        If it cannot be quantised in this way, an importance matrix is missing, or the progress callback stopped it.
    ValueError
        If ``dst`` is ``src``, a pattern matches nothing, or an argument is out of range.
    FileExistsError
        If the new file is there already, without ``overwrite``.
    OSError
        If it cannot be written.

    Notes
    -----
    Uses ``llama_model_quantize``; defaults are those of ``llama_model_quantize_default_params``.
    Ctrl-C stops it before the next tensor, and leaves nothing behind.

    Examples
    --------
    >>> moebind.quantize("model-f16.gguf", "model-q4_k_m.gguf", Ftype.Q4_K_M)
    """
    for name, flag in {
        "dry_run": dry_run,
        "allow_requantize": allow_requantize,
        "pure": pure,
        "quantize_output_tensor": quantize_output_tensor,
        "keep_split": keep_split,
        "only_copy": only_copy,
        "overwrite": overwrite,
    }.items():
        checks.boolean(name, flag)
    if dst is None and not dry_run:
        raise TypeError("dst is None; it takes the path of the new file, or dry_run=True to write none")
    target = None if dst is None else checks.local_path("dst", dst, "the path of a file that is to be written")
    native = ffi.new("llama_model_quantize_params *", lib.llama_model_quantize_default_params())
    native.ftype = chosen = checks.member("ftype", ftype, Ftype, _FTYPES)
    threads = lib.moebind_default_n_threads() if n_threads is None else n_threads
    native.nthread = checks.integer("n_threads", threads, 1, checks.THREADS_MAX)
    native.allow_requantize, native.pure, native.only_copy = allow_requantize, pure, only_copy
    native.quantize_output_tensor, native.keep_split = quantize_output_tensor, keep_split
    native.max_buf_size = checks.integer("max_buf_size", max_buf_size, 0, 2**48)
    source = _open_source(src, kv_overrides)  # only now: it may be downloaded
    finals = [] if target is None else _targets(os.path.realpath(target), len(source.paths), keep_split)
    if not dry_run:
        _check_targets(finals, source, overwrite)
    for name, kind, tensors in (
        ("output_tensor_type", output_tensor_type, (OUTPUT, *EMBEDDINGS)),
        ("token_embedding_type", token_embedding_type, EMBEDDINGS),
    ):
        if kind is not None:
            setattr(native, name, _type_for(name, kind, tensors, source))
    keep: list[object] = []
    _set_overrides(native, keep, source, kv_overrides)
    _set_tensor_types(native, keep, source, tensor_types, chosen, only_copy)
    renamed = _set_pruned(native, keep, source, prune_layers)
    weights = {} if imatrix is None else importances(imatrix)
    _set_imatrix(native, keep, weights)
    if keep_split:
        _check_parts(source, renamed)

    init()
    planned = plan(source, native, chosen, renamed, weights)
    check_plan(planned, renamed, weights, allow_requantize)
    if dry_run:
        return planned
    if planned.needs_imatrix:
        raise QuantizeError(
            f"{chosen.name} takes an importance matrix, which {len(planned.needs_imatrix)} tensors lack, such as "
            f"{planned.needs_imatrix[0]}: give {'an imatrix that has them' if weights else 'imatrix'}, or another type"
        )
    return _write(source, finals, native, planned, progress)


def _open_source(src: str | os.PathLike[str], overrides: Mapping[str, bool | int | float | str] | None) -> Gguf:
    source = Gguf._from_local(local_file(checks.path("src", src)))
    check_model(source, KvOverrides(overrides or {}), mapped=False)
    for tensor in source.tensors.values():
        if tensor.n_elements == 0:  # llama.cpp divides by the length of its rows
            raise ModelLoadError(f"{tensor.path}: the tensor {tensor.name} has no elements: {tensor.shape}")
    return source


def _type_for(name: str, kind: GgmlType | int, tensors: Sequence[str], source: Gguf) -> GgmlType:
    chosen = checks.member(name, kind, GgmlType, TARGETS)
    block = int(lib.ggml_blck_size(chosen))
    for tensor in tensors:
        if tensor in source.tensors and source.tensors[tensor].shape[0] % block:
            raise ValueError(
                f"{name} is {chosen.name}, in blocks of {block}, but rows of {tensor} have "
                f"{source.tensors[tensor].shape[0]} numbers"
            )
    return chosen


def _set_overrides(
    native: CData, keep: list[object], source: Gguf, given: Mapping[str, bool | int | float | str] | None
) -> None:
    overrides = KvOverrides(given or {})
    if source.alignment != _ALIGNMENT:
        # It would write the source's alignment into a file that is aligned to its own.
        overrides = KvOverrides({**overrides, "general.alignment": _ALIGNMENT})
    elif overrides.get("general.alignment", _ALIGNMENT) != _ALIGNMENT:
        raise ValueError(f"llama.cpp aligns what it writes to {_ALIGNMENT} bytes: general.alignment cannot be changed")
    if overrides:
        native.kv_overrides = entries = native_kv_overrides(overrides)
        keep.append(entries)


def _set_tensor_types(
    native: CData,
    keep: list[object],
    source: Gguf,
    given: Mapping[str, GgmlType | int] | None,
    ftype: Ftype,
    only_copy: bool,
) -> None:
    if given is None:
        return
    if not isinstance(given, Mapping):
        raise TypeError(f"tensor_types is {shown(given)}; it takes a mapping from patterns to types")
    if given and (only_copy or ftype in {Ftype.ALL_F32, Ftype.F16, Ftype.BF16}):
        raise ValueError("tensor_types has no effect with only_copy or a ftype that quantises nothing: leave it out")
    native.tt_overrides = entries = ffi.new("struct llama_model_tensor_override[]", len(given) + 1)
    keep.append(entries)
    names = list(source.tensors)
    for entry, (pattern, kind) in zip(entries, given.items(), strict=False):
        tensor_patterns.check_pattern(pattern)
        if not tensor_patterns.matching(pattern, names):
            similar = ", ".join(tensor_patterns.similar_names(pattern, names))
            raise ValueError(f"tensor_types: {shown(pattern)} matches none of {len(names)} tensors, such as {similar}")
        entry.pattern = text = ffi.new("char[]", pattern.encode())
        entry.type = checks.member(f"tensor_types[{shown(pattern)}]", kind, GgmlType, TARGETS)
        keep.append(text)


def _set_pruned(native: CData, keep: list[object], source: Gguf, layers: Iterable[SupportsIndex]) -> dict[str, str]:
    """The new names of tensors and their old ones."""
    if isinstance(layers, (str, bytes)) or not isinstance(layers, Iterable):
        raise TypeError(f"prune_layers is {shown(layers)}; it takes numbers of layers")
    architecture = source.get("general.architecture")
    count = source.get(f"{architecture}.block_count")
    n_layer = count if isinstance(count, int) else 0
    pruned = sorted({checks.integer("a layer in prune_layers", layer, 0, n_layer - 1) for layer in layers})
    if not pruned:
        return {name: name for name in source.tensors}
    if len(pruned) == n_layer:
        raise ValueError(f"prune_layers holds all {n_layer} layers; leave some")
    for key in source:
        value = source[key] if key.startswith(f"{architecture}.") else 0
        if not isinstance(value, (bool, int, float, str)) and len(value) == n_layer:
            raise ValueError(f"prune_layers: {key} has a value for each layer, which llama.cpp does not prune")
    native.prune_layers = entries = ffi.new("int32_t[]", [*pruned, -1])
    keep.append(entries)
    kept = {str(old): str(new) for new, old in enumerate(at for at in range(n_layer) if at not in pruned)}
    renamed: dict[str, str] = {}
    for name in source.tensors:
        parts = name.split(".")
        if parts[0] == "blk" and len(parts) > 2 and parts[1].isdecimal():
            if parts[1] in kept:
                renamed[".".join(["blk", kept[parts[1]], *parts[2:]])] = name
        else:
            renamed[name] = name
    return renamed


def _set_imatrix(native: CData, keep: list[object], weights: Mapping[str, NDArray[np.float32]]) -> None:
    if not weights:
        return
    native.imatrix = entries = ffi.new("struct llama_model_imatrix_data[]", len(weights) + 1)
    keep.append(entries)
    for entry, (name, values) in zip(entries, weights.items(), strict=False):
        entry.name = text = ffi.new("char[]", name.encode())
        entry.data = data = ffi.from_buffer("float[]", values)
        entry.size = values.size
        keep += [text, data]


def _check_parts(source: Gguf, renamed: Mapping[str, str]) -> None:
    """llama.cpp looks for tensors in every file but the first."""
    filled = {source.tensors[old].path for old in renamed.values()}
    for path in source.paths[1:]:
        if path not in filled:
            raise ValueError(f"keep_split: {path} would have no tensors, which llama.cpp cannot write")


def _targets(target: str, n_files: int, keep_split: bool) -> list[str]:
    """The files that are written; llama.cpp numbers several."""
    if not keep_split or n_files == 1:
        return [target]
    return [f"{target.removesuffix('.gguf')}-{at + 1:05d}-of-{n_files:05d}.gguf" for at in range(n_files)]


def _check_targets(finals: Sequence[str], source: Gguf, overwrite: bool) -> None:
    for final in finals:
        same = same_file(final, source.paths)
        if same is not None:
            raise ValueError(f"dst is {final}, the same file as the source {same}: choose another")
    for final in finals:
        if not overwrite and os.path.lexists(final) and not os.path.isdir(final):
            raise FileExistsError(f"dst is there already, {final}: choose another, or pass overwrite=True")


def _write(
    source: Gguf,
    finals: Sequence[str],
    native: CData,
    planned: QuantizeResult,
    progress: Callable[[float], bool | None] | bool,
) -> QuantizeResult:
    names = [os.path.basename(each) for each in finals]
    native.keep_split = len(names) > 1
    # Of several, llama.cpp is told what their names begin with.
    told = re.sub(r"-\d{5}-of-\d{5}\.gguf$", "", names[0]) if native.keep_split else names[0]
    report, finish = _progress(progress, told)
    try:
        with staged(finals[0]) as folder:
            run(source, os.path.join(folder, told), native, Hooks(progress=report))
            _check_written([os.path.join(folder, each) for each in names], planned)
        if report is not None:
            report(1.0)
    finally:
        finish()
    return QuantizeResult(tuple(finals), planned.ftype, planned.tensors, ())


def _progress(
    progress: Callable[[float], bool | None] | bool, name: str
) -> tuple[Callable[[float], bool | None] | None, Callable[[], None]]:
    if callable(progress):
        return progress, lambda: None
    if checks.boolean("progress", progress):
        try:
            return progress_bar(name, only_on_terminals=True)
        except ImportError:
            pass  # it was not asked for by name
    return None, lambda: None


def _check_written(paths: Sequence[str], planned: QuantizeResult) -> None:
    """llama.cpp does not notice a full disk."""
    try:
        written = Gguf._from_files(paths).tensors
    except ModelLoadError as error:
        raise OSError(f"the new file could not be written: {error}") from error
    for tensor in planned.tensors:
        found = written.get(tensor.name)
        if found is None or (found.type, found.nbytes) != (tensor.type, tensor.nbytes):
            raise QuantizeError(f"{tensor.name} was not written as planned: {found} instead of {tensor}")
        if os.path.getsize(found.path) < found.offset + found.nbytes:
            raise OSError("the new file could not be written whole: is the disk full?")
