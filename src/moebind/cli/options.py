"""Options and arguments that several commands have, and how errors name them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from moebind._core import checks
from moebind.cli.parameters import option_names
from moebind.placement.plot import check_plot

__all__ = ["AsJson", "ModelPath", "in_options", "plot_path"]

ModelPath: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A GGUF file, or the first one of a split model, or hf://OWNER/REPO/FILE.gguf on the Hugging Face Hub.",
        show_default=False,
    ),
]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Write JSON.")]

#: The options of arguments, as errors name them.
_OPTIONS = {
    **option_names(),
    "n_ctx_min": "--ctx-size-min",
    "memory": "--memory",
    "margin": "--margin",
    "devices": "--device",
    "host": "--host",
    "placement": "--placement",
    "placements": "--placement",
    "repeats": "--repeats",
    "warmup": "--warmup",
    "n_prompt": "--n-prompt",
    "n_generate": "--n-gen",
    "prompts": "--prompt",
    "worker_threads": "--worker-threads",
    "timeout": "--timeout",
    "output": "--output",
    "port": "--port",
    "api_key": "--api-key-file",
    "allow_network": "--allow-network",
    "one_at_a_time": "--one-at-a-time",
    "fit": "--fit",
    "parallel": "--parallel",
    "embeddings": "--embeddings",
    "pooling_type": "--pooling",
    "sizes": "--size",
    "routing": "--routing",
    "bus": "--bus",
    "max_tokens": "--predict",
    "mmproj": "--mmproj",
    "models_dir": "--models-dir",
    "path": "MODEL",
    "model_path": "MODEL",
}
_BEGINS = re.compile(r"([a-z_]+)(?:\[[^]]*\])?(?= (?:is|has|holds|names)\b)")
_NAMED = re.compile(r"(?<![\w./'\"=-])[a-z]+_[a-z_]+(?![\w./'\"=(-])")


def plot_path(given: Path | None, what: str) -> str | None:
    """Where to draw, if that will be possible: looked at before anything is computed."""
    if given is None:
        return None
    path = checks.path("--plot", given)
    check_plot("--plot", path, what)
    return path


def in_options(message: str) -> str:
    """A message of the library's, with the options' names for its arguments'; lines of llama.cpp's stay as they are."""
    return "\n".join(line if line.lstrip().startswith("llama.cpp:") else _renamed(line) for line in message.split("\n"))


def _renamed(message: str) -> str:
    # Only at the beginning, where words that are also others stand for the argument; what has an underscore anywhere,
    # but not in a path or a call.
    begun = _BEGINS.match(message)
    if begun is not None and begun[1] in _OPTIONS:
        message = f"{_OPTIONS[begun[1]]}{message[begun.end() :]}"
    return _NAMED.sub(lambda found: _OPTIONS.get(found[0], found[0]), message)
