"""The parameters that a command line gives: its options, and a file (``--params``)."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Annotated, Any, NamedTuple, get_args

from moebind._core.sizes import show_size
from moebind.backend.devices import default_devices
from moebind.backend.rpc_servers import add_rpc_server
from moebind.cli.devices import LOOPBACK, exact_size, separate
from moebind.cli.output import say
from moebind.cli.parameters import ADDED, CONTEXT, MODEL, USUAL, Option, ParamsT, only, shares
from moebind.cli.signatures import HELP_ALL, give_signature
from moebind.params.params import ContextParams, ModelParams

__all__ = ["RPC", "RPC_ELSEWHERE", "TUNED", "Chosen", "Given", "takes"]

#: Added when the parameters are read, since names of devices may be those of the workers.
RPC: Option[Any] = Option(
    "rpc",
    ("--rpc",),
    list[str],
    "Workers on other machines, whose devices are used like this one's; several with commas.",
    "",
    (),
    lambda params, value: params,
    metavar="HOST:PORT",
)
#: The same for commands whose measurements are in processes of their own, which the workers serve one after the other.
RPC_ELSEWHERE: Option[Any] = replace(RPC, name="workers")
#: What it found is read as a file of parameters, and what it set for the process is set before anything is loaded.
TUNED: Option[Any] = Option(
    "tuned",
    ("--tuned",),
    bool,
    "Use what moebind tune found for this model on this machine.",
    "",
    (),
    lambda params, value: params,
)
#: They say what goes to a device, and what stays in host memory.
_PLACING = only(MODEL, "n_gpu_layers", "override_tensor", "n_cpu_moe", "cpu_moe")


class Chosen(NamedTuple):
    """Parameters, and the devices and the host that they are for, as options have them."""

    model_params: ModelParams
    context_params: ContextParams
    device: list[str] | None
    host: str | None

    def check_moe_cache(self, size: int, *, described: bool = False) -> None:
        """Refuse a cache of experts where no device can hold one.

        Parameters
        ----------
        size
            Its bytes.
        described
            Whether the command takes devices that are only described.

        Raises
        ------
        ValueError
            What to do instead.
        """
        listed = self.model_params.devices if self.device is None else self.device
        if size and not (default_devices() if listed is None else listed):
            why = " (moebind doctor says why)" if listed is None else ""
            card = ", or describe a card that is not here, such as --device 24GiB" if described else ""
            raise ValueError(
                f"--moe-cache is {show_size(size)}, and there is no device besides the processor to hold such a "
                f"cache{why}: give 0, or leave it out{card}"
            )


class Given:
    """The parameters that were given to a command: options, and a file."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        #: The values of options by name; None for those that were not given.
        self.values = dict(values)
        #: Whether the file says that the model's own layers draft, which predict further ahead.
        self._own_layers_draft = False
        #: What is given up when the command has ended.
        self.held = ExitStack()

    def computing(self, device: Sequence[str] | None) -> list[str] | None:
        """The devices of a command that computes, one by one: with the workers that it asks for, which are started."""
        named = separate(device)
        if named is None or LOOPBACK not in named:
            return named
        from moebind.backend.loopback import loopback_device  # which few ask for

        return [self.held.enter_context(loopback_device()).name if each == LOOPBACK else each for each in named]

    def measuring(self, device: Sequence[str] | None) -> list[str] | None:
        """The devices of a command that takes :data:`RPC_ELSEWHERE`, one by one; workers by their addresses.

        Raises
        ------
        ValueError
            If both devices and workers are given.
        """
        named, workers = separate(device), self.workers()
        if not workers:
            return named
        if named is not None:
            raise ValueError("--rpc and --device are both given; --device takes HOST:PORT, too: leave --rpc out")
        from moebind.bench.settings import gpu_names  # which few commands have imported

        return [*workers, *gpu_names()]

    def workers(self) -> list[str]:
        """The addresses of :data:`RPC_ELSEWHERE`, one by one."""
        return [each.strip() for endpoints in self.values.get("workers") or () for each in endpoints.split(",")]

    def read(
        self, model: str, device: Sequence[str] | None = None, host: str | None = None, *, n_ctx: int | None = None
    ) -> Chosen:
        """Read the file, if one was given, and put what options say in the place of what it says.

        Parameters
        ----------
        model
            The model, which the file must be for.
        device, host
            The values of options of these names.
        n_ctx
            The length of context if neither says one.

        Raises
        ------
        ValueError
            If a value is wrong, or the file is for another model.
        RpcServerError
            If a worker does not answer.
        """
        source = self._source(model)
        for endpoints in self.values.get("rpc") or ():
            for each in endpoints.split(","):
                add_rpc_server(each.strip())
        model_params, context_params, devices, saved_host = ModelParams(), ContextParams(), None, None
        if source is not None:
            from moebind.placement.saved import read_for  # files are rarely given

            saved = read_for(source, model)
            model_params, context_params = saved.model_params, saved.context_params
            devices, saved_host = saved.devices, saved.host
            if saved.draft is not None and self._nothing_drafts():
                what = saved.draft.path or "the model's own layers"
                say(f"note: it was found with {what} to draft, which is not used unless options say so")
            if self._own_layers_draft:
                # Commands load these layers for the kind of drafts that they are, and llama-server does.
                model_params = model_params.with_load_mtp(False)
        context_params = self._with(CONTEXT, context_params)
        if source is None and self.values.get("n_ctx") is None and n_ctx is not None:
            context_params = context_params.with_n_ctx(n_ctx)
        model_params = self._with(MODEL, model_params)
        if device is None and devices is not None:
            device = [each if isinstance(each, str) else exact_size(each) for each in devices]
        if device is not None:
            model_params = model_params.with_devices(None)  # those that are given, or the same by name
        if host is None and saved_host is not None:
            host = exact_size(saved_host)
        if self.values.get("tensor_split") is not None:
            _check_shares(self.values["tensor_split"], model_params, device)
        self._note_of_placing(model_params, device)
        return Chosen(model_params, context_params, None if device is None else list(device), host)

    def _source(self, model: str) -> str | None:
        """The file of parameters, which ``--tuned`` looks for; what it says of the process and of drafts is set."""
        if self.values.get("tuned"):
            if self.values.get("params") is not None:
                raise ValueError("--params and --tuned are both given; leave one of them out")
            from moebind.tuning.saved import find  # which few commands need

            self.values["params"], sentence = find(model)
            say(sentence)
        source: str | None = self.values.get("params")
        if source is not None:
            from moebind.tuning.saved import settings_of

            process, speculation = settings_of(source)
            process.apply()
            if speculation is not None:
                self._own_layers_draft = speculation.own_layers
                self._drafts(speculation.values)
        return source

    def _drafts(self, values: Mapping[str, Any]) -> None:
        """Take what drafts from a file, if the command can draft, and no option says anything of it."""
        if values.keys() <= self.values.keys() and self._nothing_drafts():
            self.values |= values

    def _nothing_drafts(self) -> bool:
        """Whether the command can draft, and no option says anything of it."""
        # As the options in moebind.cli.drafts are called, which reads what is given here.
        said = [value for name, value in self.values.items() if name.startswith("spec_") or name.endswith("_draft")]
        return bool(said) and all(value in (None, []) for value in said)

    def _note_of_placing(self, params: ModelParams, device: Sequence[str] | None) -> None:
        """Tell where options change nothing: without a device, all weights are in host memory anyway."""
        flags = [option.flag for option, value in self.of(_PLACING) if value not in ("0", "auto", 0)]
        devices = device if params.devices is None else params.devices
        if not flags or (params.n_gpu_layers != 0 and (default_devices() if devices is None else devices)):
            return
        why = "; moebind doctor says why" if devices is None and params.n_gpu_layers != 0 else ""
        say(
            f"note: {' and '.join(flags)} change{'s' * (len(flags) == 1)} nothing: no device takes layers, so all "
            f"weights are in host memory{why}"
        )

    def of(self, options: Sequence[Option[ParamsT]]) -> list[tuple[Option[ParamsT], Any]]:
        """Those of the options that were given, with their values."""
        values = [(option, self.values.get(option.name)) for option in options]
        return [(option, value) for option, value in values if value is not None and value != []]

    def _with(self, options: Sequence[Option[ParamsT]], params: ParamsT) -> ParamsT:
        given = self.of(options)
        # Some are read as additions to a field: what a file has there is replaced, as it is with others.
        defaults = type(params)()
        names = {name for option, _ in given for name in option.fields if name in ADDED}
        params = replace(params, **{name: getattr(defaults, name) for name in names})
        for option, value in given:
            params = option.read(params, value)
        return params


def takes(
    *options: Option[Any], hidden: Collection[str] | None = None, own_hidden: Collection[str] = (), **shown: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a command have options; it gets them as one argument, ``given``.

    Parameters
    ----------
    options
        In the order of the help.
    hidden
        Names of those that the help leaves out, unless it is asked for with ``--help-all``; None: the unusual ones.
    own_hidden
        Names of those of the command's own arguments that it leaves out, too.
    shown
        What the help says of the default of an option, by its name, where the command has another.
    """
    rare = {option.name for option in options} - USUAL - {TUNED.name} if hidden is None else set(hidden)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**values: Any) -> None:
            values.pop("help_all", None)
            given = Given({option.name: values.pop(option.name) for option in options})
            with given.held:
                command(given=given, **values)

        own = inspect.signature(command, eval_str=True).parameters.values()
        parameters: list[inspect.Parameter] = []
        for each in own:
            if each.name == "given":
                parameters += [option.parameter(shown.get(option.name), option.name in rare) for option in options]
            else:
                annotation = _hidden(each.annotation) if each.name in own_hidden else each.annotation
                parameters.append(each.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=annotation))
        if rare or own_hidden:
            parameters.append(HELP_ALL)
        give_signature(run, parameters)
        return run

    return decorate


def _hidden(annotation: Any) -> Any:
    """The annotation of an option, as one that the help leaves out."""
    kind, option = get_args(annotation)
    option = copy.copy(option)  # other commands may have the same
    option.hidden = True
    return Annotated[kind, option]


def _check_shares(given: str, params: ModelParams, device: Sequence[str] | None) -> None:
    """There are at most as many shares as devices."""
    n_shares = len(shares(given))
    listed = device if device is not None else params.devices
    count = len(default_devices()) if listed is None else len(listed)
    several = any(":" in each for each in device or ())  # a server has as many as it has
    if n_shares > count and not several:
        there = f"there {'is' if count == 1 else 'are'} {count or 'no'} device{'s' * (count != 1)}"
        raise ValueError(
            f"--tensor-split is {given!r}, {n_shares} share{'s' * (n_shares != 1)}, and {there}; it takes at most one "
            "for each"
        )
