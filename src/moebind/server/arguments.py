"""Parameters of models and contexts as llama-server's options, one row a parameter.

llama-server has defaults of its own, so every parameter that it knows is written, also where it is the default. Those
that it does not know, or decides itself, are refused where they were set.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import IntEnum
from typing import Any, TypeAlias

from moebind._core.native import decoded, lib
from moebind._core.shown import shown
from moebind.backend.devices import Device, devices, native_device
from moebind.enums import FlashAttnType, LazyMode, LoadMode, PoolingType, RopeScalingType, SplitMode
from moebind.files.metadata_overrides import KvOverrides, KvValue
from moebind.params.params import ContextParams, ModelParams
from moebind.params.tensor_overrides import TensorOverride

__all__ = ["ROWS", "Devices", "Settings", "check", "command_line", "settings"]

#: Options of llama-server by their names without dashes: a value, or whether it is on.
Settings: TypeAlias = "dict[str, str | bool]"
#: Letters that end a rule in ``--override-tensor``.
_NOT_IN_RULES = ",="


@dataclass(frozen=True)
class Devices:
    """The devices that llama-server may use, by the names that they have in this process.

    Servers of llama.cpp's RPC count anew in each process: what is ``RPC3`` here may be ``RPC0`` there.

    Attributes
    ----------
    used : tuple[str, ...]
        Those that take layers, by their names in llama-server.
    buffers : Mapping[str, str]
        The names that the buffer types of all devices have there, by the devices' names here.
    rpc : tuple[str, ...]
        The RPC servers that it has to know, as ``"host:port"``.
    names : Mapping[str, str]
        The names that all devices have there, by their names here.
    """

    used: tuple[str, ...]
    buffers: Mapping[str, str]
    rpc: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, used: Sequence[Device], besides: Sequence[Device] = ()) -> Devices:
        """These devices, and the others that rules for tensors may name: the processor, and what is beside them.

        ``besides`` are those that only a draft uses.
        """
        known = [*used, *besides]
        servers = tuple(dict.fromkeys(device.description for device in known if device.backend == "RPC"))
        remote = [device for each in servers for device in devices() if device.description == each]
        local = [device for device in devices() if device.backend != "RPC"]
        there = {device.name: device.name for device in local}
        there |= {device.name: f"RPC{number}" for number, device in enumerate(remote)}
        buffers = {}
        for name in there:
            buffer = decoded(lib.ggml_backend_buft_name(lib.ggml_backend_dev_buffer_type(native_device(name))))
            # The buffer type of a device has its name, or begins with it.
            buffers[name] = there[name] + buffer.removeprefix(name) if buffer.startswith(name) else buffer
        return cls(tuple(there[device.name] for device in used), buffers, servers, there)

    def buffer(self, target: str) -> str:
        """The buffer type that a rule's target means in llama-server.

        Raises
        ------
        ValueError
            If llama-server has no name for it.
        """
        if target in self.buffers:
            return self.buffers[target]
        if target in self.buffers.values():
            return target
        raise ValueError(
            f"tensor_overrides sends tensors to {shown(target)}, which llama-server cannot: it takes the buffer types "
            f"{', '.join(dict.fromkeys(self.buffers.values()))}"
        )


@dataclass(frozen=True)
class Row:
    """How llama-server takes a parameter.

    Attributes
    ----------
    option : str
        Its option, without dashes; empty if there is none.
    write : Callable
        Its value there: a text, whether the option is on, or None to leave it out.
    refused : str
        Why another value than the default is refused; empty if it is not.
    planned : bool
        Whether it changes what a plan says. If not, it may as well be among the arguments for llama-server itself.
    """

    option: str = ""
    write: Callable[[Any, Devices], str | bool | None] = lambda value, there: None
    refused: str = ""
    planned: bool = True


def _as_it_is(option: str, *, planned: bool = True) -> Row:
    return Row(option, lambda value, there: f"{value:.9g}" if isinstance(value, float) else str(value), planned=planned)


def _switch(option: str, *, only_on: bool = False, inverse: bool = False, planned: bool = True) -> Row:
    """An option that is on or off; ``only_on``: it is off where it is left out."""

    def write(value: bool, there: Devices) -> bool | None:
        on = value is not inverse
        return None if only_on and not on else on

    return Row(option, write, planned=planned)


def _word(option: str, words: Mapping[IntEnum, str | None], name: str = "", *, planned: bool = True) -> Row:
    """An option with a word for each member; None leaves it out."""

    def write(value: IntEnum, there: Devices) -> str | None:
        if value not in words:
            raise ValueError(
                f"{name} is {shown(value)}, which llama-server cannot; it takes {', '.join(map(str, words))}"
            )
        return words[value]

    return Row(option, write, planned=planned)


def _no(reason: str) -> Row:
    return Row(refused=reason)


def _devices(value: object, there: Devices) -> str:
    return ",".join(there.used) or "none"


def _layers(value: int, there: Devices) -> str:
    return "all" if value < 0 else str(value)


def _shares(value: Sequence[float] | None, there: Devices) -> str | None:
    return None if value is None else ",".join(f"{share:.9g}" for share in value)


def _rules(value: Sequence[TensorOverride], there: Devices) -> str | None:
    for rule in value:
        if any(letter in rule.pattern for letter in _NOT_IN_RULES):
            raise ValueError(
                f"tensor_overrides has the pattern {shown(rule.pattern)}: llama-server ends a pattern at a comma or an "
                "equals sign. Write it without, such as aa?a? for a{1,3}"
            )
    return ",".join(f"{rule.pattern}={there.buffer(rule.target)}" for rule in value) or None


def _metadata(value: KvOverrides, there: Devices) -> str | None:
    items = [f"{key}={_typed(each)}" for key, each in value.items()]
    if not items:
        return None
    written = io.StringIO()
    csv.writer(written, lineterminator="").writerow(items)
    return written.getvalue()


def _typed(value: KvValue) -> str:
    if isinstance(value, bool):
        return f"bool:{str(value).lower()}"
    if isinstance(value, float):
        return f"float:{value:.17g}"
    return f"int:{value}" if isinstance(value, int) else f"str:{value}"


def _mebibytes(value: int, there: Devices) -> str:
    whole, rest = divmod(value, 2**20)
    if rest:
        raise ValueError(
            f"moe_cache_size is {value} bytes; llama-server takes whole MiB, such as {whole} or {whole + 1}"
        )
    return str(whole)


_HERE = "llama-server is another process, which cannot call it"
_ITSELF = "llama-server decides it itself"

#: One row for each field of :class:`ModelParams` and :class:`ContextParams`.
ROWS: Mapping[str, Row] = {
    "devices": Row("device", _devices),
    "tensor_overrides": Row("override-tensor", _rules),
    "n_gpu_layers": Row("n-gpu-layers", _layers),
    "split_mode": _word("split-mode", {each: each.name.lower() for each in SplitMode}, "split_mode"),
    "load_mode": _word(
        "load-mode",
        {
            LoadMode.AUTO: "auto",
            LoadMode.NONE: "none",
            LoadMode.MMAP: "mmap",
            LoadMode.MLOCK: "mlock",
            LoadMode.MMAP_MLOCK: "mmap+mlock",
            LoadMode.DIRECT_IO: "dio",
        },
        "load_mode",
    ),
    "lazy_mode": _word("lazy-mode", {each: each.name.lower() for each in LazyMode}, "lazy_mode"),
    "main_gpu": _as_it_is("main-gpu"),
    "tensor_split": Row("tensor-split", _shares),
    "progress_callback": _no(_HERE),
    "kv_overrides": Row("override-kv", _metadata),
    "vocab_only": _no("a server needs the weights"),
    "check_tensors": _switch("check-tensors", only_on=True, planned=False),
    "use_extra_bufts": _switch("repack"),
    "no_host": _switch("no-host", only_on=True),
    "no_alloc": _no("a server needs the weights"),
    "load_mtp": _no("llama-server loads these layers for --spec-type draft-mtp"),
    "n_ctx": _as_it_is("ctx-size"),
    "n_batch": _as_it_is("batch-size"),
    "n_ubatch": _as_it_is("ubatch-size"),
    "n_seq_max": _as_it_is("parallel"),
    "n_rs_seq": _no(_ITSELF),
    "n_outputs_max": _no(_ITSELF),
    "n_outputs_max_per_seq": _no(_ITSELF),
    "n_threads": _as_it_is("threads", planned=False),
    "n_threads_batch": _as_it_is("threads-batch", planned=False),
    "ctx_type": _no(_ITSELF),
    "rope_scaling_type": _word(
        "rope-scaling",
        {
            RopeScalingType.UNSPECIFIED: None,
            RopeScalingType.NONE: "none",
            RopeScalingType.LINEAR: "linear",
            RopeScalingType.YARN: "yarn",
        },
        "rope_scaling_type",
        planned=False,
    ),
    "pooling_type": _word(
        "pooling",
        {each: None if each == PoolingType.UNSPECIFIED else each.name.lower() for each in PoolingType},
        "pooling_type",
    ),
    "attention_type": _no("llama-server takes it from the model"),
    "flash_attn_type": _word(
        "flash-attn",
        {FlashAttnType.AUTO: "auto", FlashAttnType.ENABLED: "on", FlashAttnType.DISABLED: "off"},
        "flash_attn_type",
    ),
    "rope_freq_base": _as_it_is("rope-freq-base", planned=False),
    "rope_freq_scale": _as_it_is("rope-freq-scale", planned=False),
    "yarn_ext_factor": _as_it_is("yarn-ext-factor", planned=False),
    "yarn_attn_factor": _as_it_is("yarn-attn-factor", planned=False),
    "yarn_beta_fast": _as_it_is("yarn-beta-fast", planned=False),
    "yarn_beta_slow": _as_it_is("yarn-beta-slow", planned=False),
    "yarn_orig_ctx": _as_it_is("yarn-orig-ctx", planned=False),
    "defrag_thold": _no("llama.cpp ignores it"),
    "eval_callback": _no(_HERE),
    "type_k": Row("cache-type-k", lambda kind, there: kind.name.lower()),
    "type_v": Row("cache-type-v", lambda kind, there: kind.name.lower()),
    "abort_callback": _no(_HERE),
    "embeddings": _switch("embedding", only_on=True),
    "offload_kqv": _switch("kv-offload"),
    "no_perf": _switch("perf", inverse=True, planned=False),
    "op_offload": _switch("op-offload"),
    "swa_full": _switch("swa-full", only_on=True),
    "moe_cache_size": Row("moe-cache-mib", _mebibytes),
    "kv_unified": _switch("kv-unified"),
}


def check(params: ModelParams | ContextParams) -> None:
    """Refuse parameters that were set and that llama-server cannot take.

    Raises
    ------
    ValueError
        If there are any; the message says why.
    """
    for each in fields(params):
        value = getattr(params, each.name)
        refused = ROWS[each.name].refused
        if refused and value != each.default:
            raise ValueError(f"{each.name} is {shown(value)}: {refused}; leave it out")


def settings(model: ModelParams, context: ContextParams, there: Devices) -> Settings:
    """llama-server's options for these parameters.

    Raises
    ------
    ValueError
        If it has none for a value.
    """
    found: Settings = {}
    for params in (model, context):
        for each in fields(params):
            row = ROWS[each.name]
            value = row.write(getattr(params, each.name), there) if row.option else None
            if value is not None:
                found[row.option] = value
    return found


def command_line(options: Mapping[str, str | bool]) -> list[str]:
    """Options as arguments of a command."""
    arguments: list[str] = []
    for name, value in options.items():
        if isinstance(value, bool):
            arguments.append(f"--{name}" if value else f"--no-{name}")
        else:
            arguments += [f"--{name}", value]
    return arguments
