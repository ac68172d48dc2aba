"""Models."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from moebind import checks, files, log, overrides, rpc
from moebind._fork import renewed
from moebind._native import CData, Hooks, decoded, ffi, hold, lib, own, text_from
from moebind._owner import Owner, close_all
from moebind.adapters import LoraAdapter
from moebind.chat import ChatTemplates
from moebind.embedding import Embedding
from moebind.enums import DeviceType, Ftype, RopeType
from moebind.errors import ModelLoadError, NativeError, RpcServerError
from moebind.gguf import Gguf
from moebind.header_checks import check_model
from moebind.native_params import native_model_params
from moebind.overrides import PlacedOverride, PlacedTensor
from moebind.params import ContextParams, ModelParams
from moebind.pretrained import Pretrained, checked_params
from moebind.process import Device, describe, init, leases, native_devices, users
from moebind.progress import progress_bar
from moebind.saving import Saving

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moebind.context import Context
    from moebind.sampler import Sampler

__all__ = ["Model"]

_warned_no_device = False
_SAMPLING_KEYS = range(lib.LLAMA_MODEL_META_KEY_SAMPLING_SEQUENCE, lib.LLAMA_MODEL_META_KEY_SAMPLING_MIROSTAT_ETA + 1)


class Model(ChatTemplates, Embedding, Pretrained, Saving):
    """A loaded model. Made by :meth:`load_from_file`.

    Use it as a context manager, or close it, because it takes a lot of memory. Closing it closes its contexts first.

    Examples
    --------
    >>> with Model.load_from_file("moe.gguf", ModelParams().with_cpu_moe_all()) as model:
    ...     print(model.desc, model.n_expert, model.placement[0])
    """

    _warn_unclosed = True

    def __init__(self, *_arguments: object, **_keywords: object) -> None:
        raise TypeError("models are made by Model.load_from_file(path, params)")

    @classmethod
    def load_from_file(cls, path: str | os.PathLike[str], params: ModelParams | None = None) -> Model:
        """Load a model from a GGUF file.

        Parameters
        ----------
        path
            The file, or any file of a split model (``NAME-00001-of-00004.gguf``) with the others in the same folder.
        params
            How to load it; None: llama.cpp's defaults.

        Returns
        -------
        Model

        Raises
        ------
        ModelNotFoundError
            If a file does not exist.
        ModelLoadError
            If it cannot be loaded, contains something that llama.cpp would not survive (the message names the field), a
            tensor override matches nothing, or the progress callback stopped it.
        ValueError
            If an override's target, or a device, does not exist.

        Notes
        -----
        Uses ``llama_model_load_from_file``. Ctrl-C stops a load.
        """
        return cls._load(Gguf._from_local(checks.path("path", path)), params, split=False)

    @classmethod
    def load_from_splits(cls, paths: Sequence[str | os.PathLike[str]], params: ModelParams | None = None) -> Model:
        """Load a model from several files with any names.

        Parameters
        ----------
        paths
            All files, in order.
        params
            As for :meth:`load_from_file`, which also lists the exceptions.

        Notes
        -----
        Uses ``llama_model_load_from_splits``.
        """
        if isinstance(paths, (str, os.PathLike)):
            raise TypeError("paths is one path; it takes a sequence of them, or use load_from_file")
        names = [checks.path("paths", path) for path in paths]
        if not names:
            raise ValueError("paths is empty; it takes the files of a model")
        return cls._load(Gguf._from_files(names), params, split=True)

    @classmethod
    def _load(cls, file: Gguf, params: ModelParams | None, split: bool) -> Model:
        chosen = checked_params(params)
        init()
        check_model(file, chosen.kv_overrides, vocab_only=chosen.vocab_only, mapped=chosen.use_mmap)
        model: Model | None = None
        try:
            with rpc.watched(rpc.before_load(chosen)):
                model = cls._load_natively(file, chosen, split)
                rpc.settle(model._servers)
            return model
        except RpcServerError as error:
            if model is not None:
                model.close()
            raise ModelLoadError(f"{file.path} could not be loaded: {error}") from error

    @classmethod
    def _load_natively(cls, file: Gguf, chosen: ModelParams, split: bool) -> Model:
        paths = file.paths
        rules = overrides.resolve(chosen.tensor_overrides, list(file.tensors), paths[0])
        _warn_without_device(chosen)
        progress, finish = _progress_of(chosen, os.path.basename(paths[0]))
        hooks = Hooks(progress=progress)
        native, keep = native_model_params(chosen, rules, hooks)
        encoded = [ffi.new("char[]", os.fsencode(path)) for path in paths]
        lib.moebind_log_forget()
        try:
            if split:
                pointer = lib.llama_model_load_from_splits(encoded, len(encoded), native[0])
            else:
                pointer = lib.llama_model_load_from_file(encoded[0], native[0])
        except NativeError as error:
            raise ModelLoadError(f"{paths[0]} could not be loaded: {error.message}{log.recent_lines()}") from error
        finally:
            finish()
            del keep
        if hooks.stopped:
            raise ModelLoadError(f"{paths[0]}: the progress callback stopped the load")
        if not pointer:
            raise ModelLoadError(f"{paths[0]} could not be loaded{log.recent_lines()}")
        model = cls.__new__(cls)
        used = [*_devices_of(pointer), *rules.devices()]
        names = {decoded(lib.ggml_backend_dev_name(device)) for device in used}
        model._servers = rpc.endpoints_of(used)
        model._pointer = own(pointer, lib.llama_model_free, *(leases[name] for name in names if name in leases))
        model._vocab = own(lib.llama_model_get_vocab(pointer), hold, model._pointer)
        model._n_vocab = int(lib.llama_vocab_n_tokens(model._vocab))
        model._params, model._paths, model._rules = chosen, paths, rules
        model._files = {os.path.abspath(path): files.signature(path) for path in paths}
        model._meta = model._fingerprint = None
        model._listing = renewed(threading.RLock())
        model._children = WeakSet()
        for name in names:
            users.setdefault(name, WeakSet()).add(model)
        return model

    _params: ModelParams
    _paths: tuple[str, ...]
    _rules: overrides.Resolved
    _meta: Mapping[str, str] | None
    #: Its files as they were when it was loaded, and what tells the model from others.
    _files: dict[str, files.Signature]
    _fingerprint: bytes | None
    #: A model lists its adapters, and its contexts read the list when they make graphs: one thread at a time.
    #: Reentrant, since an adapter may be collected in the thread that holds it.
    _listing: threading.RLock
    #: RPC servers that hold parts of it.
    _servers: tuple[str, ...]
    #: Contexts and adapters.
    _children: WeakSet[Owner]

    def close(self) -> None:
        """Close the model's contexts, then free it, once no view of them is left (``llama_model_free``).

        Closing twice does nothing.
        """
        if self._pointer is not None:
            close_all(self._children)
            self._vocab = None
            self._ready = None
            super().close()

    def __repr__(self) -> str:
        return "<Model, closed>" if self.closed else f"<Model {self.desc}>"

    def new_context(
        self,
        params: ContextParams | None = None,
        *,
        ctx_other: Context | None = None,
        samplers: Mapping[int, Sampler] | None = None,
    ) -> Context:
        """Make a context to compute with.

        Parameters
        ----------
        params
            How to make it; None: llama.cpp's defaults, with 512 tokens.
        ctx_other
            A context of the model that this one drafts for, if this model (EAGLE-3, DFlash, Gemma 4's assistant) takes
            embeddings or memory from it. It is kept as long as this one; other models ignore it.
        samplers
            Chains of samplers to run in the graph, by sequence; see :meth:`Context.set_sampler`.

        Raises
        ------
        ContextCreationError
            If llama.cpp cannot make it, or the parameters do not go together.
        SamplerError
            If one of ``samplers`` cannot be run in a graph.

        Notes
        -----
        Uses ``llama_init_from_model``.
        """
        from moebind.context import Context

        chosen = ContextParams() if params is None else params
        return Context(self, chosen, ctx_other=ctx_other, samplers=samplers)

    def lora_adapter_init(self, path: str | os.PathLike[str]) -> LoraAdapter:
        """Load a LoRA adapter for this model.

        Parameters
        ----------
        path
            A GGUF file, as llama.cpp's ``convert_lora_to_gguf.py`` writes it.

        Returns
        -------
        LoraAdapter
            For :meth:`Context.set_lora_adapters`. Its memory is beside that of the weights that it changes.

        Raises
        ------
        LoraNotFoundError
            If there is no such file.
        LoraError
            If it is not an adapter, or one of another model, or llama.cpp cannot apply it; the message names the field.

        Notes
        -----
        Uses ``llama_adapter_lora_init``.
        """
        return LoraAdapter._load(self, checks.path("path", path))

    # --- what it is ---

    @property
    def params(self) -> ModelParams:
        """What it was loaded with."""
        return self._params

    @property
    def path(self) -> str:
        """The file that it was loaded from, or the first one."""
        return self._paths[0]

    @property
    def meta(self) -> Mapping[str, str]:
        """The metadata of the file, as text; arrays are shortened.

        Uses ``llama_model_meta_count``, ``llama_model_meta_key_by_index`` and
        ``llama_model_meta_val_str_by_index``.
        """
        pointer = self._open()
        if self._meta is None:
            count = range(lib.llama_model_meta_count(pointer))
            keys = [text_from(lib.llama_model_meta_key_by_index, pointer, at) for at in count]
            values = [text_from(lib.llama_model_meta_val_str_by_index, pointer, at) for at in count]
            self._meta = MappingProxyType(dict(zip(keys, values, strict=True)))
        return self._meta

    @property
    def desc(self) -> str:
        """Architecture, size and type in a few words (``llama_model_desc``)."""
        return text_from(lib.llama_model_desc, self._open())

    @property
    def ftype(self) -> Ftype:
        """The type of most of its tensors (``llama_model_ftype``)."""
        return Ftype(lib.llama_model_ftype(self._open()))

    @property
    def size(self) -> int:
        """Bytes of all tensors (``llama_model_size``)."""
        return int(lib.llama_model_size(self._open()))

    @property
    def n_params(self) -> int:
        """How many parameters it has (``llama_model_n_params``)."""
        return int(lib.llama_model_n_params(self._open()))

    @property
    def n_ctx_train(self) -> int:
        """Tokens of context that it was trained with (``llama_model_n_ctx_train``)."""
        return int(lib.llama_model_n_ctx_train(self._open()))

    @property
    def n_embd(self) -> int:
        """Width of its embeddings (``llama_model_n_embd``)."""
        return int(lib.llama_model_n_embd(self._open()))

    @property
    def n_embd_inp(self) -> int:
        """Width of its input embeddings (``llama_model_n_embd_inp``)."""
        return int(lib.llama_model_n_embd_inp(self._open()))

    @property
    def n_embd_out(self) -> int:
        """Width of its output embeddings (``llama_model_n_embd_out``)."""
        return int(lib.llama_model_n_embd_out(self._open()))

    @property
    def n_layer(self) -> int:
        """Layers (``llama_model_n_layer``)."""
        return int(lib.llama_model_n_layer(self._open()))

    @property
    def n_head(self) -> int:
        """Attention heads (``llama_model_n_head``); 0 if only the vocabulary was loaded."""
        return 0 if self._params.vocab_only else int(lib.llama_model_n_head(self._open()))

    @property
    def n_head_kv(self) -> int:
        """Attention heads with keys and values of their own (``llama_model_n_head_kv``)."""
        return 0 if self._params.vocab_only else int(lib.llama_model_n_head_kv(self._open()))

    @property
    def _n_embd_head_k(self) -> int:
        """Width of one head's keys."""
        told = self.meta.get(f"{self.meta.get('general.architecture')}.attention.key_length", "")
        return int(told) if told.isdecimal() else self.n_embd // max(self.n_head, 1)

    @property
    def n_swa(self) -> int:
        """Width of its sliding window, 0 without one (``llama_model_n_swa``)."""
        return int(lib.llama_model_n_swa(self._open()))

    @property
    def n_expert(self) -> int:
        """Experts in a layer, 0 for a model without experts."""
        return int(lib.moebind_model_n_expert(self._open()))

    @property
    def n_expert_used(self) -> int:
        """How many experts work on each token."""
        told = self.meta.get(f"{self.meta.get('general.architecture')}.expert_used_count", "")
        return int(told) if told.isdecimal() else 0

    @property
    def rope_type(self) -> RopeType:
        """The kind of rotary position embedding (``llama_model_rope_type``)."""
        return RopeType(lib.llama_model_rope_type(self._open()))

    @property
    def is_recurrent(self) -> bool:
        """Whether it has recurrent state instead of a KV cache (``llama_model_is_recurrent``)."""
        return bool(lib.llama_model_is_recurrent(self._open()))

    @property
    def is_hybrid(self) -> bool:
        """Whether it has both (``llama_model_is_hybrid``)."""
        return bool(lib.llama_model_is_hybrid(self._open()))

    @property
    def is_diffusion(self) -> bool:
        """Whether it denoises text instead of continuing it (``llama_model_is_diffusion``)."""
        return bool(lib.llama_model_is_diffusion(self._open()))

    @property
    def has_encoder(self) -> bool:
        """Whether ``Context.encode`` comes first (``llama_model_has_encoder``)."""
        return bool(lib.llama_model_has_encoder(self._open()))

    @property
    def has_decoder(self) -> bool:
        """Whether ``Context.decode`` can be used (``llama_model_has_decoder``)."""
        return bool(lib.llama_model_has_decoder(self._open()))

    @property
    def n_layer_nextn(self) -> int:
        """Layers that predict tokens further ahead (``llama_model_n_layer_nextn``)."""
        return int(lib.llama_model_n_layer_nextn(self._open()))

    @property
    def rope_freq_scale_train(self) -> float:
        """The scale of rotary frequencies that it was trained with (``llama_model_rope_freq_scale_train``)."""
        return float(lib.llama_model_rope_freq_scale_train(self._open()))

    @property
    def n_cls_out(self) -> int:
        """How many scores it gives as a classifier (``llama_model_n_cls_out``)."""
        return int(lib.llama_model_n_cls_out(self._open()))

    @property
    def cls_labels(self) -> tuple[str, ...]:
        """The names of those scores; empty if the file has none (``llama_model_cls_label``)."""
        pointer = self._open()
        labels = [lib.llama_model_cls_label(pointer, index) for index in range(self.n_cls_out)]
        return tuple(decoded(label) for label in labels if label)

    @property
    def decode_start_token(self) -> int | None:
        """The token that an encoder-decoder model's decoder begins with (``llama_model_decoder_start_token``)."""
        return self._special(lib.llama_model_decoder_start_token(self._open()))

    @property
    def sampling_meta(self) -> Mapping[str, str]:
        """How its author suggests sampling, such as ``{"temp": "0.7"}`` (``llama_model_meta_key_str``)."""
        known = (decoded(lib.llama_model_meta_key_str(key)) for key in _SAMPLING_KEYS)
        return MappingProxyType({key.rpartition(".")[2]: self.meta[key] for key in known if key in self.meta})

    # --- where it is ---

    @property
    def devices(self) -> list[Device]:
        """The devices that hold its layers; none if everything is on the CPU."""
        pointer = self._open()
        rpc.check(self._servers)
        listed = native_devices()
        return [describe(listed.index(device), device) for device in _devices_of(pointer)]

    @property
    def placement(self) -> tuple[PlacedOverride, ...]:
        """What each tensor override moved, and where to: as allocated, not as requested."""
        pointer = self._open()
        count = lib.moebind_model_tensors(pointer, ffi.NULL, 0)
        tensors = ffi.new("struct moebind_tensor[]", count)
        lib.moebind_model_tensors(pointer, tensors, count)
        placed: dict[str, PlacedTensor] = {}
        for tensor in tensors:
            name = decoded(tensor.name)
            placed[name] = PlacedTensor(name, tensor.nbytes, *_where(tensor.buft))
        return tuple(
            PlacedOverride(override, tuple(placed[name] for name in names if name in placed))
            for override, names in self._rules.matches
        )


def _devices_of(pointer: CData) -> list[CData]:
    """The devices that a ``llama_model`` has layers on."""
    return [lib.moebind_model_device(pointer, i) for i in range(lib.moebind_model_n_devices(pointer))]


def _where(buffer_type: CData) -> tuple[str, str]:
    """Names of the device and the buffer type; empty when nothing was allocated."""
    if not buffer_type:
        return "", ""
    device = lib.ggml_backend_buft_get_device(buffer_type)
    return decoded(lib.ggml_backend_dev_name(device)) if device else "CPU", decoded(
        lib.ggml_backend_buft_name(buffer_type)
    )


def _progress_of(params: ModelParams, name: str) -> tuple[Any, Any]:
    """The progress callback, and what to call when the load is over."""
    wanted = params.progress_callback
    return progress_bar(name) if wanted is True else (wanted or None, lambda: None)


def _warn_without_device(params: ModelParams) -> None:
    global _warned_no_device
    if params.n_gpu_layers == 0 or params.vocab_only or _warned_no_device:
        return
    if params.devices is None:
        kinds = {lib.ggml_backend_dev_type(device) for device in native_devices()}
        usable = bool(kinds & {int(DeviceType.GPU), int(DeviceType.IGPU)})
    else:
        # An empty tuple says that none is wanted.
        usable = not params.devices or any(device.type != DeviceType.CPU for device in params.devices)
    if not usable:
        _warned_no_device = True
        warnings.warn(
            f"n_gpu_layers is {params.n_gpu_layers}, but no device can take layers: everything runs on the CPU. CUDA "
            f"is {decoded(lib.moebind_cuda_verdict())}. Set n_gpu_layers=0 if that is what you want",
            stacklevel=5,
        )
