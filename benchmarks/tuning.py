"""From the defaults to tuned: moebind.tune for several models, as a table of Markdown.

    python benchmarks/tuning.py [MODEL.gguf ...] [--device none|loopback|CUDA0] [--minutes N] [--goal GOAL]

Each model is tuned in turn, for so many minutes. The speeds and the factor are of the last comparison, in which the
defaults and what was found take turns in rounds that decided nothing before. Given again with ``--resume``, it goes on.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from programs import demo_model

import moebind
from moebind import Tuning
from moebind.tuning.report import medians

HEADINGS = ("model", "device", "kept", "prompt, tokens/s", "decode, tokens/s", "times as fast", "95 %", "rounds")


def cells(device: str, found: Tuning) -> Iterator[str]:
    """A row of the table."""
    yield os.path.basename(found.path)
    yield device
    yield ", ".join(step.name for step in found.kept) or "nothing: the defaults"
    speeds = medians(found)
    for part in ("prompt", "decode"):
        yield "{:.1f} -> {:.1f}".format(*speeds[part]) if part in speeds else ""
    total = found.total
    if total is None or total.gain is None:
        yield from ("1", "", "")
    else:
        yield from (f"{total.gain:.2f}", f"{total.low:.2f} to {total.high:.2f}", str(len(total.differences)))


def main(given: Sequence[str] | None = None) -> None:
    """Tune, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, help="the demo model, if none is given")
    parser.add_argument("--device", default="none", help="none, loopback, the size of one such as 300MiB, or a name")
    parser.add_argument("--minutes", type=float, default=10.0, help="for each model")
    parser.add_argument("--goal", default="chat")
    parser.add_argument("--n-prompt", type=int)
    parser.add_argument("--n-gen", type=int)
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args(given)
    rows = []
    for model in arguments.models or [demo_model()]:
        found = moebind.tune(
            model,
            goal=arguments.goal,
            minutes=arguments.minutes,
            devices=[] if arguments.device == "none" else [arguments.device],
            n_prompt=arguments.n_prompt,
            n_generate=arguments.n_gen,
            resume=arguments.resume,
        )
        print(found, flush=True)
        rows.append(list(cells(arguments.device, found)))
    print()
    for row in (HEADINGS, ["---"] * len(HEADINGS), *rows):
        print(f"| {' | '.join(row)} |")
    about = found.conditions
    load = about["load_average"][0]
    print(f"\n{about['processor']}, {about['processors']} processors; load {load:.1f} at the end; {about['date']}.")


if __name__ == "__main__":
    main()
