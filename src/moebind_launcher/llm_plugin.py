"""The plugin for the command-line tool llm: models from folders and the Hugging Face Hub's cache.

llm imports it whenever it starts. So it looks at names of files only, and moebind is imported when a model is asked for
something: llm does not wait for moebind, and works where moebind does not.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import click
import llm
from llm.models import EmbeddingModel
from pydantic import Field

from moebind_launcher.model_names import ModelFiles, gathered, gguf_files

if TYPE_CHECKING:
    from llm.parts import StreamEvent

    from moebind.integrations.llm_engine import Engine

__all__ = ["Chat", "Embeddings", "folders", "models"]

#: The folders with models, as ``PATH`` has its own.
FOLDERS = "MOEBIND_MODELS"
#: How an address on the Hugging Face Hub begins.
HUB = "hf://"
#: Where llm takes a model: the command, and the parameter.
TAKERS = {
    "prompt": "model_id",
    "chat": "model_id",
    "embed": "model",
    "embed-multi": "model",
    "models default": "model",
    "models options set": "model",
    "embed-models default": "model",
    "aliases set": "model_id",
}


class _Here(NamedTuple):
    """A model that is here: its first file, and its address if the Hub's cache has it."""

    path: str
    address: str | None


def folders() -> list[str]:
    """The folders in ``MOEBIND_MODELS``."""
    return [os.path.expanduser(each) for each in os.environ.get(FOLDERS, "").split(os.pathsep) if each]


def models() -> dict[str, str]:
    """The models that are here: what llm calls them, and their first files. Those that lack a file are left out."""
    return {name: each.path for name, each in _known().items()}


def _known() -> dict[str, _Here]:
    found: list[tuple[ModelFiles, str | None]] = []
    for folder in folders():
        found += [(each, None) for each in gathered(gguf_files(os.path.abspath(folder)))]
    for files, is_named in _in_cache():
        found += [(each, f"{HUB}{each.name}" if is_named else None) for each in gathered(files)]
    known: dict[str, _Here] = {}
    for each, address in found:
        if each.sidecar is None and not each.missing:
            known.setdefault(f"moebind/{each.name.removesuffix('.gguf')}", _Here(each.paths[0], address))
    return known


def _in_cache() -> Iterator[tuple[dict[str, str], bool]]:
    """The GGUF files of each revision in the Hub's cache, from names to paths, and whether ``hf://`` and a name is one.

    Those of ``main``, or else of what is newest, are called ``OWNER/NAME/FILE``; those of other branches and of tags
    ``OWNER/NAME@REVISION/FILE``.
    """
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "huggingface"
    )
    cache = os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")
    for folder in sorted(glob.glob(f"{glob.escape(cache)}/models--*--*")):
        repo = os.path.basename(folder).removeprefix("models--").replace("--", "/", 1)
        refs, snapshots = os.path.join(folder, "refs"), os.path.join(folder, "snapshots")
        main = os.path.join(snapshots, _content(os.path.join(refs, "main")) or "main")
        names = {main: repo} if os.path.isdir(main) else {}
        for ref in sorted(glob.glob("**", root_dir=refs, recursive=True)):
            commit = _content(os.path.join(refs, ref))
            names.setdefault(os.path.join(snapshots, commit or ref), f"{repo}@{ref.replace(os.sep, '%2F')}")
        for revision, name in names.items():
            yield {f"{name}/{file}": path for file, path in gguf_files(revision).items()}, True
        newest = max(glob.glob(f"{glob.escape(snapshots)}/*"), key=os.path.getmtime, default=main)
        if main not in names and newest not in names:
            yield {f"{repo}/{file}": path for file, path in gguf_files(newest).items()}, False


def _content(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return ""


def _why(error: Exception) -> str:
    """Why moebind cannot be used."""
    of_llm = isinstance(error, ImportError) and (error.name or "").startswith("llm")
    return f"moebind cannot be loaded: {error}" + ("; it needs llm 0.36 or newer" if of_llm else "")


def _name_of(address: str) -> str:
    """What llm calls the model of an address, which is downloaded unless it is in the cache."""
    try:
        from moebind.files.download import local_file
    except (ImportError, OSError) as error:
        raise click.ClickException(_why(error)) from error
    try:
        path = local_file(address)
    except Exception as error:  # as llm shows those of its own commands
        raise click.ClickException(str(error)) from error
    file = os.path.realpath(path)  # of several revisions, if it is the same in them
    for name, each in _known().items():
        if os.path.realpath(each.path) == file:
            return name
    raise click.ClickException(
        f"{address} is {path}, and llm knows no model by that file: it lies beside models, or its revision is a commit "
        "that is no branch and no tag"
    )


def _address_taken(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """The model's name in place of an address; anything else as it is."""
    if isinstance(value, str) and value.startswith(HUB) and not context.resilient_parsing:
        return _name_of(value)
    return value


def _take_addresses(cli: click.Group) -> None:
    """Let llm's commands take an address where they take a model; those that are not as they were stay as they are."""
    for command, name in TAKERS.items():
        found: click.Command | None = cli
        for word in command.split():
            found = getattr(found, "commands", {}).get(word)
        for parameter in [] if found is None else found.params:
            if parameter.name == name and parameter.callback is None:
                parameter.callback = _address_taken


def _engine(path: str) -> Engine:
    """What computes; moebind is imported here."""
    try:
        from moebind.integrations.llm_engine import Engine
    except (ImportError, OSError) as error:
        raise llm.ModelError(_why(error)) from error
    return Engine.of(path)


class Chat(llm.Model):
    """A model that llm prompts."""

    can_stream = True
    supports_schema = True
    supports_tools = True

    class Options(llm.Options):
        """What ``-o NAME VALUE`` sets; what is not given is as in moebind."""

        max_tokens: int | None = Field(None, description="Stop after this many tokens.")
        temperature: float | None = Field(
            None, description="How far the likeliest token is left. Without any of these: never."
        )
        top_k: int | None = Field(None, description="Choose among this many of the likeliest tokens.")
        top_p: float | None = Field(None, description="Choose among the likeliest, until they have this probability.")
        min_p: float | None = Field(None, description="Choose among those with this share of the highest probability.")
        repeat_penalty: float | None = Field(None, description="Makes tokens unlikelier that came already.")
        presence_penalty: float | None = Field(None, description="The same, as OpenAI has it.")
        frequency_penalty: float | None = Field(None, description="The same, by how often a token came.")
        seed: int | None = Field(None, description="Of the random choice: the same seed gives the same text.")
        stop: str | list[str] | None = Field(None, description="Text that ends the reply, and is left out.")
        thinking: bool | None = Field(None, description="Whether a model that can reason first does it.")
        tool_choice: Literal["auto", "required"] | None = Field(
            None, description="required: a question is answered with one call first, if there are tools."
        )
        template: str | None = Field(
            None, description="The chat template, in place of the model's: chatml, chatml-tools, or one in Jinja."
        )
        n_ctx: int | None = Field(None, description="Tokens of context; 4096 if nothing says it.")
        n_threads: int | None = Field(None, description="Threads that compute.")
        n_gpu_layers: int | None = Field(None, description="Layers on the GPUs; -1: all.")
        cpu_moe: bool | None = Field(None, description="Keep all experts in host memory.")
        n_cpu_moe: int | None = Field(None, description="Keep the experts of this many layers in host memory.")
        params: str | None = Field(None, description="A file of parameters, such as moebind fit --save writes.")

    def __init__(self, model_id: str, path: str) -> None:
        self.model_id, self.path = model_id, path
        self._engine: Engine | None = None

    def execute(
        self, prompt: llm.Prompt, stream: bool, response: llm.Response, conversation: llm.Conversation | None
    ) -> Iterator[str | StreamEvent]:
        """Answer a prompt; whole or bit by bit, it is computed in the same way."""
        self._engine = self._engine or _engine(self.path)
        return self._engine.reply(prompt, response, conversation)

    def __str__(self) -> str:
        return f"moebind: {self.model_id}"


class Embeddings(EmbeddingModel):
    """A model with which llm embeds texts."""

    #: So many texts are read before they are computed.
    batch_size = 64

    def __init__(self, model_id: str, path: str) -> None:
        self.model_id, self.path = model_id, path
        self._engine: Engine | None = None

    def embed_batch(self, items: Iterable[str | bytes], *, key: str | None = None) -> Iterator[list[float]]:
        """Embed texts; the end of one that is too long is left out."""
        self._engine = self._engine or _engine(self.path)
        return iter(self._engine.embed([str(item) for item in items]))


@llm.hookimpl
def register_models(register: Callable[..., None]) -> None:
    """Tell llm of the models. A file's name alone is another name, where no two have it, and so is an address."""
    found = _known()
    short = Counter(map(os.path.basename, found))
    for name, (path, address) in found.items():
        alias = os.path.basename(name)
        others = [alias] if short[alias] == 1 else []
        register(Chat(name, path), aliases=others if address is None else [*others, address])


@llm.hookimpl
def register_embedding_models(register: Callable[..., None]) -> None:
    """Tell llm of the same models: each of them can embed."""
    for name, (path, address) in _known().items():
        register(Embeddings(name, path), aliases=[] if address is None else [address])


@llm.hookimpl
def register_commands(cli: Any) -> None:
    """Add ``llm moebind``, and let the commands that take a model take its address on the Hub."""
    _take_addresses(cli)

    @cli.group(name="moebind")  # type: ignore[untyped-decorator]
    def moebind_() -> None:
        """Models that moebind runs."""

    @moebind_.command(name="models")  # type: ignore[untyped-decorator]
    @click.option("--fits", is_flag=True, help="Whether and how each fits; takes longer.")
    def models_(fits: bool) -> None:
        """List the models in the folders of MOEBIND_MODELS and in the Hub's cache."""
        try:
            from moebind.integrations.llm_engine import listing
        except (ImportError, OSError) as error:
            raise click.ClickException(_why(error)) from error
        known = {path: name for name, path in models().items()}
        try:
            click.echo(listing(known, folders(), fits))
        except Exception as error:  # as llm shows those of its own commands
            raise click.ClickException(str(error)) from error
