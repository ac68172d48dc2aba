"""Reports as pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moebind._core.pictures import COLOURS, TEXT
from moebind.backend.breakdown import PARTS
from moebind.placement.plot import check_plot

if TYPE_CHECKING:
    from moebind.bench.rows import OffloadRows

__all__ = ["plot_rows"]

#: Other colours than those of memory, which stand beside them.
SPEEDS = {"prompt": "#2f9e8f", "decode": "#c65b7c"}


def plot_rows(report: OffloadRows, path: str) -> None:
    """Draw device memory by class on the left, and speeds with their deviations on the right."""
    check_plot("path", path, "reports")
    from matplotlib.figure import Figure

    rows = [row for row in report.rows if row.allocated is not None]
    if not rows:
        raise ValueError("every placement failed: there is nothing to draw")
    figure = Figure(figsize=(9.5, 1.6 + 0.6 * len(rows)), layout="constrained")
    memory, speed = figure.subplots(1, 2, sharey=True)
    largest = max(row.allocated.device_bytes for row in rows if row.allocated is not None)
    unit, size = ("GiB", 2**30) if largest >= 2**30 else ("MiB", 2**20)
    labelled: set[str] = set()
    for at, row in enumerate(rows):
        if row.allocated is None or row.decode is None or row.prompt is None:
            continue
        left = 0.0
        for part in PARTS:
            width = sum(getattr(device, part) for device in row.allocated.devices[:-1]) / size
            name = part.replace("_", " ")
            if width:
                memory.barh(
                    at, width, left=left, height=0.6, color=COLOURS[name], label=None if name in labelled else name
                )
                labelled.add(name)
                left += width
        memory.annotate(f"{left:.4g}", (left, at), (5, 0), textcoords="offset points", va="center", color=TEXT)
        for offset, samples, name, colour in (
            (-0.17, row.prompt, "prompt", SPEEDS["prompt"]),
            (0.17, row.decode, "decode", SPEEDS["decode"]),
        ):
            speed.barh(
                at + offset,
                samples.mean,
                xerr=samples.std,
                height=0.3,
                color=colour,
                ecolor=TEXT,
                label=name if at == 0 else None,
            )
    memory.set_yticks(range(len(rows)), [row.name for row in rows])
    memory.invert_yaxis()
    memory.set_xlabel(f"on devices, {unit}", color=TEXT)
    speed.set_xlabel("tokens/s", color=TEXT)
    for axes in (memory, speed):
        axes.margins(x=0.18)
        axes.set_xlim(left=0)
        axes.tick_params(colors=TEXT)
        for side, spine in axes.spines.items():
            spine.set_visible(side in {"left", "bottom"})
            spine.set_color(TEXT)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, labelcolor=TEXT)
    figure.savefig(path, transparent=True, dpi=150)
