"""The public names, each with the module that it comes from.

Type checkers read this, and so does ``__init__.py``, which imports each when it is first asked for.
"""

from . import bench as bench
from . import mtmd as mtmd
from . import server as server
from ._core.log import set_log as set_log
from ._core.native import ffi as ffi
from ._core.native import lib as lib
from ._core.native import llama_cpp_version as llama_cpp_version
from .backend.bandwidth import host_bandwidth as host_bandwidth
from .backend.breakdown import (
    BufferMemory as BufferMemory,
)
from .backend.breakdown import (
    DeviceMemory as DeviceMemory,
)
from .backend.breakdown import (
    MemoryBreakdown as MemoryBreakdown,
)
from .backend.devices import (
    Device as Device,
)
from .backend.devices import (
    backends as backends,
)
from .backend.devices import (
    default_devices as default_devices,
)
from .backend.devices import (
    devices as devices,
)
from .backend.devices import (
    init as init,
)
from .backend.devices import (
    load_backends as load_backends,
)
from .backend.devices import (
    max_devices as max_devices,
)
from .backend.devices import (
    supports_gpu_offload as supports_gpu_offload,
)
from .backend.devices import (
    supports_mlock as supports_mlock,
)
from .backend.devices import (
    supports_mmap as supports_mmap,
)
from .backend.devices import (
    supports_rpc as supports_rpc,
)
from .backend.devices import (
    system_info as system_info,
)
from .backend.devices import (
    time_us as time_us,
)
from .backend.loopback import loopback_device as loopback_device
from .backend.rpc_servers import add_rpc_server as add_rpc_server
from .backend.rpc_servers import remove_rpc_server as remove_rpc_server
from .backend.threadpool import ThreadPool as ThreadPool
from .backend.timings import MoeCacheStats as MoeCacheStats
from .backend.timings import SamplerTimings as SamplerTimings
from .backend.timings import Timings as Timings
from .chat.prompt import (
    ChatMessage as ChatMessage,
)
from .chat.prompt import (
    ChatPrompt as ChatPrompt,
)
from .chat.prompt import (
    ChatTrigger as ChatTrigger,
)
from .chat.prompt import (
    ToolCall as ToolCall,
)
from .chat.prompt import (
    ToolFunction as ToolFunction,
)
from .chat.templates import chat_builtin_templates as chat_builtin_templates
from .context.async_generation import AsyncChatReply as AsyncChatReply
from .context.async_generation import AsyncPieces as AsyncPieces
from .context.batch import Batch as Batch
from .context.batch_ext import BatchExt as BatchExt
from .context.context import Context as Context
from .context.engine import Engine as Engine
from .context.generate_many import NumberedPieces as NumberedPieces
from .context.mtp_speculative import (
    MtpSpeculative as MtpSpeculative,
)
from .context.mtp_speculative import (
    MtpSpeculativeParams as MtpSpeculativeParams,
)
from .context.pieces import (
    Completion as Completion,
)
from .context.pieces import (
    Piece as Piece,
)
from .context.pieces import (
    Pieces as Pieces,
)
from .context.pieces import (
    TokenLogprob as TokenLogprob,
)
from .context.pieces import (
    Usage as Usage,
)
from .context.pool import ContextPool as ContextPool
from .context.replies import ChatDelta as ChatDelta
from .context.replies import ChatReply as ChatReply
from .context.replies import ToolCallDelta as ToolCallDelta
from .context.speculative import Speculative as Speculative
from .diagnosis.diagnosis import Diagnosis as Diagnosis
from .diagnosis.diagnosis import Finding as Finding
from .diagnosis.diagnosis import Severity as Severity
from .diagnosis.findings import doctor as doctor
from .enums import (
    AttentionType as AttentionType,
)
from .enums import (
    ContextType as ContextType,
)
from .enums import (
    DeviceType as DeviceType,
)
from .enums import (
    FlashAttnType as FlashAttnType,
)
from .enums import (
    Ftype as Ftype,
)
from .enums import (
    GgmlType as GgmlType,
)
from .enums import (
    GgufType as GgufType,
)
from .enums import (
    LazyMode as LazyMode,
)
from .enums import (
    LoadMode as LoadMode,
)
from .enums import (
    NumaStrategy as NumaStrategy,
)
from .enums import (
    PoolingType as PoolingType,
)
from .enums import (
    ProcessType as ProcessType,
)
from .enums import (
    RopeScalingType as RopeScalingType,
)
from .enums import (
    RopeType as RopeType,
)
from .enums import (
    SchedPriority as SchedPriority,
)
from .enums import (
    SpeculativeType as SpeculativeType,
)
from .enums import (
    SplitMode as SplitMode,
)
from .enums import (
    StateSeqFlags as StateSeqFlags,
)
from .enums import (
    TokenAttr as TokenAttr,
)
from .enums import (
    VocabType as VocabType,
)
from .errors import (
    AbortedError as AbortedError,
)
from .errors import (
    BatchError as BatchError,
)
from .errors import (
    ChatTemplateError as ChatTemplateError,
)
from .errors import (
    ClosedError as ClosedError,
)
from .errors import (
    ContextCreationError as ContextCreationError,
)
from .errors import (
    DecodeError as DecodeError,
)
from .errors import (
    EmbeddingsError as EmbeddingsError,
)
from .errors import (
    EncodeError as EncodeError,
)
from .errors import (
    EngineFullError as EngineFullError,
)
from .errors import (
    FitError as FitError,
)
from .errors import (
    GrammarError as GrammarError,
)
from .errors import (
    LoraError as LoraError,
)
from .errors import (
    LoraNotFoundError as LoraNotFoundError,
)
from .errors import (
    ModelLoadError as ModelLoadError,
)
from .errors import (
    ModelNotFoundError as ModelNotFoundError,
)
from .errors import (
    MoebindError as MoebindError,
)
from .errors import (
    MtmdError as MtmdError,
)
from .errors import (
    MtmdNotFoundError as MtmdNotFoundError,
)
from .errors import (
    NativeError as NativeError,
)
from .errors import (
    NoKvSlotError as NoKvSlotError,
)
from .errors import (
    QuantizeError as QuantizeError,
)
from .errors import (
    RpcServerError as RpcServerError,
)
from .errors import (
    SamplerError as SamplerError,
)
from .errors import (
    ServerError as ServerError,
)
from .errors import (
    SpeculativeError as SpeculativeError,
)
from .errors import (
    StateError as StateError,
)
from .errors import (
    StateNotFoundError as StateNotFoundError,
)
from .errors import (
    TokenizeError as TokenizeError,
)
from .files.download import download as download
from .files.gguf import Gguf as Gguf
from .files.gguf import GgufTensor as GgufTensor
from .files.model_card import ModelCard as ModelCard
from .files.model_card import TypeSummary as TypeSummary
from .files.model_card import inspect as inspect
from .files.quantize import quantize as quantize
from .files.quantize_plan import QuantizedTensor as QuantizedTensor
from .files.quantize_plan import QuantizeResult as QuantizeResult
from .model.adapters import LoraAdapter as LoraAdapter
from .model.model import Model as Model
from .params.draft import Draft as Draft
from .params.observers import EvalTensor as EvalTensor
from .params.observers import TensorObserver as TensorObserver
from .params.params import ContextParams as ContextParams
from .params.params import ModelParams as ModelParams
from .params.tensor_overrides import (
    PlacedOverride as PlacedOverride,
)
from .params.tensor_overrides import (
    PlacedTensor as PlacedTensor,
)
from .params.tensor_overrides import (
    TensorOverride as TensorOverride,
)
from .placement.cache_curve import CacheCurve as CacheCurve
from .placement.cache_curve import CachePoint as CachePoint
from .placement.experts import ExpertSummary as ExpertSummary
from .placement.experts import LayerExperts as LayerExperts
from .placement.experts import experts as experts
from .placement.fit import Fit as Fit
from .placement.fit import fit as fit
from .placement.listing import ListedModel as ListedModel
from .placement.listing import list_models as list_models
from .placement.plan import Plan as Plan
from .placement.plan import plan as plan
from .placement.routing import RoutingRecorder as RoutingRecorder
from .sampling.candidates import TokenDataArray as TokenDataArray
from .sampling.json_schema import json_schema_to_grammar as json_schema_to_grammar
from .sampling.sampler import Sampler as Sampler
from .state.seq_state import SeqState as SeqState
from .tuning.result import Tuning as Tuning
from .tuning.tune import tune as tune

__version__: str
