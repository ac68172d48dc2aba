"""``moebind serve``: models over HTTP, by llama.cpp's own server."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from moebind.cli import options as o
from moebind.cli.budgets import Margin
from moebind.cli.devices import DevicesHere
from moebind.cli.drafts import DRAFTS, asked_for, draft_of, passed_on
from moebind.cli.given import RPC, TUNED, Chosen, Given, takes
from moebind.cli.holes import check_written
from moebind.cli.loading import with_devices
from moebind.cli.model_argument import Hub, ModelOption, check_there, on_hub
from moebind.cli.output import say, show, show_json
from moebind.cli.parameters import CONTEXT, MODEL, PARAMS, without
from moebind.cli.rest import WithRest, rest_of
from moebind.files.tensor_patterns import experts_pattern
from moebind.params.params import ContextParams, ModelParams
from moebind.server import Server
from moebind.server.address import PORT, parse
from moebind.server.placed import N_CTX_OF_SEVERAL
from moebind.server.supervisor import logger

__all__ = ["CLASS", "command"]

#: Seconds between looks at whether a signal came.
LOOK = 0.5


CLASS = WithRest

Models = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL",
        help=f"GGUF files, or addresses on the Hub; of several, each has {N_CTX_OF_SEVERAL} tokens.",
        show_default=False,
    ),
]
Folders = Annotated[
    list[str] | None,
    typer.Option("--models-dir", metavar="FOLDER", help="A folder of models; several times for several."),
]
FolderList = Annotated[str | None, typer.Option("--model-dirs", metavar="A;B", help="Several folders as one text.")]
Host = Annotated[str | None, typer.Option("--host", metavar="HOST", help="Where to listen.", show_default="127.0.0.1")]
Port = Annotated[int | None, typer.Option("--port", metavar="N", help="0: one that is free.", show_default=str(PORT))]
Bind = Annotated[str | None, typer.Option("--bind", metavar="HOST:PORT", help="Both in one.")]
NoUi = Annotated[bool, typer.Option("--no-ui", help="Without the page for browsers.")]
KeyFile = Annotated[
    Path | None, typer.Option("--api-key-file", metavar="FILE", help="Keys that clients must give, a line each.")
]
AllowNetwork = Annotated[bool, typer.Option("--allow-network", help="Let other machines in without a key.")]
OneAtATime = Annotated[bool, typer.Option("--one-at-a-time", help="One model in memory, with all of it.")]
Slots = Annotated[
    int | None,
    typer.Option("--parallel", "-np", metavar="N", help="Requests side by side.", show_default="4, in one cache"),
]
Embeddings = Annotated[bool, typer.Option("--embeddings", "--embedding", help="Serve embeddings, too.")]
ChatTemplate = Annotated[
    str | None,
    typer.Option(
        "--chat-template",
        metavar="NAME",
        help="A chat template: chatml-tools, one of llama.cpp's, or a file.",
        show_default="the model's",
    ),
]
Projector = Annotated[
    str | None, typer.Option("--mmproj", "-mm", metavar="FILE", help="The projector of a single model.")
]
Timeout = Annotated[
    float | None,
    typer.Option("--timeout-load", metavar="SECONDS", help="How long a load may take.", show_default="no end"),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show what llama-server writes.")]


_CONTEXT = without(CONTEXT, "n_seq_max")  # that is --parallel, which has another default here
#: What few need, or have another option for: with it, the help would not fit on a screen.
_RARE = {
    *("allow_network", "bind", "chat_template", "fit", "margin", "model", "model_dirs", "no_ui", "one_at_a_time"),
    *("pooling", "timeout_load"),
}


@takes(
    PARAMS,
    TUNED,
    RPC,
    *MODEL,
    *_CONTEXT,
    *DRAFTS,
    own_hidden=_RARE,
    n_ctx="as fits",
    swa_full="no-swa-full",
    kv_unified="kv-unified",
)
def command(
    ctx: typer.Context,
    models: Models = None,
    models_dir: Folders = None,
    model_dirs: FolderList = None,
    model: ModelOption = None,
    hf_repo: Hub = None,
    host: Host = None,
    port: Port = None,
    bind: Bind = None,
    no_ui: NoUi = False,
    api_key_file: KeyFile = None,
    allow_network: AllowNetwork = False,
    fit: o.Fit = "on",
    margin: Margin = None,
    one_at_a_time: OneAtATime = False,
    device: DevicesHere = None,
    *,
    given: Given,
    parallel: Slots = None,
    embeddings: Embeddings = False,
    pooling: o.Pooling = None,
    chat_template: ChatTemplate = None,
    mmproj: Projector = None,
    timeout_load: Timeout = None,
    verbose: Verbose = False,
    as_json: o.AsJson = False,
) -> None:
    """Serve models over HTTP, with OpenAI's interface and others. Ends with Ctrl-C.

    Example: moebind serve moe.gguf --cpu-moe --ctx-size 8192 -- --temp 0

    Arguments behind -- go to llama-server as they are.
    """
    folders = [*(models_dir or ()), *(each for each in (model_dirs or "").split(";") if each)]
    names = [*(models or ()), *([] if model is None else [model]), *([] if hf_repo is None else [on_hub(hf_repo)])]
    if not names and not folders:
        raise ValueError("there is no model: give files (MODEL), folders (--models-dir), or -hf")
    for each in names:
        check_there(each)
        check_written(each)
    single = not folders and len(names) == 1
    if given.values["params"] is not None and not single:
        raise ValueError(f"--params is {given.values['params']!r}, which is for one model; there are several")
    if given.values["tuned"] and not single:
        raise ValueError("--tuned is given, which is for one model; there are several")
    drafts = asked_for(given)
    if drafts is not None and not single:
        raise ValueError(f"{drafts}, which is for one model; there are several")
    chosen = given.read(names[0] if names else "", given.computing(device))
    chosen.check_moe_cache(chosen.context_params.moe_cache_size)
    context = chosen.context_params.with_embeddings(embeddings).with_pooling_type(o.pooling_type(pooling))
    address = _address(host, port, bind)
    with _told_what_happens(verbose), _ended_by(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as look:
        server = Server(
            names,
            models_dir=folders or None,
            host=address[0],
            port=address[1],
            model_params=_model_params(chosen, single, by_user=device is not None),
            context_params=_as_llama_server(context, given),
            n_ctx=_length(context, given),
            api_key=None if api_key_file is None else _keys(api_key_file),
            parallel=parallel,
            extra=[
                *([] if chat_template is None else ["--chat-template", chat_template]),
                *passed_on(given),
                *rest_of(ctx),
            ],
            mmproj=mmproj,
            draft=draft_of(given, names[0] if single else None, chosen.model_params, chosen.context_params),
            fit=o.wants_fit(fit),
            margin=margin,
            one_at_a_time=one_at_a_time,
            allow_network=allow_network,
            ui=not no_ui,
        )
        try:
            server.wait_ready(timeout_load)
            look()
            if as_json:
                show_json(server.to_dict())
            else:
                show(server)
            sys.stdout.flush()
            while not server.wait_ended(LOOK):
                look()
        finally:
            server.close()


def _model_params(chosen: Chosen, single: bool, *, by_user: bool) -> ModelParams:
    """``by_user`` is whether the devices are from an option, and not from a file."""
    params = with_devices(chosen, by_user=by_user)
    if single:
        return params
    # Among several models, some may have no experts.
    experts = experts_pattern()
    rules = [
        replace(rule, strict=rule.strict and not rule.pattern.endswith(experts)) for rule in params.tensor_overrides
    ]
    return params.with_tensor_overrides(rules)


def _as_llama_server(context: ContextParams, given: Given) -> ContextParams:
    """The context with llama-server's own defaults, where nothing else was said."""
    if given.values["params"] is not None:
        return context
    if given.values["swa_full"] is None:
        context = context.with_swa_full(False)
    return context.with_kv_unified(True) if given.values["kv_unified"] is None else context


def _length(context: ContextParams, given: Given) -> int | None:
    """The length of context that an option or a file has, which may be the parameters' default."""
    said = given.values["n_ctx"] is not None or given.values["params"] is not None
    return context.n_ctx or None if said else None  # 0: as the model says


def _address(host: str | None, port: int | None, bind: str | None) -> tuple[str, int]:
    if bind is None:
        return "127.0.0.1" if host is None else host, PORT if port is None else port
    if host is not None or port is not None:
        raise ValueError(f"--bind is {bind!r}, and --host or --port is given too; give either")
    return parse(bind)


def _keys(file: Path) -> list[str]:
    try:
        with open(os.fspath(file), encoding="utf-8") as lines:
            keys = [line.strip() for line in lines]
    except OSError as error:
        raise OSError(f"--api-key-file is {str(file)!r}, which cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"--api-key-file is {str(file)!r}, which is no text in UTF-8") from None
    found = [key for key in keys if key and not key.startswith("#")]
    if not found:
        raise ValueError(f"--api-key-file is {str(file)!r}, which holds no key: it has one a line")
    return found


class _Events(logging.Handler):
    """Writes what happens to a server as other messages of commands; what llama-server writes, as it is."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.DEBUG:
            print(record.getMessage(), file=sys.stderr)
        else:
            say(record.getMessage())


@contextmanager
def _told_what_happens(verbose: bool) -> Iterator[None]:
    before = logger.handlers, logger.propagate, logger.level
    logger.handlers, logger.propagate = [_Events()], False
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before[:2]
        logger.setLevel(before[2])


@contextmanager
def _ended_by(*numbers: signal.Signals) -> Iterator[Callable[[], None]]:
    """End well at these signals: what is under way is left, and the server is closed.

    What it gives is to be called now and then: it ends, too, if a signal came, since Python drops what a handler raises
    in the middle of a finalizer.
    """
    came = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        raise SystemExit(0)

    def look() -> None:
        if came:
            raise SystemExit(0)

    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield look
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
