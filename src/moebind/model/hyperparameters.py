"""The sizes and kinds of a model: the part of ``Model`` that tells them."""

from __future__ import annotations

from collections.abc import Callable

from moebind._core.native import CData, decoded, lib, text_from
from moebind.enums import Ftype, PoolingType, RopeType
from moebind.errors import MoebindError
from moebind.model.vocab import Vocabulary

__all__ = ["Hyperparameters"]


class Hyperparameters(Vocabulary):
    """How large a model is and how it works. :class:`moebind.Model` has it.

    Of a model that was loaded with ``vocab_only``, libllama reads the metadata as text and does nothing with it.
    What is a single number there can be read all the same; the rest raises :class:`MoebindError`.
    """

    @property
    def _only_vocab(self) -> bool:
        return self._without_weights == "vocab_only"

    def _whole(self) -> CData:
        """The native model, where more than its vocabulary was loaded.

        Raises
        ------
        MoebindError
        """
        pointer = self._open()
        if self._only_vocab:
            raise MoebindError(
                "only the vocabulary was loaded (vocab_only), and libllama read nothing of this: see Model.meta for "
                "what the file says, or load the model without vocab_only"
            )
        return pointer

    def _number(self, key: str, native: Callable[[CData], int], default: int | None = None) -> int:
        """A number that libllama read. Of a vocabulary alone, it read none: then from the metadata, or ``default``."""
        pointer = self._open()
        if not self._only_vocab:
            return int(native(pointer))
        name = key if key.startswith("general.") else f"{self._architecture}.{key}"
        override = self._meta_overrides.get(name)
        value = self.meta.get(name, "") if override is None else str(override)
        if value.isdecimal():
            return int(value)
        return int(native(self._whole())) if default is None else default

    def _own_pooling(self) -> PoolingType:
        """How the file says that embeddings are pooled."""
        number = self.meta.get(f"{self._architecture}.pooling_type", "")
        return PoolingType(int(number)) if number.isdecimal() else PoolingType.UNSPECIFIED

    @property
    def desc(self) -> str:
        """Architecture, size and type in a few words (``llama_model_desc``)."""
        pointer = self._open()
        if self._only_vocab:
            return f"{self._architecture}, its vocabulary only"
        return text_from(lib.llama_model_desc, pointer)

    @property
    def ftype(self) -> Ftype:
        """The type of most of its tensors (``llama_model_ftype``)."""
        return Ftype(self._number("general.file_type", lib.llama_model_ftype))

    @property
    def size(self) -> int:
        """Bytes of all tensors (``llama_model_size``)."""
        return int(lib.llama_model_size(self._open()))

    @property
    def _title(self) -> str:
        """``desc`` with the number of parameters where llama.cpp knows no name for the size."""
        return self.desc.replace(" ?B", f" {_in_short(self.n_params)}", 1)

    @property
    def n_params(self) -> int:
        """How many parameters it has (``llama_model_n_params``)."""
        return int(lib.llama_model_n_params(self._open()))

    @property
    def n_ctx_train(self) -> int:
        """Tokens of context that it was trained with (``llama_model_n_ctx_train``)."""
        return self._number("context_length", lib.llama_model_n_ctx_train)

    @property
    def n_embd(self) -> int:
        """Width of its embeddings (``llama_model_n_embd``)."""
        return self._number("embedding_length", lib.llama_model_n_embd)

    @property
    def n_embd_inp(self) -> int:
        """Width of its input embeddings (``llama_model_n_embd_inp``)."""
        return int(lib.llama_model_n_embd_inp(self._whole()))

    @property
    def n_embd_out(self) -> int:
        """Width of its output embeddings (``llama_model_n_embd_out``)."""
        return int(lib.llama_model_n_embd_out(self._whole()))

    @property
    def n_layer(self) -> int:
        """Layers (``llama_model_n_layer``)."""
        layers = self._number("block_count", lib.llama_model_n_layer)
        return layers - self.n_layer_nextn if self._only_vocab else layers

    @property
    def n_head(self) -> int:
        """Attention heads (``llama_model_n_head``)."""
        return self._number("attention.head_count", lib.llama_model_n_head)

    @property
    def n_head_kv(self) -> int:
        """Attention heads with keys and values of their own (``llama_model_n_head_kv``)."""
        heads = self.n_head if self._only_vocab else None  # what files leave out
        return self._number("attention.head_count_kv", lib.llama_model_n_head_kv, heads)

    @property
    def n_swa(self) -> int:
        """Width of its sliding window, 0 without one (``llama_model_n_swa``)."""
        return int(lib.llama_model_n_swa(self._whole()))

    @property
    def n_expert(self) -> int:
        """Experts in a layer, 0 for a model without experts."""
        return self._number("expert_count", lib.moebind_model_n_expert, 0)

    @property
    def n_expert_used(self) -> int:
        """How many experts work on each token; where layers differ, in the one that uses the most."""
        return self._number("expert_used_count", lib.moebind_model_n_expert_used, 0)

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
        """Whether it has both recurrent state and a KV cache (``llama_model_is_hybrid``)."""
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
        return self._number("nextn_predict_layers", lib.llama_model_n_layer_nextn, 0)

    @property
    def rope_freq_scale_train(self) -> float:
        """The scale of rotary frequencies that it was trained with (``llama_model_rope_freq_scale_train``)."""
        return float(lib.llama_model_rope_freq_scale_train(self._whole()))

    @property
    def n_cls_out(self) -> int:
        """How many scores it gives as a classifier (``llama_model_n_cls_out``)."""
        return int(lib.llama_model_n_cls_out(self._whole()))

    @property
    def cls_labels(self) -> tuple[str, ...]:
        """The names of a classifier's scores; empty if the file has none (``llama_model_cls_label``)."""
        pointer = self._whole()
        labels = [lib.llama_model_cls_label(pointer, index) for index in range(self.n_cls_out)]
        return tuple(decoded(label) for label in labels if label)

    @property
    def decode_start_token(self) -> int | None:
        """The token that an encoder-decoder model's decoder begins with (``llama_model_decoder_start_token``)."""
        return self._special(lib.llama_model_decoder_start_token(self._whole()))


def _in_short(count: int) -> str:
    """A number in short, such as 692M: three digits at most."""
    for factor, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= factor:
            number = count / factor
            return f"{number:.0f}{unit}" if number >= 10 else f"{number:.1f}{unit}"
    return str(count)
