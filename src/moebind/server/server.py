"""llama-server as an object: started, asked whether it is ready, ended."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, SupportsIndex

from moebind._core import checks
from moebind._core.shown import shown
from moebind._core.sizes import parse_memory
from moebind.backend.devices import devices, each_card_once
from moebind.backend.loopback import worker_pids
from moebind.enums import DeviceType
from moebind.errors import ServerError
from moebind.params.draft import Draft
from moebind.params.misplaced import explained_with_fields
from moebind.params.params import ContextParams, ModelParams
from moebind.server.address import Address
from moebind.server.arguments import Settings, check, command_line
from moebind.server.chat_template import with_template
from moebind.server.extra import EXAMPLES, check_extra, downloaded, given, left_open
from moebind.server.folders import find
from moebind.server.isolation import Folder
from moebind.server.placed import (
    ServedModel,
    Wishes,
    budgets,
    place,
    prompt_cache,
    server_context,
    table,
    together,
    tried,
)
from moebind.server.presets import presets
from moebind.server.process import has_page, program
from moebind.server.served_drafts import most_drafted, served_draft
from moebind.server.supervisor import Supervisor

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Server"]

#: What is said of arguments that others have; of llama-server's own options, how they are given.
_ELSEWHERE = {
    **dict.fromkeys(("model_draft", "draft_model"), "draft"),
    **{
        name: f'it is an option of llama-server\'s: extra=["{option}", "{value}"]'
        for name, (option, value) in EXAMPLES.items()
    },
}


class Server:
    """llama.cpp's HTTP server, in a process of its own, with models that are placed as a plan says.

    It has OpenAI's and Anthropic's interfaces, among others. Making the object places the models and starts the
    process; entering it as a context manager waits until it is ready, and leaving it ends it. It also ends with this
    process, however that ends. If it dies, it is started again, a few times.

    With several models, or a folder of them, each is loaded when it is first asked for, by its name. As many are in
    memory at once as fit, whichever they are.

    Parameters
    ----------
    model
        A model's file, or the first one of a split model; or several.
    models_dir
        A folder with models, in itself and in folders in it; or several folders.
    host
        Where it listens: an address or a name of this machine's.
    port
        The port; 0: one that is free.
    model_params, context_params
        How each model is loaded, and the context that is made for it. What is left open is fitted: tensors that do not
        fit on the devices stay in host memory, and the context takes what is left. None as the context: a cache that
        all requests share, without full-size windows, as in llama-server. Its default length, 512, counts as left
        open: for so few tokens give ``n_ctx=512``. Parameters that llama-server does not know are refused. A
        :func:`moebind.loopback_device` is used only if the parameters name it.
    n_ctx
        The length of context. None: that of ``context_params`` if it is not the default of 512; otherwise as many
        tokens as fit, up to what the model was trained with.
    api_key
        The key that clients have to give, or several.
    parallel
        How many requests are answered side by side. None: as many as ``context_params`` has sequences if that is not
        the default of 1; otherwise four, which share one cache.
    extra
        Arguments for llama-server itself, such as ``["--temp", "0"]``; those that moebind sets are refused. Files of
        the Hub, such as ``["--lora", "hf://OWNER/REPO/lora.gguf"]``, are downloaded unless they are in the cache.
        ``"--chat-template"`` takes the names of templates that :meth:`moebind.Model.chat_format` takes with any model,
        such as ``"chatml-tools"``, Jinja source, or a file with that.
    mmproj
        The file with which a single model sees or hears. In folders, such a file is used for what is beside it.
    draft
        What drafts for a single model, as for :func:`moebind.fit`: a file, a :class:`moebind.Draft`, or True for the
        model's own layers for multi-token prediction, or else ``mtp-*.gguf`` beside it. It is counted with the model. A
        ``Draft`` says its devices, layers, tensor overrides and types of caches; all else llama-server takes from the
        model.
    fit
        Whether to fit. Without, the parameters are taken as they are.
    margin
        Bytes of each device's free memory that stay free; None: as for :func:`moebind.fit`.
    one_at_a_time
        Have one model in memory at a time, with all of it to itself, rather than as many as fit with shorter contexts.
    allow_network
        Listen where other machines reach it, also without a key.
    ui
        Whether there is a page for browsers at its address, if this moebind was built with it.

    Raises
    ------
    ModelNotFoundError, ModelLoadError, FitError, ValueError, TypeError
        As for :func:`moebind.fit`; also if a parameter or an argument is not one that llama-server takes, or if other
        machines could reach it and may not.
    ServerError
        If the port is in use, or no model can be served.

    Examples
    --------
    >>> with Server("moe.gguf", api_key="secret") as server:
    ...     print(server.url, [model.name for model in server.models])
    """

    @explained_with_fields(
        model="Server(model, model_params={})",
        context="Server(model, context_params={})",
        other_names=_ELSEWHERE,
    )
    def __init__(
        self,
        model: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
        *,
        models_dir: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
        host: str = "127.0.0.1",
        port: SupportsIndex = 0,
        model_params: ModelParams | None = None,
        context_params: ContextParams | None = None,
        n_ctx: SupportsIndex | None = None,
        api_key: str | Sequence[str] | None = None,
        parallel: SupportsIndex | None = None,
        extra: Iterable[str] = (),
        mmproj: str | os.PathLike[str] | None = None,
        draft: Draft | str | os.PathLike[str] | bool | None = None,
        fit: bool = True,
        margin: SupportsIndex | str | None = None,
        one_at_a_time: bool = False,
        allow_network: bool = False,
        ui: bool = True,
    ) -> None:
        wishes = _wishes(model_params, context_params, n_ctx, parallel, fit, margin)
        keys = _keys(api_key)
        arguments = with_template(check_extra(extra))
        n_max = most_drafted(arguments)
        drafts = served_draft(draft, wishes.model_params, wishes.context_params, n_max)
        wishes = replace(wishes, draft=drafts, n_drafted=n_max)
        alone = checks.boolean("one_at_a_time", one_at_a_time)
        open_ = checks.boolean("allow_network", allow_network)
        with_page = checks.boolean("ui", ui)
        found = find(_paths(model), _paths(models_dir), mmproj)
        several = len(found) > 1 or models_dir is not None
        if several and wishes.draft:
            raise ValueError("draft belongs to one model, and there are several: serve that one alone")
        address = Address.free(host, port, guarded=bool(keys) or open_)
        if several:
            self._models = tuple(tried(each, wishes, alone=alone) for each in found)
        else:
            self._models = (place(found[0], wishes, alone=True),)
        self._at_once = 1
        self._address = address
        self._page = f"{address.url}/" if with_page and has_page() else None
        self._folder = Folder(keys)
        try:
            options: Settings = {"host": address.host, "port": str(address.port), "offline": True, "ui": with_page}
            if not given("cors-origins", arguments):
                options |= {"cors-origins": address.url, "cors-credentials": False}
            options |= self._several(wishes, alone, arguments) if several else self._single(wishes, arguments)
            command = [program(), *command_line(options), *downloaded(arguments)]
            self._supervisor = Supervisor(
                command,
                self._folder.environment(),
                address.client,
                address.port,
                secrets=keys,
                folder=self._folder.path,
            )
        except BaseException:
            self._folder.remove()
            raise
        self._end = weakref.finalize(self, _abandon, self._supervisor, self._folder)

    def _single(self, wishes: Wishes, extra: Sequence[str]) -> Settings:
        [model] = self._models
        return {**left_open(model.options, extra), **_prompt_cache([model], wishes, 1, extra), "alias": model.name}

    def _several(self, wishes: Wishes, alone: bool, extra: Sequence[str]) -> Settings:
        offered = [model for model in self._models if model.offered]
        if not offered:
            reasons = "; ".join(f"{model.name}: {model.reason}" for model in self._models)
            raise ServerError(f"none of {len(self._models)} models can be served: {reasons}")
        if not alone:
            self._at_once = together(offered, budgets(offered, wishes.margin))
        cache = _prompt_cache(offered, wishes, self._at_once, extra)
        sections = {model.name: {**left_open(model.options, extra), **cache} for model in offered}
        file = self._folder.write("models.ini", presets(sections))
        return {"models-preset": file, "models-max": str(self._at_once)}

    @property
    def url(self) -> str:
        """Where it is, such as ``"http://127.0.0.1:43210"``; OpenAI's clients take it with ``/v1`` behind it."""
        return self._address.url

    @property
    def page(self) -> str | None:
        """Where a browser finds the page to chat with; None if there is none: ``ui`` is off, or it was not built."""
        return self._page

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """What it serves, and what it does not, with the reason."""
        return self._models

    @property
    def at_once(self) -> int:
        """How many models are in memory at once, at most: as many as fit, whichever they are."""
        return self._at_once

    @property
    def pid(self) -> int | None:
        """The process id of llama-server; None while there is none."""
        return self._supervisor.pid

    @property
    def log(self) -> str:
        """The last lines that llama-server wrote; keys are left out."""
        return self._supervisor.log

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until it answers: for a single model, until that is loaded, which may take minutes.

        Parameters
        ----------
        timeout
            Seconds; None: as long as it takes.

        Raises
        ------
        TimeoutError
            If it takes longer. It goes on, and can be waited for again.
        ServerError
            If it ended for good: the message has the reason, and the last lines of the log.
        ClosedError
            If it was closed.
        """
        self._supervisor.wait_ready(timeout)

    def wait_ended(self, timeout: float | None = None) -> bool:
        """Wait until it was closed.

        Parameters
        ----------
        timeout
            Seconds; None: as long as it takes.

        Returns
        -------
        bool
            Whether it was.

        Raises
        ------
        ServerError
            If it ended for good by itself: it died again and again.
        """
        return self._supervisor.wait_ended(timeout)

    def to_dict(self) -> dict[str, object]:
        """Where it is and what it serves as plain values, for JSON: keys stay the same, sizes are bytes."""
        return {
            "url": self.url,
            "page": self._page,
            "at_once": self._at_once,
            "models": [model.to_dict() for model in self._models],
        }

    def restart(self) -> None:
        """End the process and start it again, with the same placement and at the same address.

        Does not wait until it is ready.

        Raises
        ------
        ClosedError
            If it was closed.
        """
        self._supervisor.restart()

    def close(self) -> None:
        """End the process, and wait until it is gone. What it was asked and has not answered is lost."""
        self._supervisor.close()
        self._folder.remove()
        self._end.detach()

    def __enter__(self) -> Self:
        try:
            self.wait_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        import asyncio

        try:
            await asyncio.to_thread(self.wait_ready)
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        import asyncio

        await asyncio.to_thread(self.close)

    def __repr__(self) -> str:
        closed = "" if self._end.alive else ", closed"
        return f"<Server {self.url} of {', '.join(model.name for model in self._models if model.offered)}{closed}>"

    def __str__(self) -> str:
        if not self._end.alive:
            return "\n".join([f"{self.url}, which is closed", *table(self._models)])
        offered = sum(model.offered for model in self._models)
        many = [f"In memory at once: {self._at_once} of {offered}."] if offered > 1 else []
        page = [f"Chat in a browser: {self._page}"] if self._page else []
        return "\n".join([self.url, *table(self._models), *many, *page])


def _abandon(supervisor: Supervisor, folder: Folder) -> None:
    supervisor.abandon()
    folder.remove()


def _wishes(
    model_params: ModelParams | None,
    context_params: ContextParams | None,
    n_ctx: SupportsIndex | None,
    parallel: SupportsIndex | None,
    fitted: bool,
    margin: SupportsIndex | str | None,
) -> Wishes:
    for name, value, kind in (
        ("model_params", model_params, ModelParams),
        ("context_params", context_params, ContextParams),
    ):
        if value is not None:
            if not isinstance(value, kind):
                raise TypeError(f"{name} is {shown(value)}; it takes {kind.__name__}")
            check(value)
    count = None if parallel is None else checks.integer("parallel", parallel, 1)
    length = None if n_ctx is None else checks.integer("n_ctx", n_ctx, 1)
    context = server_context(context_params, count)
    return Wishes(
        _without_stand_ins(ModelParams() if model_params is None else model_params),
        context if length is None else context.with_n_ctx(length),
        checks.boolean("fit", fitted),
        None if margin is None else parse_memory("margin", margin),
        length,
    )


def _without_stand_ins(params: ModelParams) -> ModelParams:
    """With devices of their own, if this process has workers that stand in for some: these end with it."""
    if params.devices is not None or not worker_pids:
        return params
    gpus = [each for each in each_card_once(devices()) if each.type in {DeviceType.GPU, DeviceType.IGPU}]
    return params.with_devices([each for each in gpus if each.name not in worker_pids])


def _paths(
    given: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None,
) -> list[str | os.PathLike[str]]:
    if given is None:
        return []
    if isinstance(given, (str, bytes, os.PathLike)):
        return [given]
    if not isinstance(given, Iterable):
        raise TypeError(
            f"model is {shown(given)} ({type(given).__name__}); it takes the path of a file, or a list of paths: "
            "llama-server loads them itself"
        )
    return list(given)


def _keys(given: str | Sequence[str] | None) -> list[str]:
    keys = [given] if isinstance(given, str) else list(given or ())
    if given is not None and not keys:
        raise ValueError("api_key has no key; leave it out to serve without")
    for key in keys:
        # No quotation: a key is a secret. llama-server reads one a line, and takes a hash for a remark.
        if not isinstance(key, str):
            raise TypeError(f"api_key holds a {type(key).__name__}; it takes a str, or several")
        if not (key.isascii() and key.isprintable() and key.strip() == key and key) or key.startswith("#"):
            raise ValueError(
                "api_key is empty, begins with #, or has characters that a header cannot have: it takes printable ASCII"
            )
    return keys


def _prompt_cache(models: Sequence[ServedModel], wishes: Wishes, at_once: int, extra: Sequence[str]) -> Settings:
    if given("cache-ram", extra):
        return {}
    return {"cache-ram": str(prompt_cache(models, budgets(models, wishes.margin), at_once))}
