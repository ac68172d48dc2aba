"""Options that llama.cpp's programs have, or others, and no command: what they are called here, or what to do instead.

Those for drafts are in :mod:`moebind.cli.refused`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Container, Mapping

__all__ = ["COMMANDS_ELSEWHERE", "INSTEAD", "RENAMED", "UNNEEDED", "changes_nothing", "instead_of"]

#: Options that have another name here.
RENAMED: Mapping[str, str] = {
    "--max-tokens": "--predict",
    "--max-new-tokens": "--predict",
    "--n-gen": "--predict",
    "--context-size": "--ctx-size",
    "--context-length": "--ctx-size",
    "--max-seq-len": "--ctx-size",
    "--system": "--system-prompt",
    "--repetition-penalty": "--repeat-penalty",
    "--n-threads": "--threads",
    "--n-parallel": "--parallel",
    "--n-seq-max": "--parallel",
    "--n-batch": "--batch-size",
    "--n-ubatch": "--ubatch-size",
    "--reverse-prompt": "--stop",
    "--show-count": "--count",
    "--mlock": "--load-mode mlock",
    "--mmap": "--load-mode mmap",
    "--direct-io": "--load-mode dio",
    "--usage": "--help",
}

#: An option that is to be given instead.
_GIVEN = re.compile(r"give (--?[\w-]+)")
#: Commands of other programs, without their "llama-", and what is like them here.
COMMANDS_ELSEWHERE: Mapping[str, str] = {
    **dict.fromkeys(("run", "cli"), "chat"),
    **dict.fromkeys(("complete", "completion"), "generate"),
    **dict.fromkeys(("pull", "download"), "get"),
    "ls": "list",
    **dict.fromkeys(("show", "info"), "inspect"),
    **dict.fromkeys(("bench", "batched-bench"), "bench"),
    "server": "serve",
    **dict.fromkeys(("embedding", "embeddings"), "embed"),
    "tokenize": "tokenize",
    "quantize": "quantize",
    "fit-params": "fit",
    "rpc-server": "rpc-worker",
    "help": "--help",
    "version": "--version",
}
_WRITING = ("generate", "chat")
_LOADING = (*_WRITING, "probe", "embed", "rerank")
#: llama.cpp's options without a value that say what is so anyway, and the commands of which that is true.
UNNEEDED: Mapping[str, Collection[str]] = {
    **dict.fromkeys(("-no-cnv", "--no-conversation"), ("generate",)),
    **dict.fromkeys(("-cnv", "--conversation", "-i", "--interactive", "-if", "--interactive-first"), ("chat",)),
    "--jinja": (*_WRITING, "serve"),
    "--no-warmup": _LOADING,
    "--no-display-prompt": _WRITING,
    "--no-escape": _WRITING,
    "--no-perf": _WRITING,
    "--no-show-timings": _WRITING,
    "--no-context-shift": _WRITING,
    "--log-disable": (*_LOADING, "tokenize"),
}

_CONVERSATION = "moebind chat holds conversations, moebind generate goes on from a text"
_SAMPLED = "in Python, Sampler objects do it; moebind serve passes it on behind --"
_THREADS = "--tuned sets the processors that moebind tune finds; in Python, a ThreadPool has it"
_TIMED = "moebind generate tells how long it took with --timings, moebind chat with /timings"
_LOGGED = "leave it out: an error shows what matters of llama.cpp's log; in Python, moebind.set_log takes all of it"
_AROUND = "the model's template says what is around a question; moebind chat takes another one, --chat-template"
_ADAPTED = "in Python, Model.lora_adapter_init loads it, and Context.set_lora_adapters uses it"
_STEERED = "in Python, Context.set_control_vector adds it"
_SERVED = "moebind serve passes it on behind --"
_FETCHED = "give -hf OWNER/REPO, or download it first"
_KEPT = "in Python, Context.state_save_file keeps what was computed"
_THOUGHT = """give what the model's template takes, such as --chat-template-kwargs '{"enable_thinking": false}'"""
_PROJECTED = "the projector beside the model is loaded for pictures and sound alone; leave it out"
_SEEN = "in Python, MtmdContextParams has it"
_STANDS = "it stands for a model of the Hub: give that, -hf OWNER/REPO"
_MODELS = ("gpt-oss-20b", "gpt-oss-120b", "vision-gemma-4b", "vision-gemma-12b")


def _all(reason: str, *names: str) -> dict[str, str]:
    return dict.fromkeys(names, reason)


def _in_file(field: str, *names: str) -> dict[str, str]:
    return _all(f"set {field} in a file of parameters (--params)", *names)


#: llama.cpp's options that commands do not take, by each of their names, and what to do instead.
INSTEAD: Mapping[str, str] = {
    **_all(_CONVERSATION, "-cnv", "--conversation", "-no-cnv", "--no-conversation"),
    **_all(_CONVERSATION, "-i", "--interactive", "-if", "--interactive-first"),
    **_all('moebind chat takes what is between two lines of """ as one question', "-mli", "--multiline-input"),
    **_all(_AROUND, "--in-prefix", "--in-suffix", "--in-prefix-bos"),
    **_all("templates are always Jinja; leave it out", "--jinja", "--no-jinja"),
    **_all(_THOUGHT, "-rea", "--reasoning", "--reasoning-effort"),
    **_all(_SERVED, "--reasoning-budget", "--reasoning-budget-message"),
    **_all("nothing is coloured; leave it out", "-co", "--color"),
    **_all("what is written is plain text; leave it out", "--simple-io"),
    **_all("only what the model writes is shown", "--display-prompt"),
    **_all("in Python, Model.tokens_to_str(tokens, special=True) writes them", "-sp", "--special"),
    **_all("moebind tokenize writes the tokens of a prompt", "--verbose-prompt"),
    **_all("texts are as they are given; a shell writes line breaks, as in $'a\\nb'", "-e", "--escape"),
    **_all("a text ends where the context is full; make --ctx-size larger", "--context-shift", "--keep"),
    **_all("give --stop TEXT", "-r"),
    **_all("a model is loaded without a run to warm it up; leave it out", "--warmup", "--no-warmup"),
    **_all(_TIMED, "--perf", "--show-timings"),
    **_all(_LOGGED, "-v", "--verbose", "--log-verbose", "-lv", "--verbosity", "--log-verbosity"),
    **_all(_LOGGED, "--log-disable", "--log-file", "--log-colors", "--log-prefix", "--log-timestamps"),
    **_all(_LOGGED, "--no-log-prefix", "--no-log-timestamps", "--log-jsonl", "--no-log-jsonl", "--log-prompts-dir"),
    **_all(_KEPT, "--prompt-cache", "--prompt-cache-all", "--prompt-cache-ro"),
    **_all(_SERVED, "-ctxcp", "--ctx-checkpoints", "--swa-checkpoints", "-cram", "--cache-ram"),
    **_all(_SAMPLED, "--samplers", "--sampler-seq", "--sampling-seq", "--ignore-eos", "-l", "--logit-bias"),
    **_all(_SAMPLED, "--top-nsigma", "--top-n-sigma", "--xtc-probability", "--xtc-threshold"),
    **_all(_SAMPLED, "--typical", "--typical-p", "--mirostat", "--mirostat-lr", "--mirostat-ent"),
    **_all(_SAMPLED, "--dry-multiplier", "--dry-base", "--dry-allowed-length", "--dry-penalty-last-n"),
    **_all(_SAMPLED, "--dry-sequence-breaker", "--adaptive-target", "--adaptive-decay"),
    **_all(_SAMPLED, "--dynatemp-range", "--dynatemp-exp", "--repeat-last-n"),
    **_all(_SERVED, "--skip-chat-parsing", "--no-skip-chat-parsing"),
    **_all(_SERVED, "--reasoning-preserve", "--no-reasoning-preserve"),
    **_all("in Python, Model.new_context(samplers=...) does it", "-bs", "--backend-sampling"),
    **_all(_ADAPTED, "--lora", "--lora-scaled"),
    **_all(_STEERED, "--control-vector", "--control-vector-scaled"),
    **_all("give --moe-cache with a unit, such as 4096MiB", "--moe-cache-mib"),
    **_all(r"give --override-tensor, such as 'ffn_(up|down|gate)\.=CPU'", "-ncffn", "--n-cpu-ffn"),
    **_all("moebind fit --margin SIZE leaves so much free", "-fitt", "--fit-target"),
    **_all("moebind fit --ctx-size-min N makes no context shorter", "-fitc", "--fit-ctx"),
    **_all("moebind tune finds it, and --tuned sets it; in Python, moebind.init(numa=...)", "--numa"),
    **_all(_THREADS, "-C", "--cpu-mask", "-Cr", "--cpu-range", "--cpu-strict", "--prio", "--poll"),
    **_all(_THREADS, "-Cb", "--cpu-mask-batch", "-Crb", "--cpu-range-batch", "--cpu-strict-batch"),
    **_all(_THREADS, "--prio-batch", "--poll-batch"),
    **_in_file("lazy_mode", "-lzm", "--lazy-mode"),
    **_in_file("check_tensors", "--check-tensors"),
    **_in_file("no_host", "--no-host"),
    **_in_file("kv_overrides", "--override-kv"),
    **_in_file("rope_scaling_type", "--rope-scaling"),
    **_in_file("rope_freq_base", "--rope-freq-base"),
    **_in_file("rope_freq_scale", "--rope-freq-scale"),
    **_in_file("rope_freq_scale (1 / N)", "--rope-scale"),
    **{name: text for each in ("orig_ctx", "ext_factor", "attn_factor", "beta_slow", "beta_fast")
       for name, text in _in_file(f"yarn_{each}", f"--yarn-{each.replace('_', '-')}").items()},
    **_all(_FETCHED, "-mu", "--model-url", "-dr", "--docker-repo"),
    **_all("give the model as hf://OWNER/REPO/FILE.gguf", "-hff", "--hf-file"),
    **_all("whoever lists processes could read it; set HF_TOKEN in the environment", "-hft", "--hf-token"),
    **_all("set HF_HUB_OFFLINE=1 in the environment", "--offline"),
    **_all("download it first, and give --mmproj FILE", "-mmu", "--mmproj-url"),
    **_all(_PROJECTED, "--mmproj-auto", "--no-mmproj", "--no-mmproj-auto"),
    **_all(_SEEN, "-mmdev", "--mmproj-device", "--mmproj-offload", "--no-mmproj-offload"),
    **_all(_SEEN, "--image-min-tokens", "--image-max-tokens"),
    **_all("pictures and sound are taken, --image FILE and --audio FILE", "--video", "--video-fps"),
    **_all(_STANDS, *(f"--{each}-default" for each in _MODELS)),
    **_all("moebind devices lists them", "--list-devices"),
    **_all("moebind list shows them", "-cl", "--cache-list"),
    **_all("moebind --install-completion lets a shell complete commands", "--completion-bash"),
    **_all("moebind --version shows it", "--version"),
}  # fmt: skip


def changes_nothing(name: str, command: str) -> bool:
    """Whether an option says what a command does anyway."""
    return command in UNNEEDED.get(name, ())


def instead_of(name: str, known: Container[str]) -> str | None:
    """A sentence on an option that a command lacks.

    None: it is not one of llama.cpp's that people type, or what to give instead is not among the command's options.
    """
    found = INSTEAD.get(name)
    given = None if found is None else _GIVEN.match(found)
    return (
        None if found is None or (given is not None and given[1] not in known) else f"there is no {name} here: {found}"
    )
