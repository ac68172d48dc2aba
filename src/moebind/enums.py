"""Enumerations of llama.cpp's headers, with values read from the compiled library.

A value that only a newer llama.cpp knows passes through as a member named ``UNKNOWN_<value>``.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING

from moebind._core.native import lib

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "AttentionType",
    "ContextType",
    "DeviceType",
    "FlashAttnType",
    "Ftype",
    "GgmlType",
    "GgufType",
    "LazyMode",
    "LoadMode",
    "NumaStrategy",
    "PoolingType",
    "ProcessType",
    "RopeScalingType",
    "RopeType",
    "SchedPriority",
    "SpeculativeType",
    "SplitMode",
    "StateSeqFlags",
    "TokenAttr",
    "VocabType",
]


class _Open(IntEnum):
    """An enumeration that accepts unknown values, since libllama may know more than we do."""

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        if not isinstance(value, int):
            return None
        unknown = int.__new__(cls, value)
        unknown._name_ = f"UNKNOWN_{value}"
        unknown._value_ = value
        return unknown


class VocabType(_Open):
    """How a model turns text into tokens."""

    NONE = lib.LLAMA_VOCAB_TYPE_NONE
    """No vocabulary."""
    SPM = lib.LLAMA_VOCAB_TYPE_SPM
    """SentencePiece: byte-level BPE with byte fallback."""
    BPE = lib.LLAMA_VOCAB_TYPE_BPE
    """Byte-level BPE, as in GPT-2."""
    WPM = lib.LLAMA_VOCAB_TYPE_WPM
    """WordPiece, as in BERT."""
    UGM = lib.LLAMA_VOCAB_TYPE_UGM
    """Unigram, as in T5."""
    RWKV = lib.LLAMA_VOCAB_TYPE_RWKV
    """Greedy, as in RWKV."""
    PLAMO2 = lib.LLAMA_VOCAB_TYPE_PLAMO2
    """Aho-Corasick with dynamic programming, as in PLaMo-2."""
    TEST = lib.LLAMA_VOCAB_TYPE_TEST
    """llama.cpp's dummy tokenizer for tests."""
    PLAMO3 = lib.LLAMA_VOCAB_TYPE_PLAMO3
    """Segments first, then dynamic programming, as in PLaMo-3."""


class RopeType(_Open):
    """The kind of rotary position embedding."""

    NONE = lib.LLAMA_ROPE_TYPE_NONE
    """No rotary positions."""
    NORM = lib.LLAMA_ROPE_TYPE_NORM
    """Adjacent pairs."""
    NEOX = lib.LLAMA_ROPE_TYPE_NEOX
    """Halves, as in GPT-NeoX."""
    MROPE = lib.LLAMA_ROPE_TYPE_MROPE
    """Several position axes."""
    IMROPE = lib.LLAMA_ROPE_TYPE_IMROPE
    """Several position axes, interleaved."""
    VISION = lib.LLAMA_ROPE_TYPE_VISION
    """Vision encoders."""


class RopeScalingType(_Open):
    """How rotary positions are stretched beyond the trained context."""

    UNSPECIFIED = lib.LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED
    """As the model says."""
    NONE = lib.LLAMA_ROPE_SCALING_TYPE_NONE
    """Not at all."""
    LINEAR = lib.LLAMA_ROPE_SCALING_TYPE_LINEAR
    """Linearly."""
    YARN = lib.LLAMA_ROPE_SCALING_TYPE_YARN
    """YaRN."""
    LONGROPE = lib.LLAMA_ROPE_SCALING_TYPE_LONGROPE
    """LongRoPE."""


class PoolingType(_Open):
    """How token embeddings become one embedding per sequence."""

    UNSPECIFIED = lib.LLAMA_POOLING_TYPE_UNSPECIFIED
    """As the model says."""
    NONE = lib.LLAMA_POOLING_TYPE_NONE
    """Not at all: one embedding per token."""
    MEAN = lib.LLAMA_POOLING_TYPE_MEAN
    """Their mean."""
    CLS = lib.LLAMA_POOLING_TYPE_CLS
    """The embedding of the first token."""
    LAST = lib.LLAMA_POOLING_TYPE_LAST
    """The embedding of the last token."""
    RANK = lib.LLAMA_POOLING_TYPE_RANK
    """A classification head: scores of a reranker."""


class AttentionType(_Open):
    """Which other tokens a token may see."""

    UNSPECIFIED = lib.LLAMA_ATTENTION_TYPE_UNSPECIFIED
    """As the model says."""
    CAUSAL = lib.LLAMA_ATTENTION_TYPE_CAUSAL
    """Itself and what comes before."""
    NON_CAUSAL = lib.LLAMA_ATTENTION_TYPE_NON_CAUSAL
    """Everything in its batch."""


class FlashAttnType(_Open):
    """Whether fused attention kernels are used."""

    AUTO = lib.LLAMA_FLASH_ATTN_TYPE_AUTO
    """If the device has them."""
    DISABLED = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    """Never."""
    ENABLED = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
    """Always; if that is impossible, making the context fails."""


class SplitMode(_Open):
    """How a model is spread over several devices."""

    NONE = lib.LLAMA_SPLIT_MODE_NONE
    """Not at all: one device takes everything (``main_gpu``)."""
    LAYER = lib.LLAMA_SPLIT_MODE_LAYER
    """Whole layers, with their KV cache."""
    ROW = lib.LLAMA_SPLIT_MODE_ROW
    """Layers, and rows of matrices if the backend supports it."""
    TENSOR = lib.LLAMA_SPLIT_MODE_TENSOR
    """Every tensor over all devices (experimental)."""


class LoadMode(_Open):
    """How a model's file is read."""

    AUTO = lib.LLAMA_LOAD_MODE_AUTO
    """Mapped, unless a device cannot use that."""
    NONE = lib.LLAMA_LOAD_MODE_NONE
    """Read into memory."""
    MMAP = lib.LLAMA_LOAD_MODE_MMAP
    """Mapped."""
    MLOCK = lib.LLAMA_LOAD_MODE_MLOCK
    """Read, and locked in memory."""
    MMAP_MLOCK = lib.LLAMA_LOAD_MODE_MMAP_MLOCK
    """Mapped, and locked in memory."""
    DIRECT_IO = lib.LLAMA_LOAD_MODE_DIRECT_IO
    """Read, bypassing the system's cache."""


class LazyMode(_Open):
    """Whether rows of large tensors are read only when they are needed.

    llama.cpp marks them by architecture: what a model looks up for each layer and token. They are mapped, however the
    rest of the file is read.
    """

    OFF = lib.LLAMA_LAZY_MODE_OFF
    """Never."""
    AUTO = lib.LLAMA_LAZY_MODE_AUTO
    """For marked tensors above 4 GiB."""
    ON = lib.LLAMA_LAZY_MODE_ON
    """For all marked tensors."""


class ContextType(_Open):
    """The part of a model that a context computes."""

    DEFAULT = lib.LLAMA_CONTEXT_TYPE_DEFAULT
    """The model."""
    MTP = lib.LLAMA_CONTEXT_TYPE_MTP
    """The model's multi-token prediction layers."""


class SpeculativeType(_Open):
    """What drafts tokens for speculative decoding. llama.cpp's ``--spec-type`` has the names with hyphens."""

    DRAFT_SIMPLE = lib.MOEBIND_SPECULATIVE_DRAFT_SIMPLE
    """A smaller model with the same vocabulary."""
    DRAFT_EAGLE3 = lib.MOEBIND_SPECULATIVE_DRAFT_EAGLE3
    """An EAGLE-3 model, which reads hidden states of the target."""
    DRAFT_MTP = lib.MOEBIND_SPECULATIVE_DRAFT_MTP
    """The target's own layers for multi-token prediction."""
    DRAFT_DFLASH = lib.MOEBIND_SPECULATIVE_DRAFT_DFLASH
    """A DFlash model, which drafts a block at once."""
    DRAFT_DSPARK = lib.MOEBIND_SPECULATIVE_DRAFT_DSPARK
    """A DFlash model with a Markov head."""
    NGRAM_SIMPLE = lib.MOEBIND_SPECULATIVE_NGRAM_SIMPLE
    """What followed the last time that the text had these tokens."""
    NGRAM_MAP_K = lib.MOEBIND_SPECULATIVE_NGRAM_MAP_K
    """As NGRAM_SIMPLE, with a table of the n-grams and of how much was accepted."""
    NGRAM_MAP_K4V = lib.MOEBIND_SPECULATIVE_NGRAM_MAP_K4V
    """As NGRAM_MAP_K, with up to four continuations of each n-gram."""
    NGRAM_MOD = lib.MOEBIND_SPECULATIVE_NGRAM_MOD
    """A table of hashes of long n-grams, which all sequences share."""
    NGRAM_CACHE = lib.MOEBIND_SPECULATIVE_NGRAM_CACHE
    """Counts of short n-grams."""


class NumaStrategy(_Open):
    """How threads are placed on a machine with several memory nodes."""

    DISABLED = lib.GGML_NUMA_STRATEGY_DISABLED
    """Not at all."""
    DISTRIBUTE = lib.GGML_NUMA_STRATEGY_DISTRIBUTE
    """Spread over all nodes."""
    ISOLATE = lib.GGML_NUMA_STRATEGY_ISOLATE
    """On the node that started the process."""
    NUMACTL = lib.GGML_NUMA_STRATEGY_NUMACTL
    """As numactl decides."""
    MIRROR = lib.GGML_NUMA_STRATEGY_MIRROR
    """Reserved by ggml."""


class DeviceType(_Open):
    """The kind of memory and processor that a device has."""

    CPU = lib.GGML_BACKEND_DEVICE_TYPE_CPU
    """The processor, in system memory."""
    GPU = lib.GGML_BACKEND_DEVICE_TYPE_GPU
    """A graphics card with memory of its own; an RPC server counts as one."""
    IGPU = lib.GGML_BACKEND_DEVICE_TYPE_IGPU
    """A graphics processor in system memory."""
    ACCEL = lib.GGML_BACKEND_DEVICE_TYPE_ACCEL
    """An accelerator that is used along with the CPU, such as BLAS."""
    META = lib.GGML_BACKEND_DEVICE_TYPE_META
    """Several devices as one."""


class GgmlType(_Open):
    """The type of a tensor, quantised or not."""

    F32 = lib.GGML_TYPE_F32
    F16 = lib.GGML_TYPE_F16
    Q4_0 = lib.GGML_TYPE_Q4_0
    Q4_1 = lib.GGML_TYPE_Q4_1
    Q5_0 = lib.GGML_TYPE_Q5_0
    Q5_1 = lib.GGML_TYPE_Q5_1
    Q8_0 = lib.GGML_TYPE_Q8_0
    Q8_1 = lib.GGML_TYPE_Q8_1
    Q2_K = lib.GGML_TYPE_Q2_K
    Q3_K = lib.GGML_TYPE_Q3_K
    Q4_K = lib.GGML_TYPE_Q4_K
    Q5_K = lib.GGML_TYPE_Q5_K
    Q6_K = lib.GGML_TYPE_Q6_K
    Q8_K = lib.GGML_TYPE_Q8_K
    IQ2_XXS = lib.GGML_TYPE_IQ2_XXS
    IQ2_XS = lib.GGML_TYPE_IQ2_XS
    IQ3_XXS = lib.GGML_TYPE_IQ3_XXS
    IQ1_S = lib.GGML_TYPE_IQ1_S
    IQ4_NL = lib.GGML_TYPE_IQ4_NL
    IQ3_S = lib.GGML_TYPE_IQ3_S
    IQ2_S = lib.GGML_TYPE_IQ2_S
    IQ4_XS = lib.GGML_TYPE_IQ4_XS
    I8 = lib.GGML_TYPE_I8
    I16 = lib.GGML_TYPE_I16
    I32 = lib.GGML_TYPE_I32
    I64 = lib.GGML_TYPE_I64
    F64 = lib.GGML_TYPE_F64
    IQ1_M = lib.GGML_TYPE_IQ1_M
    BF16 = lib.GGML_TYPE_BF16
    TQ1_0 = lib.GGML_TYPE_TQ1_0
    TQ2_0 = lib.GGML_TYPE_TQ2_0
    MXFP4 = lib.GGML_TYPE_MXFP4
    NVFP4 = lib.GGML_TYPE_NVFP4
    Q1_0 = lib.GGML_TYPE_Q1_0
    Q2_0 = lib.GGML_TYPE_Q2_0


class Ftype(_Open):
    """The quantisation of a whole file: the type of most of its tensors."""

    ALL_F32 = lib.LLAMA_FTYPE_ALL_F32
    F16 = lib.LLAMA_FTYPE_MOSTLY_F16
    Q4_0 = lib.LLAMA_FTYPE_MOSTLY_Q4_0
    Q4_1 = lib.LLAMA_FTYPE_MOSTLY_Q4_1
    Q8_0 = lib.LLAMA_FTYPE_MOSTLY_Q8_0
    Q5_0 = lib.LLAMA_FTYPE_MOSTLY_Q5_0
    Q5_1 = lib.LLAMA_FTYPE_MOSTLY_Q5_1
    Q2_K = lib.LLAMA_FTYPE_MOSTLY_Q2_K
    Q3_K_S = lib.LLAMA_FTYPE_MOSTLY_Q3_K_S
    Q3_K_M = lib.LLAMA_FTYPE_MOSTLY_Q3_K_M
    Q3_K_L = lib.LLAMA_FTYPE_MOSTLY_Q3_K_L
    Q4_K_S = lib.LLAMA_FTYPE_MOSTLY_Q4_K_S
    Q4_K_M = lib.LLAMA_FTYPE_MOSTLY_Q4_K_M
    Q5_K_S = lib.LLAMA_FTYPE_MOSTLY_Q5_K_S
    Q5_K_M = lib.LLAMA_FTYPE_MOSTLY_Q5_K_M
    Q6_K = lib.LLAMA_FTYPE_MOSTLY_Q6_K
    IQ2_XXS = lib.LLAMA_FTYPE_MOSTLY_IQ2_XXS
    IQ2_XS = lib.LLAMA_FTYPE_MOSTLY_IQ2_XS
    Q2_K_S = lib.LLAMA_FTYPE_MOSTLY_Q2_K_S
    IQ3_XS = lib.LLAMA_FTYPE_MOSTLY_IQ3_XS
    IQ3_XXS = lib.LLAMA_FTYPE_MOSTLY_IQ3_XXS
    IQ1_S = lib.LLAMA_FTYPE_MOSTLY_IQ1_S
    IQ4_NL = lib.LLAMA_FTYPE_MOSTLY_IQ4_NL
    IQ3_S = lib.LLAMA_FTYPE_MOSTLY_IQ3_S
    IQ3_M = lib.LLAMA_FTYPE_MOSTLY_IQ3_M
    IQ2_S = lib.LLAMA_FTYPE_MOSTLY_IQ2_S
    IQ2_M = lib.LLAMA_FTYPE_MOSTLY_IQ2_M
    IQ4_XS = lib.LLAMA_FTYPE_MOSTLY_IQ4_XS
    IQ1_M = lib.LLAMA_FTYPE_MOSTLY_IQ1_M
    BF16 = lib.LLAMA_FTYPE_MOSTLY_BF16
    TQ1_0 = lib.LLAMA_FTYPE_MOSTLY_TQ1_0
    TQ2_0 = lib.LLAMA_FTYPE_MOSTLY_TQ2_0
    MXFP4_MOE = lib.LLAMA_FTYPE_MOSTLY_MXFP4_MOE
    NVFP4 = lib.LLAMA_FTYPE_MOSTLY_NVFP4
    Q1_0 = lib.LLAMA_FTYPE_MOSTLY_Q1_0
    Q2_0 = lib.LLAMA_FTYPE_MOSTLY_Q2_0
    GUESSED = lib.LLAMA_FTYPE_GUESSED


class GgufType(_Open):
    """The type of a metadata value in a GGUF file."""

    UINT8 = lib.GGUF_TYPE_UINT8
    INT8 = lib.GGUF_TYPE_INT8
    UINT16 = lib.GGUF_TYPE_UINT16
    INT16 = lib.GGUF_TYPE_INT16
    UINT32 = lib.GGUF_TYPE_UINT32
    INT32 = lib.GGUF_TYPE_INT32
    FLOAT32 = lib.GGUF_TYPE_FLOAT32
    BOOL = lib.GGUF_TYPE_BOOL
    STRING = lib.GGUF_TYPE_STRING
    ARRAY = lib.GGUF_TYPE_ARRAY
    UINT64 = lib.GGUF_TYPE_UINT64
    INT64 = lib.GGUF_TYPE_INT64
    FLOAT64 = lib.GGUF_TYPE_FLOAT64


class TokenAttr(IntFlag):
    """The kind of a token."""

    UNDEFINED = lib.LLAMA_TOKEN_ATTR_UNDEFINED
    """The file says nothing."""
    UNKNOWN = lib.LLAMA_TOKEN_ATTR_UNKNOWN
    """Stands for text that no token has."""
    UNUSED = lib.LLAMA_TOKEN_ATTR_UNUSED
    """Reserved."""
    NORMAL = lib.LLAMA_TOKEN_ATTR_NORMAL
    """Text."""
    CONTROL = lib.LLAMA_TOKEN_ATTR_CONTROL
    """Controls the model, as the end of a turn does."""
    USER_DEFINED = lib.LLAMA_TOKEN_ATTR_USER_DEFINED
    """Added to the vocabulary: its text is never cut."""
    BYTE = lib.LLAMA_TOKEN_ATTR_BYTE
    """One byte, for text that no other token has."""
    NORMALIZED = lib.LLAMA_TOKEN_ATTR_NORMALIZED
    """Looked for in normalised text."""
    LSTRIP = lib.LLAMA_TOKEN_ATTR_LSTRIP
    """Takes in the white space before it."""
    RSTRIP = lib.LLAMA_TOKEN_ATTR_RSTRIP
    """Takes in the white space after it."""
    SINGLE_WORD = lib.LLAMA_TOKEN_ATTR_SINGLE_WORD
    """Only where it is a whole word."""


class StateSeqFlags(IntFlag):
    """The content of a sequence's saved state, and where it is kept."""

    NONE = lib.LLAMA_STATE_SEQ_FLAGS_NONE
    """All of it, in host memory."""
    PARTIAL_ONLY = lib.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
    """Only what cannot be rolled back in another way: sliding-window and recurrent state."""
    ON_DEVICE = lib.LLAMA_STATE_SEQ_FLAGS_ON_DEVICE
    """The data stays in the devices' memory: faster, but it works only in this context."""


class SchedPriority(_Open):
    """How the operating system schedules threads."""

    LOW = lib.GGML_SCHED_PRIO_LOW
    """After others."""
    NORMAL = lib.GGML_SCHED_PRIO_NORMAL
    """Like any other."""
    MEDIUM = lib.GGML_SCHED_PRIO_MEDIUM
    """Before most; needs privileges."""
    HIGH = lib.GGML_SCHED_PRIO_HIGH
    """Before nearly all; needs privileges."""
    REALTIME = lib.GGML_SCHED_PRIO_REALTIME
    """Before all; needs privileges."""


class ProcessType(_Open):
    """The part of a model that processes an extended batch."""

    ENCODE = lib.LLAMA_PROCESS_TYPE_ENCODE
    """The encoder."""
    DECODE = lib.LLAMA_PROCESS_TYPE_DECODE
    """The decoder."""
