"""The search behind a fit: it asks for plans until it has one that fits and keeps the most on the devices."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping

from moebind._core.native import CData
from moebind.backend.host_memory import HostMemory
from moebind.enums import SplitMode
from moebind.params.params import ContextParams, ModelParams
from moebind.placement import split
from moebind.placement.header import Header
from moebind.placement.movable import ExpertMatrix, Level, levels, movable_matrices, to_host
from moebind.placement.plan import Plan, make_plan

__all__ = ["Search"]

#: Scratch memory differs a little between placements: choices that seem to be too large by this much are still tried.
#: Beyond that, by as much as matrices differ: a device may have room for a copy of the largest one (op_offload).
SLACK = 64 * 2**20
#: How many of these choices are tried.
TRIES = 8
#: How many ways to spread layers over devices are planned with.
SPREADS = 8
#: Tokens of context that are tried before any shorter one.
FAR = 2**20
#: How many plans are made to fill devices up with single matrices.
OVERFLOWS = 6


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
    """

    def __init__(
        self,
        header: Header,
        devices: list[CData] | None,
        budgets: Mapping[str, int],
        host: HostMemory | None = None,
    ) -> None:
        self.header = header
        self.devices = devices
        self.host = host
        self.budgets = budgets
        self.n_plans = 0
        #: The plan that came closest, for the message when nothing fits.
        self.closest: Plan | None = None
        self._known: dict[tuple[ModelParams, ContextParams], Plan] = {}

    def plan(self, model: ModelParams, context: ContextParams) -> Plan:
        """A plan, remembered."""
        key = (model, context)
        if key not in self._known:
            self.n_plans += 1
            self._known[key] = make_plan(self.header, model, context, self.devices, self.host)
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
        """The best placement for a context: all on the devices, else fewer experts, else fewer layers; None if none.

        The devices take as much as they can, which leaves the least to the host.
        """
        plan = self._place(model, context)
        if plan is None or max(self.excess(plan).values(), default=0) <= 0:
            return plan
        self.closest = plan  # the host alone lacks something
        return None

    def _place(self, model: ModelParams, context: ContextParams) -> Plan | None:
        plan = self.plan(model, context)
        if self._on_devices(plan):
            return plan
        free_layers = model.n_gpu_layers == ModelParams().n_gpu_layers
        several = len(plan.devices) > 2 and model.tensor_split is None and model.split_mode == SplitMode.LAYER
        models = [model]
        if several:
            models = split.spread(self.header, plan, model, self.budgets)
            plan = self.plan(models[0], context)
            if self._on_devices(plan):
                return plan
        matrices = movable_matrices(plan, model)
        if matrices:
            if several:
                # Scratch memory is another where experts are in host memory.
                bare = self.plan(to_host(models[0], matrices, ()), context)
                models = split.spread(self.header, bare, model, self.budgets, SPREADS)
            found = [self._fewer_experts(each, context) for each in models]
            fitting = [plan for plan in found if plan is not None]
            if fitting or not free_layers:
                return max(fitting, key=lambda plan: (self.fits(plan), plan.expert_bytes), default=None)
        elif not free_layers:
            return None
        return self._fewer_layers(model, context, matrices, several)

    def _fewer_experts(self, model: ModelParams, context: ContextParams) -> Plan | None:
        """The plan with the most bytes of experts on the devices; None if it does not fit even without any."""
        matrices = movable_matrices(self.plan(model, context), model)
        best = self.plan(to_host(model, matrices, ()), context)
        if not self._on_devices(best):
            return None
        choices = {
            name: levels([matrix for matrix in matrices if matrix.device == name])
            for name in {matrix.device for matrix in matrices}
        }
        at = dict.fromkeys(choices, 0)
        room = {name: -self.excess(best).get(name, -(2**62)) for name in choices}
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
                seen = device_levels[wanted[name]].nbytes - over.get(name, -(2**62))
                room[name] = min(seen, device_levels[wanted[name]].nbytes - 1) if over.get(name, 0) > 0 else seen
        best, at = self._a_little_more(model, context, matrices, choices, at, best)
        if len(best.devices) > 2:
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
                if self._on_devices(plan) and plan.expert_bytes > best.expert_bytes:
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
            room = device_levels[at[name]].nbytes - self.excess(best).get(name, -(2**62))
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

    def _fewer_layers(
        self, model: ModelParams, context: ContextParams, matrices: list[ExpertMatrix], several: bool
    ) -> Plan | None:
        """The plan with the most whole layers on the devices, and as many more without their experts."""

        def with_layers(count: int, kept: list[ExpertMatrix] | None = None) -> Plan:
            params = (model if kept is None else to_host(model, matrices, kept)).with_n_gpu_layers(count)
            if several:
                params = split.spread(self.header, self.plan(params, context), params, self.budgets)[0]
            return self.plan(params, context)

        first = self.plan(model, context)
        n_layer = first.n_layer + first.n_layer_nextn
        whole = largest(0, n_layer, lambda count: self._on_devices(with_layers(count)))
        if whole is None:
            return None
        best = with_layers(whole)
        kept = [matrix for matrix in matrices if matrix.layer > n_layer - whole]  # the output counts as a layer
        more = largest(whole, n_layer, lambda count: self._on_devices(with_layers(count, kept))) if matrices else None
        if more is not None:
            best = with_layers(more, kept)
        return best

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


def largest(low: int, high: int, holds: Callable[[int], bool]) -> int | None:
    """The largest number for which a property holds that holds up to some number; None if it does not for ``low``."""
    if holds(high):
        return high
    if low == high or not holds(low):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low


def _last_within(choices: list[Level], room: int) -> int:
    return max(bisect_right(choices, room, key=lambda level: level.nbytes) - 1, 0)


def _kept(choices: dict[str, list[Level]], at: dict[str, int]) -> int:
    return sum(device_levels[at[name]].nbytes for name, device_levels in choices.items())
