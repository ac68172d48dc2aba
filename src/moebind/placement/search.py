"""The search behind a fit: it asks for plans until it has one that fits, with which a token reads little from the host.

What is read whole for each token is worth more than experts, of which only some are: so attention and dense matrices
come first, layer by layer, then experts.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping

from moebind._core.native import CData
from moebind.backend.breakdown import HOST
from moebind.backend.devices import Device, describe, devices
from moebind.backend.host_memory import HostMemory
from moebind.context.moe_cache import NothingToCacheError
from moebind.enums import SplitMode
from moebind.params.params import ContextParams, ModelParams
from moebind.placement import split
from moebind.placement.drafter import Drafter
from moebind.placement.header import Header
from moebind.placement.mmproj import Projector
from moebind.placement.movable import ExpertMatrix, Level, levels, movable_matrices, to_host
from moebind.placement.plan import Plan, make_plan
from moebind.placement.steps import largest
from moebind.placement.subsets import best_subset

__all__ = ["Search"]

#: Scratch memory differs a little between placements: choices that seem to be too large by this much are still tried.
#: Beyond that, by as much as matrices differ: a device may have room for a copy of the largest one (op_offload).
SLACK = 64 * 2**20
#: How many of these choices are tried.
TRIES = 8
#: How many ways to spread layers over devices are planned with.
SPREADS = 8
#: And how many where not all layers are on devices.
FEWER_SPREADS = 3
#: Tokens of context that are tried before any shorter one.
FAR = 2**20
#: How many plans are made to fill devices up with single matrices.
OVERFLOWS = 6
#: A device without a budget may take any number of bytes.
_ANY = 2**62


class Search:
    """Plans of one model for one set of budgets.

    Parameters
    ----------
    header, devices
        What is planned, and for what.
    budgets
        Bytes by device; a device, or the host, that is not there may take any number.
    host
        The memory of a host that need not be this machine; None: this machine's.
    projector, drafter
        What is counted besides, in each plan.
    """

    def __init__(
        self,
        header: Header,
        devices: list[CData] | None,
        budgets: Mapping[str, int],
        host: HostMemory | None = None,
        projector: Projector | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        self.header = header
        self.devices = devices
        self.host = host
        self.projector, self.drafter = projector, drafter
        self.budgets = budgets
        self.n_plans = 0
        #: The plan that came closest, for the message when nothing fits.
        self.closest: Plan | None = None
        self._known: dict[tuple[ModelParams, ContextParams], Plan] = {}

    def plan(self, model: ModelParams, context: ContextParams) -> Plan:
        """A plan, remembered. Where there is nothing for a cache of experts to hold, it is without one."""
        key = (model, context)
        if key not in self._known:
            self.n_plans += 1
            try:
                where = (self.devices, self.host)
                made = make_plan(
                    self.header, model, context, *where, projector=self.projector, drafter=self.drafter, quiet=True
                )
            except NothingToCacheError:
                made = self.plan(model, context.with_moe_cache_size(0))
            self._known[key] = made
        return self._known[key]

    def excess(self, plan: Plan) -> dict[str, int]:
        """By how much each device's budget is exceeded; negative is room."""
        held = {device.name: device.total for device in plan.devices[:-1]}
        held[plan.host.name] = plan._host_needs
        return {name: size - self.budgets[name] for name, size in held.items() if name in self.budgets}

    def fits(self, plan: Plan) -> bool:
        """Whether no budget is exceeded."""
        return self._within(plan, self.excess(plan))

    def _on_devices(self, plan: Plan) -> bool:
        """Whether no device's budget is exceeded; what the host then has to take is looked at in the end."""
        return self._within(plan, {name: size for name, size in self.excess(plan).items() if name != plan.host.name})

    def _within(self, plan: Plan, excess: Mapping[str, int]) -> bool:
        if max(excess.values(), default=0) <= 0:
            return True
        worst = max(self.excess(plan).values())
        if self.closest is None or worst < max(self.excess(self.closest).values()):
            self.closest = plan
        return False

    def place(self, model: ModelParams, context: ContextParams) -> Plan | None:
        """The placement for a context with which a token reads the least from host memory; None if none fits.

        A device that is of no use is left out.
        """
        plan = self.plan(model, context)
        if self.fits(plan):
            return plan
        listed = {device.name: device for device in self.listed()}
        everything = tuple(listed[device.name] for device in plan._own_devices)

        def find(used: tuple[Device, ...]) -> Plan | None:
            if used == everything:
                return self._place(model, context)
            return self._place(model.with_devices(used), context) if self._allowed(model, used) else None

        best = best_subset(
            everything,
            find,
            self._worth,
            lambda used: self._promise(model, context, used),
            lambda device: (self.budgets.get(device.name), device.backend, device.memory_total),
        )
        if best is None or self.fits(best):
            return best
        self.closest = best  # the host alone lacks something
        return None

    def _worth(self, plan: Plan) -> tuple[bool, int]:
        return self.fits(plan), self._from_devices(plan)

    @staticmethod
    def _from_devices(plan: Plan) -> int:
        """Bytes that a token does not have to read from host memory."""
        return sum(nbytes for name, nbytes in plan.bytes_per_token.items() if name != plan.host.name)

    def listed(self) -> list[Device]:
        """The devices that there are, with the CPU if they are this machine's."""
        there = {device.name: device for device in devices()}
        if self.devices is None:
            return list(there.values())
        described = [describe(at, native) for at, native in enumerate(self.devices)]
        return [there.get(device.name, device) for device in described]

    def _allowed(self, model: ModelParams, used: tuple[Device, ...]) -> bool:
        """Whether what the user has set can be kept with these devices."""
        if model.split_mode == SplitMode.NONE:
            return False  # main_gpu is one of all
        if model.tensor_split is not None and len(model.tensor_split) != len(used):
            return False
        if not used and model.n_gpu_layers > 0:
            return False
        names = {device.name for device in used}
        listed = {name for name in self.budgets if name not in names}
        return not any(rule.target in listed and rule.target != HOST for rule in model.tensor_overrides)

    def _promise(self, model: ModelParams, context: ContextParams, used: tuple[Device, ...]) -> float:
        """What a token can read from these devices at most: first of what it reads whole, then of experts."""
        full = self.plan(model, context)
        bare = self._bare(model, context)
        # Where there is anything at all, there is scratch memory: at least half of the least that was seen.
        scratch = min((device.compute for device in bare._own_devices), default=0) // 2
        room = sum(max(self.budgets.get(device.name, _ANY) - scratch, 0) for device in used)
        held = sum(device.model + device.context for device in bare.devices[:-1])
        rest, all_ = self._from_devices(bare), self._from_devices(full)
        if room <= held:
            # Some weights are read twice, and count twice.
            return min(room * max(rest / max(held, 1), 1.0), rest)
        experts = sum(device.model for device in full.devices[:-1]) - sum(device.model for device in bare.devices[:-1])
        return rest + (all_ - rest) * min((room - held) / max(experts, 1), 1.0)

    def _place(self, model: ModelParams, context: ContextParams) -> Plan | None:
        """The best placement on these very devices: all, else fewer experts, else fewer layers."""
        plan = self.plan(model, context)
        if self._on_devices(plan):
            return plan
        several = len(plan._own_devices) > 1 and model.tensor_split is None and model.split_mode == SplitMode.LAYER
        if several:
            plan = self.plan(split.spread(self.header, plan, model, self.budgets)[0], context)
            if self._on_devices(plan):
                return plan
        best = self._fewer_experts(model, context, SPREADS if several else 0)
        if best is not None or model.n_gpu_layers != ModelParams().n_gpu_layers:
            return best

        def fits(layers: int) -> bool:
            [spread] = self._spread(model.with_n_gpu_layers(layers), context, int(several))
            return self._on_devices(self._bare(spread, context))

        most = plan.n_layer + plan.n_layer_nextn
        layers = largest(0, most, fits)
        if layers is None:
            return None
        # It may fit again beyond, as layers are spread in whole ones; shares that are given may be numbers of layers.
        beyond = {layers + 1, layers + 2, int(sum(model.tensor_split or ()))}
        layers = max({layers, *(each for each in beyond if layers < each <= most and fits(each))})
        # Of what is left, experts of these layers take what they can.
        return self._fewer_experts(model.with_n_gpu_layers(layers), context, FEWER_SPREADS if several else 0)

    def _bare(self, model: ModelParams, context: ContextParams) -> Plan:
        """A plan with all experts in host memory that the user has not placed."""
        return self.plan(model.with_cpu_moe_all() if self.header.experts else model, context)

    def _spread(self, model: ModelParams, context: ContextParams, count: int) -> list[ModelParams]:
        """The best ways to spread the layers where experts are in host memory; as it is, if there are to be none.

        Scratch memory is another there than where they are on devices.
        """
        if not count:
            return [model]
        return split.spread(self.header, self._bare(model, context), model, self.budgets, count)

    def _fewer_experts(self, model: ModelParams, context: ContextParams, spreads: int) -> Plan | None:
        """The best plan with experts in host memory, of so many ways to spread the layers; None if none fits."""
        found = [self._most_experts(each, context) for each in self._spread(model, context, spreads)]
        return max((plan for plan in found if plan is not None), key=self._worth, default=None)

    def _most_experts(self, model: ModelParams, context: ContextParams) -> Plan | None:
        """The plan with the most bytes of experts on the devices; None if it does not fit even without any."""
        matrices = movable_matrices(self.plan(model, context), model)
        best = self.plan(to_host(model, matrices, ()), context)
        if not self._on_devices(best):
            return None
        if not matrices:
            return best
        choices = {
            name: levels([matrix for matrix in matrices if matrix.device == name])
            for name in {matrix.device for matrix in matrices}
        }
        at = dict.fromkeys(choices, 0)
        room = {name: -self.excess(best).get(name, -_ANY) for name in choices}
        tried = {tuple(at.values())}
        while True:
            wanted = {name: _last_within(choices[name], room[name]) for name in choices}
            if tuple(wanted.values()) in tried:
                break
            tried.add(tuple(wanted.values()))
            plan = self._keeping(model, context, matrices, choices, wanted)
            over = self.excess(plan)
            if self._on_devices(plan) and _kept(choices, wanted) > _kept(choices, at):
                best, at = plan, wanted
            for name, device_levels in choices.items():
                # In this placement, the matrices share the budget with everything else that is on the device.
                seen = device_levels[wanted[name]].nbytes - over.get(name, -_ANY)
                room[name] = min(seen, device_levels[wanted[name]].nbytes - 1) if over.get(name, 0) > 0 else seen
        best, at = self._a_little_more(model, context, matrices, choices, at, best)
        if len(best._own_devices) > 1:
            kept = {matrix for name, index in at.items() for matrix in choices[name][index].kept}
            best = self._overflow(model, context, matrices, kept, best)
        return best

    def _overflow(
        self,
        model: ModelParams,
        context: ContextParams,
        matrices: list[ExpertMatrix],
        kept: set[ExpertMatrix],
        best: Plan,
    ) -> Plan:
        """Fill what is left with single matrices, on whichever device has room; their layer may be on another."""
        tries = OVERFLOWS
        while tries:
            rooms = {name: -over for name, over in self.excess(best).items() if name != best.host.name}
            fitting = [
                (matrix.nbytes, matrix, name)
                for name, room in rooms.items()
                for matrix in set(matrices) - kept
                if matrix.nbytes <= room
            ]
            if not fitting:
                break
            for _, matrix, name in sorted(fitting, key=lambda each: (each[0], each[2] == each[1].device), reverse=True):
                tries -= 1
                if name == matrix.device:
                    changed, left, stay = model, matrices, kept | {matrix}
                else:
                    # Before the rules that keep experts in host memory: the first match wins.
                    changed = model.with_tensor_override(matrix.pattern, name)
                    left, stay = [each for each in matrices if each != matrix], kept
                plan = self.plan(to_host(changed, left, stay), context)
                if self._on_devices(plan) and self._worth(plan) > self._worth(best):
                    best, model, matrices, kept = plan, changed, left, stay
                    break
                if not tries:
                    break
            else:
                break
        return best

    def _a_little_more(
        self,
        model: ModelParams,
        context: ContextParams,
        matrices: list[ExpertMatrix],
        choices: dict[str, list[Level]],
        at: dict[str, int],
        best: Plan,
    ) -> tuple[Plan, dict[str, int]]:
        """Try choices that seem a little too large."""
        sizes = [matrix.nbytes for matrix in matrices]
        slack = SLACK + max(sizes) - min(sizes)
        for name, device_levels in choices.items():
            room = device_levels[at[name]].nbytes - self.excess(best).get(name, -_ANY)
            above = [i for i in range(at[name] + 1, len(device_levels)) if device_levels[i].nbytes <= room + slack]
            for index in sorted(above, reverse=True)[-TRIES:]:
                wanted = {**at, name: index}
                plan = self._keeping(model, context, matrices, choices, wanted)
                if self._on_devices(plan):
                    best, at = plan, wanted
                    break
        return best, at

    def _keeping(
        self,
        model: ModelParams,
        context: ContextParams,
        matrices: list[ExpertMatrix],
        choices: dict[str, list[Level]],
        at: dict[str, int],
    ) -> Plan:
        kept = [matrix for name, index in at.items() for matrix in choices[name][index].kept]
        return self.plan(to_host(model, matrices, kept), context)

    def widen(self, plan: Plan, least: int, most: int, step: int) -> Plan:
        """A plan of the same placement, with the longest context that fits."""

        def with_context(steps: int) -> Plan:
            n_ctx = min(least + steps * step, most)
            return self.plan(plan.model_params, plan.context_params.with_n_ctx(n_ctx))

        low, high = 0, -(-(most - least) // step)
        # The books on so many cells are memory, in a plan too: what lies far beyond a context that fits is not tried.
        reach = max(FAR // step, 1)
        while reach < high and self.fits(with_context(reach)):
            low, reach = reach, 2 * reach
        steps = largest(low, min(reach, high), lambda steps: self.fits(with_context(steps)))
        return plan if not steps else with_context(steps)


def _last_within(choices: list[Level], room: int) -> int:
    return max(bisect_right(choices, room, key=lambda level: level.nbytes) - 1, 0)


def _kept(choices: dict[str, list[Level]], at: dict[str, int]) -> int:
    return sum(device_levels[at[name]].nbytes for name, device_levels in choices.items())
