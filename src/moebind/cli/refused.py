"""llama.cpp's options for drafts that commands do not take, and why: who gives one is told."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["REFUSED", "why_refused"]

_THREADS = (
    "threads have their processors for the whole process here (moebind tune finds them, --tuned sets them); in Python, "
    "a context of a draft takes a ThreadPool of its own, Context.attach_threadpool"
)
_SAMPLED = "a draft's tokens are its likeliest, found on the CPU, which changes no text; leave it out"
_PRETENDED = "it has drafts taken that are wrong, to measure; the text would be wrong, too"
_REMOVED = "llama.cpp has taken it away: use "
_COUNTED = "ngram-cache counts the n-grams of the texts that it sees, and of no file; leave it out"


def _all(reason: str, *names: str) -> dict[str, str]:
    return dict.fromkeys(names, reason)


#: By each of an option's names, why it is not taken, and what to do.
REFUSED: Mapping[str, str] = {
    **_all(_THREADS, "--spec-draft-cpu-mask", "-Cd", "--cpu-mask-draft"),
    **_all(_THREADS, "--spec-draft-cpu-range", "-Crd", "--cpu-range-draft"),
    **_all(_THREADS, "--spec-draft-cpu-strict", "--cpu-strict-draft"),
    **_all(_THREADS, "--spec-draft-prio", "--prio-draft"),
    **_all(_THREADS, "--spec-draft-poll", "--poll-draft"),
    **_all(_THREADS, "--spec-draft-cpu-mask-batch", "-Cbd", "--cpu-mask-batch-draft"),
    **_all(_THREADS, "--spec-draft-cpu-range-batch", "-Crbd", "--cpu-range-batch-draft"),
    **_all(_THREADS, "--spec-draft-cpu-strict-batch", "--cpu-strict-batch-draft"),
    **_all(_THREADS, "--spec-draft-prio-batch", "--prio-batch-draft"),
    **_all(_THREADS, "--spec-draft-poll-batch", "--poll-batch-draft"),
    **_all(_SAMPLED, "--spec-draft-sampling", "--spec-draft-backend-sampling", "--no-spec-draft-backend-sampling"),
    **_all(_PRETENDED, "--spec-synth-len", "--spec-synth-rates"),
    **_all(
        "it is for trees of drafts, which only an example of llama.cpp's makes; leave it out",
        *("--spec-draft-p-split", "--draft-p-split"),
    ),
    **_all(_COUNTED, "-lcs", "--lookup-cache-static", "-lcd", "--lookup-cache-dynamic"),
    **{f"--{kind}": f"give --spec-type draft-{kind}" for kind in ("mtp", "dflash", "eagle3")},
    **_all("give --spec-type ngram-mod, which is the same", "--spec-default"),
    **_all(
        "it stands for models of its own: give the model, and what drafts for it, --spec-draft-hf OWNER/REPO[:QUANT]",
        *("--fim-qwen-7b-spec", "--fim-qwen-14b-spec"),
    ),
    **_all(f"{_REMOVED}--spec-draft-n-max, or --spec-ngram-mod-n-max", "--draft", "--draft-n", "--draft-max"),
    **_all(f"{_REMOVED}--spec-draft-n-min, or --spec-ngram-mod-n-min", "--draft-min", "--draft-n-min"),
    **_all(f"{_REMOVED}that of a kind, such as --spec-ngram-simple-size-n", "--spec-ngram-size-n"),
    **_all(f"{_REMOVED}that of a kind, such as --spec-ngram-simple-size-m", "--spec-ngram-size-m"),
    **_all(f"{_REMOVED}that of a kind, such as --spec-ngram-simple-min-hits", "--spec-ngram-min-hits"),
}


def why_refused(name: str) -> str | None:
    """A sentence on such an option; None: it is none."""
    return f"there is no {name} here: {REFUSED[name]}" if name in REFUSED else None
