"""Parameters that fit into a budget of memory."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, SupportsIndex

from moebind._core import checks
from moebind._core.other_names import missing
from moebind._core.shown import shown
from moebind._core.sizes import parse_memory, show_size
from moebind.backend.devices import Device
from moebind.errors import FitError
from moebind.params.draft import Draft
from moebind.params.misplaced import explained_with_fields
from moebind.params.params import N_CTX_MAX, ContextParams, ModelParams
from moebind.placement import windows
from moebind.placement.cache_share import BUS, CacheShare, cached_params, check_share, choose_share
from moebind.placement.described_devices import described_host, device_list
from moebind.placement.device_budgets import read_budgets
from moebind.placement.drafter import find_drafter
from moebind.placement.header import Header, read_header
from moebind.placement.mmproj import find_projector
from moebind.placement.plan import Plan, check_arguments, make_plan
from moebind.placement.routing import RoutingRecorder
from moebind.placement.saved import Identity, Saved, described, write
from moebind.placement.search import Search
from moebind.placement.summary import experts_on_host

__all__ = ["Fit", "fit"]

_MODEL, _CONTEXT = ModelParams(), ContextParams()
#: Sizes of a micro-batch that are tried for prompts; beyond the first, little is gained.
_UBATCHES = (2048, 1024, _CONTEXT.n_ubatch)
#: How much more a token may read from host memory with a larger micro-batch than with a small one ("balanced").
_READS_MAX = 1.05


@dataclass(frozen=True)
class Fit:
    """Parameters that fit, and why these. Made by :func:`fit`.

    Attributes
    ----------
    model_params : ModelParams
        For :meth:`Model.load_from_file`. Devices that were only described are not in them, unless some were left out:
        then ``devices`` has the others, by which :func:`plan` knows them.
    context_params : ContextParams
        For :meth:`Model.new_context`.
    plan : Plan
        What they take.
    budgets : Mapping[str, int]
        Bytes that each device was allowed to take.
    explanation : str
        What was chosen, and why.
    """

    model_params: ModelParams
    context_params: ContextParams
    plan: Plan
    budgets: Mapping[str, int]
    explanation: str
    #: The model, as far as other files may be told from it.
    _identity: Identity | None = field(default=None, repr=False)
    #: Devices and a host that were given, which :meth:`load` plans for again.
    _devices: tuple[str | int, ...] | None = field(default=None, repr=False)
    _host: int | None = field(default=None, repr=False)

    if not TYPE_CHECKING:  # type checkers would take it for any attribute

        def __getattr__(self, name: str) -> object:
            raise missing(self, name)

    def __str__(self) -> str:
        return "\n".join([self.explanation, *self.plan._text()])

    def _repr_html_(self) -> str:
        """What a notebook shows: how much of each device's free memory would be taken, and for what, and the text."""
        return self.plan._html(str(self))

    def to_dict(self) -> dict[str, object]:
        """The fit as plain values, for JSON: what :meth:`save` writes.

        Parameters are as in their ``to_dict``, and sizes in bytes; ``model`` says which model it is for, ``plan`` is as
        in :meth:`Plan.to_dict`.

        Raises
        ------
        ValueError
            If the parameters hold callbacks.
        """
        path = checks.absolute(self.plan.path)
        made_for = (self._identity, self._devices, self._host)
        kept = (self.model_params, self.context_params, path, *made_for, self.budgets)
        drafter = self.plan._drafter
        beside = (self.plan.mmproj, None if drafter is None else drafter.given)
        return {**Saved(*kept, self.explanation, *beside).to_dict(), "plan": self.plan.to_dict()}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it into a file, which :meth:`load` and the commands (``--params``) read.

        Parameters
        ----------
        path
            The file, such as ``"fit.json"``; another fit that is there is replaced.

        Raises
        ------
        ValueError
            If the parameters hold callbacks, or a model is there.
        OSError
            If it cannot be written.

        Examples
        --------
        >>> fit.save("fit.json")
        >>> Fit.load("fit.json").model_params == fit.model_params
        True
        """
        write(path, self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str], model_path: str | os.PathLike[str] | None = None) -> Fit:
        """Read what :meth:`save` wrote, for the same model.

        The plan is made again, for the devices and the host that were given to :func:`fit`: its ``free`` is today's.

        Parameters
        ----------
        path
            The file.
        model_path
            Where the model is now; None: where it was.

        Raises
        ------
        ValueError
            If the file is no fit, or a newer moebind's, or if the model is another one. A model is known by its
            metadata, and the names, types and shapes of its tensors; its file may be moved, renamed, split or joined.
        ModelNotFoundError
            If the model is not there.
        OSError
            If the file cannot be read.
        """
        found = Saved.read(path)
        if found.identity is None:
            raise ValueError(f"{os.fspath(path)} names no model: it holds parameters, but no fit")
        model_file = found.path if model_path is None else checks.path("model_path", model_path)
        header = read_header(model_file)
        found.check(header, os.fspath(path))
        devices, model, context = found.natives(), found.model_params, found.context_params
        host, seeing = described_host(found.host), find_projector(found.mmproj, found.path)
        natives = device_list(devices, model)
        drafter, model = find_drafter(found.draft, model_file, header, model, natives)
        plan = make_plan(header, model, context, natives, host, projector=seeing, drafter=drafter)
        made_for = (found.budgets, found.explanation, found.identity, found.devices, found.host)
        return cls(_on(devices, model), context, replace(plan, _fitted=True), *made_for)


@explained_with_fields(model="fit(path, model_params={})", context="fit(path, context_params={})")
def fit(
    path: str | os.PathLike[str],
    *,
    memory: SupportsIndex | str | Mapping[str, SupportsIndex | str] | None = None,
    margin: SupportsIndex | str | None = None,
    n_ctx: SupportsIndex | None = None,
    n_ctx_min: SupportsIndex = 4096,
    model_params: ModelParams | None = None,
    context_params: ContextParams | None = None,
    devices: Sequence[Device | str | int] | None = None,
    goal: Literal["decode", "prompt", "balanced"] = "decode",
    host: SupportsIndex | str | None = None,
    swa_full: bool | None = None,
    moe_cache: int | str | None = None,
    routing: RoutingRecorder | None = None,
    bus: float = BUS,
    mmproj: str | os.PathLike[str] | bool | None = None,
    draft: Draft | str | os.PathLike[str] | bool | None = None,
) -> Fit:
    """Find parameters with which a model fits into memory and uses it well.

    A token costs most where weights are read from host memory: the fewer bytes from there, the better. Everything on
    the devices is best. Else experts go to host memory, of which a token uses only a few: those of the first layers or
    of the last, whichever leaves more on the device, and single matrices of one more layer. If the model does not fit
    even without its experts, whole layers go there, counted from the first, and experts of the others come back as far
    as there is room. With several devices, the layers are spread so that as many experts as possible stay on them, and
    a device with which a token would read more from host memory is left out. Experts are placed with a context of
    ``n_ctx_min``, which then grows as far as the memory left allows.

    Where there is no device, ``n_gpu_layers`` is 0. What you set yourself is kept: ``n_gpu_layers``, tensor overrides,
    ``tensor_split``, ``n_ctx``, cache types.

    Parameters
    ----------
    path
        The model's file, or the first one of a split model; or an address on the Hugging Face Hub, as for
        :meth:`Gguf.from_file`.
    memory
        How much may be used of each device: bytes, or a text such as ``"20GiB"``; or a mapping from device to size, in
        which ``"Host"`` is host memory. It is never exceeded. None, and devices that the mapping leaves out: the free
        memory less the margin. Host memory is limited only if the mapping has it, or if there is no other device.
        A device can take no more than it has: a larger budget is an error, unless it is one for several devices of
        which some have less; the explanation says so of these.
    margin
        Bytes of the free memory to leave free, for a driver, a desktop and others. None: 1 GiB, but at most a tenth of
        the free memory.
    n_ctx
        Tokens of context. None: that of ``context_params``, if it is not the default of 512; else as many as fit, from
        ``n_ctx_min`` up to the length that the model was trained with.
    n_ctx_min
        The shortest acceptable context.
    model_params, context_params
        Parameters that are already decided.
    devices
        As for :func:`plan`.
    goal
        What should be fast. ``"decode"`` leaves ``n_ubatch`` alone, so that more experts stay on the device.
        ``"prompt"`` makes it as large as possible, up to 2048, at the cost of experts, but not of layers.
        ``"balanced"`` makes it larger only if a token then reads at most a twentieth more from host memory.
    host
        As for :func:`plan`.
    swa_full
        Whether layers with sliding windows get a full-size cache. None: as ``context_params`` has it if that is False;
        otherwise yes, unless it does not fit, or makes a token cost more than a twentieth more, by the weights that
        it reads: those in host memory count ten times.
    moe_cache
        Device memory for a cache of the experts that stay in host memory, as in
        :attr:`ContextParams.moe_cache_size`: it is taken from the budget first, and left out where no experts are
        in host memory. ``"auto"``: as much as makes a token cost least, by what ``routing`` recorded; 0: none. None: as
        ``context_params`` has it. Where there is one, experts are kept as they are in the file
        (``use_extra_bufts=False``) if they could not be cached otherwise.
    routing
        For ``moe_cache="auto"``: a ``RoutingRecorder(order=True)`` that has seen this model compute texts like those to
        come. Without it there is no cache: if routers chose evenly, experts that stay would be worth more.
    bus
        For ``moe_cache="auto"``: how fast the bus to the devices is, in multiples of host memory's bandwidth. A missing
        expert goes over the bus, where without a cache it is read from host memory.
    mmproj
        A projector that the budgets are for as well, as for :func:`plan`.
    draft
        What drafts for it, as for :func:`plan`: it is counted first, whole, where it is to be, and the model takes what
        is left. Without devices of its own it is on those that the model uses.

    Returns
    -------
    Fit

    Raises
    ------
    FitError
        If nothing fits; the message says what is missing. If ``moe_cache`` would drive layers from the devices: it says
        how large the cache may be.
    ModelNotFoundError, ModelLoadError, ContextCreationError, ValueError
        As for :func:`plan`.

    Examples
    --------
    >>> fit = moebind.fit("moe.gguf", memory="300MiB", n_ctx=1024, devices=["1GiB"])
    >>> fit.plan.devices[0].total <= 300 * 2**20
    True
    """
    file, model, context = check_arguments(path, model_params, context_params)
    if goal not in ("decode", "prompt", "balanced"):
        raise ValueError(f"goal is {shown(goal)}; it takes 'decode', 'prompt' or 'balanced'")
    spare = None if margin is None else parse_memory("margin", margin)
    least = checks.integer("n_ctx_min", n_ctx_min, 1)
    if swa_full is not None:
        context = context.with_swa_full(swa_full)
    auto = moe_cache == "auto"
    ratio = checks.number("bus", bus, 0.0)
    _check_routing(routing, ratio, auto=auto)
    if moe_cache is not None:
        context = context.with_moe_cache_size(0 if auto else _cache_size(moe_cache))
    if n_ctx is not None:
        context = context.with_n_ctx(checks.integer("n_ctx", n_ctx, 1))
    pinned = n_ctx is not None or context.n_ctx not in {0, _CONTEXT.n_ctx}
    header = read_header(file)
    natives = device_list(devices, model)
    memory_of_host = described_host(host)
    drafter, model = find_drafter(draft, file, header, model, natives)
    search = Search(header, natives, {}, memory_of_host, find_projector(mmproj, file), drafter)
    # One plan to learn which devices there are; of a short context, since a long one can be refused.
    first = search.plan(model, context if pinned else context.with_n_ctx(_CONTEXT.n_ctx))
    budgets = read_budgets(memory, spare, first, search.listed())
    if natives and len(first.devices) == 1 and not (isinstance(memory, Mapping) and first.host.name in memory):
        budgets = {}  # there are devices, which model_params leaves out: the host is as it is beside any others
    search.budgets = budgets
    given, shortest = model, _shortest(header, context, least, pinned)
    nowhere = devices is None and model.devices is None and not first._own_devices
    if nowhere and model.n_gpu_layers == _MODEL.n_gpu_layers:
        model = model.with_n_gpu_layers(0)  # else a load warns that nothing takes them
    share = choose_share(search, model, shortest, routing, ratio) if auto else CacheShare(context.moe_cache_size, "")
    if share.size:
        model, context = cached_params(search, model, shortest), context.with_moe_cache_size(share.size)

    def place(context: ContextParams) -> Plan | None:
        return _choose(search, header, model, context, least, pinned, goal)

    chosen, full = windows.choose(place, first.n_swa if swa_full is None else 0, model, context)
    if chosen is None:
        raise FitError(_nothing_fits(search, file, given), _lacks(search))
    if share.size and not auto:
        check_share(search, given, shortest, share.size, chosen)
    result = _on(devices, chosen.model_params)
    chosen = replace(chosen, _fitted=True)
    narrowed = context.swa_full and not chosen.context_params.swa_full
    longest = not pinned and chosen.n_ctx < header.integer("context_length") and swa_full is None
    about = windows.explain(chosen, full, chosen=narrowed, longest=longest)
    explanation = "\n".join(filter(None, [_explain(chosen, search, given, goal, pinned, share), about]))
    made_for = (Identity.of(header), described(devices), None if memory_of_host is None else memory_of_host.capacity)
    return Fit(result, chosen.context_params, chosen, budgets, explanation, *made_for)


def _cache_size(moe_cache: int | str) -> int:
    try:
        return parse_memory("moe_cache", moe_cache)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{error}, or 'auto'") from None


def _on(devices: Sequence[Device | str | int] | None, params: ModelParams) -> ModelParams:
    """The parameters with the devices that they were found for, if all of them are here."""
    here = tuple(device for device in devices or () if isinstance(device, Device))
    known = devices is not None and params.devices is None and len(here) == len(devices)
    return params.with_devices(here) if known else params


def _choose(
    search: Search, header: Header, model: ModelParams, context: ContextParams, least: int, pinned: bool, goal: str
) -> Plan | None:
    sizes = [context.n_ubatch]
    if goal != "decode" and context.n_ubatch == _CONTEXT.n_ubatch:
        most = context.n_batch if context.n_batch != _CONTEXT.n_batch else _UBATCHES[0]
        sizes = [size for size in _UBATCHES if size <= most] or sizes
    plans = (_with_context(search, header, model, context.with_n_ubatch(size), least, pinned) for size in sizes)
    found = [plan for plan in plans if plan is not None]
    # Scratch memory takes the room of experts, but not of whole layers or devices.
    found = [plan for plan in found if _layers(plan) == _layers(found[-1])]
    return next((plan for plan in found if goal == "prompt" or _costs_little(plan, found[-1])), None)


def _layers(plan: Plan) -> tuple[object, object]:
    return plan.model_params.n_gpu_layers, plan.model_params.devices


def _costs_little(plan: Plan, small: Plan) -> bool:
    """Whether a token reads at most a twentieth more from host memory than with the smallest micro-batch."""
    mine, theirs = (each.weights_per_token.get(each.host.name, 0) for each in (plan, small))
    return mine <= _READS_MAX * theirs


def _from_host(plan: Plan) -> int:
    return plan.bytes_per_token[plan.host.name]


def _with_context(
    search: Search, header: Header, model: ModelParams, context: ContextParams, least: int, pinned: bool
) -> Plan | None:
    if pinned:
        return search.place(model, context)
    shortest = _shortest(header, context, least, pinned)
    plan = search.place(model, shortest)
    streams = _streams(context)
    most = min(header.integer("context_length", least) * streams, N_CTX_MAX)
    return None if plan is None else search.widen(plan, shortest.n_ctx, most, 256 * streams)


def _streams(context: ContextParams) -> int:
    return 1 if context.kv_unified else context.n_seq_max


def _shortest(header: Header, context: ContextParams, least: int, pinned: bool) -> ContextParams:
    """The context with which experts are placed."""
    if pinned:
        return context
    streams = _streams(context)
    return context.with_n_ctx(min(least * streams, header.integer("context_length", least) * streams, N_CTX_MAX))


def _check_routing(routing: RoutingRecorder | None, bus: float, *, auto: bool) -> None:
    if routing is None:
        return
    if not isinstance(routing, RoutingRecorder):
        raise TypeError(f"routing is {shown(routing)}; it takes a RoutingRecorder(order=True)")
    if not auto:
        raise ValueError('routing is given, and moe_cache is not "auto": it is only asked how large a cache should be')
    if not bus:
        raise ValueError("bus is 0; it takes the bandwidth of the bus in multiples of host memory's, such as 0.5")
    if not routing.cache_curve([2**62])._in_all_layers:  # which also says whether something was recorded, in order
        raise ValueError(
            "routing has recorded no tokens but in batches that pass a cache by, such as a long prompt: let the model "
            "write, too"
        )


def _explain(plan: Plan, search: Search, model: ModelParams, goal: str, pinned: bool, cache: CacheShare) -> str:
    total = sum(size for tensors in plan._experts.values() for size in tensors.values())
    params, context = plan.model_params, plan.context_params
    lines: list[str] = []
    unused = [name for name in search.budgets if name not in plan.bytes_per_token]
    for device in plan.devices[:-1]:
        budget = search.budgets[device.name]
        lines.append(
            f"{device.name}: {show_size(device.total)} of a budget of {show_size(budget)}"
            f"{', all that it has' if budget == device.capacity else ''}; {show_size(device.free)} are free."
        )
    if plan.host.name in search.budgets:
        held = show_size(plan._host_needs)
        lines.append(f"{plan.host.name}: {held} of a budget of {show_size(search.budgets[plan.host.name])}.")
    added = params.tensor_overrides[len(model.tensor_overrides) :]
    if unused and len(plan.devices) > 1:
        lines.append(f"Without {' and '.join(unused)} a token reads less from host memory: left out.")
    if not plan._own_devices:
        sizes = " and ".join(f"{name} may take {show_size(search.budgets[name])}" for name in unused)
        nothing = f"Nothing fits on the device{'s' * (len(unused) > 1)}: {sizes}, too little for any layer."
        why = (
            f"{nothing} The model runs on the processor, and" if unused else "There is no device besides the processor:"
        )
        lines.insert(0, f"{why} everything is in host memory.")
        if search.devices is None and not unused:
            lines.append("Cards that are not here can be described, such as with devices=['12GiB'].")
    elif params.n_gpu_layers != model.n_gpu_layers:
        layers = plan.n_layer + plan.n_layer_nextn + 1
        lines.append(
            f"The model is too large for the devices{', even with all experts in host memory' if total else ''}: they "
            f"take the last {params.n_gpu_layers} of its {layers} layers; the output counts as one."
        )
    if added and total and not plan.expert_bytes:
        lines.append(f"All experts, {show_size(total)}, are in host memory.")
    elif added and total:
        share = plan.expert_bytes / total
        lines.append(
            f"{show_size(plan.expert_bytes)} of {show_size(total)} of experts ({share:.0%}) stay on the devices; the "
            f"others, {experts_on_host(plan.places, plan._experts)}, are in host memory."
        )
    elif plan._own_devices and params.n_gpu_layers == model.n_gpu_layers:
        lines.append("Everything fits as it is.")
    if len(plan.devices) > 1:
        reads = plan.bytes_per_token
        lines.append(
            f"With a full cache, a token reads {show_size(_from_host(plan))} from host memory, of "
            f"{show_size(sum(reads.values()))} in all."
        )
    cached = sum(device.moe_cache for device in plan.devices[:-1])
    if cached:
        lines.append(f"{show_size(cached)} are a cache for experts that are in host memory.")
    elif cache.size:
        lines.append("No cache of experts is needed.")
    if cache.why:
        lines.append(cache.why)
    if plan._draft is not None:
        lines.append(plan._draft.explained())
    if params.use_extra_bufts != model.use_extra_bufts:
        lines.append("use_extra_bufts is False: experts that are repacked for the CPU cannot be cached.")
    if params.tensor_split is not None and model.tensor_split is None:
        shares = ", ".join(f"{share:g}" for share in params.tensor_split)
        lines.append(f"The devices take {shares} layers.")
    if pinned:
        lines.append(f"n_ctx is {context.n_ctx}, as you set it.")
    else:
        lines.append(
            f"n_ctx is {context.n_ctx}: what fits beside these experts, up to what the model was trained with."
        )
    trained = search.header.integer("context_length", 0)
    if 0 < trained * (1 if context.kv_unified else context.n_seq_max) < context.n_ctx:
        lines.append(f"The model was trained with {trained} tokens, and may be worse beyond them.")
    if goal != "decode":
        lines.append(f"n_ubatch is {context.n_ubatch}, for the goal {goal!r}.")
    if plan.host.name in plan.missing and plan.host.name not in search.budgets:
        lines.append(f"The host needs {show_size(plan.missing[plan.host.name])} more than is free.")
    return "\n".join(lines)


def _lacks(search: Search) -> dict[str, int]:
    """The bytes that the plan lacks that came closest."""
    plan = search.closest
    return {} if plan is None else {name: size for name, size in search.excess(plan).items() if size > 0}


def _nothing_fits(search: Search, path: str, model: ModelParams) -> str:
    plan = search.closest
    parts = [
        f"{name} may take {show_size(search.budgets[name])} and lacks {show_size(size)}"
        for name, size in _lacks(search).items()
    ]
    limited = plan is not None and plan.host.name in search.budgets and len(plan.devices) > 1
    how = "however it is spread over devices and host" if limited else "whatever stays in host memory"
    text = f"{os.path.basename(path)} does not fit, {how}: {'; '.join(parts)}"
    if plan is not None:
        text += f" at n_ctx {plan.n_ctx} and n_ubatch {plan.context_params.n_ubatch}"
    pinned = [
        name
        for name in ("n_gpu_layers", "tensor_overrides", "tensor_split")
        if getattr(model, name) != getattr(_MODEL, name)
    ]
    hint = f"leave {' and '.join(pinned)} to fit, " if pinned else ""
    return f"{text}; {hint}allow more memory, a shorter context, smaller type_k and type_v, or a smaller n_ubatch"
