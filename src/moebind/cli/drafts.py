"""Options of commands that write text with drafts, by llama.cpp's names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from moebind._core import checks
from moebind._core.shown import shown
from moebind.backend.devices import Device, devices
from moebind.cli.devices import as_devices, separate
from moebind.cli.given import Given
from moebind.cli.model_argument import on_hub
from moebind.cli.parameters import CONTEXT, MODEL, Option, ParamsT
from moebind.enums import DeviceType, SpeculativeType
from moebind.params.draft import MTP, Draft
from moebind.params.params import ContextParams, ModelParams

if TYPE_CHECKING:
    from moebind.context.context import Context
    from moebind.context.speculative import Speculative

__all__ = [
    "DRAFTS",
    "MTP",
    "RARE_DRAFTS",
    "SIDECARS",
    "asked_for",
    "draft_beside",
    "draft_of",
    "drafting",
    "kinds_of",
    "passed_on",
    "written",
]

#: Drafts that lie beside their model, as files' names begin, and kinds' names end.
SIDECARS = {"mtp", "eagle3", "dflash", "dspark"}


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
    "threads_batch": ("--spec-draft-threads-batch", "--threads-batch-draft", "-tbd"),
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
    default = "as --spec-draft-threads" if base.name == "threads_batch" else default
    return replace(base, name=f"{base.name}_draft", flags=flags, help=f"Draft: {base.help}", shown=default, read=read)


_OF_MODEL = tuple(_of_draft(option) for option in MODEL if option.name in _LIKE)
_OF_CONTEXT = tuple(_of_draft(option) for option in CONTEXT if option.name in _LIKE)
DRAFTS: tuple[Option[Any], ...] = (
    _option("spec_type", ("--spec-type",), str, "Draft tokens and check several at once.", metavar="KIND|auto"),
    _option("model_draft", ("--spec-draft-model", "--model-draft", "-md"), str, "A model that drafts.", metavar="FILE"),
    _option(
        "hf_repo_draft",
        ("--spec-draft-hf", "--hf-repo-draft", "-hfd", "-hfrd"),
        str,
        "The same from the Hub.",
        metavar="OWNER/REPO[:QUANT]",
    ),
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


def kinds_of(text: str | None) -> list[str]:
    """The kinds that ``--spec-type`` has, by llama.cpp's names.

    Raises
    ------
    ValueError
        If one is none.
    """
    given_names = (each.strip() for each in (text or "").split(","))
    kinds = [each.lower().replace("_", "-") for each in given_names if each]
    known = [each.name.lower().replace("_", "-") for each in SpeculativeType]
    for kind in kinds:
        if kind not in {"auto", "none", *known}:
            raise ValueError(f"--spec-type is {shown(kind)}; it takes auto, none, or some of {', '.join(known)}")
    return kinds


def asked_for(given: Given) -> str | None:
    """What asks for a model, or layers, that draft, as a sentence begins; None: nothing does."""
    for name in ("model_draft", "hf_repo_draft"):
        if given.values[name] is not None:
            flag = next(option.flag for option in DRAFTS if option.name == name)
            return f"{flag} is given"
    kind = next((each for each in kinds_of(given.values["spec_type"]) if each.startswith("draft-")), None)
    return None if kind is None else f"--spec-type is {kind!r}"


def draft_beside(model: str | None, kinds: Sequence[str], instead: str | None = None) -> str | None:
    """The file that drafts for a model, of what lies beside it in its folder or repository, for the first such kind.

    Parameters
    ----------
    model
        The file or the address of the model; None: there are several.
    kinds
        As ``--spec-type`` has them.
    instead
        What the message tells to do if there is none; None: to name the file, or to get it.

    Returns
    -------
    str or None
        None: no file drafts, but n-grams; or the model's own layers, if ``draft-mtp`` is among the kinds.

    Raises
    ------
    ValueError
        If there is none for a kind that takes one.
    SpeculativeError
        If there are no layers that predict further ahead.
    ModelLoadError
        If the Hub cannot be asked.
    """
    kind = next((each for each in kinds if each.startswith("draft-")), None)
    if kind is None or (kind == MTP and model is None):
        return None  # of several models, each has layers of its own, or a file beside it

    from moebind.files.sidecars import beside
    from moebind.placement.drafter import models_own
    from moebind.placement.header import read_header

    sidecar = kind.removeprefix("draft-")
    if instead is None:
        instead = "add --model-draft FILE"
        if model is not None and sidecar in SIDECARS and not checks.on_hub(model):
            instead += f" (moebind get OWNER/REPO:QUANT --spec-type {kind} brings one that a repository has)"
    if kind == MTP and model is not None:
        return models_own(model, read_header(model), instead)
    near = beside(model, sidecar) if model is not None and sidecar in SIDECARS else None
    if near is None:
        missing = f", and no {sidecar}-*.gguf lies beside {model}" if model and sidecar in SIDECARS else ""
        raise ValueError(f"--spec-type is {kind}, which takes a draft{missing}: {instead}")
    return near


def _file_of(given: Given, model: str | None, kinds: Sequence[str]) -> str | None:
    """The file of the draft, or its address; None: as :func:`draft_beside`."""
    from moebind.files.sidecars import beside

    path, repo = given.values["model_draft"], given.values["hf_repo_draft"]
    if path is not None and repo is not None:
        raise ValueError("--model-draft and --spec-draft-hf are both given; a draft is one model")
    if path is not None:
        return str(path)
    if repo is None:
        return draft_beside(model, kinds)
    address = on_hub(repo, "--spec-draft-hf")
    # As llama.cpp has it: in a repository of models, what lies beside them is what a kind means.
    wanted = (each.removeprefix("draft-") for each in kinds)
    found = (beside(address, each) for each in wanted if each in SIDECARS)
    return next((each for each in found if each is not None), address)


def draft_of(
    given: Given,
    model: str | None,
    model_params: ModelParams,
    context_params: ContextParams,
    listed: Sequence[Device | str | int] | None = None,
) -> Draft | None:
    """The model that is to draft, as the options say; None: no model is, but perhaps n-grams.

    Parameters
    ----------
    given
        The options.
    model
        The file or the address of the model that it drafts for; None: there are several.
    model_params, context_params
        That model's.
    listed
        The devices that are planned for, of which some may only be described.

    Raises
    ------
    ValueError
        If the options do not go together.
    """
    values, kinds = given.values, kinds_of(given.values["spec_type"])
    _numbers(given, kinds)
    path = _file_of(given, model, kinds)
    of_model, of_context = given.of(_OF_MODEL), given.of(_OF_CONTEXT)
    loaded = [option.flag for option, _ in of_model] + (["--spec-draft-device"] if values["device_draft"] else [])
    if path is None and loaded:
        raise ValueError(f"{loaded[0]} says how a draft's file is loaded; give the file, --model-draft FILE")
    if path is None and MTP not in kinds:
        if of_context:
            raise ValueError(f"{of_context[0][0].flag} is given, but no model that drafts: add --model-draft FILE")
        return None
    bare = Draft(path)
    own_model = own_context = None
    if loaded:
        own_model = replace(bare.loaded_for(model_params), devices=None)
        for each, value in of_model:
            own_model = each.read(own_model, value)
        if values["device_draft"]:
            own_model = own_model.with_devices(_devices(values["device_draft"], listed or ()))
    if of_context:
        own_context = bare.context_for(context_params, context_params.n_ctx, ahead=path is None)
        for option, value in of_context:
            own_context = option.read(own_context, value)
    return Draft(path, own_model, own_context)


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
    kinds = kinds_of(given.values["spec_type"])
    if "auto" in kinds:
        raise ValueError("--spec-type is 'auto', which llama-server does not know; it takes kinds, such as ngram-mod")
    _numbers(given, kinds)
    ngrams = [kind for kind in kinds if kind.startswith("ngram-")]
    arguments = ["--spec-type", ",".join(ngrams)] if ngrams else []
    unplanned = [option for option in DRAFTS if option.name.startswith("spec_") and option.name != "spec_type"]
    unplanned += [option for option in _OF_CONTEXT if option.name in {"threads_draft", "threads_batch_draft"}]
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
    from moebind.cli.loading import open_model
    from moebind.context.drafted_by import drafted_by

    kinds = kinds_of(given.values["spec_type"])
    automatic = "auto" in kinds
    kinds = [kind for kind in kinds if kind not in {"auto", "none"}]
    numbers = _numbers(given, kinds)
    if not kinds and draft is None and not automatic:
        if numbers:
            raise ValueError("how to draft is given, but not who drafts: add --spec-type or --model-draft")
        yield None
        return
    with drafted_by(context, draft, kinds, auto=automatic, load=open_model, **numbers) as speculative:
        yield speculative
