"""llama.cpp for Python, with a mixture-of-experts model's experts in host memory.

Examples
--------
>>> import moebind
>>> from moebind import ContextParams, Model, ModelParams
>>> with Model.load_from_file("moe.gguf", ModelParams().with_cpu_moe_all()) as model:
...     with model.new_context(ContextParams(n_ctx=2048)) as context:
...         for piece in context.generate("Once upon a time", max_tokens=64):
...             print(piece.text, end="", flush=True)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moebind._core.log import set_log
from moebind._core.native import ffi, lib
from moebind._core.version import __version__ as __version__
from moebind.backend.breakdown import BufferMemory, DeviceMemory, MemoryBreakdown
from moebind.backend.devices import (
    Device,
    backends,
    default_devices,
    devices,
    init,
    load_backends,
    max_devices,
    supports_gpu_offload,
    supports_mlock,
    supports_mmap,
    supports_rpc,
    system_info,
    time_us,
)
from moebind.backend.devices import llama_cpp_version as _llama_cpp_version
from moebind.backend.rpc_servers import add_rpc_server, remove_rpc_server
from moebind.backend.threadpool import ThreadPool
from moebind.backend.timings import MoeCacheStats, SamplerTimings, Timings
from moebind.chat.prompt import ChatMessage, ChatPrompt, ChatTrigger, ToolCall, ToolFunction
from moebind.chat.templates import chat_builtin_templates
from moebind.context.async_generation import AsyncChatReply, AsyncPieces
from moebind.context.batch import Batch
from moebind.context.batch_ext import BatchExt
from moebind.context.context import Context
from moebind.context.generate_many import NumberedPieces
from moebind.context.mtp_speculative import MtpSpeculative, MtpSpeculativeParams
from moebind.context.pieces import Completion, Piece, Pieces, TokenLogprob, Usage
from moebind.context.pool import ContextPool
from moebind.context.replies import ChatDelta, ChatReply, ToolCallDelta
from moebind.context.speculative import Speculative
from moebind.enums import (
    AttentionType,
    ContextType,
    DeviceType,
    FlashAttnType,
    Ftype,
    GgmlType,
    GgufType,
    LazyMode,
    LoadMode,
    NumaStrategy,
    PoolingType,
    ProcessType,
    RopeScalingType,
    RopeType,
    SchedPriority,
    SpeculativeType,
    SplitMode,
    StateSeqFlags,
    TokenAttr,
    VocabType,
)
from moebind.errors import *  # noqa: F403  # its __all__ is the list
from moebind.errors import __all__ as _errors
from moebind.files.gguf import Gguf, GgufTensor
from moebind.model.adapters import LoraAdapter
from moebind.model.model import Model
from moebind.params.observers import EvalTensor, TensorObserver
from moebind.params.params import ContextParams, ModelParams
from moebind.params.tensor_overrides import PlacedOverride, PlacedTensor, TensorOverride
from moebind.sampling.candidates import TokenDataArray
from moebind.sampling.sampler import Sampler
from moebind.state.seq_state import SeqState

if TYPE_CHECKING:
    from moebind import bench, server
    from moebind.backend.bandwidth import host_bandwidth
    from moebind.backend.loopback import loopback_device
    from moebind.diagnosis.findings import Diagnosis, Finding, Severity, doctor
    from moebind.files.download import download
    from moebind.files.model_card import ModelCard, TypeSummary, inspect
    from moebind.files.quantize import quantize
    from moebind.files.quantize_plan import QuantizedTensor, QuantizeResult
    from moebind.placement.cache_curve import CacheCurve, CachePoint
    from moebind.placement.experts import ExpertSummary, LayerExperts, experts
    from moebind.placement.fit import Fit, fit
    from moebind.placement.listing import ListedModel, list_models
    from moebind.placement.plan import Plan, plan
    from moebind.placement.routing import RoutingRecorder
    from moebind.sampling.json_schema import json_schema_to_grammar

#: The version of the llama.cpp inside.
llama_cpp_version = _llama_cpp_version()

__all__ = [
    *_errors,
    "NumberedPieces",
    "ContextPool",
    "AsyncPieces",
    "AsyncChatReply",
    "ToolCallDelta",
    "Usage",
    "TokenLogprob",
    "Pieces",
    "Completion",
    "ChatDelta",
    "AttentionType",
    "Batch",
    "BatchExt",
    "BufferMemory",
    "ChatMessage",
    "ChatPrompt",
    "ChatReply",
    "ChatTrigger",
    "CacheCurve",
    "CachePoint",
    "Context",
    "ContextParams",
    "ContextType",
    "Device",
    "DeviceMemory",
    "DeviceType",
    "Diagnosis",
    "EvalTensor",
    "ExpertSummary",
    "Finding",
    "Fit",
    "FlashAttnType",
    "Ftype",
    "GgmlType",
    "Gguf",
    "GgufTensor",
    "GgufType",
    "LayerExperts",
    "LazyMode",
    "ListedModel",
    "LoadMode",
    "LoraAdapter",
    "MemoryBreakdown",
    "Model",
    "ModelCard",
    "ModelParams",
    "MoeCacheStats",
    "MtpSpeculative",
    "MtpSpeculativeParams",
    "NumaStrategy",
    "Piece",
    "PlacedOverride",
    "PlacedTensor",
    "Plan",
    "PoolingType",
    "ProcessType",
    "QuantizeResult",
    "QuantizedTensor",
    "RopeScalingType",
    "RopeType",
    "RoutingRecorder",
    "Sampler",
    "SamplerTimings",
    "SchedPriority",
    "SeqState",
    "Severity",
    "Speculative",
    "SpeculativeType",
    "SplitMode",
    "StateSeqFlags",
    "TensorObserver",
    "TensorOverride",
    "ThreadPool",
    "Timings",
    "TokenAttr",
    "TokenDataArray",
    "ToolCall",
    "ToolFunction",
    "TypeSummary",
    "VocabType",
    "add_rpc_server",
    "backends",
    "bench",
    "chat_builtin_templates",
    "default_devices",
    "devices",
    "doctor",
    "download",
    "experts",
    "ffi",
    "fit",
    "host_bandwidth",
    "init",
    "inspect",
    "json_schema_to_grammar",
    "lib",
    "list_models",
    "llama_cpp_version",
    "load_backends",
    "loopback_device",
    "max_devices",
    "plan",
    "quantize",
    "remove_rpc_server",
    "server",
    "set_log",
    "supports_gpu_offload",
    "supports_mlock",
    "supports_mmap",
    "supports_rpc",
    "system_info",
    "time_us",
]

#: Names that are imported when they are asked for: they need modules that most programs do not (subprocess, sockets).
_LAZY = {
    "CacheCurve": "moebind.placement.cache_curve",
    "CachePoint": "moebind.placement.cache_curve",
    "Diagnosis": "moebind.diagnosis.findings",
    "ExpertSummary": "moebind.placement.experts",
    "Finding": "moebind.diagnosis.findings",
    "Fit": "moebind.placement.fit",
    "LayerExperts": "moebind.placement.experts",
    "ListedModel": "moebind.placement.listing",
    "ModelCard": "moebind.files.model_card",
    "Plan": "moebind.placement.plan",
    "QuantizeResult": "moebind.files.quantize_plan",
    "QuantizedTensor": "moebind.files.quantize_plan",
    "RoutingRecorder": "moebind.placement.routing",
    "Severity": "moebind.diagnosis.findings",
    "TypeSummary": "moebind.files.model_card",
    "doctor": "moebind.diagnosis.findings",
    "download": "moebind.files.download",
    "experts": "moebind.placement.experts",
    "json_schema_to_grammar": "moebind.sampling.json_schema",
    "fit": "moebind.placement.fit",
    "host_bandwidth": "moebind.backend.bandwidth",
    "inspect": "moebind.files.model_card",
    "list_models": "moebind.placement.listing",
    "loopback_device": "moebind.backend.loopback",
    "plan": "moebind.placement.plan",
    "quantize": "moebind.files.quantize",
}
_LAZY_MODULES = frozenset({"bench", "server"})


def __getattr__(name: str) -> object:
    if name not in _LAZY and name not in _LAZY_MODULES:
        from moebind._core.other_names import refuse_module_name

        refuse_module_name(name, __all__)
    import importlib

    if name in _LAZY_MODULES:
        return importlib.import_module(f"moebind.{name}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, *_LAZY_MODULES})
