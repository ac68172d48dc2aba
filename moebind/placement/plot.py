"""A plan as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moebind.placement.plan import Plan

#: Dark enough for a white page, bright enough for a dark one.
COLOURS = {"model": "#3b82c4", "repacked": "#7fb3dd", "context": "#d9822b", "compute": "#8a63c9", "free": "#8a8f98"}
TEXT = "#7d848f"


def plot_plan(plan: Plan, path: str) -> None:
    """Draw stacked bars, one a device, with the line of what is free."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plans are drawn with matplotlib: pip install 'moebind[plot]'") from error
    figure = Figure(figsize=(7.5, 1.3 + 0.55 * len(plan.devices)), layout="constrained")
    axes = figure.add_subplot()
    labelled: set[str] = set()
    for row, device in enumerate(plan.devices):
        repacked = sum(buffer.model for buffer in device.buffers if "REPACK" in buffer.name)
        read = device.model - repacked - (plan.gaps if device is plan.host else 0)
        parts = {"model": read, "repacked": repacked, "context": device.context, "compute": device.compute}
        left = 0.0
        for name, size in parts.items():
            if size:
                label = None if name in labelled else name
                axes.barh(row, size / 2**30, left=left, height=0.6, color=COLOURS[name], label=label)
                labelled.add(name)
                left += size / 2**30
        label = None if "free" in labelled else "free"
        labelled.add("free")
        axes.plot([device.free / 2**30] * 2, [row - 0.4, row + 0.4], color=COLOURS["free"], linewidth=2, label=label)
        axes.annotate(f"{left:.2f} GiB", (left, row), (5, 0), textcoords="offset points", va="center", color=TEXT)
    axes.set_yticks(range(len(plan.devices)), [device.name for device in plan.devices])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    axes.set_xlabel("GiB", color=TEXT)
    axes.tick_params(colors=TEXT)
    for side, spine in axes.spines.items():
        spine.set_visible(side in {"left", "bottom"})
        spine.set_color(TEXT)
    figure.legend(loc="outside upper center", ncols=5, frameon=False, labelcolor=TEXT)
    figure.savefig(path, transparent=True, dpi=150)
