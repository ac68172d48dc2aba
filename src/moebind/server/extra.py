"""Options that are handed to llama-server as they are: all but those that are moebind's to set."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from moebind._core import checks
from moebind._core.shown import shown
from moebind.files.download import local_file
from moebind.server.arguments import ROWS, Settings
from moebind.server.isolation import environment
from moebind.server.process import program

__all__ = [
    "EXAMPLES",
    "Refused",
    "check_extra",
    "downloaded",
    "first_refused",
    "given",
    "left_open",
    "option_names",
    "why_not",
]

#: Options that moebind sets, or that would undo what it sees to, and what to do instead.
_OURS: Mapping[str, str] = {
    "model": "it is the model that is served",
    "model-url": "download it first",
    "docker-repo": "download it first",
    "hf-repo": "give the model as hf://OWNER/REPO/FILE.gguf",
    "hf-file": "give the model as hf://OWNER/REPO/FILE.gguf",
    "mmproj": "use mmproj",
    "mmproj-url": "download it first",
    **dict.fromkeys(
        (
            *("spec-draft-model", "spec-draft-hf", "spec-draft-ngl", "spec-draft-device", "spec-draft-override-tensor"),
            *("spec-draft-cpu-moe", "spec-draft-n-cpu-moe", "spec-draft-type-k", "spec-draft-type-v"),
        ),
        "use draft",
    ),
    "alias": "a model is called as its file; a link to it has another name",
    "host": "use host",
    "port": "use port",
    "reuse-port": "two servers would answer in turn",
    "api-key": "whoever lists processes could read it; use api_key",
    "api-key-file": "use api_key",
    "api-prefix": "moebind could not ask whether it is ready; put a proxy in front",
    "ssl-key-file": "moebind could not ask whether it is ready; put a proxy in front",
    "ssl-cert-file": "moebind could not ask whether it is ready; put a proxy in front",
    "models-dir": "use models_dir",
    "models-preset": "moebind writes it; give what it would say as model_params and context_params, which a Tuning has",
    "models-max": "it follows from the models' sizes; use one_at_a_time",
    "fit": "use fit",
    "cpu-moe": "use ModelParams.with_cpu_moe_all",
    "n-cpu-moe": "use ModelParams.with_n_cpu_moe",
    "n-cpu-ffn": "set tensor_overrides instead",
    "rpc": "use moebind.add_rpc_server",
    "offline": "it is set",
    "ui": "use ui",
    "rerank": "set embeddings, and pooling_type to RANK",
}
#: Options that some think arguments of :class:`Server`, by those names, and what to write in place of them.
EXAMPLES: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(("temperature", "temp"), ("--temp", "0")),
    "top_k": ("--top-k", "40"),
    "top_p": ("--top-p", "0.95"),
    "min_p": ("--min-p", "0.05"),
    "seed": ("--seed", "1"),
    "repeat_penalty": ("--repeat-penalty", "1.1"),
    "presence_penalty": ("--presence-penalty", "0.5"),
    "frequency_penalty": ("--frequency-penalty", "0.5"),
    **dict.fromkeys(("max_tokens", "n_predict", "num_predict"), ("--predict", "256")),
    **dict.fromkeys(("template", "chat_template", "chat_format"), ("--chat-template", "chatml")),
    "reasoning_format": ("--reasoning-format", "none"),
    "n_max": ("--spec-draft-n-max", "4"),
    **dict.fromkeys(("lora", "lora_path", "adapters"), ("--lora", "adapter.gguf")),
}
_PARAMETERS = {row.option: name for name, row in ROWS.items() if row.option and row.planned}
_UNPLANNED = [row.option for row in ROWS.values() if row.option and not row.planned]
#: The names of an option at the beginning of its lines in llama-server's help.
_NAMES = re.compile(r"-\S+?(?=,?\s|$)")
#: An address in a list of files, some of which have a scale behind them (``--lora-scaled``).
_ADDRESS = re.compile(rf"(?<![^,]){checks.HUB}.+?(?=(?::[\d.eE+-]+)?(?:,|$))")
#: What its help says of options that it refuses.
_REMOVED = "the argument has been removed"


class Refused(NamedTuple):
    """An argument that llama-server must not get, its option, why, and what to do instead in Python."""

    argument: str
    option: str
    reason: str
    instead: str


@lru_cache(maxsize=1)
def option_names() -> dict[str, frozenset[str]]:
    """All names of each option of llama-server's, by each of its names; without those it only remembers."""
    command = [program(), "--help"]
    help_ = subprocess.run(command, capture_output=True, text=True, check=True, env=environment()).stdout
    found: dict[str, frozenset[str]] = {}
    for line in help_.splitlines():
        if _REMOVED in line:
            continue
        names: list[str] = []
        for part in re.split(r",\s*", line) if line.startswith("-") else []:
            name = _NAMES.match(part)
            if name is None:
                break
            names.append(name[0])
            if name[0] != part.rstrip():  # what follows is its value, or what it does
                break
        found.update(dict.fromkeys(names, frozenset(names)))
    return found


def check_extra(extra: Iterable[str]) -> list[str]:
    """The arguments, if all of them are llama-server's alone.

    Raises
    ------
    ValueError
        If one is moebind's to set; the message says how.
    TypeError
        If one is no text.
    """
    if isinstance(extra, str):
        raise TypeError(f"extra is the text {shown(extra)}; it takes a list of arguments, such as ['--temp', '0']")
    arguments = [checks.text(f"extra[{at}]", each).decode() for at, each in enumerate(extra)]
    found = first_refused(arguments)
    if found is not None:
        raise ValueError(
            f"{found.argument} is among the arguments for llama-server itself, {found.reason}: {found.instead}"
        )
    return arguments


def downloaded(arguments: Iterable[str]) -> list[str]:
    """The arguments with files in place of addresses on the Hub, such as those of adapters, after their download.

    Raises
    ------
    ModelNotFoundError, ModelLoadError, ImportError
        As :func:`moebind.download`.
    """

    def with_files(argument: str) -> str:
        return _ADDRESS.sub(lambda found: local_file(found[0]), argument)

    # What has spaces is a text, such as a template's.
    return [each if re.search(r"\s", each) else with_files(each) for each in arguments]


def first_refused(arguments: Iterable[str]) -> Refused | None:
    """The first argument that llama-server must not get; None: there is none."""
    for each, value in pairwise([*arguments, ""]):
        found = why_not(each)
        if found is not None:
            return found
        if "--spec-type" in _named(each) and "draft-" in value:
            return Refused(f"{each} {value}", "spec-type", "where no plan would count the draft", "use draft")
    return None


def why_not(argument: str) -> Refused | None:
    """What forbids to hand an option to llama-server; None: nothing does."""
    names = _named(argument)
    for option, instead in _OURS.items():
        if f"--{option}" in names:
            return Refused(argument, option, "but is moebind's to set", instead)
    for option, parameter in _PARAMETERS.items():
        if f"--{option}" in names:
            return Refused(argument, option, "where no plan would know of it", f"set {parameter} instead")
    return None


def left_open(options: Settings, extra: Sequence[str]) -> Settings:
    """Options without those that the arguments have themselves, which are ones that no plan depends on."""
    twice = [option for option in _UNPLANNED if given(option, extra)]
    return {option: value for option, value in options.items() if option not in twice}


def given(option: str, extra: Sequence[str]) -> bool:
    """Whether an option is among the arguments, under any of its names."""
    return any(f"--{option}" in _named(each) for each in extra)


def _named(argument: str) -> frozenset[str]:
    if not argument.startswith("-"):
        return frozenset()
    name = argument.replace("_", "-") if argument.startswith("--") else argument  # as llama-server reads it
    return option_names().get(name, frozenset())
