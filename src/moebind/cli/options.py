"""Options and arguments that several commands have, and how errors name them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from moebind._core import checks
from moebind.cli.parameters import flags_of, option_names
from moebind.cli.text_options import SAMPLING
from moebind.enums import PoolingType

__all__ = [
    "AsJson",
    "Fit",
    "ModelPath",
    "Pooling",
    "calls_as_options",
    "error_in_options",
    "in_options",
    "plot_path",
    "pooling_type",
    "wants_fit",
]

ModelPath: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A GGUF file (of a split model the first), or hf://OWNER/REPO/FILE.gguf.",
        show_default=False,
    ),
]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Write JSON.")]

Fit: TypeAlias = Annotated[
    str, typer.Option("--fit", "-fit", metavar="on|off", help="Choose what is left open so that it fits.")
]
Pooling: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--pooling",
        metavar="TYPE",
        help="none, mean, cls, last or rank.",
        show_default="as the model says",
    ),
]
#: The options of arguments that only moebind quantize has, as errors name them, and those of all.
_OF_QUANTIZE = {
    "src": "SRC",
    "dst": "DST",
    "imatrix": "--imatrix",
    "tensor_types": "--tensor-type",
    "output_tensor_type": "--output-tensor-type",
    "token_embedding_type": "--token-embedding-type",
    "allow_requantize": "--allow-requantize",
    "keep_split": "--keep-split",
    "overwrite": "--overwrite",
    "prune_layers": "--prune-layers",
    "kv_overrides": "--override-kv",
}
_OPTIONS = {
    **option_names(),
    **{option.name: option.flag for option in SAMPLING},
    "stop": "--stop",
    "prompt": "--prompt",
    "json_schema": "--json-schema",
    "tools": "--tools",
    "tool_choice": "--tool-choice",
    "template": "--chat-template",
    "template_kwargs": "--chat-template-kwargs",
    "reasoning_format": "--reasoning-format",
    "n_ctx_min": "--ctx-size-min",
    "draft": "--model-draft",
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
    "n_sequences": "--sequences",
    "prompts": "--prompt",
    "worker_threads": "--worker-threads",
    "timeout": "--timeout",
    "goal": "--goal",
    "minutes": "--minutes",
    "dimensions": "--only",
    "kv_types": "--kv-types",
    "resume": "--resume",
    "journal": "--journal",
    "output": "--output",
    "port": "--port",
    "api_key": "--api-key-file",
    "allow_network": "--allow-network",
    "one_at_a_time": "--one-at-a-time",
    "fit": "--fit",
    "parallel": "--parallel",
    "ui": "--no-ui",
    "embeddings": "--embeddings",
    "pooling_type": "--pooling",
    "sizes": "--size",
    "routing": "--routing",
    "bus": "--bus",
    "max_tokens": "--predict",
    "mmproj": "--mmproj",
    "models_dir": "--models-dir",
    **_OF_QUANTIZE,
    "path": "MODEL",
    "model_path": "MODEL",
}
_BEGINS = re.compile(r"([a-z_]+)(?:\[[^]]*\])?(?= (?:is|has|holds|names|belongs|weighs)\b)")
#: What a sentence tells Python's users to write, and what is written on a command line.
_CALLS = [
    (re.compile(r"\bsuch as \{'decode': ([\d.]+), 'prompt': ([\d.]+)\}"), r"such as decode=\1,prompt=\2"),
    (re.compile(r"(?:ModelParams(?:\(\))?\.)?\bwith_cpu_moe_all(?:\(\))?"), "--cpu-moe"),
    (re.compile(r"(?:ModelParams(?:\(\))?\.)?with_n_cpu_moe\((\d+)\)"), r"--n-cpu-moe \1"),
    (re.compile(r"(?:ModelParams(?:\(\))?\.)?\bwith_n_cpu_moe(?:\(\))?"), "--n-cpu-moe"),
    (re.compile(r"\bmoebind\.(doctor|fit|plan|experts)\b(?:\(\))?"), r"moebind \1"),
    (re.compile(r"\bset n_gpu_layers=(\d+)"), r"give --n-gpu-layers \1"),
    (re.compile(r" \(routing=RoutingRecorder\(order=True\)\)"), " (moebind cache --save FILE, then --routing FILE)"),
    (re.compile(r"\bmoebind\.loopback_device\(\)"), "--device loopback"),
    (re.compile(r"\bdevices=\['(\w+)'\]"), r"--device \1"),
    (re.compile(r"\bContextParams\(n_threads=(\d+), n_threads_batch=\1\)"), r"--threads \1"),  # which sets both
    (re.compile(r"moe_cache is not \"auto\""), "--moe-cache is not auto"),
    (re.compile(r"\bvocab_only=True loads that"), "moebind tokenize takes that"),
    (
        re.compile(r"\bn_max is (\d+) and n_match is (\d+): NGRAM_SIMPLE"),
        r"--spec-ngram-simple-size-m is \1 and --spec-ngram-simple-size-n is \2: ngram-simple",
    ),
    (re.compile(r"\ban n_gpu_layers of (\d+)"), r"--n-gpu-layers \1"),
    (re.compile(r"\ban n_ctx of (\d+)"), r"--ctx-size \1"),
    (re.compile(r"\bpass overwrite=True"), "give --overwrite"),
    (re.compile(r"\bleave resume out\b"), "leave --resume out"),
    (re.compile(r"\btemplate='([\w-]+)'"), r"--chat-template \1"),
    (re.compile(r", tool_choice='auto', or use_grammar=False"), ", or --tool-choice auto"),
    (re.compile(r"\bpass tool_choice='(\w+)'"), r"give --tool-choice \1"),
    (
        re.compile(r"\bUse generate\(\) with json_schema, another"),
        "Use moebind generate with --json-schema, or another",
    ),
    (re.compile(r"\bthose of chat_builtin_templates\(\)"), "llama.cpp's own"),
    (re.compile(r"\bpooling_type to RANK\b"), "--pooling rank"),
    (re.compile(r"\bdraft=, or --model-draft on a command line"), "--model-draft"),
    # A chat's grammar is always used, and a command's overrides are always strict.
    (re.compile(r", or use_grammar=False"), ""),
    (re.compile(r",? or pass strict=False"), ""),
]
#: An argument that is to be used instead, at the end of a sentence's first half.
_USE = re.compile(r"(?<=: )(use|set) ([a-z_]+)\b( instead\b)?(?! [a-z])")
#: A field with its value, alone or in the parameters that it belongs to.
_FIELD = re.compile(r"\b(?:(?:Model|Context)Params\()?(?<![\w./-])([a-z]\w*)=(True|False|\d+)\b(\))?")
_SWITCHED = re.compile(r"\bpass ([a-z_]+)=True\b")
_NAMED = re.compile(r"(?<![\w./'\"=-])[a-z]+_[a-z_]+(?![\w./'\"=(-])(?! in a file of parameters)")


def pooling_type(given: str | None) -> PoolingType:
    """The value of ``--pooling``."""
    if given is None:
        return PoolingType.UNSPECIFIED
    known = {each.name.lower(): each for each in PoolingType if each != PoolingType.UNSPECIFIED}
    if given not in known:
        raise ValueError(f"--pooling is {given!r}; it takes one of {', '.join(known)}")
    return known[given]


def wants_fit(given: str) -> bool:
    """The value of ``--fit``."""
    if given not in {"on", "off"}:
        raise ValueError(f"--fit is {given!r}; it takes on or off")
    return given == "on"


def plot_path(given: Path | None, what: str, option: str = "--plot") -> str | None:
    """Where to draw, if that will be possible: looked at before anything is computed."""
    if given is None:
        return None
    from moebind.placement.plot import check_plot  # few commands draw, and it imports more than they all do

    path = checks.path(option, given)
    check_plot(option, path, what)
    return path


def error_in_options(error: Exception) -> str:
    """What went wrong, with the options' names; of the system's own errors, without their number."""
    if isinstance(error, OSError) and error.strerror:
        where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        return in_options(f"{where}{error.strerror}")
    return in_options(str(error))


def in_options(message: str) -> str:
    """A message of the library's, with the options' names for its arguments'; lines of llama.cpp's stay as they are."""
    return "\n".join(
        line if line.lstrip().startswith("llama.cpp:") else _renamed(calls_as_options(line))
        for line in message.split("\n")
    )


def calls_as_options(text: str) -> str:
    """A text of the library's for people, with options for the calls and fields that it tells them to write."""
    for written, option in _CALLS:
        text = written.sub(option, text)
    return _FIELD.sub(_field_as_option, _USE.sub(_used_as_option, text))


def _used_as_option(found: re.Match[str]) -> str:
    verb, name, instead = found[1], found[2], found[3] or ""
    option = None if instead and name in _OF_QUANTIZE else _OPTIONS.get(name)
    if option is None and instead:
        name += " in a file of parameters (--params)"
    return f"{verb if option is None else 'use'} {option or name}{instead}"


def _field_as_option(found: re.Match[str]) -> str:
    name, value = found[1], found[2]
    whole = found[0].startswith(("ModelParams(", "ContextParams(")) and found[3] is not None
    ending = "" if whole or found[3] is None else found[3]
    if name in flags_of() and value in {"True", "False"}:
        return flags_of()[name][value == "False"] + ending
    if whole and name in _OPTIONS:
        return f"{_OPTIONS[name]} {value}"
    return found[0]


def _renamed(message: str) -> str:
    # Only at the beginning, where words that are also others stand for the argument; what has an underscore anywhere,
    # but not in a path or a call.
    begun = _BEGINS.match(message)
    if begun is not None and begun[1] in _OPTIONS:
        message = f"{_OPTIONS[begun[1]]}{message[begun.end() :]}"
    message = _SWITCHED.sub(lambda found: f"give {_OPTIONS.get(found[1], found[1])}", message)
    return _NAMED.sub(lambda found: _OPTIONS.get(found[0], found[0]), message)
