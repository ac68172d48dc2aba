"""Options that are parameters of a model or a context, each declared once: how it is given, read and written.

Commands that load, plan or measure take all of them (:func:`moebind.cli.given.takes`). They have llama.cpp's names. An
option that is not given leaves what a file says (``--params``), or else the default.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from functools import cache
from typing import Annotated, Any, Generic, TypeVar

import typer

from moebind._core.sizes import parse_size
from moebind.cli.token_counts import token_count
from moebind.enums import FlashAttnType, LoadMode, SplitMode
from moebind.params.params import CACHE_TYPES, ContextParams, ModelParams
from moebind.params.tensor_overrides import written_rules

__all__ = [
    "ADDED",
    "CONTEXT",
    "MODEL",
    "PARAMS",
    "USUAL",
    "Option",
    "flags_of",
    "only",
    "option_names",
    "shares",
    "unwritten",
    "without",
]

ParamsT = TypeVar("ParamsT", ModelParams, ContextParams)
EnumT = TypeVar("EnumT", bound=IntEnum)

_FLASH = {
    **dict.fromkeys(("on", "enabled", "true", "1"), FlashAttnType.ENABLED),
    **dict.fromkeys(("off", "disabled", "false", "0"), FlashAttnType.DISABLED),
    **dict.fromkeys(("auto", "-1"), FlashAttnType.AUTO),
}
_SPLIT = {mode.name.lower(): mode for mode in (SplitMode.NONE, SplitMode.LAYER, SplitMode.ROW, SplitMode.TENSOR)}
_LOAD = {
    "auto": LoadMode.AUTO,
    "none": LoadMode.NONE,
    "mmap": LoadMode.MMAP,
    "mlock": LoadMode.MLOCK,
    "mmap+mlock": LoadMode.MMAP_MLOCK,
    "dio": LoadMode.DIRECT_IO,
}
_CACHE = {kind.name.lower(): kind for kind in CACHE_TYPES}


@dataclass(frozen=True)
class Option(Generic[ParamsT]):
    """An option of commands, which sets parameters.

    Attributes
    ----------
    name : str
        What a command calls its value.
    flags : tuple[str, ...]
        How it is given, the long name first, as typer takes them.
    kind : type
        What typer reads: text, a number, a flag, or a list of texts.
    help, shown : str
        Help, and what it says of the default.
    fields : tuple[str, ...]
        The parameters that it sets, as errors name them.
    read : Callable
        Parameters with the value that was given.
    write : Callable
        What gives these parameters on a command line; nothing where another option does.
    metavar : str or None
        The value in the help.
    """

    name: str
    flags: tuple[str, ...]
    kind: Any
    help: str
    shown: str
    fields: tuple[str, ...]
    read: Callable[[ParamsT, Any], ParamsT]
    write: Callable[[ParamsT], Sequence[str]] = lambda params: ()
    metavar: str | None = None

    @property
    def flag(self) -> str:
        """The long name, as errors have it."""
        return self.flags[0].partition("/")[0]

    def parameter(self, shown: str | None = None, hidden: bool = False) -> inspect.Parameter:
        """The parameter of a command's function, as typer takes it; ``hidden`` from the help."""
        default = self.shown if shown is None else shown
        option = typer.Option(
            *self.flags, metavar=self.metavar, help=self.help, show_default=default or False, hidden=hidden
        )
        return inspect.Parameter(
            self.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[self.kind | None, option]
        )


def _choice(option: str, given: str, allowed: Mapping[str, EnumT]) -> EnumT:
    if given.lower() not in allowed:
        names = list(dict.fromkeys(allowed.values()))
        first = [next(word for word, member in allowed.items() if member == each) for each in names]
        raise ValueError(f"{option} is {given!r}; it takes one of {', '.join(first)}")
    return allowed[given.lower()]


def _word(allowed: Mapping[str, EnumT], member: EnumT) -> str:
    return next(word for word, each in allowed.items() if each == member)


def _plain(name: str) -> Callable[[Any, Any], Any]:
    """Reads a field that has the option's value."""
    return lambda params, value: replace(params, **{name: value})


def _chosen(name: str, option: str, allowed: Mapping[str, EnumT]) -> Callable[[Any, Any], Any]:
    """Reads a field that has a member of an enumeration."""
    return lambda params, value: replace(params, **{name: _choice(option, value, allowed)})


def _changed(name: str, flag: str, text: Callable[[Any], str] = str) -> Callable[[Any], Sequence[str]]:
    """Writes a field with its value, where it is not the default."""

    def write(params: Any) -> Sequence[str]:
        value = getattr(params, name)
        return [] if value == getattr(type(params)(), name) else [flag, text(value)]

    return write


def _flag(name: str, on: str, off: str) -> Callable[[Any], Sequence[str]]:
    """Writes a field that is on or off, where it is not the default."""

    def write(params: Any) -> Sequence[str]:
        value = getattr(params, name)
        return [] if value == getattr(type(params)(), name) else [on if value else off]

    return write


def _read_layers(params: ModelParams, given: str) -> ModelParams:
    if given in {"all", "auto"}:  # auto leaves it open, as it is without the option: fits have fewer where they must
        return params.with_n_gpu_layers(-1)
    try:
        return params.with_n_gpu_layers(int(given))
    except ValueError as error:
        if str(error).startswith("n_gpu_layers"):
            raise
        raise ValueError(f"--n-gpu-layers is {given!r}; it takes a number of layers, all or auto") from None


def _read_rules(params: ModelParams, given: Sequence[str]) -> ModelParams:
    rules = [rule for text in given for rule in written_rules("--override-tensor", text)]
    return params.with_tensor_overrides([*params.tensor_overrides, *rules])


def _write_rules(params: ModelParams) -> Sequence[str]:
    return [part for rule in params.tensor_overrides for part in ("-ot", f"{rule.pattern}={rule.target}")]


def _read_shares(params: ModelParams, given: str) -> ModelParams:
    return params.with_tensor_split(shares(given))


def shares(given: str) -> list[float]:
    """The shares of devices that a text says."""
    try:
        found = [float(each) for each in given.replace("/", ",").split(",")]
    except ValueError:
        raise ValueError(
            f"--tensor-split has {given!r}; it takes numbers with commas between them, such as 3,1"
        ) from None
    if not any(found):
        raise ValueError(f"--tensor-split is {given!r}; at least one share is above 0")
    return found


def _cache(name: str, letter: str, what: str) -> Option[ContextParams]:
    long, short = f"--cache-type-{letter}", f"-ct{letter}"
    return Option(
        name,
        (long, short),
        str,
        what,
        "f16",
        (name,),
        _chosen(name, long, _CACHE),
        _changed(name, short, lambda kind: _word(_CACHE, kind)),
        metavar="TYPE",
    )


PARAMS: Option[Any] = Option(
    "params",
    ("--params",),
    str,
    "A file of fit --save or tune --save; other options win over it.",
    "",
    (),
    lambda params, value: params,
    metavar="FILE",
)

#: Names of the options that the help of every command shows; ``--help-all`` shows the others.
USUAL = frozenset(
    {"params", "n_gpu_layers", "override_tensor", "n_cpu_moe", "cpu_moe", "n_ctx", "type_k", "type_v", "threads"}
    | {"model_draft"}
)
#: Fields that options add to.
ADDED = frozenset({"tensor_overrides"})

MODEL: tuple[Option[ModelParams], ...] = (
    Option(
        "n_gpu_layers",
        ("--n-gpu-layers", "--gpu-layers", "-ngl"),
        str,
        "Layers on devices, counted from the last.",
        "all",
        ("n_gpu_layers",),
        _read_layers,
        lambda params: ["-ngl", "all" if params.n_gpu_layers < 0 else str(params.n_gpu_layers)],
        metavar="N",
    ),
    Option(
        "split_mode",
        ("--split-mode", "-sm"),
        str,
        "How several devices share the model: whole layers each, or rows of tensors; none takes one.",
        "layer",
        ("split_mode",),
        _chosen("split_mode", "--split-mode", _SPLIT),
        _changed("split_mode", "-sm", lambda mode: _word(_SPLIT, mode)),
        metavar="none|layer|row|tensor",
    ),
    Option(
        "main_gpu",
        ("--main-gpu", "-mg"),
        int,
        "The device that --split-mode none takes, counted from 0.",
        "0",
        ("main_gpu",),
        _plain("main_gpu"),
        _changed("main_gpu", "-mg"),
        metavar="INDEX",
    ),
    Option(
        "tensor_split",
        ("--tensor-split", "-ts"),
        str,
        "The share of each device.",
        "",
        ("tensor_split",),
        _read_shares,
        _changed("tensor_split", "-ts", lambda shares: ",".join(f"{share:.9g}" for share in shares)),
        metavar="N,N",
    ),
    Option(
        "override_tensor",
        ("--override-tensor", "-ot"),
        list[str],
        "Where matching tensors go: experts:0-11=CPU; the first wins.",
        "",
        ("tensor_overrides", "pattern"),
        _read_rules,
        _write_rules,
        metavar="PATTERN=TARGET",
    ),
    Option(
        "n_cpu_moe",
        ("--n-cpu-moe", "-ncmoe"),
        int,
        "Keep experts of the first N layers in host memory.",
        "",
        ("n_layers", "tensor_overrides"),
        lambda params, count: params.with_n_cpu_moe(count),
        metavar="N",
    ),
    Option(
        "cpu_moe",
        ("--cpu-moe", "-cmoe"),
        bool,
        "Keep all experts in host memory.",
        "",
        ("tensor_overrides",),
        lambda params, wanted: params.with_cpu_moe_all() if wanted else params,
    ),
    Option(
        "load_mode",
        ("--load-mode", "-lm"),
        str,
        "How the file is read.",
        "auto",
        ("load_mode",),
        _chosen("load_mode", "--load-mode", _LOAD),
        _changed("load_mode", "-lm", lambda mode: _word(_LOAD, mode)),
        metavar="|".join(_LOAD),
    ),
    Option(
        "no_mmap",
        ("--no-mmap",),
        bool,
        "Read the weights instead of mapping the file.",
        "",
        ("load_mode",),
        lambda params, wanted: params.with_use_mmap(False) if wanted else params,
    ),
    Option(
        "repack",
        ("--repack/--no-repack", " /-nr"),
        bool,
        "Repack weights in host memory into a layout that is faster on the CPU.",
        "repack",
        ("use_extra_bufts",),
        _plain("use_extra_bufts"),
        _flag("use_extra_bufts", "--repack", "--no-repack"),
    ),
)

CONTEXT: tuple[Option[ContextParams], ...] = (
    Option(
        "n_ctx",
        ("--ctx-size", "--n-ctx", "-c"),
        str,
        "Tokens of context, such as 32k; 0: all.",
        str(ContextParams().n_ctx),
        ("n_ctx",),
        lambda params, given: params.with_n_ctx(token_count("--ctx-size", given)),
        lambda params: ["-c", str(params.n_ctx)],
        metavar="N",
    ),
    Option(
        "n_batch",
        ("--batch-size", "-b"),
        int,
        "Tokens of one batch.",
        str(ContextParams().n_batch),
        ("n_batch",),
        _plain("n_batch"),
        _changed("n_batch", "-b"),
        metavar="N",
    ),
    Option(
        "n_ubatch",
        ("--ubatch-size", "-ub"),
        int,
        "Tokens that are computed at once.",
        str(ContextParams().n_ubatch),
        ("n_ubatch",),
        _plain("n_ubatch"),
        lambda params: ["-ub", str(params.n_ubatch)],
        metavar="N",
    ),
    Option(
        "flash_attn",
        ("--flash-attn", "-fa"),
        str,
        "Fused attention.",
        "auto",
        ("flash_attn_type",),
        _chosen("flash_attn_type", "--flash-attn", _FLASH),
        _changed("flash_attn_type", "-fa", lambda kind: _word(_FLASH, kind)),
        metavar="on|off|auto",
    ),
    _cache("type_k", "k", "Type of cached keys, such as q8_0."),
    _cache("type_v", "v", "Type of cached values."),
    Option(
        "kv_offload",
        ("--kv-offload/--no-kv-offload", "-kvo/-nkvo"),
        bool,
        "Keep the cache where the layers are, or on the host.",
        "kv-offload",
        ("offload_kqv",),
        _plain("offload_kqv"),
        _flag("offload_kqv", "-kvo", "-nkvo"),
    ),
    Option(
        "op_offload",
        ("--op-offload/--no-op-offload",),
        bool,
        "Compute on devices what has its weights in host memory, where a batch is large enough.",
        "op-offload",
        ("op_offload",),
        _plain("op_offload"),
        _flag("op_offload", "--op-offload", "--no-op-offload"),
    ),
    Option(
        "swa_full",
        ("--swa-full/--no-swa-full",),
        bool,
        "Keep a cache of full size for layers with sliding windows, or of the windows alone.",
        "swa-full",
        ("swa_full",),
        _plain("swa_full"),
        _flag("swa_full", "--swa-full", "--no-swa-full"),
    ),
    Option(
        "moe_cache",
        ("--moe-cache",),
        str,
        "Device memory for a cache of experts that are in host memory, such as 4GiB.",
        "0",
        ("moe_cache_size",),
        lambda params, given: params.with_moe_cache_size(parse_size("--moe-cache", given)),
        lambda params: ["--moe-cache", f"{params.moe_cache_size}B"] if params.moe_cache_size else [],
        metavar="SIZE",
    ),
    Option(
        "n_seq_max",
        ("--parallel", "-np"),
        int,
        "Sequences side by side.",
        str(ContextParams().n_seq_max),
        ("n_seq_max",),
        _plain("n_seq_max"),
        _changed("n_seq_max", "-np"),
        metavar="N",
    ),
    Option(
        "kv_unified",
        ("--kv-unified/--no-kv-unified", "-kvu/-no-kvu"),
        bool,
        "Share one cache among all sequences.",
        "no-kv-unified",
        ("kv_unified",),
        _plain("kv_unified"),
        _flag("kv_unified", "-kvu", "-no-kvu"),
    ),
    Option(
        "threads",
        ("--threads", "-t"),
        int,
        "Threads of the CPU.",
        "one per core",
        ("n_threads",),
        lambda params, count: params.with_n_threads(count).with_n_threads_batch(count),
        _changed("n_threads", "-t"),
        metavar="N",
    ),
    Option(
        "threads_batch",
        ("--threads-batch", "-tb"),
        int,
        "Threads of the CPU for prompts and batches.",
        "as --threads",
        ("n_threads_batch",),
        _plain("n_threads_batch"),
        lambda params: [] if params.n_threads_batch == params.n_threads else ["-tb", str(params.n_threads_batch)],
        metavar="N",
    ),
)

_ALL: tuple[Option[Any], ...] = (*MODEL, *CONTEXT)


def without(options: Sequence[Option[ParamsT]], *names: str) -> tuple[Option[ParamsT], ...]:
    """The options but those of these names."""
    return tuple(option for option in options if option.name not in names)


def only(options: Sequence[Option[ParamsT]], *names: str) -> tuple[Option[ParamsT], ...]:
    """The options of these names."""
    return tuple(option for option in options if option.name in names)


def unwritten(params: ModelParams | ContextParams) -> list[str]:
    """Parameters that differ from their defaults, and that no option sets."""
    known = {name for option in _ALL for name in option.fields} | {"devices"}
    changed = [field.name for field in fields(params) if getattr(params, field.name) != field.default]
    return [name for name in changed if name not in known]


def option_names() -> dict[str, str]:
    """The options' names by the parameters that they set."""
    return {name: option.flag for option in reversed(_ALL) for name in option.fields}


@cache
def flags_of() -> dict[str, tuple[str, str]]:
    """The options that turn a parameter on and off, by its name."""
    return {
        option.fields[0]: (option.flag, option.flags[0].partition("/")[2])
        for option in _ALL
        if option.kind is bool and "/" in option.flags[0]
    }
