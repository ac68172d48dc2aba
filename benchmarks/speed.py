"""moebind beside its peers, on the same libraries: llama.cpp's own benchmarks, llama-cpp-python, and plain C calls.

    python benchmarks/speed.py [GROUP ...] [--threads N] [--rounds N] [--most N] [--output FILE] [--write-docs]

All sides of a group take turns in each round, so that what slows the machine down slows down all of them; only ratios
mean something. Rounds go on, up to --most, until the interval in which a median lies, but for a chance of 5 %, says
whether a target is reached. If it never does, that is the result. With --write-docs, the results go into
docs/speed.json, and from that into the table and plots of docs/speed.md; with --rounds 0 without measuring.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speed_settings import Settings
    from speed_sides import Sides

ROOT = Path(__file__).resolve().parent.parent
#: Values of each size for a plot.
Growth = dict[str, dict[str, list[float]]]


def options(given: Sequence[str] | None = None) -> argparse.Namespace:
    """What is to be done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help="what to measure, also growth; everything if none")
    parser.add_argument("--threads", type=int, default=1, help="of each side (default 1)")
    parser.add_argument("--rounds", type=int, default=7, help="at least so many (default 7)")
    parser.add_argument("--most", type=int, default=21, help="rounds at most (default 21)")
    parser.add_argument("--tokens", type=int, default=48, help="that are generated at a time (default 48)")
    parser.add_argument("--prompt", type=int, default=256, help="tokens of a prompt (default 256)")
    parser.add_argument("--texts", type=int, default=256, help="that are embedded (default 256)")
    parser.add_argument("--without-other", action="store_true", help="without llama-cpp-python, which is downloaded")
    parser.add_argument("--output", type=Path, help="a JSON file of the results; other groups in it are kept")
    parser.add_argument("--write-docs", action="store_true", help="docs/speed.json, and docs/speed.md from it")
    chosen = parser.parse_args(given)
    import speed_rows

    names = [group.name for group in speed_rows.GROUPS]
    unknown = set(chosen.groups) - {*names, "growth"}
    if unknown:
        parser.error(f"there is no group {', '.join(sorted(unknown))}; there are {', '.join(names)} and growth")
    chosen.groups = chosen.groups or [*names, "growth"]
    return chosen


def main(given: Sequence[str] | None = None) -> None:
    """Measure, print, and write."""
    chosen = options(given)
    import speed_models
    import speed_report

    output = speed_report.DOCS / "speed.json" if chosen.write_docs else chosen.output
    if chosen.rounds > 0:
        with tempfile.TemporaryDirectory(prefix="moebind-speed-") as folder:
            sizes = {name: getattr(chosen, name) for name in ("threads", "tokens", "prompt", "texts")}
            settings = speed_models.settings(Path(folder), **sizes)
            run(settings, chosen, chosen.groups, output)
    if chosen.write_docs:
        speed_report.write_docs(speed_report.read(output))


def sides(settings: Settings, with_other: bool) -> Sides:
    """Everything that measures."""
    from speed_sides import Sides

    # Threads that wait by spinning take from the others what is to be measured; llama.cpp's programs get the same.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    return Sides(settings, with_other)


def run(settings: Settings, chosen: argparse.Namespace, names: Sequence[str], output: Path | None) -> None:
    """Measure these groups. Each is written as soon as it is there."""
    import speed_report
    import speed_rows

    with sides(settings, not chosen.without_other) as all_sides:
        for group in speed_rows.GROUPS:
            if group.name in names:
                before = os.getloadavg()[0]
                found = speed_rows.measure(group, all_sides, chosen.rounds, chosen.most)
                for row in group.rows:
                    print("  ".join(str(cell) for cell in speed_report.cells(group, row, found)), flush=True)
                if output is not None:
                    about = conditions(settings, all_sides, (before, os.getloadavg()[0]))
                    speed_report.write(output, about, {group.name: found}, {})
        if "growth" in names:
            grown = growth(all_sides, min(chosen.rounds, 5))
            if output is not None:
                speed_report.write(output, {}, {}, grown)


def growth(asked: Sides, rounds: int) -> Growth:
    """Measure what the plots show."""
    from speed_growth import AXES
    from speed_sides import FailedError

    found: Growth = {}
    for at in range(rounds):
        for name in AXES:
            try:
                for size, value in asked.ask("growth", name).items():
                    found.setdefault(name, {}).setdefault(size, []).append(value)
            except FailedError as error:
                print(f"{name}: {error}", file=sys.stderr)
            print(f"growth, round {at + 1}: {name}", file=sys.stderr, flush=True)
    return found


def conditions(settings: Settings, asked: Sides, load: tuple[float, float]) -> dict[str, Any]:
    """With what it was measured, and as a sentence."""
    import moebind

    sizes = {each.name: getattr(settings, each.name) for each in fields(settings) if each.type == "int"}
    day = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    text = f"{day}, llama.cpp {moebind.llama_cpp_version}, {os.cpu_count()} cores, {settings.threads} thread(s)"
    if asked.remarks:
        text += "; " + "; ".join(asked.remarks)
    return {"text": text + ".", "load": [round(each, 1) for each in load], "sizes": sizes}


if __name__ == "__main__":
    main()
