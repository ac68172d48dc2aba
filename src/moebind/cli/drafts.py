"""Options of commands that write text with drafts, by llama.cpp's names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from moebind._core.shown import shown
from moebind.backend.devices import Device, devices
from moebind.cli.devices import as_devices, separate
from moebind.cli.given import Given
from moebind.cli.parameters import CONTEXT, MODEL, Option, ParamsT
from moebind.enums import DeviceType, SpeculativeType
from moebind.params.draft import Draft
from moebind.params.params import ContextParams, ModelParams

if TYPE_CHECKING:
    from moebind.context.context import Context
    from moebind.context.speculative import Speculative

__all__ = ["DRAFTS", "RARE_DRAFTS", "draft_of", "drafting", "passed_on", "written"]

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
#: How a draft is loaded, and its caches: options of models and contexts, by llama.cpp's names for a draft's.
_LIKE = {
    "n_gpu_layers": ("--spec-draft-ngl", "--gpu-layers-draft", "--n-gpu-layers-draft", "-ngld"),
    "override_tensor": ("--spec-draft-override-tensor", "--override-tensor-draft", "-otd"),
    "n_cpu_moe": ("--spec-draft-n-cpu-moe", "--spec-draft-ncmoe", "--n-cpu-moe-draft", "-ncmoed"),
    "cpu_moe": ("--spec-draft-cpu-moe", "--cpu-moe-draft", "-cmoed"),
    "type_k": ("--spec-draft-type-k", "--cache-type-k-draft", "-ctkd"),
    "type_v": ("--spec-draft-type-v", "--cache-type-v-draft", "-ctvd"),
    "threads": ("--spec-draft-threads", "--threads-draft", "-td"),
}


def _of_draft(base: Option[ParamsT]) -> Option[ParamsT]:
    flags = _LIKE[base.name]

    def read(params: ParamsT, value: Any) -> ParamsT:
        try:
            return base.read(params, value)
        except ValueError as error:
            # It names the model's option, or begins with the parameter.
            begin, _, rest = str(error).partition(" ")
            begin = flags[0] if begin in base.fields else begin
            raise ValueError(f"{begin} {rest}".replace(base.flag, flags[0])) from None

    default = "as the model's" if base.name in {"n_gpu_layers", "threads"} else base.shown
    return replace(base, name=f"{base.name}_draft", flags=flags, help=f"Draft: {base.help}", shown=default, read=read)


_OF_MODEL = tuple(_of_draft(option) for option in MODEL if option.name in _LIKE)
_OF_CONTEXT = tuple(_of_draft(option) for option in CONTEXT if option.name in _LIKE)
DRAFTS: tuple[Option[Any], ...] = (
    _option("spec_type", ("--spec-type",), str, "Draft tokens and check several at once.", metavar="KIND|auto"),
    _option("model_draft", ("--spec-draft-model", "--model-draft", "-md"), str, "A model that drafts.", metavar="FILE"),
    _option("spec_draft_n_max", ("--spec-draft-n-max",), int, "The most tokens that a model drafts.", "3"),
    _option("spec_draft_n_min", ("--spec-draft-n-min",), int, "The fewest.", "0"),
    _option("spec_draft_p_min", ("--spec-draft-p-min", "--draft-p-min"), float, "How sure it has to be.", "0", "P"),
    _option(
        "device_draft",
        ("--spec-draft-device", "--device-draft", "-devd"),
        str,
        "Devices of the draft, as in --device.",
        "the model's",
        "DEVICE",
    ),
    *_OF_MODEL,
    *_OF_CONTEXT,
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
    """The kinds that ``--spec-type`` has, by llama.cpp's names.

    Raises
    ------
    ValueError
        If one is none, or there is no model for it.
    """
    given_names = (each.strip() for each in (given.values["spec_type"] or "").split(","))
    kinds = [each.lower().replace("_", "-") for each in given_names if each]
    known = [each.name.lower().replace("_", "-") for each in SpeculativeType]
    for kind in kinds:
        if kind not in {"auto", "none", *known}:
            raise ValueError(f"--spec-type is {shown(kind)}; it takes auto, none, or some of {', '.join(known)}")
        if kind.startswith("draft-") and kind != MTP and given.values["model_draft"] is None:
            raise ValueError(f"--spec-type is {kind}, which takes a draft: add --model-draft FILE")
    return kinds


def draft_of(
    given: Given,
    model_params: ModelParams,
    context_params: ContextParams,
    listed: Sequence[Device | str | int] | None = None,
) -> Draft | None:
    """The model that is to draft, as the options say; None: no model is, but perhaps n-grams.

    Parameters
    ----------
    given
        The options.
    model_params, context_params
        Of the model that it drafts for.
    listed
        The devices that are planned for, of which some may only be described.

    Raises
    ------
    ValueError
        If the options do not go together.
    """
    values, path = given.values, given.values["model_draft"]
    _numbers(given, _kinds(given))
    of_model, of_context = given.of(_OF_MODEL), given.of(_OF_CONTEXT)
    loaded = [option.flag for option, _ in of_model] + (["--spec-draft-device"] if values["device_draft"] else [])
    if path is None and loaded:
        raise ValueError(f"{loaded[0]} says how a draft's file is loaded; give the file, --model-draft FILE")
    if path is None and MTP not in _kinds(given):
        if of_context:
            raise ValueError(f"{of_context[0][0].flag} is given, but no model that drafts: add --model-draft FILE")
        return None
    bare = Draft(path)
    model = context = None
    if loaded:
        model = replace(bare.loaded_for(model_params), devices=None)
        for each, value in of_model:
            model = each.read(model, value)
        if values["device_draft"]:
            model = model.with_devices(_devices(values["device_draft"], listed or ()))
    if of_context:
        context = bare.context_for(context_params, context_params.n_ctx, ahead=path is None)
        for option, value in of_context:
            context = option.read(context, value)
    return Draft(path, model, context)


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


def written(given: Given) -> list[str]:
    """The options of drafts that were given, as another command takes them."""
    words: list[str] = []
    for option, value in given.of(DRAFTS):
        for each in value if isinstance(value, list) else [value]:
            words += [option.flag] if each is True else [option.flag, str(each)]
    return words


def passed_on(given: Given) -> list[str]:
    """What llama-server is told of drafts besides the model that drafts: kinds of n-grams, and numbers.

    Raises
    ------
    ValueError
        If drafting is to be measured, which llama-server does not do.
    """
    kinds = _kinds(given)
    if "auto" in kinds:
        raise ValueError("--spec-type is 'auto', which llama-server does not know; it takes kinds, such as ngram-mod")
    _numbers(given, kinds)
    ngrams = [kind for kind in kinds if kind.startswith("ngram-")]
    arguments = ["--spec-type", ",".join(ngrams)] if ngrams else []
    unplanned = [option for option in DRAFTS if option.name.startswith("spec_") and option.name != "spec_type"]
    unplanned += [option for option in _OF_CONTEXT if option.name == "threads_draft"]
    for option, value in given.of(unplanned):
        arguments += [option.flag, str(value)]
    return arguments


def _devices(names: str, listed: Sequence[Device | str | int]) -> list[Device]:
    """Devices of a draft, by their names: of those that are planned for, GPU0 is the first that is only described."""
    all_ = [*devices(), *as_devices(listed)]
    known = {device.name: device for device in all_ if device.type != DeviceType.CPU}
    chosen = separate([names]) or []
    some = f", or some of {', '.join(known)}" if known else ": there is no device"
    for name in chosen:
        if name not in known:
            raise ValueError(f"--spec-draft-device is {name!r}; it takes none{some}")
    return [known[name] for name in chosen]


@contextmanager
def drafting(given: Given, context: Context, draft: Draft | None) -> Iterator[Speculative | None]:
    """What drafts for the context of a command, as its options say; None if they say nothing.

    ``draft`` is the model that does, which was counted with the context's.

    Raises
    ------
    ValueError
        If the options do not go together.
    SpeculativeError
    ModelLoadError
    """
    from moebind.context.mtp_speculative import MtpSpeculative, MtpSpeculativeParams
    from moebind.context.speculative import Speculative

    kinds = _kinds(given)
    automatic = "auto" in kinds
    kinds = [kind for kind in kinds if kind not in {"auto", "none"}]
    numbers = _numbers(given, kinds)
    if not kinds and draft is None and not automatic:
        if numbers:
            raise ValueError("how to draft is given, but not who drafts: add --spec-type or --model-draft")
        yield None
        return
    with ExitStack() as opened:
        made = None if draft is None else _context_of(draft, context, opened)
        if kinds == [MTP] and draft is not None and draft.path is None and not automatic:
            params = MtpSpeculativeParams(**numbers)
            yield opened.enter_context(MtpSpeculative(context, made, params))
            return
        yield opened.enter_context(Speculative(context, made, kind=kinds or None, auto=automatic, **numbers))


def _context_of(draft: Draft, target: Context, opened: ExitStack) -> Context:
    """The context of a draft, whose model is loaded if it is another one; both are to be closed."""
    from moebind.cli.loading import open_model
    from moebind.context.mtp_speculative import own_layers
    from moebind.files.architecture_facts import USE_OTHER_CONTEXT

    model = (
        own_layers(target.model)
        if draft.path is None
        else opened.enter_context(open_model(draft.path, draft.loaded_for(target.model.params)))
    )
    params = draft.context_for(target.params, target.n_ctx, ahead=bool(model.n_layer_nextn))
    other = target if model._architecture in USE_OTHER_CONTEXT else None
    return opened.enter_context(model.new_context(params, ctx_other=other))
