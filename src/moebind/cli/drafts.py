"""Options of commands that write text with drafts, by llama.cpp's names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from moebind.cli.given import Given
from moebind.cli.parameters import Option

if TYPE_CHECKING:
    from moebind.context.context import Context
    from moebind.context.speculative import Speculative

__all__ = ["DRAFTS", "RARE_DRAFTS", "drafting", "predicts_ahead"]

MTP = "draft-mtp"


def _option(
    name: str, flags: tuple[str, ...], kind: type, help: str, shown: str = "", metavar: str = "N"
) -> Option[Any]:
    return Option(name, flags, kind, help, shown, (name,), lambda params, value: params, metavar=metavar)


#: For each kind of n-grams, its options, and the arguments of ``Speculative`` that they are.
_OF_KINDS = {
    **{
        kind: {"size-n": "n_match", "size-m": "n_max", "min-hits": "min_hits"}
        for kind in ("ngram-simple", "ngram-map-k", "ngram-map-k4v")
    },
    "ngram-mod": {"n-match": "n_match", "n-max": "n_max", "n-min": "n_min"},
}
_WHAT = {
    "n_match": "Tokens that have to match.",
    "n_max": "The most tokens to draft.",
    "n_min": "The fewest tokens to draft.",
    "min_hits": "How often they have to have matched.",
}
DRAFTS: tuple[Option[Any], ...] = (
    _option("spec_type", ("--spec-type",), str, "Draft tokens and check several at once.", metavar="KIND|auto"),
    _option("model_draft", ("--spec-draft-model", "--model-draft", "-md"), str, "A model that drafts.", metavar="FILE"),
    _option("spec_draft_n_max", ("--spec-draft-n-max",), int, "The most tokens that a model drafts.", "3"),
    _option("spec_draft_n_min", ("--spec-draft-n-min",), int, "The fewest.", "0"),
    _option("spec_draft_p_min", ("--spec-draft-p-min", "--draft-p-min"), float, "How sure it has to be.", "0", "P"),
    _option(
        "ngl_draft",
        ("--spec-draft-ngl", "--gpu-layers-draft", "--n-gpu-layers-draft", "-ngld"),
        int,
        "Layers of the draft on GPUs.",
        "as the model's",
    ),
    *(
        _option(
            f"spec_{kind}_{name}".replace("-", "_"),
            (f"--spec-{kind}-{name}",),
            int,
            f"{_WHAT[argument]} For {kind}.",
            "llama.cpp's",
        )
        for kind, arguments in _OF_KINDS.items()
        for name, argument in arguments.items()
    ),
)
#: Names of those that help leaves out.
RARE_DRAFTS = {option.name for option in DRAFTS} - {"spec_type", "model_draft"}


def _kinds(given: Given) -> list[str]:
    return [each.strip() for each in (given.values["spec_type"] or "").split(",") if each.strip()]


def predicts_ahead(given: Given) -> bool:
    """Whether the model's own layers for multi-token prediction are to draft, and have to be loaded."""
    return MTP in _kinds(given) and given.values["model_draft"] is None


def _numbers(given: Given, kinds: list[str]) -> dict[str, Any]:
    """The arguments of ``Speculative`` that were given for these kinds, one value for all of them."""
    values, found = given.values, dict[str, Any]()
    for argument in ("n_max", "n_min", "p_min"):
        found[argument] = values[f"spec_draft_{argument}"]
    for kind, arguments in _OF_KINDS.items():
        for name, argument in arguments.items():
            value = values[f"spec_{kind}_{name}".replace("-", "_")]
            if value is None:
                continue
            if kind not in kinds:
                raise ValueError(f"--spec-{kind}-{name} is given without --spec-type {kind}")
            found[argument] = value
    return {name: value for name, value in found.items() if value is not None}


@contextmanager
def drafting(given: Given, context: Context) -> Iterator[Speculative | None]:
    """What drafts for the context of a command, as its options say; None if they say nothing.

    Raises
    ------
    ValueError
        If the options do not go together.
    SpeculativeError
    ModelLoadError
    """
    from moebind.cli.loading import open_model
    from moebind.context.mtp_speculative import MtpSpeculative, MtpSpeculativeParams
    from moebind.context.speculative import Speculative
    from moebind.params.params import ModelParams

    kinds, path = _kinds(given), given.values["model_draft"]
    automatic = "auto" in kinds
    kinds = [kind for kind in kinds if kind not in {"auto", "none"}]
    numbers = _numbers(given, kinds)
    if not kinds and path is None and not automatic:
        if numbers:
            raise ValueError("how to draft is given, but not who drafts: add --spec-type or --model-draft")
        yield None
        return
    with ExitStack() as opened:
        if kinds == [MTP] and path is None:
            yield opened.enter_context(MtpSpeculative(context, params=MtpSpeculativeParams(**numbers)))
            return
        draft = None
        if path is not None:
            like, layers = context.model.params, given.values["ngl_draft"]
            params = ModelParams(
                devices=like.devices, n_gpu_layers=like.n_gpu_layers if layers is None else layers, load_mtp=True
            )
            model = opened.enter_context(open_model(path, params))
            draft = opened.enter_context(_context_of(model, context))
        made = Speculative(context, draft, kind=kinds or None, auto=automatic, **numbers)
        yield opened.enter_context(made)


def _context_of(model: Any, target: Context) -> Context:
    """A context for a draft, as large as the target's."""
    from moebind.enums import ContextType
    from moebind.files.architecture_facts import USE_OTHER_CONTEXT
    from moebind.params.params import ContextParams

    like = target.params
    params = ContextParams(
        n_ctx=target.n_ctx,
        n_seq_max=like.n_seq_max,
        kv_unified=like.kv_unified,
        n_batch=like.n_batch,
        n_ubatch=like.n_ubatch,
        n_threads=like.n_threads,
        n_threads_batch=like.n_threads_batch,
    )
    if model.n_layer_nextn:
        params = params.with_ctx_type(ContextType.MTP)
    other = target if model._architecture in USE_OTHER_CONTEXT else None
    made: Context = model.new_context(params, ctx_other=other)
    return made
