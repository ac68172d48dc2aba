"""The ``with_`` methods of ``params.py``. Written by tools/params_methods.py: change the fields instead."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from typing_extensions import Self

    from moebind.backend.devices import Device
    from moebind.enums import (
        AttentionType,
        ContextType,
        FlashAttnType,
        GgmlType,
        LazyMode,
        LoadMode,
        PoolingType,
        RopeScalingType,
        SplitMode,
    )
    from moebind.params.observers import EvalTensor, TensorObserver
    from moebind.params.tensor_overrides import TensorOverride


class _Methods:
    def _with(self, **changed: object) -> Self:
        return dataclasses.replace(self, **changed)  # type: ignore[type-var]


class ModelParamsMethods(_Methods):
    """One method for each field of ModelParams."""

    def with_devices(self, devices: Sequence[Device] | None) -> Self:
        """Return a copy with another ``devices``. Devices that take layers, from ``moebind.devices()``; None: all
        GPUs. An empty tuple keeps them on the CPU.
        """
        return self._with(devices=devices)

    def with_tensor_overrides(self, tensor_overrides: Sequence[TensorOverride]) -> Self:
        """Return a copy with another ``tensor_overrides``. Rules that send tensors elsewhere; the first that
        matches a tensor's name wins. There can be one fewer than ``llama_max_tensor_buft_overrides`` says.
        """
        return self._with(tensor_overrides=tensor_overrides)

    def with_n_gpu_layers(self, n_gpu_layers: int) -> Self:
        """Return a copy with another ``n_gpu_layers``. How many layers go to devices other than the CPU, counted
        from the last; -1: all.
        """
        return self._with(n_gpu_layers=n_gpu_layers)

    def with_split_mode(self, split_mode: SplitMode) -> Self:
        """Return a copy with another ``split_mode``. How the layers are spread over several devices."""
        return self._with(split_mode=split_mode)

    def with_load_mode(self, load_mode: LoadMode) -> Self:
        """Return a copy with another ``load_mode``. How the file is read."""
        return self._with(load_mode=load_mode)

    def with_lazy_mode(self, lazy_mode: LazyMode) -> Self:
        """Return a copy with another ``lazy_mode``. Whether rows of large tensors are read only when they are
        needed.
        """
        return self._with(lazy_mode=lazy_mode)

    def with_main_gpu(self, main_gpu: int) -> Self:
        """Return a copy with another ``main_gpu``. The device that takes everything with ``SplitMode.NONE``: an
        index into the devices in use.
        """
        return self._with(main_gpu=main_gpu)

    def with_tensor_split(self, tensor_split: Sequence[float] | None) -> Self:
        """Return a copy with another ``tensor_split``. How much of the model each device takes, in proportion;
        None: by free memory.
        """
        return self._with(tensor_split=tensor_split)

    def with_progress_callback(self, progress_callback: Callable[[float], bool | None] | bool | None) -> Self:
        """Return a copy with another ``progress_callback``. Called with a fraction from 0.0 to 1.0 during the load;
        returning False stops it. True: a progress bar.
        """
        return self._with(progress_callback=progress_callback)

    def with_kv_overrides(self, kv_overrides: Mapping[str, bool | int | float | str]) -> Self:
        """Return a copy with another ``kv_overrides``. Metadata to use instead of the file's: a mapping from key to
        bool, int, float or str.
        """
        return self._with(kv_overrides=kv_overrides)

    def with_vocab_only(self, vocab_only: bool) -> Self:
        """Return a copy with another ``vocab_only``. Load only the vocabulary: text and tokens work, contexts do
        not.
        """
        return self._with(vocab_only=vocab_only)

    def with_check_tensors(self, check_tensors: bool) -> Self:
        """Return a copy with another ``check_tensors``. Look for invalid numbers in the weights while loading."""
        return self._with(check_tensors=check_tensors)

    def with_use_extra_bufts(self, use_extra_bufts: bool) -> Self:
        """Return a copy with another ``use_extra_bufts``. Let weights in host memory be repacked into layouts that
        are faster on the CPU.
        """
        return self._with(use_extra_bufts=use_extra_bufts)

    def with_no_host(self, no_host: bool) -> Self:
        """Return a copy with another ``no_host``. Do not use the devices' pinned host memory, so that extra buffer
        types can be used.
        """
        return self._with(no_host=no_host)

    def with_no_alloc(self, no_alloc: bool) -> Self:
        """Return a copy with another ``no_alloc``. Read metadata only and simulate allocations; such a model cannot
        compute.
        """
        return self._with(no_alloc=no_alloc)

    def with_load_mtp(self, load_mtp: bool) -> Self:
        """Return a copy with another ``load_mtp``. Load the layers for multi-token prediction too."""
        return self._with(load_mtp=load_mtp)


class ContextParamsMethods(_Methods):
    """One method for each field of ContextParams."""

    def with_n_ctx(self, n_ctx: int) -> Self:
        """Return a copy with another ``n_ctx``. Tokens that the cache holds, over all sequences; 0: as many as the
        model was trained with. It is rounded up, to a multiple of 256 for each sequence; ``Context.n_ctx`` has
        what came of it.
        """
        return self._with(n_ctx=n_ctx)

    def with_n_batch(self, n_batch: int) -> Self:
        """Return a copy with another ``n_batch``. The most tokens in one ``decode``."""
        return self._with(n_batch=n_batch)

    def with_n_ubatch(self, n_ubatch: int) -> Self:
        """Return a copy with another ``n_ubatch``. The most tokens that are computed at once; more make prompts
        faster and take more memory.
        """
        return self._with(n_ubatch=n_ubatch)

    def with_n_seq_max(self, n_seq_max: int) -> Self:
        """Return a copy with another ``n_seq_max``. The most sequences that the cache holds side by side, up to
        ``llama_max_parallel_sequences``.
        """
        return self._with(n_seq_max=n_seq_max)

    def with_n_rs_seq(self, n_rs_seq: int) -> Self:
        """Return a copy with another ``n_rs_seq``. Snapshots of recurrent state to keep per sequence, for rolling
        back; experimental in llama.cpp.
        """
        return self._with(n_rs_seq=n_rs_seq)

    def with_n_outputs_max(self, n_outputs_max: int) -> Self:
        """Return a copy with another ``n_outputs_max``. The most tokens of a batch that can have logits or
        embeddings; 0: ``n_batch``.
        """
        return self._with(n_outputs_max=n_outputs_max)

    def with_n_outputs_max_per_seq(self, n_outputs_max_per_seq: int) -> Self:
        """Return a copy with another ``n_outputs_max_per_seq``. The most tokens of one sequence in a batch that can
        have logits or embeddings; 0: ``n_outputs_max``.
        """
        return self._with(n_outputs_max_per_seq=n_outputs_max_per_seq)

    def with_n_threads(self, n_threads: int) -> Self:
        """Return a copy with another ``n_threads``. Threads that compute single tokens; by default, one per
        physical core.
        """
        return self._with(n_threads=n_threads)

    def with_n_threads_batch(self, n_threads_batch: int) -> Self:
        """Return a copy with another ``n_threads_batch``. Threads that compute prompts and batches; by default, one
        per physical core.
        """
        return self._with(n_threads_batch=n_threads_batch)

    def with_ctx_type(self, ctx_type: ContextType) -> Self:
        """Return a copy with another ``ctx_type``. The part of the model that the context computes."""
        return self._with(ctx_type=ctx_type)

    def with_rope_scaling_type(self, rope_scaling_type: RopeScalingType) -> Self:
        """Return a copy with another ``rope_scaling_type``. How positions are stretched beyond the trained context."""
        return self._with(rope_scaling_type=rope_scaling_type)

    def with_pooling_type(self, pooling_type: PoolingType) -> Self:
        """Return a copy with another ``pooling_type``. How token embeddings become one embedding per sequence. MEAN
        needs an ``n_ubatch`` that is a multiple of ``n_seq_max``.
        """
        return self._with(pooling_type=pooling_type)

    def with_attention_type(self, attention_type: AttentionType) -> Self:
        """Return a copy with another ``attention_type``. Which other tokens a token may see."""
        return self._with(attention_type=attention_type)

    def with_flash_attn_type(self, flash_attn_type: FlashAttnType) -> Self:
        """Return a copy with another ``flash_attn_type``. Whether fused attention kernels are used."""
        return self._with(flash_attn_type=flash_attn_type)

    def with_rope_freq_base(self, rope_freq_base: float) -> Self:
        """Return a copy with another ``rope_freq_base``. RoPE's base frequency; 0: from the model."""
        return self._with(rope_freq_base=rope_freq_base)

    def with_rope_freq_scale(self, rope_freq_scale: float) -> Self:
        """Return a copy with another ``rope_freq_scale``. RoPE's frequency scale; 0: from the model."""
        return self._with(rope_freq_scale=rope_freq_scale)

    def with_yarn_ext_factor(self, yarn_ext_factor: float) -> Self:
        """Return a copy with another ``yarn_ext_factor``. YaRN's extrapolation mix; negative: from the model."""
        return self._with(yarn_ext_factor=yarn_ext_factor)

    def with_yarn_attn_factor(self, yarn_attn_factor: float) -> Self:
        """Return a copy with another ``yarn_attn_factor``. YaRN's magnitude scale; negative: from the model."""
        return self._with(yarn_attn_factor=yarn_attn_factor)

    def with_yarn_beta_fast(self, yarn_beta_fast: float) -> Self:
        """Return a copy with another ``yarn_beta_fast``. YaRN's low correction dimension; negative: from the model."""
        return self._with(yarn_beta_fast=yarn_beta_fast)

    def with_yarn_beta_slow(self, yarn_beta_slow: float) -> Self:
        """Return a copy with another ``yarn_beta_slow``. YaRN's high correction dimension; negative: from the
        model.
        """
        return self._with(yarn_beta_slow=yarn_beta_slow)

    def with_yarn_orig_ctx(self, yarn_orig_ctx: int) -> Self:
        """Return a copy with another ``yarn_orig_ctx``. The context that the model was trained with, for YaRN; 0:
        from the model.
        """
        return self._with(yarn_orig_ctx=yarn_orig_ctx)

    def with_defrag_thold(self, defrag_thold: float) -> Self:
        """Return a copy with another ``defrag_thold``. Deprecated in llama.cpp, which ignores it."""
        return self._with(defrag_thold=defrag_thold)

    def with_eval_callback(self, eval_callback: Callable[[EvalTensor, bool], bool | None] | TensorObserver | None) -> Self:
        """Return a copy with another ``eval_callback``. A :class:`TensorObserver`, which is called for the tensors
        that it names once they are computed. Or a function, called as ``fn(tensor, ask)`` with each
        :class:`EvalTensor`: first with ``ask=True``, to say whether it wants the tensor, and then, if so, with
        ``ask=False`` once the data is computed; returning False then stops the computation. A function is slow,
        because each call waits for the interpreter.
        """
        return self._with(eval_callback=eval_callback)

    def with_type_k(self, type_k: GgmlType) -> Self:
        """Return a copy with another ``type_k``. Type of the cached keys."""
        return self._with(type_k=type_k)

    def with_type_v(self, type_v: GgmlType) -> Self:
        """Return a copy with another ``type_v``. Type of the cached values; a quantised one needs flash attention."""
        return self._with(type_v=type_v)

    def with_moe_cache_size(self, moe_cache_size: int | str) -> Self:
        """Return a copy with another ``moe_cache_size``. Device memory for a cache of the experts that are in host
        memory, in bytes or as text such as ``"4GiB"``; 0: none. With several devices it is divided among them as
        the layers are. Experimental in llama.cpp.
        """
        return self._with(moe_cache_size=moe_cache_size)

    def with_abort_callback(self, abort_callback: Callable[[], bool] | None) -> Self:
        """Return a copy with another ``abort_callback``. Called without arguments, about once a millisecond while
        the CPU computes; True stops the computation.
        """
        return self._with(abort_callback=abort_callback)

    def with_embeddings(self, embeddings: bool) -> Self:
        """Return a copy with another ``embeddings``. Compute embeddings, of every token of a batch."""
        return self._with(embeddings=embeddings)

    def with_offload_kqv(self, offload_kqv: bool) -> Self:
        """Return a copy with another ``offload_kqv``. Keep the cache, and compute attention, where the layers are."""
        return self._with(offload_kqv=offload_kqv)

    def with_no_perf(self, no_perf: bool) -> Self:
        """Return a copy with another ``no_perf``. Do not measure timings: ``Context.timings()`` stays at zero."""
        return self._with(no_perf=no_perf)

    def with_op_offload(self, op_offload: bool) -> Self:
        """Return a copy with another ``op_offload``. Let a device compute with weights that are in host memory,
        when a batch is large enough to be worth it.
        """
        return self._with(op_offload=op_offload)

    def with_swa_full(self, swa_full: bool) -> Self:
        """Return a copy with another ``swa_full``. Keep all tokens in layers with sliding windows, too. Without,
        they take less memory, and a prompt that differs before the window from what was computed is computed
        from its beginning.
        """
        return self._with(swa_full=swa_full)

    def with_kv_unified(self, kv_unified: bool) -> Self:
        """Return a copy with another ``kv_unified``. Share one cache among all sequences, instead of ``n_ctx /
        n_seq_max`` for each.
        """
        return self._with(kv_unified=kv_unified)
