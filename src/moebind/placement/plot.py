"""Plans and routing as pictures."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from moebind._core.pictures import COLOURS, TEXT
from moebind._core.sizes import show_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from moebind.backend.breakdown import DeviceMemory


def check_plot(name: str, path: str, what: str) -> None:
    """Find out whether a picture could be written, before anything is computed for it.

    Raises
    ------
    ImportError
        Without matplotlib.
    ValueError
        If it does not know the ending.
    OSError
        If the folder is not there, cannot be written, or the path is a folder itself.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"{what} are drawn with matplotlib: pip install 'moebind[plot]'") from error
    known = Figure().canvas.get_supported_filetypes()
    if os.path.splitext(path)[1][1:].lower() not in known:
        endings = ", ".join(f".{each}" for each in sorted(known))
        raise ValueError(f"{name} is {path!r}; it takes a file that ends in one of {endings}")
    folder = os.path.dirname(path) or os.curdir
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{name} is {path!r}, and there is no folder {folder!r}")
    if os.path.isdir(path):
        raise IsADirectoryError(f"{name} is {path!r}, which is a folder; it takes a file")
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise PermissionError(f"{name} is {path!r}, which cannot be written")


def plot_plan(devices: Sequence[DeviceMemory], gaps: int, path: str) -> None:
    """Draw stacked bars, one per device, with a line for the free memory.

    The last device is the host, of whose model so many bytes are only ``gaps`` in the mapped file.

    The host has a scale of its own: beside its memory, a device's would be too short to be seen.
    """
    check_plot("path", path, "plans")
    from matplotlib.figure import Figure

    groups = [group for group in (devices[:-1], devices[-1:]) if group]
    figure = Figure(figsize=(7.5, 0.9 + 0.55 * len(devices) + 0.45 * len(groups)), layout="constrained")
    heights = [len(group) for group in groups]
    every = figure.subplots(len(groups), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    labelled: set[str] = set()
    for axes, group in zip(every, groups, strict=True):
        _plot_devices(axes, group, gaps if group is groups[-1] else 0, labelled)
    every[-1].set_xlabel("GiB", color=TEXT)
    shown = {label: handle for axes in every for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    names = [name for name in COLOURS if name in shown]
    handles = [shown[name] for name in names]
    figure.legend(handles, names, loc="outside upper center", ncols=5, frameon=False, labelcolor=TEXT)
    figure.savefig(path, transparent=True, dpi=150)


def _plot_devices(axes: Axes, devices: Sequence[DeviceMemory], gaps: int, labelled: set[str]) -> None:
    for row, device in enumerate(devices):
        repacked = sum(buffer.model for buffer in device.buffers if "REPACK" in buffer.name)
        read = device.model - repacked - gaps
        parts = {"model": read, "repacked": repacked, "context": device.context}
        parts |= {"moe cache": device.moe_cache, "compute": device.compute}
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
        # Beyond both the bar and the line, so that neither runs through it.
        end, said = max(left, device.free / 2**30), f"{show_size(round(left * 2**30))} of {show_size(device.free)}"
        axes.annotate(said, (end, row), (7, 0), textcoords="offset points", va="center", color=TEXT)
    axes.set_yticks(range(len(devices)), [device.name for device in devices])
    axes.set_ylim(len(devices) - 0.5, -0.5)
    # Room for the text.
    axes.set_xlim(0, 1.3 * max(max(device.free, device.total) for device in devices) / 2**30 or 1)
    axes.tick_params(colors=TEXT)
    for side, spine in axes.spines.items():
        spine.set_visible(side in {"left", "bottom"})
        spine.set_color(TEXT)


def plot_routing(shares: NDArray[np.float64], path: str | None) -> Figure:
    """Draw a heat map of each expert's share of its layer, as multiples of an even one."""
    if path is not None:
        check_plot("path", path, "maps")
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise ImportError("routing is drawn with matplotlib: pip install 'moebind[plot]'") from error
    if not shares.any():
        raise ValueError("nothing was counted yet: decode with ContextParams().with_eval_callback(recorder) first")
    n_layer, n_expert = shares.shape
    empty = np.broadcast_to(~shares.any(axis=1, keepdims=True), shares.shape)
    # One cell is to be seen, and neither 256 experts nor 94 layers are to fill more than a screen.
    size = (min(max(4.5, 2.2 + 0.25 * n_expert), 11), min(max(2.4, 1.2 + 0.25 * n_layer), 9))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    # From blue to yellow, ever brighter: the order is seen without colours too.
    image = axes.imshow(
        np.ma.masked_array(shares * n_expert, empty), cmap="cividis", vmin=0, aspect="auto", interpolation="nearest"
    )
    axes.set_xlabel("expert", color=TEXT)
    axes.set_ylabel("layer", color=TEXT)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    bar = figure.colorbar(image, ax=axes)
    bar.set_label("times an even share", color=TEXT)
    for each in (axes, bar.ax):
        each.tick_params(colors=TEXT)
        for spine in each.spines.values():
            spine.set_color(TEXT)
    # Saved by whoever calls, it is to look the same.
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def plot_cache_curve(
    sizes: NDArray[np.int64],
    hit_rate: NDArray[np.float64],
    static_hit_rate: NDArray[np.float64],
    token_bytes: int,
    path: str | None,
) -> Figure:
    """Draw hit rates over the size of a cache of experts, with a line where the experts of one token fit."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import PercentFormatter
    except ImportError as error:
        raise ImportError("curves are drawn with matplotlib: pip install 'moebind[plot]'") from error
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axes = figure.add_subplot()
    unit, scale = ("GiB", 2**30) if sizes.max() >= 2**30 else ("MiB", 2**20)
    axes.plot(sizes / scale, hit_rate, color=COLOURS["model"], marker=".", label="cache")
    axes.plot(sizes / scale, static_hit_rate, color=COLOURS["context"], linestyle="--", label="best static choice")
    axes.axvline(token_bytes / scale, color=COLOURS["free"], linestyle=":", label="experts of one token")
    axes.set_xlabel(f"{unit} of cache", color=TEXT)
    axes.set_ylabel("hit rate", color=TEXT)
    axes.set_ylim(0, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.legend(frameon=False, labelcolor=TEXT)
    axes.tick_params(colors=TEXT)
    for side, spine in axes.spines.items():
        spine.set_visible(side in {"left", "bottom"})
        spine.set_color(TEXT)
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    if path is not None:
        check_plot("path", path, "curves")
        figure.savefig(path, dpi=150)
    return figure
