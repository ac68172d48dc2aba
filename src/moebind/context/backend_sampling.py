"""Backend samplers: the part of ``Context`` that has chains of samplers run in its graph, where the logits are."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, SupportsIndex

import numpy as np

from moebind._core import checks
from moebind._core.native import CData, ffi, lib, own
from moebind._core.shown import shown
from moebind.context.outputs import Outputs
from moebind.errors import SamplerError
from moebind.sampling.sampler import Sampler

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moebind.model.hyperparameters import Hyperparameters
    from moebind.params.params import ContextParams

__all__ = ["BackendSampling"]


def checked_chains(
    samplers: Mapping[int, Sampler] | None, params: ContextParams, model: Hyperparameters
) -> dict[int, Sampler]:
    """``samplers`` of ``new_context``, none of which libllama would end the process over."""
    if samplers is None:
        return {}
    if not isinstance(samplers, Mapping):
        raise TypeError(f"samplers is {shown(samplers)}; it takes a mapping from sequence to chain")
    n_batch = min(params.n_ctx or model.n_ctx_train, params.n_batch)
    chains = {}
    for seq_id, chain in samplers.items():
        seq = checks.integer("a sequence of samplers", seq_id, 0, params.n_seq_max - 1)
        check_chain(chain, outputs_per_sequence(params, n_batch), model.n_vocab)
        chains[seq] = chain
    if len({id(chain) for chain in chains.values()}) != len(chains):
        raise SamplerError("samplers has a chain twice; give each sequence a clone()")
    return chains


def outputs_per_sequence(params: ContextParams, n_batch: int) -> int:
    """The most outputs of a sequence in a batch, as libllama derives it from ``n_outputs_max_per_seq``."""
    most = params.n_outputs_max or n_batch
    return min(params.n_outputs_max_per_seq or most, most)


def check_chain(chain: Sampler, n_outputs: int, n_vocab: int) -> None:
    """Check that a chain can run in a graph; libllama only asserts it, some of it in the middle of a decode."""
    if not isinstance(chain, Sampler):
        raise TypeError(f"sampler is {shown(chain)}; it takes a chain of samplers")
    if not lib.llama_sampler_chain_get(chain._open(), -1):
        raise SamplerError(f"{chain!r} is not a chain: put it into one, Sampler.chain([...])")
    if chain._is_part:
        raise SamplerError(f"{chain!r} belongs to another chain: attach that one, or a clone() of this one")
    if chain._attached:
        raise SamplerError(
            f"{chain!r} is, or was, attached to a context, which a chain can be once: attach its clone()"
        )
    if not len(chain):
        raise SamplerError("the chain is empty: there is nothing to run")
    _GraphCheck(n_outputs, n_vocab, n_vocab).check(chain)


#: Samplers that do the rest on the CPU, where others want all candidates, which are not there.
_ON_CPU = {"typical", "xtc", "top-n-sigma", "mirostat", "mirostat-v2", "dry", "adaptive-p", "infill", "penalties"}


def _in_graph(part: Sampler) -> bool:
    """Whether llama.cpp can compute it in a graph. It takes a chain's first ones, up to one that it cannot."""
    return bool(part._open().iface.backend_apply)


@dataclass
class _GraphCheck:
    """A check of the samplers in a chain, in order; raises where llama.cpp would assert, or compute nonsense."""

    n_outputs: int
    n_vocab: int
    n_candidates: int
    #: How many have taken candidates away or sorted them: the first makes a list of those left, the second gives it
    #: another shape, and the third asserts the first shape.
    filters: int = 0
    #: Whether the CPU does the rest.
    on_cpu: bool = False

    def check(self, chain: Sampler) -> None:
        """Check the samplers in a chain."""
        for part in chain:
            name = part.name
            own = part._is_checked and not len(part)  # a grammar, or a sampler in Python, whatever it is called
            if name.startswith("?") and not own:
                continue  # it does nothing
            if name == "chain" and not own:
                self.check(part)
                continue
            in_graph = _in_graph(part)
            if own or not (in_graph or name in _ON_CPU):
                raise SamplerError(
                    f"{name} cannot be in a chain that a context runs: it takes all candidates out of it"
                )
            self.on_cpu |= not in_graph or (name == "penalties" and self.n_outputs > 1)
            if not self.on_cpu:
                self._check_part(part, name, max(part._token_max, chain._token_max))

    def _check_part(self, part: Sampler, name: str, token_max: int) -> None:
        if self.n_candidates == 1 and name not in {"greedy", "dist"}:
            raise SamplerError(f"{name} cannot run in the graph where one candidate is left: only dist can")
        if name == "greedy" and self.filters:
            # It gives a place among the candidates for the token.
            raise SamplerError(
                "greedy cannot run in the graph after top_k, top_p or temp(0): use it alone, or temp(0) and dist"
            )
        if name == "top-k" and part._k > self.n_candidates:
            raise SamplerError(f"top_k({part._k}) cannot run in the graph: {self.n_candidates} candidates come to it")
        if name in {"top-k", "top-p"}:
            if self.filters == 2:
                raise SamplerError("only two of top_k and top_p can run in the graph, one after the other")
            self.filters += 1
            self.n_candidates = part._k if name == "top-k" else self.n_candidates
        elif name in {"temp", "temp-ext"} and _leaves_one(part):
            self.filters += 1
            self.n_candidates = 1
        elif name == "logit-bias" and self.filters:
            raise SamplerError("logit_bias cannot run in the graph after top_k or top_p: put it first")
        elif name in {"logit-bias", "penalties"} and token_max >= self.n_vocab:
            verb = "is for" if name == "logit-bias" else "accepted"
            raise SamplerError(f"{name} {verb} token {token_max}; the vocabulary ends at {self.n_vocab - 1}")
        elif name == "penalties" and part._n_vocab != self.n_vocab:
            raise SamplerError(
                f"penalties was made for a vocabulary of {part._n_vocab}, this model has {self.n_vocab}: make it with "
                "n_vocab=model.n_vocab"
            )


def _leaves_one(part: Sampler) -> bool:
    """Whether it leaves the likeliest candidate only, as a temperature of 0 does."""
    two = ffi.new("llama_token_data[]", [(0, 0.0, 0.0), (1, 1.0, 0.0)])
    array = ffi.new("llama_token_data_array *", {"data": two, "size": 2, "selected": -1})
    copy = own(lib.own_llama_sampler_clone, part._open())
    lib.llama_sampler_apply(copy, array)
    return bool(two[0].logit == -math.inf)


class BackendSampling(Outputs):
    """Samplers that run in a context's graph. :class:`moebind.Context` has it."""

    #: The most outputs that one sequence has in a batch.
    _n_outputs_max_per_seq: int
    #: The pointers of those chains, which may be closed since. The native context holds them.
    _attached_pointers: dict[int, CData]

    def set_sampler(self, seq_id: SupportsIndex, chain: Sampler | None) -> bool:
        """Run a chain of samplers in the graph, where the logits are, for one sequence (``llama_set_sampler``).

        The device runs the samplers from the beginning of the chain up to the first that it cannot run;
        ``chain.sample(context)`` runs the rest, if any, and accepts the token. The logits of such a sequence are not
        copied: read :meth:`sampled_token_ith` and the other ``sampled_`` methods instead. The chain then belongs to
        this context, which keeps its memory: it cannot be attached again, put into another chain, or used elsewhere.

        Parameters
        ----------
        seq_id
            The sequence.
        chain
            A chain that was never attached; None removes the sequence's chain.

        Returns
        -------
        bool
            Whether llama.cpp accepted it; it accepts none for a model that is split by tensors.

        Raises
        ------
        SamplerError
            If it is not a chain, was attached before, or holds a sampler that does not fit this model.

        Notes
        -----
        If you know the chains when you make the context, pass them to ``Model.new_context``: the graph is then planned
        with them. Tokens that the model says to suppress are not suppressed there: begin the chain with a bias against
        them.
        """
        seq = self._seq("seq_id", seq_id)
        if chain is None:
            with self._exclusive() as native:
                accepted = bool(lib.llama_set_sampler(native, seq, ffi.NULL))
                self._detach(native, seq)
                return accepted
        with self._exclusive() as native:
            check_chain(chain, self._n_outputs_max_per_seq, self._model._n_vocab)
            with chain._lock.held():
                pointer = chain._open()
                lib.moebind_hold(native, pointer)
                accepted = bool(lib.llama_set_sampler(native, seq, pointer))
            self._detach(native, seq)
            if accepted:
                self._attach(seq, chain, pointer)
            else:
                lib.moebind_let_go(native, pointer)
            return accepted

    def _attach(self, seq: int, chain: Sampler, pointer: CData) -> None:
        """Note that a chain runs, which the native context holds already."""
        chain._attach(self._model._n_vocab)
        self._attached[seq] = chain
        self._attached_pointers[seq] = pointer
        self._update_extra_locks()

    def _detach(self, native: CData, seq: int) -> None:
        """Forget what a sequence had. Outputs that libllama had for it are laid out anew by the next decode."""
        self._attached.pop(seq, None)
        lib.llama_synchronize(native)  # nothing of it is being computed
        held = self._attached_pointers.pop(seq, None)
        if held is not None:
            lib.moebind_let_go(native, held)
        self._forget_outputs()
        self._outputs_reserved = 0
        self._update_extra_locks()

    @abstractmethod
    def _update_extra_locks(self) -> None:
        """Collect the locks of what else computing uses, after a change of the chains."""

    def sampled_token_ith(self, i: SupportsIndex = -1) -> int | None:
        """The token that a backend sampler chose, or None if none did (``llama_get_sampled_token_ith``).

        Parameters
        ----------
        i
            An index in the last batch; negative numbers count outputs from the end.

        Raises
        ------
        IndexError
            If the batch asked for no output there.
        """
        at = checks.integer("i", i, -checks.INT32_MAX)
        with self._exclusive() as native:
            self._output_row(at)
            token = int(lib.llama_get_sampled_token_ith(native, at))
            return None if token == lib.LLAMA_TOKEN_NULL else token

    def sampled_probs_ith(self, i: SupportsIndex = -1) -> NDArray[np.float32] | None:
        """Probabilities of the candidates that a backend sampler left.

        Uses ``llama_get_sampled_probs_ith`` and ``llama_get_sampled_probs_count_ith``.

        Parameters
        ----------
        i
            As for :meth:`sampled_token_ith`.

        Returns
        -------
        numpy.ndarray or None
            float32, in the order of :meth:`sampled_candidates_ith`: a read-only view, like that of :meth:`get_logits`.
            None if no sampler of the chain computed probabilities.
        """
        return self._sampled("probs", i)

    def sampled_logits_ith(self, i: SupportsIndex = -1) -> NDArray[np.float32] | None:
        """Logits of the candidates that a backend sampler left.

        Uses ``llama_get_sampled_logits_ith`` and ``llama_get_sampled_logits_count_ith``.

        Parameters
        ----------
        i
            As for :meth:`sampled_token_ith`.

        Returns
        -------
        numpy.ndarray or None
            float32, in the order of :meth:`sampled_candidates_ith`: a read-only view, like that of :meth:`get_logits`.
            None if no backend sampler ran for this token.
        """
        return self._sampled("logits", i)

    def sampled_candidates_ith(self, i: SupportsIndex = -1) -> NDArray[np.int32] | None:
        """Token ids of the candidates that a backend sampler left.

        Uses ``llama_get_sampled_candidates_ith`` and ``llama_get_sampled_candidates_count_ith``.

        Parameters
        ----------
        i
            As for :meth:`sampled_token_ith`.

        Returns
        -------
        numpy.ndarray or None
            int32: a read-only view, like that of :meth:`get_logits`. None if the candidates are the whole vocabulary,
            in its order, or if no backend sampler ran for this token.
        """
        at = checks.integer("i", i, -checks.INT32_MAX)
        with self._exclusive() as native:
            self._output_row(at)
            count = int(lib.llama_get_sampled_candidates_count_ith(native, at))
            if not count:
                return None
            return self._view(lib.llama_get_sampled_candidates_ith(native, at), (count,), np.int32)

    def _sampled(self, what: str, i: SupportsIndex) -> NDArray[np.float32] | None:
        at = checks.integer("i", i, -checks.INT32_MAX)
        with self._exclusive() as native:
            self._output_row(at)
            pointer = getattr(lib, f"llama_get_sampled_{what}_ith")(native, at)
            if not pointer:
                return None
            count = int(getattr(lib, f"llama_get_sampled_{what}_count_ith")(native, at))
            return self._view(pointer, (count,))
