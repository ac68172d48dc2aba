"""The exceptions that moebind raises.

Every exception of moebind's own derives from :class:`MoebindError`. Wrong Python types are ``TypeError``, values out of
range ``ValueError`` or ``IndexError``, as everywhere in Python.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = [
    "AbortedError",
    "BatchError",
    "ChatTemplateError",
    "ClosedError",
    "ContextCreationError",
    "DecodeError",
    "EmbeddingsError",
    "EncodeError",
    "EngineFullError",
    "FitError",
    "GrammarError",
    "LoraError",
    "LoraNotFoundError",
    "ModelLoadError",
    "ModelNotFoundError",
    "MoebindError",
    "MtmdError",
    "MtmdNotFoundError",
    "NativeError",
    "NoKvSlotError",
    "QuantizeError",
    "RpcServerError",
    "SamplerError",
    "ServerError",
    "SpeculativeError",
    "StateError",
    "StateNotFoundError",
    "TokenizeError",
]


class MoebindError(Exception):
    """Base class of all of moebind's own exceptions."""


class NativeError(MoebindError):
    """A failed assertion or a C++ exception inside llama.cpp; the process goes on.

    An object that was in use when an assertion failed may be half changed: close it.
    """

    @property
    def message(self) -> str:
        """The text of llama.cpp's error, with file and line for an assertion."""
        return str(self.args[0]) if self.args else ""


class RpcServerError(MoebindError):
    """An RPC server cannot be used: it does not answer, answers wrongly, or went away while something used it.

    Models and contexts that used it cannot compute any more; close them.

    Attributes
    ----------
    endpoint : str
        The server, as ``"host:port"``.
    """

    def __init__(self, message: str, endpoint: str) -> None:
        super().__init__(message, endpoint)
        self.endpoint = endpoint

    def __str__(self) -> str:
        return str(self.args[0])


class ClosedError(MoebindError):
    """The object was used after its ``close()``, or after its ownership went to another object.

    That includes a generation whose sequence another call took over or changed.
    """


class ModelLoadError(MoebindError):
    """The model could not be loaded; the message ends with the last lines that llama.cpp logged."""


class ModelNotFoundError(ModelLoadError, FileNotFoundError):
    """The model's file, or one of its splits, does not exist."""


class ContextCreationError(MoebindError):
    """The context could not be made; the message ends with the last lines that llama.cpp logged."""


class DecodeError(MoebindError):
    """``llama_decode`` did not process the batch.

    Attributes
    ----------
    code : int
        What ``llama_decode`` returned: 1 no room in the cache, 2 aborted, -1 invalid batch, below -1 fatal.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message, code)
        self.code = code

    def __str__(self) -> str:
        return str(self.args[0])


class NoKvSlotError(DecodeError):
    """No room in the KV cache for the batch (code 1). The context is as it was before the call."""


class AbortedError(DecodeError):
    """Stopped by ``Context.abort()`` or an abort callback (code 2). What was processed before stays in the cache."""


class EncodeError(MoebindError):
    """``llama_encode`` did not process the batch; ``code`` is what it returned."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message, code)
        self.code = code

    def __str__(self) -> str:
        return str(self.args[0])


class BatchError(MoebindError, ValueError):
    """Something cannot be added to a batch, or the batch cannot be processed as it is."""


class EngineFullError(MoebindError):
    """An engine has as many requests as it may have: wait until one ends, or tell the client to come back later."""


class EmbeddingsError(MoebindError):
    """There are no embeddings to read; the message says what to switch on."""


class GrammarError(MoebindError, ValueError):
    """A grammar or a JSON schema cannot be used."""


class SamplerError(MoebindError):
    """A sampler cannot do what was asked of it."""


class TokenizeError(MoebindError, ValueError):
    """Text could not be turned into tokens, or tokens into text."""


class ChatTemplateError(MoebindError):
    """A chat template is missing or cannot be rendered."""


class StateError(MoebindError):
    """A state could not be saved, is damaged, or belongs to another model or kind of cache."""


class StateNotFoundError(StateError, FileNotFoundError):
    """The file of a saved state, or the folder to save it in, does not exist."""


class LoraError(MoebindError):
    """A LoRA adapter could not be loaded or applied."""


class LoraNotFoundError(LoraError, FileNotFoundError):
    """The adapter's file does not exist."""


class FitError(MoebindError):
    """No placement fits into the given memory.

    Attributes
    ----------
    missing : Mapping[str, int]
        The bytes that each device lacks, and ``"Host"``, with the placement that comes closest, as far as is known.
    """

    def __init__(self, message: str, missing: Mapping[str, int] | None = None) -> None:
        super().__init__(message, dict(missing or {}))
        self.missing: Mapping[str, int] = dict(missing or {})

    def __str__(self) -> str:
        return str(self.args[0])


class ServerError(MoebindError):
    """llama-server cannot be started, or ended; the message ends with the last lines that it wrote."""


class MtmdError(MoebindError):
    """A picture, a sound or a projector cannot be used; the message says why, with what llama.cpp logged."""


class MtmdNotFoundError(MtmdError, FileNotFoundError):
    """The projector's file does not exist."""


class SpeculativeError(MoebindError):
    """A draft cannot be used with a context, or a context cannot verify drafts; the message says why."""


class QuantizeError(MoebindError):
    """A model could not be quantised that way; the message ends with the last lines that llama.cpp logged."""
