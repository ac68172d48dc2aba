"""``ModelParams`` and ``ContextParams``: every parameter of llama.cpp's structs, declared once.

A field is declared with its type, its default (read from llama.cpp) and its check. The ``with_`` methods that go with
the fields are in ``_methods.py``, which ``tools/params_methods.py`` writes from this file, so that editors
and mypy see them.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from moebind._core import checks
from moebind._core.immutable import changed_by_copying
from moebind._core.native import lib
from moebind._core.shown import shown
from moebind._core.sizes import MEMORY_MIN, parse_memory
from moebind.backend.devices import Device, check_cards
from moebind.enums import (
    AttentionType,
    ContextType,
    DeviceType,
    FlashAttnType,
    GgmlType,
    LazyMode,
    LoadMode,
    PoolingType,
    RopeScalingType,
    SplitMode,
)
from moebind.files import tensor_patterns
from moebind.files.metadata_overrides import KvOverrides, KvValue
from moebind.params import serialize
from moebind.params._methods import ContextParamsMethods, ModelParamsMethods
from moebind.params.observers import EvalTensor, TensorObserver
from moebind.params.tensor_overrides import TensorOverride

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ContextParams", "ModelParams"]

T = TypeVar("T")
#: Bytes; a text such as "4GiB" is taken, too.
Size: TypeAlias = int

_MODEL = lib.llama_model_default_params()
_CONTEXT = lib.llama_context_default_params()
#: llama.cpp's library has 4 for a default; its programs take the physical cores, as here, within what we may use.
_N_THREADS = max(1, min(lib.moebind_default_n_threads(), len(os.sched_getaffinity(0)), checks.THREADS_MAX))
#: Types that attention kernels can read a cache in; others make libllama end the process, at once or in a decode.
CACHE_TYPES = tuple(
    GgmlType[name]
    for name in ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4", "NVFP4", "Q2_0")
)
#: Tokens of context where a program is not told: as in the published table of the benchmark.
N_CTX = 4096
#: More are refused: llama.cpp allocates what describes the cells of a cache before it finds that nothing fits.
N_CTX_MAX = 2**27


def option(default: T, check: Callable[[str, Any], T], form: serialize.Form | None = None) -> T:
    """Declare a field: ``check(name, value)`` returns what is stored, or raises; ``form`` is how JSON has it.

    Without a form, enumerators are written by name and everything else as it is.
    """
    metadata = {"check": check, "form": serialize.form_of(default) if form is None else form}
    declared: T = dataclasses.field(default=default, metadata=metadata)
    return declared


def _integer(low: int, high: int = checks.INT32_MAX) -> Callable[[str, Any], int]:
    return lambda name, value: checks.integer(name, value, low, high)


def _layers(name: str, value: Any) -> int:
    if value == "all":
        raise TypeError(f"{name} is 'all'; it takes an integer, -1 for all")
    return checks.integer(name, value, -1)


def _number(low: float, high: float = float("inf")) -> Callable[[str, Any], float]:
    return lambda name, value: checks.number(name, value, low, high)


def _member(kind: Any, allowed: Sequence[Any] | None = None) -> Callable[[str, Any], Any]:
    return lambda name, value: checks.member(name, value, kind, allowed)


def _callback(name: str, value: T) -> T:
    if value is not None and not callable(value):
        raise TypeError(f"{name} is {shown(value)}; it takes a function or None")
    return value


def _eval_callback(name: str, value: Any) -> Any:
    if isinstance(value, type):
        raise TypeError(f"{name} is the class {value.__name__}; it takes an object: {value.__name__}(...)")
    return value if isinstance(value, TensorObserver) else _callback(name, value)


def _cache_size(name: str, value: Any) -> int:
    size = parse_memory(name, value)
    if 0 < size < MEMORY_MIN:
        raise ValueError(f"{name} is {value!r}; it takes 0, or {MEMORY_MIN} bytes and more")
    return size


def _progress(name: str, value: Any) -> Any:
    return value if value is True else _callback(name, None if value is False else value)


def _kv_overrides(name: str, value: Any) -> KvOverrides:
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes)):
        raise TypeError(f"{name} is {shown(value)} ({type(value).__name__}); it takes a mapping from keys to values")
    return value if isinstance(value, KvOverrides) else KvOverrides(value)


def _listed(name: str, value: Any, what: str) -> tuple[Any, ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise TypeError(f"{name} is {shown(value)} ({type(value).__name__}); it takes a list of {what}")
    return tuple(value)


#: How the size of a device begins that need not be there: 24GiB, vulkan:16GiB.
_DESCRIBED = re.compile(r"(\w+:)?[\d.]+ *[kmgt]?i?b?$", re.IGNORECASE)


def _named(device: str) -> str:
    """Where the devices are that a text may mean."""
    if device == "loopback":
        return "with moebind.loopback_device() as device: ModelParams(devices=[device])"
    if device.upper() == "CPU":
        return "[] keeps everything on the CPU"
    if _DESCRIBED.match(device):
        return "a device that is only described can be planned for, fit(path, devices=[...]), but not loaded on"
    return f"[each for each in moebind.devices() if each.name == {shown(device)}]"


def _devices(name: str, value: Any) -> tuple[Device, ...] | None:
    if value is None:
        return None
    if isinstance(value, str):
        raise TypeError(f"{name} is {shown(value)}; it takes a list: {_named(value)}")
    chosen = _listed(name, value, "devices from moebind.devices()")
    for each in chosen:
        if isinstance(each, str):
            raise TypeError(f"{name} holds {shown(each)}; it takes devices: {_named(each)}")
        if not isinstance(each, Device):
            raise TypeError(f"{name} holds {shown(each)}; it takes devices from moebind.devices()")
        if each.type == DeviceType.CPU:
            raise ValueError(f"{name} holds the CPU, which takes what the others do not; [] keeps everything on it")
    if len({each.name for each in chosen}) != len(chosen):
        raise ValueError(f"{name} names a device twice: {', '.join(each.name for each in chosen)}")
    check_cards(name, chosen)
    if len(chosen) >= lib.llama_max_devices():
        raise ValueError(f"{name} has {len(chosen)} devices; llama.cpp takes at most {lib.llama_max_devices() - 1}")
    return chosen


def _tensor_split(name: str, value: Any) -> tuple[float, ...] | None:
    if value is None:
        return None
    listed = _listed(name, value, "shares, one per device, such as [3, 1]")
    shares = tuple(checks.number(f"{name}[{at}]", share, 0.0) for at, share in enumerate(listed))
    if not 0 < len(shares) <= lib.llama_max_devices():
        raise ValueError(f"{name} has {len(shares)} shares; it takes 1 to {lib.llama_max_devices()}, one per device")
    return shares


def _tensor_overrides(name: str, value: Any) -> tuple[TensorOverride, ...]:
    overrides: tuple[TensorOverride, ...] = _listed(name, value, "TensorOverride objects; or use with_tensor_override")
    for each in overrides:
        if not isinstance(each, TensorOverride):
            raise TypeError(f"{name} holds {shown(each)}; it takes TensorOverride objects, or use with_tensor_override")
        tensor_patterns.check_pattern(each.pattern)
        checks.text("target", each.target)
        checks.boolean("strict", each.strict)
    return overrides


class Params:
    """The base of both classes: checked when made, changed by copying, printed as what differs from the default."""

    def __new__(cls, *_arguments: object, **keywords: object) -> Self:
        # Before dataclasses' own __init__, which only knows that it does not know them.
        unknown = keywords.keys() - {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        if unknown:
            from moebind.params.unknown_fields import refuse_fields  # rarely needed

            refuse_fields(cls, (ModelParams, ContextParams), {name: keywords[name] for name in sorted(unknown)})
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for declared in dataclasses.fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            value = declared.metadata["check"](declared.name, getattr(self, declared.name))
            object.__setattr__(self, declared.name, value)

    if not TYPE_CHECKING:  # type checkers would take it for any attribute

        def __getattr__(self, name: str) -> object:
            from moebind.params.unknown_fields import missing_of  # rarely needed

            raise missing_of(self, (ModelParams, ContextParams), name)

    def __repr__(self) -> str:
        changed = [
            f"{declared.name}={getattr(self, declared.name)!r}"
            for declared in dataclasses.fields(self)  # type: ignore[arg-type]
            if getattr(self, declared.name) != declared.default
        ]
        return f"{type(self).__name__}({', '.join(changed)})"

    def to_dict(self) -> dict[str, Any]:
        """The fields that differ from their defaults, as JSON has them.

        Enumerators and devices are written by name, and rules for tensors as mappings. What is left out has the default
        of the version, and for threads of the machine, that reads it.

        Raises
        ------
        ValueError
            If there is a callback among them.

        Examples
        --------
        >>> ContextParams(n_ctx=4096, type_k=GgmlType.Q8_0).to_dict()
        {'n_ctx': 4096, 'type_k': 'Q8_0'}
        """
        return serialize.write(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Make parameters from what :meth:`to_dict` gave.

        Parameters
        ----------
        fields
            Names and values, which are checked as everywhere. Devices have to be there under the same names.

        Raises
        ------
        ValueError
            If a name is unknown, with one that may be meant; or if a value is out of range.
        TypeError
            If a value has the wrong type.

        Examples
        --------
        >>> ContextParams.from_dict({"n_ctx": 4096})
        ContextParams(n_ctx=4096)
        """
        return cls(**serialize.read(cls, fields))


@changed_by_copying
@dataclass(frozen=True, repr=False, kw_only=True)
class ModelParams(ModelParamsMethods, Params):
    """How a model is loaded: ``llama_model_params``, with the defaults of ``llama_model_default_params``.

    Immutable; ``with_`` methods return changed copies. Fields are also keywords:
    ``ModelParams(n_gpu_layers=-1) == ModelParams().with_n_gpu_layers(-1)``.

    Examples
    --------
    >>> ModelParams().with_n_gpu_layers(20).with_cpu_moe_all()
    ModelParams(n_gpu_layers=20, tensor_overrides=(TensorOverride(...),))
    """

    devices: tuple[Device, ...] | None = option(None, _devices, serialize.DEVICES)
    """Devices that take layers, from ``moebind.devices()``; None: all GPUs. An empty tuple keeps them on the CPU."""
    tensor_overrides: tuple[TensorOverride, ...] = option((), _tensor_overrides, serialize.OVERRIDES)
    """Rules that send tensors elsewhere; the first that matches a tensor's name wins. There can be one fewer than
    ``llama_max_tensor_buft_overrides`` says."""
    n_gpu_layers: int = option(_MODEL.n_gpu_layers, _layers)
    """How many layers go to devices other than the CPU, counted from the last; -1: all."""
    split_mode: SplitMode = option(SplitMode(_MODEL.split_mode), _member(SplitMode))
    """How the layers are spread over several devices."""
    load_mode: LoadMode = option(LoadMode(_MODEL.load_mode), _member(LoadMode))
    """How the file is read."""
    lazy_mode: LazyMode = option(LazyMode(_MODEL.lazy_mode), _member(LazyMode))
    """Whether rows of large tensors are read only when they are needed."""
    main_gpu: int = option(_MODEL.main_gpu, _integer(0, 15))
    """The device that takes everything with ``SplitMode.NONE``: an index into the devices in use."""
    tensor_split: tuple[float, ...] | None = option(None, _tensor_split)
    """How much of the model each device takes, in proportion; None: by free memory."""
    progress_callback: Callable[[float], bool | None] | bool | None = option(None, _progress, serialize.CALLBACK)
    """Called with a fraction from 0.0 to 1.0 during the load; returning False stops it. True: a progress bar."""
    kv_overrides: KvOverrides = option(KvOverrides(), _kv_overrides, serialize.MAPPING)
    """Metadata to use instead of the file's: a mapping from key to bool, int, float or str."""
    vocab_only: bool = option(_MODEL.vocab_only, checks.boolean)
    """Load only the vocabulary: text and tokens work, contexts do not."""
    check_tensors: bool = option(_MODEL.check_tensors, checks.boolean)
    """Look for invalid numbers in the weights while loading."""
    use_extra_bufts: bool = option(_MODEL.use_extra_bufts, checks.boolean)
    """Let weights in host memory be repacked into layouts that are faster on the CPU."""
    no_host: bool = option(_MODEL.no_host, checks.boolean)
    """Do not use the devices' pinned host memory, so that extra buffer types can be used."""
    no_alloc: bool = option(_MODEL.no_alloc, checks.boolean)
    """Read metadata only and simulate allocations; such a model cannot compute."""
    load_mtp: bool = option(_MODEL.load_mtp, checks.boolean)
    """Load the layers for multi-token prediction too."""

    def with_tensor_override(self, pattern: str, target: str | Device, *, strict: bool = True) -> ModelParams:
        r"""Send tensors to a device or a buffer type.

        Parameters
        ----------
        pattern
            A regular expression (C++'s ``std::regex``, which llama.cpp uses) that is searched for in tensors' names,
            such as ``r"blk\.[0-3]\.ffn_down"``.
        target
            A :class:`Device`, the name of one, or the name of a buffer type.
        strict
            Refuse to load a model in which the pattern matches nothing.

        Returns
        -------
        ModelParams
            With the override added after the present ones; the first match wins.

        Raises
        ------
        ValueError
            If the pattern is invalid.
        """
        name = target.name if isinstance(target, Device) else target
        added = TensorOverride(pattern, name, checks.boolean("strict", strict))
        return self._with(tensor_overrides=(*self.tensor_overrides, added))

    def with_cpu_override(self, pattern: str, *, strict: bool = True) -> ModelParams:
        """Send tensors to host memory: :meth:`with_tensor_override` with the target ``"CPU"``."""
        return self.with_tensor_override(pattern, "CPU", strict=strict)

    def with_cpu_moe_all(self, *, strict: bool = True) -> ModelParams:
        """Keep all experts' tensors in host memory, as ``--cpu-moe`` does, and experts of attention, which it leaves.

        Parameters
        ----------
        strict
            Refuse to load a model that has no experts.
        """
        return self.with_cpu_override(tensor_patterns.experts_pattern(), strict=strict)

    def with_n_cpu_moe(self, n_layers: int, *, strict: bool = True) -> ModelParams:
        """Keep the experts' tensors of the first layers in host memory: :meth:`with_cpu_moe_all` as ``--n-cpu-moe``.

        Parameters
        ----------
        n_layers
            How many layers, counted from layer 0; those without experts count too. 0 changes nothing, more than the
            model has means all of them.
        strict
            Refuse to load a model that has no experts in those layers.
        """
        count = checks.integer("n_layers", n_layers, 0, 4096)
        if count == 0:
            return self
        # One pattern for all of them, with runs of numbers rather than each number: it must stay short.
        return self.with_cpu_override(
            rf"blk\.({tensor_patterns.numbers(0, count - 1)}){tensor_patterns.experts_pattern()}", strict=strict
        )

    def with_kv_override(self, key: str, value: KvValue) -> ModelParams:
        """Use ``value`` for the metadata ``key`` instead of what the file says.

        Parameters
        ----------
        key
            At most 127 bytes, such as ``"llama.expert_used_count"``.
        value
            A bool, int, float, or str of at most 127 bytes; llama.cpp ignores a value whose type is not the key's.
        """
        return self._with(kv_overrides=KvOverrides({**self.kv_overrides, key: value}))

    @property
    def use_mmap(self) -> bool:
        """Whether the file is mapped (``load_mode``; AUTO counts as mapped)."""
        return self.load_mode in {LoadMode.AUTO, LoadMode.MMAP, LoadMode.MMAP_MLOCK}

    def with_use_mmap(self, use_mmap: bool) -> ModelParams:
        """Map the file, or read it into memory; changes ``load_mode`` and leaves locking as it is."""
        return self._with(load_mode=_load_mode(checks.boolean("use_mmap", use_mmap), self.use_mlock))

    @property
    def use_mlock(self) -> bool:
        """Whether the weights are locked in memory (``load_mode``)."""
        return self.load_mode in {LoadMode.MLOCK, LoadMode.MMAP_MLOCK}

    def with_use_mlock(self, use_mlock: bool) -> ModelParams:
        """Lock the weights in memory, or do not; changes ``load_mode`` and leaves mapping as it is."""
        return self._with(load_mode=_load_mode(self.use_mmap, checks.boolean("use_mlock", use_mlock)))


def _load_mode(mmap: bool, mlock: bool) -> LoadMode:
    if mmap:
        return LoadMode.MMAP_MLOCK if mlock else LoadMode.MMAP
    return LoadMode.MLOCK if mlock else LoadMode.NONE


@changed_by_copying
@dataclass(frozen=True, repr=False, kw_only=True)
class ContextParams(ContextParamsMethods, Params):
    """How a context is made: ``llama_context_params``, with the defaults of ``llama_context_default_params``.

    Immutable; ``with_`` methods return changed copies. Fields are also keywords:
    ``ContextParams(n_ctx=4096) == ContextParams().with_n_ctx(4096)``.

    Examples
    --------
    >>> ContextParams().with_n_ctx(4096).with_type_k(GgmlType.Q8_0)
    ContextParams(n_ctx=4096, type_k=<GgmlType.Q8_0: 8>)
    """

    n_ctx: int = option(_CONTEXT.n_ctx, _integer(0, N_CTX_MAX))
    """Tokens that the cache holds, over all sequences; 0: as many as the model was trained with. It is rounded up,
    to a multiple of 256 for each sequence; ``Context.n_ctx`` has what came of it."""
    n_batch: int = option(_CONTEXT.n_batch, _integer(1))
    """The most tokens in one ``decode``."""
    n_ubatch: int = option(_CONTEXT.n_ubatch, _integer(1))
    """The most tokens that are computed at once; more make prompts faster and take more memory."""
    n_seq_max: int = option(_CONTEXT.n_seq_max, _integer(1, lib.llama_max_parallel_sequences()))
    """The most sequences that the cache holds side by side, up to ``llama_max_parallel_sequences``."""
    n_rs_seq: int = option(_CONTEXT.n_rs_seq, _integer(0, 4096))
    """Snapshots of recurrent state to keep per sequence, for rolling back; experimental in llama.cpp."""
    n_outputs_max: int = option(_CONTEXT.n_outputs_max, _integer(0))
    """The most tokens of a batch that can have logits or embeddings; 0: ``n_batch``."""
    n_outputs_max_per_seq: int = option(_CONTEXT.n_outputs_max_per_seq, _integer(0))
    """The most tokens of one sequence in a batch that can have logits or embeddings; 0: ``n_outputs_max``."""
    n_threads: int = option(_N_THREADS, _integer(1, checks.THREADS_MAX))
    """Threads that compute single tokens; by default, one per physical core."""
    n_threads_batch: int = option(_N_THREADS, _integer(1, checks.THREADS_MAX))
    """Threads that compute prompts and batches; by default, one per physical core."""
    ctx_type: ContextType = option(ContextType(_CONTEXT.ctx_type), _member(ContextType))
    """The part of the model that the context computes."""
    rope_scaling_type: RopeScalingType = option(RopeScalingType(_CONTEXT.rope_scaling_type), _member(RopeScalingType))
    """How positions are stretched beyond the trained context."""
    pooling_type: PoolingType = option(PoolingType(_CONTEXT.pooling_type), _member(PoolingType))
    """How token embeddings become one embedding per sequence. MEAN needs an ``n_ubatch`` that is a multiple of
    ``n_seq_max``."""
    attention_type: AttentionType = option(AttentionType(_CONTEXT.attention_type), _member(AttentionType))
    """Which other tokens a token may see."""
    flash_attn_type: FlashAttnType = option(FlashAttnType(_CONTEXT.flash_attn_type), _member(FlashAttnType))
    """Whether fused attention kernels are used."""
    rope_freq_base: float = option(_CONTEXT.rope_freq_base, _number(0.0))
    """RoPE's base frequency; 0: from the model."""
    rope_freq_scale: float = option(_CONTEXT.rope_freq_scale, _number(0.0))
    """RoPE's frequency scale; 0: from the model."""
    yarn_ext_factor: float = option(_CONTEXT.yarn_ext_factor, _number(-float("inf")))
    """YaRN's extrapolation mix; negative: from the model."""
    yarn_attn_factor: float = option(_CONTEXT.yarn_attn_factor, _number(-float("inf")))
    """YaRN's magnitude scale; negative: from the model."""
    yarn_beta_fast: float = option(_CONTEXT.yarn_beta_fast, _number(-float("inf")))
    """YaRN's low correction dimension; negative: from the model."""
    yarn_beta_slow: float = option(_CONTEXT.yarn_beta_slow, _number(-float("inf")))
    """YaRN's high correction dimension; negative: from the model."""
    yarn_orig_ctx: int = option(_CONTEXT.yarn_orig_ctx, _integer(0))
    """The context that the model was trained with, for YaRN; 0: from the model."""
    defrag_thold: float = option(_CONTEXT.defrag_thold, _number(-float("inf")))
    """Deprecated in llama.cpp, which ignores it."""
    eval_callback: Callable[[EvalTensor, bool], bool | None] | TensorObserver | None = option(
        None, _eval_callback, serialize.CALLBACK
    )
    """A :class:`TensorObserver`, which is called for the tensors that it names once they are computed. Or a function,
    called as ``fn(tensor, ask)`` with each :class:`EvalTensor`: first with ``ask=True``, to say whether it wants the
    tensor, and then, if so, with ``ask=False`` once the data is computed; returning False then stops the computation.
    A function is slow, because each call waits for the interpreter."""
    type_k: GgmlType = option(GgmlType(_CONTEXT.type_k), _member(GgmlType, CACHE_TYPES))
    """Type of the cached keys."""
    type_v: GgmlType = option(GgmlType(_CONTEXT.type_v), _member(GgmlType, CACHE_TYPES))
    """Type of the cached values; a quantised one needs flash attention."""
    moe_cache_size: Size = option(_CONTEXT.moe_cache_size, _cache_size)
    """Device memory for a cache of the experts that are in host memory, in bytes or as text such as ``"4GiB"``; 0:
    none. With several devices it is divided among them as the layers are. Experimental in llama.cpp."""
    abort_callback: Callable[[], bool] | None = option(None, _callback, serialize.CALLBACK)
    """Called without arguments, about once a millisecond while the CPU computes; True stops the computation."""
    embeddings: bool = option(_CONTEXT.embeddings, checks.boolean)
    """Compute embeddings, of every token of a batch."""
    offload_kqv: bool = option(_CONTEXT.offload_kqv, checks.boolean)
    """Keep the cache, and compute attention, where the layers are."""
    no_perf: bool = option(False, checks.boolean)  # llama.cpp's library does not measure by default, its programs do
    """Do not measure timings: ``Context.timings()`` stays at zero."""
    op_offload: bool = option(_CONTEXT.op_offload, checks.boolean)
    """Let a device compute with weights that are in host memory, when a batch is large enough to be worth it."""
    swa_full: bool = option(_CONTEXT.swa_full, checks.boolean)
    """Keep all tokens in layers with sliding windows, too. Without, they take less memory, and a prompt that differs
    before the window from what was computed is computed from its beginning."""
    kv_unified: bool = option(_CONTEXT.kv_unified, checks.boolean)
    """Share one cache among all sequences, instead of ``n_ctx / n_seq_max`` for each."""
