"""What may be changed, and the choices that there are from where the search is: one function for each dimension.

To add a dimension, write a function that returns choices, or why there are none, and name it in ``DIMENSIONS``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from moebind._core.sizes import show_size
from moebind.backend.devices import Device, supports_mlock
from moebind.enums import FlashAttnType, GgmlType, LoadMode, NumaStrategy
from moebind.errors import ContextCreationError, FitError, MoebindError
from moebind.files.tensor_patterns import experts_pattern
from moebind.params.draft import MTP
from moebind.params.params import ContextParams, ModelParams
from moebind.placement.cache_share import cached_params, check_share
from moebind.placement.drafter import find_drafter
from moebind.placement.movable import EXPERT_MATRIX
from moebind.placement.plan import Plan
from moebind.placement.search import Search
from moebind.placement.steps import largest, smallest
from moebind.tuning.configuration import MIN_BATCH, Configuration
from moebind.tuning.goals import Goal
from moebind.tuning.machine import Processors
from moebind.tuning.search import Choice
from moebind.tuning.speculation import Speculation

__all__ = ["ASKED", "DIMENSIONS", "Planner"]

Choices = Sequence[Choice[Configuration]] | str
#: Sizes of a micro-batch.
UBATCHES = (128, 256, 512, 1024, 2048, 4096)
#: Shares of a device's budget for a cache of experts.
CACHE_SHARES = (0.25, 0.5, 0.75)
#: Tokens from which on a device takes over work on the host's weights; llama.cpp has 32.
THRESHOLDS = (8, 128, 512)
#: Kinds of n-grams that are tried, and tokens that a model drafts at most; llama.cpp has 3.
NGRAMS = ("ngram-simple", "ngram-mod")
DRAFTED = (1, 3, 6)
#: Ways to read a model's file.
LOAD_MODES = {
    LoadMode.MMAP: "a mapped file",
    LoadMode.NONE: "read into memory",
    LoadMode.DIRECT_IO: "read into memory, past the system's cache",
    LoadMode.MMAP_MLOCK: "a mapped file, locked in memory",
    LoadMode.MLOCK: "read into memory, and locked there",
}
#: Backends that compute only with what they hold.
_NEVER_OFFLOAD = {"CPU", "RPC", "BLAS"}
_PLACED = ("n_gpu_layers", "tensor_overrides", "tensor_split")


@dataclass
class Planner:
    """What the choices depend on: the model, the machine, and what each device may take.

    Attributes
    ----------
    search : Search
        Plans of the model, with the budgets of devices.
    given : Configuration
        What the caller gave.
    given_fields : Collection[str]
        Names of parameters that the caller set: they are kept.
    devices : Sequence[Device]
        All that may be used besides the processor.
    processors : Processors
    goal : Goal
    host_room : int or None
        Bytes of host memory that a configuration may need; None: whatever is free.
    lockable : int or None
        Bytes that a process may lock in memory; None: any number.
    draft : str or None
        The file of a model that may draft.
    """

    search: Search
    given: Configuration
    given_fields: frozenset[str]
    devices: Sequence[Device]
    processors: Processors
    goal: Goal
    host_room: int | None = None
    lockable: int | None = None
    draft: str | None = None
    _refusals: dict[tuple[ModelParams, ContextParams], str | None] = field(default_factory=dict)

    def model(self, configuration: Configuration) -> ModelParams:
        """The parameters with the devices that a trial would have."""
        params = configuration.model_params
        return params.with_devices(self.devices) if params.devices is None else params

    def plan(self, configuration: Configuration) -> Plan:
        """What it takes."""
        return self.search.plan(self.model(configuration), configuration.context_params)

    def refusal(self, model: ModelParams, context: ContextParams) -> str | None:
        """Why this must not be tried: it takes more memory than it may, or cannot be made."""
        key = (model, context)
        if key not in self._refusals:
            try:
                plan = self.search.plan(model, context)
            except (MoebindError, ValueError) as error:
                self._refusals[key] = str(error).splitlines()[0]
            else:
                over = {name: size for name, size in self.search.excess(plan).items() if size > 0}
                if self.host_room is not None and plan._host_needs > self.host_room:
                    over.setdefault(plan.host.name, plan._host_needs - self.host_room)
                lacks = " and ".join(f"{show_size(size)} more than {name} may" for name, size in over.items())
                self._refusals[key] = f"it takes {lacks}" if over else None
        return self._refusals[key]

    def fits(self, model: ModelParams, context: ContextParams) -> bool:
        """Whether it may be tried."""
        return self.refusal(model, context) is None

    def choice(
        self, name: str, current: Configuration, model: ModelParams | None = None, **context: object
    ) -> Choice[Configuration]:
        """A choice, refused if it takes too much memory."""
        changed = current.with_context(**context)
        if model is not None:
            changed = changed.with_model(self._without_all(model))
        refused = self.refusal(self.model(changed), changed.context_params)
        if refused is None and not self.plan(changed).context_params.moe_cache_size:
            changed = changed.with_context(moe_cache_size=0)  # where no experts are left that it could hold
        return Choice(name, changed, refused)

    def _without_all(self, model: ModelParams) -> ModelParams:
        return model.with_devices(None) if model.devices == tuple(self.devices) else model

    def kept(self, *names: str) -> str | None:
        """Why a dimension is left out, if the caller has set what it would change."""
        found = [name for name in names if name in self.given_fields]
        return f"{' and '.join(found)}: as you set it" if found else None

    def drafting(self, current: Configuration) -> Planner:
        """One whose plans count what drafts in a configuration.

        Raises
        ------
        MoebindError, ValueError
            If it cannot draft for this model.
        """
        counted = None if current.speculation is None else current.speculation.counted
        header, natives = self.search.header, self.search.devices
        drafter, _ = find_drafter(counted, header.paths[0], header, self.model(current), natives)
        search = Search(header, natives, self.search.budgets, self.search.host, drafter=drafter)
        return replace(self, search=search, _refusals={})

    def unplaced(self, current: Configuration) -> ModelParams:
        """How the model is loaded, without a placement."""
        given = self.given.model_params
        return self.model(current)._with(**{name: getattr(given, name) for name in _PLACED}).with_devices(self.devices)

    def placed_anew(self, current: Configuration, context: ContextParams) -> ModelParams | None:
        """What a fit finds for another context, if placements may be changed, and it is another one."""
        if not self.devices or self.kept(*_PLACED):
            return None
        found = self.search.place(self.unplaced(current), context)
        return None if found is None or found.model_params == self.model(current) else found.model_params


def placement(planner: Planner, current: Configuration) -> Choices:
    """Everything, whole layers, experts of the first or of the last layers, single matrices, nothing on devices."""
    if not planner.devices:
        return "there is no device besides the processor"
    if reason := planner.kept(*_PLACED):
        return reason
    context, base = current.context_params, planner.unplaced(current)
    everything = planner.search.plan(base, context)
    n_layer = everything.n_layer + everything.n_layer_nextn
    found: dict[str, ModelParams | None] = {"everything on the devices": base}
    anew = planner.search.place(base, context)
    if anew is not None and not planner.fits(base, context):
        found["as moebind.fit places it"] = anew.model_params
    if planner.search.header.experts:
        first = smallest(1, n_layer, lambda count: planner.fits(base.with_n_cpu_moe(count), context))
        last = smallest(1, n_layer, lambda count: planner.fits(_last(base, count, n_layer), context))
        if first is not None:
            found[f"experts of the first {first} layers in host memory"] = base.with_n_cpu_moe(first)
        if last is not None:
            found[f"experts of the last {last} layers in host memory"] = _last(base, last, n_layer)
        for kind in _kinds(everything):
            found[f"{kind} of all experts in host memory"] = base.with_cpu_override(rf"\.{kind}_(ch|)exps")
        found["all experts in host memory"] = base.with_cpu_moe_all()
    layers = largest(1, n_layer + 1, lambda count: planner.fits(base.with_n_gpu_layers(count), context))
    if layers is not None and layers <= n_layer:
        found[f"{layers} whole layers on the devices"] = base.with_n_gpu_layers(layers)
    found["nothing on the devices"] = base.with_n_gpu_layers(0)
    return [planner.choice(name, current, params) for name, params in found.items()]


def _last(base: ModelParams, count: int, n_layer: int) -> ModelParams:
    layers = "|".join(map(str, range(n_layer - count, n_layer)))
    return base.with_cpu_override(rf"blk\.({layers}){experts_pattern()}", strict=False)


def _kinds(plan: Plan) -> list[str]:
    names = [name for tensors in plan._experts.values() for name in tensors]
    return sorted({match["kind"] for name in names if (match := EXPERT_MATRIX.match(name)) is not None})


def micro_batch(planner: Planner, current: Configuration) -> Choices:
    """Other sizes of ``n_ubatch``, with the present placement and with the one that a fit then finds."""
    if reason := planner.kept("n_ubatch"):
        return reason
    if not planner.goal.weights.get("prompt"):
        return "no prompts count for this goal"
    context = current.context_params
    most = next((size for size in UBATCHES if size >= planner.goal.n_prompt), UBATCHES[-1])
    found = []
    for size in UBATCHES:
        if size > most or size > context.n_ctx:
            continue
        fields: dict[str, Any] = {"n_ubatch": size, "n_batch": max(size, context.n_batch)}
        if size != context.n_ubatch:
            found.append(planner.choice(f"n_ubatch {size}", current, **fields))
        anew = planner.placed_anew(current, context.with_n_ubatch(size).with_n_batch(fields["n_batch"]))
        if anew is not None and size != context.n_ubatch:
            found.append(planner.choice(f"n_ubatch {size}, and placed anew", current, anew, **fields))
    return found


def expert_cache(planner: Planner, current: Configuration) -> Choices:
    """Caches of experts on the devices, and none."""
    if not planner.devices:
        return "there is no device besides the processor"
    if not planner.search.header.experts:
        return "the model has no experts"
    if reason := planner.kept("moe_cache_size", *_PLACED):
        return reason
    context = current.context_params
    found = []
    own = {device.name for device in planner.devices}
    budgets = {name: size for name, size in planner.search.budgets.items() if name in own}
    sizes = [int(share * min(budgets.values())) // 2**20 * 2**20 for share in CACHE_SHARES] if budgets else []
    if context.moe_cache_size:
        without = planner.search.place(planner.unplaced(current), context.with_moe_cache_size(0))
        if without is not None:
            found.append(planner.choice("expert cache off", current, without.model_params, moe_cache_size=0))
    for size in dict.fromkeys(sizes):
        name = f"a cache of {show_size(size)} of experts"
        if size == context.moe_cache_size or not size:
            continue
        cached = context.with_moe_cache_size(size)
        base = planner.unplaced(current)
        try:
            plan = planner.search.place(cached_params(planner.search, base, cached), cached)
            if plan is not None:
                check_share(planner.search, base, cached, size, plan)
        except (FitError, ContextCreationError) as error:
            found.append(Choice(name, current, str(error).splitlines()[0]))
            continue
        if plan is None:
            found.append(Choice(name, current, "nothing fits beside it"))
        elif plan.context_params.moe_cache_size:
            found.append(planner.choice(name, current, plan.model_params, moe_cache_size=size))
    return found or "all experts fit on the devices"


def load_mode(planner: Planner, current: Configuration) -> Choices:
    """A mapped file, or weights in the process's own memory; locked there, if the process may."""
    if reason := planner.kept("load_mode"):
        return reason
    plan, params = planner.plan(current), current.model_params
    present = params.load_mode
    if present == LoadMode.AUTO:
        present = LoadMode.MMAP if plan.mapped else LoadMode.NONE
    others = [mode for mode in LOAD_MODES if mode != present]
    if not supports_mlock() or (planner.lockable is not None and planner.lockable < plan.host.model):
        others = [mode for mode in others if mode not in {LoadMode.MLOCK, LoadMode.MMAP_MLOCK}]
    if not all(map(_reads_directly, planner.search.header.paths)):
        others = [mode for mode in others if mode != LoadMode.DIRECT_IO]
    return [planner.choice(LOAD_MODES[mode], current, params.with_load_mode(mode)) for mode in others]


def _reads_directly(path: str) -> bool:
    """Whether the file system lets a file be read past the system's cache."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def pinned_memory(planner: Planner, current: Configuration) -> Choices:
    """Pinned memory of the devices for weights of the host, or the processor's own kinds."""
    if reason := planner.kept("no_host"):
        return reason
    if not any(device.backend not in _NEVER_OFFLOAD for device in planner.devices):
        return "no device has pinned memory"
    if not _host_weights(planner, current):
        return "no weights are in host memory"
    params = current.model_params
    name = f"pinned memory {'on' if params.no_host else 'off'}"
    return [planner.choice(name, current, params.with_no_host(not params.no_host))]


def offloaded_work(planner: Planner, current: Configuration) -> Choices:
    """Whether, and from how many tokens on, devices compute with weights of the host."""
    if reason := planner.kept("op_offload"):
        return reason
    if not any(device.backend not in _NEVER_OFFLOAD for device in planner.devices):
        return "no device takes over work on weights of the host"
    if not _host_weights(planner, current):
        return "no weights are in host memory"
    on = current.context_params.op_offload
    others = [size for size in THRESHOLDS if size <= current.context_params.n_ubatch]
    others = [size for size in others if current.process.environment.get(MIN_BATCH) != str(size)]
    found = [planner.choice("op_offload off" if on else "op_offload on", current, op_offload=not on)]
    for size in others:
        changed = current.with_context(op_offload=True).with_process(environment={MIN_BATCH: str(size)})
        found.append(planner.choice(f"op_offload from {size} tokens on", changed))
    return found


def _host_weights(planner: Planner, current: Configuration) -> bool:
    plan = planner.plan(current)
    return plan.weights_per_token.get(plan.host.name, 0) > 0


def threads(planner: Planner, current: Configuration) -> Choices:
    """How many threads compute single tokens."""
    return _threads(planner, current, "n_threads", ("decode",))


def batch_threads(planner: Planner, current: Configuration) -> Choices:
    """How many threads compute prompts, and several sequences."""
    return _threads(planner, current, "n_threads_batch", ("prompt", "batch"))


def _threads(planner: Planner, current: Configuration, name: str, parts: Sequence[str]) -> Choices:
    if reason := planner.kept(name):
        return reason
    if not any(planner.goal.weights.get(part) for part in parts):
        return f"no {' and no '.join(parts)} counts for this goal"
    allowed = current.process.cpus or planner.processors.all
    most = len(allowed)
    if planner.processors.quota is not None:
        most = max(1, min(most, round(planner.processors.quota)))
    cores = min(len(planner.processors.cores), most)
    counts = {most, cores, cores // 2, cores // 4, 3 * cores // 4, cores - 1} - {0, current.context[name]}
    if not counts:
        return "there is one processor"
    wanted: list[dict[str, Any]] = [{name: count} for count in sorted(counts) if count > 0]
    return [planner.choice(f"{name} {fields[name]}", current, **fields) for fields in wanted]


def affinity(planner: Planner, current: Configuration) -> Choices:
    """One processor of each core, or those of one memory node."""
    found: dict[str, tuple[int, ...] | None] = {}
    if len(planner.processors.one_each) < len(planner.processors.all):
        found["one processor of each core"] = planner.processors.one_each
    if len(planner.processors.nodes) > 1:
        found |= {f"the processors of node {at}": node for at, node in enumerate(planner.processors.nodes)}
    if not found:
        return "each processor is a core of its own, and there is one memory node"
    found["all processors"] = None
    choices = []
    for name, cpus in found.items():
        if cpus != current.process.cpus:
            most = len(cpus or planner.processors.all)
            fields: dict[str, Any] = {
                each: min(current.context[each], most) for each in ("n_threads", "n_threads_batch")
            }
            choices.append(planner.choice(name, current.with_process(cpus=cpus), **fields))
    return choices


def numa(planner: Planner, current: Configuration) -> Choices:
    """How llama.cpp places threads on memory nodes."""
    if len(planner.processors.nodes) < 2:
        return "there is one memory node"
    strategies = (NumaStrategy.DISABLED, NumaStrategy.DISTRIBUTE, NumaStrategy.ISOLATE)
    others = [each for each in strategies if each.name != current.process.numa]
    return [planner.choice(f"numa {each.name}", current.with_process(numa=each.name)) for each in others]


def repacking(planner: Planner, current: Configuration) -> Choices:
    """Weights in layouts that are made for this processor, or as they are in the file."""
    if reason := planner.kept("use_extra_bufts"):
        return reason
    params = current.model_params
    if current.context_params.moe_cache_size:
        return "experts that are repacked cannot be cached"
    repacked = [current, current.with_model(params.with_use_extra_bufts(True))][not params.use_extra_bufts]
    buffers = {buffer.name for buffer in planner.plan(repacked).host.buffers}
    if not buffers & {"CPU_REPACK", "AMX", "CPU_KLEIDIAI"}:
        return "this processor has no other layout for the weights in host memory"
    name = "weights as they are in the file" if params.use_extra_bufts else "repacked weights"
    return [planner.choice(name, current, params.with_use_extra_bufts(not params.use_extra_bufts))]


def flash_attention(planner: Planner, current: Configuration) -> Choices:
    """Attention in one operation, or in several."""
    if reason := planner.kept("flash_attn_type"):
        return reason
    context = current.context_params
    if context.flash_attn_type == FlashAttnType.DISABLED:
        return [planner.choice("flash attention on", current, flash_attn_type=FlashAttnType.ENABLED.name)]
    if context.type_v not in (GgmlType.F16, GgmlType.F32, GgmlType.BF16):
        return f"a cache of {context.type_v.name} needs it"
    return [planner.choice("flash attention off", current, flash_attn_type=FlashAttnType.DISABLED.name)]


def speculation(planner: Planner, current: Configuration) -> Choices:
    """N-grams of the text so far, the model's own layers that predict further ahead, a draft: or nothing drafts."""
    if not any(planner.goal.weights.get(part) for part in ("decode", "batch")):
        return "no text is written for this goal"
    wanted: list[Speculation | None] = [None, *map(Speculation, NGRAMS)]
    found: list[Choice[Configuration]] = []
    if planner.search.header.layers_ahead:
        wanted += [Speculation(MTP, n_max=count) for count in DRAFTED]
    if planner.draft is not None:
        drafts = current.with_speculation(Speculation(draft=planner.draft))
        try:
            counted = planner.drafting(drafts).plan(drafts)._draft
        except (MoebindError, ValueError) as error:
            found.append(Choice(f"tokens drafted by {planner.draft}", drafts, str(error).splitlines()[0]))
        else:
            kind = None if counted is None else counted.kind.name.lower().replace("_", "-")
            wanted += [Speculation(kind, planner.draft, count) for count in DRAFTED]
    for each in wanted:
        if each == current.speculation:
            continue
        name = "nothing drafts" if each is None else each.name
        own = each is not None and each.own_layers
        params = current.model_params.with_load_mtp(own or planner.given.model_params.load_mtp)
        changed = current.with_speculation(each).with_model(params)
        try:
            drafting = planner.drafting(changed)
        except (MoebindError, ValueError) as error:
            found.append(Choice(name, changed, str(error).splitlines()[0]))
            continue
        choice = drafting.choice(name, changed)
        anew = drafting.placed_anew(changed, changed.context_params) if choice.refused is not None else None
        found.append(choice if anew is None else drafting.choice(f"{name}, and placed anew", changed, anew))
    return found


def cache_types(planner: Planner, current: Configuration) -> Choices:
    """Another type of the KV cache, which changes results a little."""
    if reason := planner.kept("type_k", "type_v"):
        return reason
    context = current.context_params
    kind = GgmlType.F16 if context.type_k == GgmlType.Q8_0 else GgmlType.Q8_0
    fields: dict[str, Any] = {"type_k": kind.name, "type_v": kind.name, "flash_attn_type": FlashAttnType.AUTO.name}
    found = [planner.choice(f"a cache of {kind.name}", current, **fields)]
    anew = planner.placed_anew(current, current.with_context(**fields).context_params)
    if anew is not None:
        found.append(planner.choice(f"a cache of {kind.name}, and placed anew", current, anew, **fields))
    return found


#: All dimensions in the order in which they are searched: what decides most first, and what follows from it after it.
DIMENSIONS: Mapping[str, Callable[[Planner, Configuration], Choices]] = {
    "placement": placement,
    "threads": threads,
    "batch threads": batch_threads,
    "micro-batch": micro_batch,
    "expert cache": expert_cache,
    "load mode": load_mode,
    "repacking": repacking,
    "pinned memory": pinned_memory,
    "offloaded work": offloaded_work,
    "flash attention": flash_attention,
    "speculation": speculation,
    "affinity": affinity,
    "numa": numa,
    "cache types": cache_types,
}
#: Those that change results, and are searched only when asked for.
ASKED = frozenset({"cache types"})
