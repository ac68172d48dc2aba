"""Models."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from moebind._core import checks, log
from moebind._core.caller import warn
from moebind._core.class_names import NamedABC
from moebind._core.native import CData, Hooks, decoded, ffi, lib, own, part_of
from moebind._core.other_names import missing, uncallable
from moebind._core.owner import close_all
from moebind._core.progress import progress_bar
from moebind.backend import rpc_servers
from moebind.backend.devices import (
    Device,
    describe,
    for_tensor_split,
    fork_hint,
    init,
    leases,
    native_device,
    native_devices,
    users,
    why_no_card,
)
from moebind.enums import DeviceType, SplitMode
from moebind.errors import ModelLoadError, NativeError, RpcServerError
from moebind.files.download import local_file, local_files
from moebind.files.gguf import Gguf
from moebind.files.header_checks import check_model, check_tokens_differ
from moebind.model.adapters import LoraAdapter
from moebind.model.embedding import Embedding
from moebind.model.from_hub import Pretrained, checked_params
from moebind.model.host_room import check_room
from moebind.model.prompts import Prompts
from moebind.model.saving import Saving
from moebind.params import tensor_overrides
from moebind.params.misplaced import explained_with_fields
from moebind.params.native import native_model_params
from moebind.params.params import ContextParams, ModelParams
from moebind.params.tensor_overrides import PlacedOverride, PlacedOverrides, PlacedTensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from moebind.context.context import Context
    from moebind.sampling.sampler import Sampler

__all__ = ["Model"]

_warned_no_device = False
_SAMPLING_KEYS = range(lib.LLAMA_MODEL_META_KEY_SAMPLING_SEQUENCE, lib.LLAMA_MODEL_META_KEY_SAMPLING_MIROSTAT_ETA + 1)


class Model(Prompts, Embedding, Pretrained, Saving, metaclass=NamedABC):
    """A loaded model. Made by :meth:`load_from_file`.

    Use it as a context manager, or close it, because it takes a lot of memory. Closing it closes its contexts first.

    Examples
    --------
    >>> with Model.load_from_file("moe.gguf", ModelParams().with_cpu_moe_all()) as model:
    ...     print(model.desc, model.n_expert, model.placement[0])
    """

    _warn_unclosed = True
    _elsewhere = "load it there again, with Model.load_from_file(path, params): processes share a mapped file's memory"

    def __init__(self, *_arguments: object, **_keywords: object) -> None:
        raise TypeError("models are made by Model.load_from_file(path, params)")

    @classmethod
    @explained_with_fields()
    def load_from_file(cls, path: str | os.PathLike[str], params: ModelParams | None = None) -> Model:
        """Load a model from a GGUF file.

        Parameters
        ----------
        path
            The file, or any file of a split model (``NAME-00001-of-00004.gguf``) with the others in the same folder; or
            the address of one on the Hugging Face Hub (``hf://OWNER/REPO/FILE.gguf``), which is downloaded unless it is
            in the cache. :meth:`from_pretrained` has more to say about that.
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
        Uses ``llama_model_load_from_file``, which takes over the header that was checked. Ctrl-C stops a load.
        """
        chosen = checked_params(params)
        return cls._load(Gguf._from_local(local_file(checks.path("path", path))), chosen, split=False)

    @classmethod
    @explained_with_fields(model="Model.load_from_splits(paths, {})")
    def load_from_splits(cls, paths: Sequence[str | os.PathLike[str]], params: ModelParams | None = None) -> Model:
        """Load a model from several files with any names.

        Parameters
        ----------
        paths
            All files, in order. The address of one on the Hugging Face Hub is that file, which is downloaded unless it
            is in the cache; an address that names no file, such as ``hf://OWNER/REPO/Q4_K_M``, is all of its model.
        params
            As for :meth:`load_from_file`, which also lists the exceptions.

        Notes
        -----
        Uses ``llama_model_load_from_splits``, which takes over the headers that were checked.
        """
        if isinstance(paths, (str, os.PathLike)):
            raise TypeError("paths is one path; it takes a sequence of them, or use load_from_file")
        chosen = checked_params(params)
        names = [checks.path("paths", path) for path in paths]
        if not names:
            raise ValueError("paths is empty; it takes the files of a model")
        here = [name for name in names if not checks.on_hub(name)]
        if here and len(here) < len(names):
            Gguf._from_files(here)  # what is missing here is told before a download
        return cls._load(Gguf._from_files(local_files(names)), chosen, split=True)

    @classmethod
    def _load(cls, file: Gguf, params: ModelParams | None, split: bool) -> Model:
        chosen = checked_params(params)
        init()
        # libllama finds tokens that are there twice in the table that it makes; a search of our own took a hundredth of
        # the load.
        check_model(file, chosen.kv_overrides, vocab_only=chosen.vocab_only, mapped=chosen.use_mmap, tokens_differ=True)
        check_room(file, chosen)
        model: Model | None = None
        try:
            targets = (override.target for override in chosen.tensor_overrides)
            with rpc_servers.watched(rpc_servers.before_load(chosen.devices, targets)), log.quoted():
                model = cls._load_natively(file, chosen, split)
                rpc_servers.settle(model._servers)
            return model
        except RpcServerError as error:
            if model is not None:
                model.close()
            raise ModelLoadError(f"{file.path} could not be loaded: {error}") from error

    @classmethod
    def _load_natively(cls, file: Gguf, chosen: ModelParams, split: bool) -> Model:
        paths = file.paths
        rules = tensor_overrides.resolve(chosen.tensor_overrides, list(file.tensors), paths[0])
        _warn_without_device(chosen)
        progress, finish = _progress_of(chosen, os.path.basename(paths[0]))
        hooks = Hooks(progress=progress)
        native, keep = native_model_params(chosen, rules, hooks)
        encoded = [ffi.new("char[]", os.fsencode(path)) for path in paths]
        try:
            headers = file._given_headers()
            pointer = own(lib.own_moebind_model_load, encoded, headers, len(encoded), split, native[0])
        except NativeError as error:
            raise _failed(file, chosen, f": {error.message}{log.recent_lines()}") from error
        finally:
            finish()
            del keep
        if hooks.stopped:
            raise ModelLoadError(f"{paths[0]}: the progress callback stopped the load")
        if not pointer:
            raise _failed(file, chosen, log.recent_lines())
        model = cls.__new__(cls)
        used = [*_devices_of(pointer, chosen), *rules.devices()]
        names = {decoded(lib.ggml_backend_dev_name(device)) for device in used}
        for lease in [leases[name] for name in names if name in leases]:
            lib.moebind_hold(pointer, lease)
        model._servers = rpc_servers.endpoints_of(used)
        model._vocab = part_of(pointer, lib.llama_model_get_vocab(pointer))
        lib.moebind_found_by(pointer, model._vocab)  # samplers point to it, and hold the model
        model._n_vocab = int(lib.llama_vocab_n_tokens(model._vocab))
        model._params, model._paths, model._rules = chosen, paths, rules
        model._meta_overrides = chosen.kv_overrides
        model._without_weights = next((name for name in ("vocab_only", "no_alloc") if getattr(chosen, name)), None)
        model._files = {os.path.abspath(path): signature for path, signature in file._signatures.items()}
        model._meta = model._fingerprint = None
        model._children = WeakSet()
        model._pointer = pointer
        for name in names:
            users.setdefault(name, WeakSet()).add(model)
        return model

    _params: ModelParams
    _rules: tensor_overrides.Resolved

    def close(self) -> None:
        """Close the model's contexts, then free it, once no view of them is left (``llama_model_free``).

        Closing twice does nothing.
        """
        if self._pointer is not None:
            close_all(self._children, "its model was closed")
            self._vocab = self._grammars = None
            self._ready = None
            super().close()

    if not TYPE_CHECKING:  # type checkers would take it for any attribute

        def __getattr__(self, name: str) -> object:
            raise missing(self, name)

        def __call__(self, *args: object, **kwargs: object) -> object:
            """Refuse, and say what to write: the object of llama-cpp-python is called."""
            raise uncallable(self)

    def __repr__(self) -> str:
        return "<Model, closed>" if self.closed else f"<Model {self._title}>"

    @explained_with_fields()
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
        from moebind.context.context import Context

        chosen = ContextParams() if params is None else params
        return Context._of(self, chosen, ctx_other, samplers)

    def _compute_pooled(
        self, params: ContextParams, rows: Sequence[NDArray[np.int32]], result: NDArray[np.float32]
    ) -> None:
        from moebind.context.embedding import compute_pooled

        with self.new_context(params) as context:
            compute_pooled(context, rows, result)

    def lora_adapter_init(self, path: str | os.PathLike[str]) -> LoraAdapter:
        """Load a LoRA adapter for this model.

        Parameters
        ----------
        path
            A GGUF file, as llama.cpp's ``convert_lora_to_gguf.py`` writes it, or its address on the Hugging Face Hub.

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
        return LoraAdapter._load(self, local_file(checks.path("path", path)))

    # --- what it is ---

    @property
    def params(self) -> ModelParams:
        """The parameters that it was loaded with."""
        return self._params

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
        rpc_servers.check(self._servers)
        if self._params.n_gpu_layers == 0:
            return []  # libllama lists the devices that there are, whether they have layers or not
        listed = native_devices()
        return [describe(listed.index(device), device) for device in _devices_of(pointer, self._params)]

    @property
    def placement(self) -> tuple[PlacedOverride, ...]:
        """The tensors that each override moved, and where to: as allocated, not as requested.

        Printing it gives a line for each override.
        """
        pointer = self._open()
        count = lib.moebind_model_tensors(pointer, ffi.NULL, 0)
        tensors = ffi.new("struct moebind_tensor[]", count)
        lib.moebind_model_tensors(pointer, tensors, count)
        placed: dict[str, PlacedTensor] = {}
        for tensor in tensors:
            name = decoded(tensor.name)
            placed[name] = PlacedTensor(name, tensor.nbytes, *_device_and_buffer_type(tensor.buft))
        return PlacedOverrides(
            PlacedOverride(override, tuple(placed[name] for name in names if name in placed))
            for override, names in self._rules.matches
        )


def _failed(file: Gguf, params: ModelParams, why: str) -> ModelLoadError:
    """The error of a load that failed."""
    if "token_to_id.size()" in why:  # what libllama asserts of tokens that differ
        check_tokens_differ(Gguf._from_files(file.paths), params.kv_overrides)
    return ModelLoadError(f"{file.paths[0]} could not be loaded{why}")


def _devices_of(pointer: CData, params: ModelParams) -> list[CData]:
    """The devices that a ``llama_model`` has layers on; with ``SplitMode.TENSOR`` it has one that stands for all."""
    if params.split_mode == SplitMode.TENSOR:
        return for_tensor_split() if params.devices is None else [native_device(each.name) for each in params.devices]
    return [lib.moebind_model_device(pointer, i) for i in range(lib.moebind_model_n_devices(pointer))]


def _device_and_buffer_type(buffer_type: CData) -> tuple[str, str]:
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
        warn(
            f"n_gpu_layers is {params.n_gpu_layers}, but no device can take layers: everything runs on the CPU. "
            f"{why_no_card('CUDA')}; {why_no_card('Vulkan')}{fork_hint()}. moebind.doctor() says more; set "
            "n_gpu_layers=0 if you mean the CPU"
        )
