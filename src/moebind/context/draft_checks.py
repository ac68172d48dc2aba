"""Whether a context can draft for another one, before llama.cpp would assert it, or read what is not there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from moebind._core import checks
from moebind._core.native import CData, ffi, lib
from moebind._core.shown import shown
from moebind.enums import SpeculativeType
from moebind.errors import SpeculativeError

if TYPE_CHECKING:  # plans read what a draft is, and compute nothing
    from moebind.context.decode import Decoding

__all__ = [
    "ALL_NAMES",
    "FROM_STATES",
    "MARKOV",
    "NGRAMS",
    "NGRAM_NAMES",
    "check_draft",
    "check_target",
    "inferred",
    "kind_of_draft",
    "kinds_of",
    "states_problem",
]

#: Those that draft from hidden states of the target, which they read after each of its computations.
FROM_STATES = frozenset(
    {
        SpeculativeType.DRAFT_EAGLE3,
        SpeculativeType.DRAFT_MTP,
        SpeculativeType.DRAFT_DFLASH,
        SpeculativeType.DRAFT_DSPARK,
    }
)
#: Those that look the text up in itself.
NGRAMS = frozenset(SpeculativeType) - FROM_STATES - {SpeculativeType.DRAFT_SIMPLE}
#: The kinds by llama.cpp's names, and those that need no draft.
ALL_NAMES = tuple(each.name.lower().replace("_", "-") for each in SpeculativeType)
NGRAM_NAMES = tuple(name for name in ALL_NAMES if name.startswith("ngram"))
#: By the draft's architecture; what is not here is a model of its own.
_ARCHITECTURES = {"eagle3": SpeculativeType.DRAFT_EAGLE3, "gemma4-assistant": SpeculativeType.DRAFT_MTP}
#: The tensor that tells a DSpark model from a DFlash model.
MARKOV = "markov_w1.weight"
#: llama-common takes vocabularies for the same that differ by so many tokens at the end.
VOCAB_DIFFERENCE_MAX = 128


def kinds_of(
    kind: SpeculativeType | int | str | Sequence[SpeculativeType | int | str],
    argument: str = "kind",
    taken: Sequence[str] = ALL_NAMES,
) -> tuple[SpeculativeType, ...]:
    """The kinds that were asked for, by their members or by llama.cpp's names.

    ``argument`` is what asked for them, and ``taken`` the names that a message lists.
    """
    given = kind if isinstance(kind, Sequence) and not isinstance(kind, str) else [kind]
    if not given:
        raise ValueError(f"{argument} is empty; it takes a SpeculativeType, or several")
    return tuple(dict.fromkeys(_kind(each, argument, taken) for each in given))


def _kind(kind: SpeculativeType | int | str, argument: str, taken: Sequence[str]) -> SpeculativeType:
    if not isinstance(kind, str):
        return checks.member(argument, kind, SpeculativeType)
    found = SpeculativeType.__members__.get(kind.upper().replace("-", "_"))
    if found is None:
        raise ValueError(f"{argument} is {shown(kind)}; it takes one of {', '.join(taken)}")
    return found


def inferred(draft: Decoding | None) -> tuple[SpeculativeType, ...]:
    """Who drafts, by what the draft is."""
    if draft is None:
        return (SpeculativeType.NGRAM_SIMPLE,)
    markov = ffi.new("struct moebind_weight *")
    has = bool(lib.moebind_model_weight(draft._model._open(), MARKOV.encode(), markov))
    return (kind_of_draft(draft._model._architecture, ahead=draft._predicts_ahead, markov=has),)


def kind_of_draft(architecture: str, *, ahead: bool, markov: bool) -> SpeculativeType:
    """How a model drafts; ``ahead``: its layers predict further ahead; ``markov``: it has the tensor ``MARKOV``."""
    if ahead:
        return SpeculativeType.DRAFT_MTP
    if architecture == "dflash":
        return SpeculativeType.DRAFT_DSPARK if markov else SpeculativeType.DRAFT_DFLASH
    return _ARCHITECTURES.get(architecture, SpeculativeType.DRAFT_SIMPLE)


def check_target(target: Decoding) -> None:
    """Refuse a context that cannot verify: one that cannot take back what was drafted wrongly, above all.

    Raises
    ------
    SpeculativeError
    """
    model = target._model
    if target._encodes or target._predicts_ahead or target._has_cross_attention or target._drafts_from is not None:
        raise SpeculativeError(f"{model!r} generates no text by itself: the target is a context of a model that does")
    if model._without_weights:
        raise SpeculativeError("the target's model was loaded without its weights")
    if (model.is_recurrent or model.is_hybrid) and not target.n_rs_seq:
        raise SpeculativeError(
            f"the memory of {model!r} is recurrent, and cannot take back tokens that were drafted wrongly: make the "
            "context with n_rs_seq, as many as are to be drafted (n_max); where it is 0 all the same, llama.cpp cannot "
            "do that for this architecture"
        )


def check_draft(target: Decoding, draft: Decoding | None, kinds: Sequence[SpeculativeType]) -> None:
    """Refuse a draft that does not go with the target.

    Raises
    ------
    SpeculativeError
    """
    check_target(target)
    modelled = [kind for kind in kinds if kind not in NGRAMS]
    if draft is None:
        if modelled:
            raise SpeculativeError(f"{modelled[0].name} takes a draft: Speculative(context, draft_context)")
        return
    if not modelled:
        names = ", ".join(kind.name for kind in kinds)
        raise SpeculativeError(f"kind is {names}, which takes no draft: leave it out, or add the draft's kind")
    if len(modelled) > 1:
        raise SpeculativeError(f"kind has {modelled[0].name} and {modelled[1].name}: one draft is one of them")
    if draft is target:
        raise SpeculativeError("the draft is the target itself: it takes a context of its own")
    drafter = None if draft._drafter is None else draft._drafter()
    if drafter is not None and not drafter.closed:
        raise SpeculativeError("this context drafts for another Speculative already: close that one first")
    drafts = None if target._drafter is None else target._drafter()
    if drafts is not None and not drafts.closed and drafts in draft._speculatives:
        raise SpeculativeError("the target drafts for the draft: two contexts cannot wait for each other")
    if draft._other is not None and draft._other is not target:
        raise SpeculativeError("the draft's context was made with another ctx_other than the target")
    kind = modelled[0]
    expected = inferred(draft)[0]
    if kind != expected:
        raise SpeculativeError(f"kind is {kind.name}, but {draft._model!r} is a draft of kind {expected.name}")
    if kind in FROM_STATES:
        _check_states(target, draft, kind)
    else:
        _check_plain(draft)
    _check_room(target, draft)
    _check_vocabularies(target, draft)


def _check_room(target: Decoding, draft: Decoding) -> None:
    for name, what in (("n_seq_max", "sequences"), ("n_ctx_seq", "tokens in each sequence")):
        wanted, there = getattr(target, name), getattr(draft, name)
        if there < wanted or (name == "n_seq_max" and there != wanted):
            parameter = "n_ctx" if name == "n_ctx_seq" else name
            raise SpeculativeError(
                f"the draft's context takes {there} {what}, and the target's {wanted}: make the draft's with the same "
                f"n_ctx and n_seq_max as the target's ({parameter} differs)"
            )
    if draft._n_pos and draft._n_pos < min(target.n_ctx_seq, target._n_pos or target.n_ctx_seq):
        raise SpeculativeError(
            f"the draft has embeddings for {draft._n_pos} positions, and the target takes {target.n_ctx_seq} tokens: "
            "make the target's context with a smaller n_ctx"
        )


def _check_plain(draft: Decoding) -> None:
    model = draft._model
    if draft._encodes or draft._has_cross_attention or model._without_weights:
        raise SpeculativeError(f"{model!r} generates no text, so it cannot draft")
    if (model.is_recurrent or model.is_hybrid) and not draft.n_rs_seq:
        raise SpeculativeError(
            f"the memory of {model!r} is recurrent, and cannot take back tokens that it drafted: take another draft, "
            "or make its context with n_rs_seq, as many as are to be drafted (n_max)"
        )
    if draft._attached:
        raise SpeculativeError(
            "the draft's context has backend samplers: take them away with set_sampler(seq_id, None)"
        )


def _check_states(target: Decoding, draft: Decoding, kind: SpeculativeType) -> None:
    problem = states_problem(target._model._open(), draft._model._open(), kind)
    if problem is not None:
        raise SpeculativeError(problem)
    if kind in {SpeculativeType.DRAFT_DFLASH, SpeculativeType.DRAFT_DSPARK} and draft._model.token_mask is None:
        raise SpeculativeError(
            f"{draft._model!r} has no mask token, which a DFlash model drafts with: its file is not complete"
        )


def states_problem(target: CData, draft: CData, kind: SpeculativeType) -> str | None:
    """Why a draft cannot read the hidden states of a model, both as llama.cpp has them."""
    if kind == SpeculativeType.DRAFT_MTP:
        theirs, ours = lib.llama_model_n_embd_out(draft), lib.llama_model_n_embd_out(target)
        if theirs == ours:
            return None
        return (
            f"the draft takes hidden states of {theirs} numbers, and the target's have {ours}: it was made for another "
            "model"
        )
    n = int(lib.moebind_target_layers(draft, ffi.NULL, 0))
    layers = ffi.new("int32_t[]", n)
    lib.moebind_target_layers(draft, layers, n)
    n_layer, n_embd = lib.llama_model_n_layer(target), lib.llama_model_n_embd(target)
    # An EAGLE-3 model may read what comes after the last layer as well.
    last = n_layer if kind == SpeculativeType.DRAFT_EAGLE3 else n_layer - 1
    wrong = [layer for layer in layers if not 0 <= layer <= last]
    width = int(lib.moebind_model_n_embd_inp_enc(draft))
    if not wrong and width == n * n_embd:
        return None
    reads = f"layer {wrong[0]}" if wrong else f"{width} numbers of {n} layers"
    return (
        f"the draft reads {reads} of its target, which has {n_layer} layers of {n_embd} numbers: it was made for "
        "another model"
    )


def _check_vocabularies(target: Decoding, draft: Decoding) -> None:
    model, other = target._model, draft._model
    first, second = model._usable_vocab(), other._usable_vocab()
    advice = "a draft takes the same vocabulary as the target"
    if model.vocab_type != other.vocab_type:
        raise SpeculativeError(
            f"the target's vocabulary is of type {model.vocab_type.name}, the draft's {other.vocab_type.name}; {advice}"
        )
    for name in ("bos", "eos"):
        ours, theirs = getattr(model, f"token_{name}"), getattr(other, f"token_{name}")
        adds = [bool(getattr(lib, f"llama_vocab_get_add_{name}")(each)) for each in (first, second)]
        if adds[0] != adds[1] or (adds[0] and ours != theirs):
            said = f"{_bounds(name, adds[0], ours)}, the draft's {_bounds(name, adds[1], theirs)}"
            raise SpeculativeError(f"the target's texts {said}; {advice}")
    if abs(model.n_vocab - other.n_vocab) > VOCAB_DIFFERENCE_MAX:
        raise SpeculativeError(f"the target has {model.n_vocab} tokens, the draft {other.n_vocab}; {advice}")
    token = int(lib.moebind_vocab_difference(first, second))
    if token >= 0:
        raise SpeculativeError(
            f"token {token} is {shown(model.token_to_bytes(token, special=True))} in the target's vocabulary, and "
            f"{shown(other.token_to_bytes(token, special=True))} in the draft's; {advice}"
        )


def _bounds(name: str, adds: bool, token: int | None) -> str:
    where = "begin" if name == "bos" else "end"
    return f"{where} with token {token}" if adds else f"{where} with no such token"
