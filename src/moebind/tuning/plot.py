"""What each step of a search gave, as a picture."""

from __future__ import annotations

from collections.abc import Sequence

from moebind._core.pictures import TEXT
from moebind.tuning.search import Step

__all__ = ["plot_steps"]

#: Of what was kept, and of what was not.
KEPT, OTHER = "#2f9e8f", "#8a8f98"


def plot_steps(steps: Sequence[Step], path: str) -> None:
    """Draw how many times as fast each choice was that got as far as the confirmation."""
    from matplotlib.figure import Figure

    shown = [step for step in steps if step.gain is not None]
    if not shown:
        raise ValueError("no choice got as far as a comparison: there is nothing to draw")
    figure = Figure(figsize=(8.5, 1.2 + 0.4 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for at, step in enumerate(shown):
        gain, low, high = (value or 1.0 for value in (step.gain, step.low, step.high))
        colour = KEPT if step.kept else OTHER
        axes.errorbar(gain, at, xerr=[[gain - low], [high - gain]], fmt="o", color=colour, capsize=3)
        axes.annotate(f"{gain:.2f}", (gain, at), (0, 6), textcoords="offset points", ha="center", color=TEXT)
    axes.axvline(1.0, color=TEXT, linewidth=0.8)
    axes.set_yticks(range(len(shown)), [step.title for step in shown])
    axes.invert_yaxis()
    axes.set_xlabel("times as fast, with the interval of 95 %; grey: not kept", color=TEXT)
    axes.tick_params(colors=TEXT)
    axes.margins(y=0.2)
    for side, spine in axes.spines.items():
        spine.set_visible(side in {"left", "bottom"})
        spine.set_color(TEXT)
    figure.savefig(path, transparent=True, dpi=150)
