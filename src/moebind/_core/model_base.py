"""``ModelBase``: the fields of a loaded model, and what each of its parts may ask of it.

``moebind.Model`` is put together from parts (tokens, sizes, chats, embeddings, saving), and each derives from this
class. Whatever only needs to be given a model, such as a sampler or a saved state, takes a ``ModelBase``: so it can
stand below the room ``model/``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from moebind._core.native import CData, lib, own, text_from
from moebind._core.owner import Owner
from moebind.errors import ClosedError, TokenizeError

if TYPE_CHECKING:
    from weakref import WeakSet

    from moebind._core.atomic_files import Signature

__all__ = ["ModelBase"]


class ModelBase(Owner):
    """A loaded model, as its parts know it. :class:`moebind.Model` is one."""

    #: ``const llama_vocab *``; it holds the model, which another thread may close during a call.
    _vocab: CData | None = None
    #: What its grammars share; None: it has had none.
    _grammars: CData | None = None
    _n_vocab = 0
    _paths: tuple[str, ...]
    #: Its files as they were when it was loaded, and what tells the model from others.
    _files: dict[str, Signature]
    _fingerprint: bytes | None
    _meta: Mapping[str, str] | None
    #: Metadata that was overridden when it was loaded.
    _meta_overrides: Mapping[str, bool | int | float | str]
    #: Why it has no weights to compute with, ``"vocab_only"`` or ``"no_alloc"``; None: it has them.
    _without_weights: str | None
    #: RPC servers that hold parts of it.
    _servers: tuple[str, ...]
    #: Contexts and adapters.
    _children: WeakSet[Owner]

    def _leave_to_parent(self) -> None:
        self._vocab = self._grammars = None
        super()._leave_to_parent()

    def _add_child(self, child: Owner) -> None:
        """Have a context or an adapter closed with the model; at once, if another thread has closed it meanwhile.

        Raises
        ------
        ClosedError
        """
        self._children.add(child)
        try:
            self._open()
        except ClosedError:
            child.close()
            raise

    def _open_vocab(self) -> CData:
        """The native vocabulary, of whatever kind.

        Raises
        ------
        ClosedError
        """
        vocab = self._vocab
        if vocab is None:
            self._open()  # raises
        return vocab

    def _usable_vocab(self) -> CData:
        """The native vocabulary, for questions about text: libllama asserts that a model without one is not asked.

        Raises
        ------
        TokenizeError
            If the model has none.
        """
        vocab = self._open_vocab()
        if lib.llama_vocab_type(vocab) == lib.LLAMA_VOCAB_TYPE_NONE:
            raise TokenizeError("this model has no vocabulary: give it token ids, and read token ids from it")
        return vocab

    def _open_grammars(self) -> CData:
        """What the grammars of its vocabulary share (``moebind_grammars``).

        Raises
        ------
        TokenizeError
            If the model has no vocabulary.
        """
        grammars = self._grammars
        if grammars is None:  # two threads at once make two, of which one is soon forgotten
            vocab = self._usable_vocab()
            grammars = self._grammars = own(lib.own_moebind_grammars_new, vocab, holds=[vocab])
        return grammars

    @property
    def n_vocab(self) -> int:
        """How many tokens there are (``llama_vocab_n_tokens``)."""
        self._open()
        return self._n_vocab

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
    def _architecture(self) -> str:
        """``general.architecture``, the name that begins the other keys; empty if the file has none."""
        return self.meta.get("general.architecture", "")
