"""Drafts by a model's own layers for multi-token prediction, step by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, SupportsIndex

import numpy as np

from moebind._core import checks
from moebind._core.shown import shown
from moebind.context.batch import Batch
from moebind.context.context import Context
from moebind.context.drafting import Wanted
from moebind.context.speculative import N_MAX, Speculative
from moebind.enums import SpeculativeType
from moebind.errors import SpeculativeError
from moebind.params.draft import Draft

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from moebind.model.model import Model

__all__ = ["MtpSpeculative", "MtpSpeculativeParams"]


@dataclass(frozen=True)
class MtpSpeculativeParams:
    """How :class:`MtpSpeculative` drafts.

    Attributes
    ----------
    n_max : int
        The most tokens to draft at once.
    n_min : int
        Fewer drafted tokens are not used.
    p_min : float
        It stops where it is less sure than this of its next token.
    """

    n_max: int = 3
    n_min: int = 0
    p_min: float = 0.0

    def __post_init__(self) -> None:
        checks.integer("n_max", self.n_max, 1, N_MAX)
        checks.integer("n_min", self.n_min, 0, self.n_max)
        checks.number("p_min", self.p_min, 0, 1)


def own_layers(model: Model) -> Model:
    """The model, if its layers that predict further ahead are loaded.

    Raises
    ------
    SpeculativeError
    """
    if not model.n_layer_nextn:
        raise SpeculativeError(
            f"{model!r} has no layers that predict further ahead (MTP): those in a file of their own, mtp-*.gguf, "
            "draft through a context of theirs, draft_context, or for an Engine by Draft('mtp-....gguf') (on a command "
            "line, --model-draft FILE)"
        )
    if not model.params.load_mtp:
        raise SpeculativeError(
            "the layers that predict further ahead were not loaded: load the model with "
            "ModelParams().with_load_mtp(True)"
        )
    return model


class MtpSpeculative(Speculative):
    """Drafts by the layers of a model that predict further ahead (MTP), which its file has.

    ``generate(speculative=...)`` does all of it. The methods here are for a loop of your own: after each decode of the
    target, :meth:`process` with the same batch; then :meth:`draft`, a decode of the last token and the draft, with
    outputs for all, :meth:`process`, and :meth:`accept`. What was wrong is yours to remove from the target's cache.

    Parameters
    ----------
    target_context
        The context that generates. Its model was loaded with ``load_mtp``.
    draft_context
        A context of those layers (``ContextType.MTP``), with as many sequences and as much room; None: it makes one.
    params
        How it drafts.

    Raises
    ------
    SpeculativeError
        If the model has no such layers, or the contexts do not go together.

    Examples
    --------
    >>> with MtpSpeculative(context) as mtp:
    ...     text = context.generate("Once upon a time", speculative=mtp)
    ...     print(text.complete())
    """

    def __init__(
        self,
        target_context: Context,
        draft_context: Context | None = None,
        params: MtpSpeculativeParams | None = None,
    ) -> None:
        if not isinstance(target_context, Context):
            raise TypeError(f"target_context is {shown(target_context)}; it takes a Context")
        chosen = MtpSpeculativeParams() if params is None else params
        if not isinstance(chosen, MtpSpeculativeParams):
            raise TypeError(f"params is {shown(params)}; it takes MtpSpeculativeParams, such as with n_max=3")
        self._made: Context | None = None
        if draft_context is None:
            model, like = own_layers(target_context.model), target_context.params
            draft_context = self._made = model.new_context(Draft().context_for(like, like.n_ctx, ahead=True))
        try:
            super().__init__(
                target_context,
                draft_context,
                kind=SpeculativeType.DRAFT_MTP,
                n_max=chosen.n_max,
                n_min=chosen.n_min,
                p_min=chosen.p_min,
            )
        except BaseException:
            if self._made is not None:
                self._made.close()
            raise

    def close(self) -> None:
        """Stop drafting, and close the draft's context if it made that. Closing twice does nothing."""
        super().close()
        if self._made is not None:
            self._made.close()

    def begin(self, seq_id: SupportsIndex, prompt: ArrayLike) -> None:
        """A text begins, whose prompt the target has computed, and :meth:`process` has seen."""
        seq = self._target._seq("seq_id", seq_id)
        tokens = checks.int32_array("prompt", prompt, 0)
        with self._target._exclusive():
            self._open()
            self._drafting.begin(seq, tokens.tolist())

    def process(self, batch: Batch) -> None:
        """Look at the hidden states of a batch that the target has just decoded.

        Raises
        ------
        SpeculativeError
            If it is not that batch.
        """
        if not isinstance(batch, Batch):
            raise TypeError(f"batch is {shown(batch)}; it takes a Batch")
        target = self._target
        with target._exclusive():
            self._open()
            flags = target._flags
            if batch._has_embeddings() or flags is None or not np.array_equal(flags, batch.logits):
                raise SpeculativeError("process takes the batch of tokens that the target's context decoded last")
            if batch._automatic:
                raise SpeculativeError("the batch has no positions: make it with Batch(n).add_sequence(tokens, seq_id)")
            for seq in batch._sequences():
                self._drafting.keep_first(seq, int(batch.pos[batch._first_sequences() == seq].min()))
            self._drafting.computed(batch)

    def draft(self, seq_id: SupportsIndex, n_past: SupportsIndex, id_last: SupportsIndex) -> NDArray[np.int32]:
        """Draft what may follow a token.

        Parameters
        ----------
        seq_id
            The sequence.
        n_past
            How many tokens the target's cache holds of it.
        id_last
            The token that comes next.

        Returns
        -------
        numpy.ndarray
            int32, ``(n,)``, with ``n`` up to ``n_max``; it may be empty.

        Raises
        ------
        SpeculativeError
            If :meth:`process` did not see all of these tokens.
        """
        target = self._target
        seq = target._seq("seq_id", seq_id)
        n = checks.integer("n_past", n_past, 0)
        last = checks.integer("id_last", id_last, 0, target._model.n_vocab - 1)
        with target._exclusive():
            self._open()
            known = self._drafting.known(seq)
            if len(known) != n:
                raise SpeculativeError(
                    f"n_past is {n}, but process() has seen {len(known)} tokens of sequence {seq}: call it after every "
                    "decode of the target's context, with the same batch"
                )
            wanted = Wanted(seq, list(known), last, self._n_max)
            self._drafting.draft([wanted])
            return np.array(wanted.drafted, np.int32)

    def accept(self, seq_id: SupportsIndex, n_accepted: SupportsIndex) -> None:
        """So many tokens of the last draft were right, after :meth:`process` has seen all of it.

        Raises
        ------
        ValueError
            If there are more than were seen.
        """
        target = self._target
        seq = target._seq("seq_id", seq_id)
        with target._exclusive():
            self._open()
            drafted = self._drafting.last_drafted[seq]
            n = checks.integer("n_accepted", n_accepted, 0, drafted)
            known = len(self._drafting.known(seq))
            if drafted and known > drafted:
                self._drafting.accept(seq, n, known - drafted + n)
                self._drafting.last_drafted[seq] = 0
