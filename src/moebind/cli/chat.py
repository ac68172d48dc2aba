"""``moebind chat``: a conversation with a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moebind.cli import options as o
from moebind.cli import text_options as t
from moebind.cli.chat_commands import talk
from moebind.cli.conversation import Conversation, read_messages
from moebind.cli.devices import DevicesHere
from moebind.cli.drafts import DRAFTS, RARE_DRAFTS
from moebind.cli.given import RPC, TUNED, Given, takes
from moebind.cli.loading import title
from moebind.cli.media import Audio, Images, Projector
from moebind.cli.model_argument import takes_model
from moebind.cli.output import show_line
from moebind.cli.parameters import CONTEXT, MODEL, PARAMS
from moebind.cli.terminal import Terminal
from moebind.cli.writing import writing
from moebind.params.params import N_CTX

Prompt = Annotated[str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="The first question.")]
Single = Annotated[bool, typer.Option("--single-turn", "-st", help="End after the reply to --prompt.")]
System = Annotated[str | None, typer.Option("--system-prompt", "-sys", metavar="TEXT", help="What the model is told.")]
SystemFile = Annotated[
    Path | None,
    typer.Option("--system-prompt-file", "-sysf", metavar="FILE", help="The same from a file.", hidden=True),
]
Load = Annotated[Path | None, typer.Option("--load", metavar="FILE", help="Go on with a chat that /save kept.")]
Tools = Annotated[
    Path | None, typer.Option("--tools", metavar="FILE", help="Functions that it may call, as a JSON list.")
]
Choice = Annotated[
    str,
    typer.Option("--tool-choice", metavar="auto|none|required", help="Whether it may call one, or must.", hidden=True),
]
Template = Annotated[
    str | None, typer.Option("--chat-template", metavar="NAME", help="A template by name, or as Jinja.", hidden=True)
]
TemplateFile = Annotated[
    Path | None, typer.Option("--chat-template-file", metavar="FILE", help="A template from a file.", hidden=True)
]
TemplateArguments = Annotated[
    str | None,
    typer.Option(
        "--chat-template-kwargs", metavar="JSON", help="""Arguments of the template: '{"enable_thinking": false}'."""
    ),
]
Reasoning = Annotated[
    str,
    typer.Option(
        "--reasoning-format", metavar="auto|none", help="Whether reasoning is told apart from replies.", hidden=True
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Write a line of JSON for each reply, when it is whole.")]


@takes_model
@takes(PARAMS, TUNED, RPC, *MODEL, *CONTEXT, *t.SAMPLING, *DRAFTS, hidden=t.RARE | RARE_DRAFTS, n_ctx=str(N_CTX))
def command(
    model: o.ModelPath,
    prompt: Prompt = None,
    single_turn: Single = False,
    system_prompt: System = None,
    system_prompt_file: SystemFile = None,
    load_file: Load = None,
    tools: Tools = None,
    tool_choice: Choice = "auto",
    chat_template: Template = None,
    chat_template_file: TemplateFile = None,
    chat_template_kwargs: TemplateArguments = None,
    reasoning_format: Reasoning = "auto",
    predict: t.Predict = -1,
    stop: t.Stop = None,
    json_schema: t.Schema = None,
    json_schema_file: t.SchemaFile = None,
    device: DevicesHere = None,
    image: Images = None,
    audio: Audio = None,
    mmproj: Projector = None,
    fit: o.Fit = "on",
    *,
    given: Given,
    as_json: AsJson = False,
) -> None:
    """Chat with a model: each line is a question, /help shows more. Ctrl-C stops a reply.

    Example: moebind chat moe.gguf -sys "Answer briefly." --temp 0.8
    """
    if single_turn and prompt is None:
        raise ValueError("--single-turn is given without --prompt, which is the turn")
    names = "--system-prompt", "--system-prompt-file"
    system = t.one_text(system_prompt, system_prompt_file, names, t.read_prompt)
    messages = [] if load_file is None else read_messages(load_file)
    arguments = {
        "tools": None if tools is None else t.read_json(t.read_text(tools), "--tools is not JSON"),
        "tool_choice": tool_choice,
        "template": t.one_text(chat_template, chat_template_file, ("--chat-template", "--chat-template-file")),
        "template_kwargs": None
        if chat_template_kwargs is None
        else t.read_json(chat_template_kwargs, "--chat-template-kwargs is not JSON"),
        "reasoning_format": reasoning_format,
        "max_tokens": predict,
        "stop": stop or (),
        "json_schema": t.one_text(json_schema, json_schema_file, ("--json-schema", "--json-schema-file")),
        **t.sampling(given),
    }
    media = [*(image or ()), *(audio or ())]
    with writing(model, given, device, fitted=o.wants_fit(fit), mmproj=mmproj, media=media) as (
        context,
        mtmd,
        speculative,
    ):
        arguments["speculative"] = speculative
        terminal = Terminal()
        chat = Conversation(context, terminal, {**arguments, "mtmd": mtmd}, show_line if as_json else None)
        for path in media:
            chat.attach(path)
        chat.messages = messages
        if system is not None:
            chat.system = system
        chat.check()
        terminal.note(f"{title(context.model)}; /help shows what there is, Ctrl-C stops a reply")
        status = talk(chat, terminal, prompt, single=single_turn)
    if status:
        raise typer.Exit(status)
