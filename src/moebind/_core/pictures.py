"""What notebooks show: a text as it is printed, with bars or a picture above it, readable on light and dark pages."""

from __future__ import annotations

import base64
import html
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping

__all__ = ["COLOURS", "TEXT", "html_bars", "html_of"]

#: Of what memory is taken for. Dark enough for a white page, bright enough for a dark one.
COLOURS = {
    "model": "#3b82c4",
    "repacked": "#2a9db5",
    "context": "#d27a22",
    "moe cache": "#3f9e6e",
    "compute": "#8a63c9",
    "free": "#8a8f98",
}
TEXT = "#737a85"


def html_of(text: str, above: str = "", draw: Callable[[str], object] | None = None) -> str:
    """HTML of what is printed, with something above it.

    Parameters
    ----------
    text
        What is printed.
    above
        HTML.
    draw
        Draws a picture into a file that it is given the path of. Without matplotlib, or if there is nothing to draw
        yet (``ValueError``), there is none.
    """
    picture = "" if draw is None else _svg(draw)
    # Pages of notebooks may set another font for everything; then columns would not stand below each other. Some
    # break lines in the middle of words.
    style = "font-family: monospace; line-height: 1.25; white-space: pre-wrap; word-break: normal"
    return f'<div>{above}{picture}<pre style="{style}">{html.escape(text)}</pre></div>'


def _svg(draw: Callable[[str], object]) -> str:
    with tempfile.TemporaryDirectory(prefix="moebind-") as folder:
        path = os.path.join(folder, "picture.svg")
        try:
            draw(path)
        except (ImportError, ValueError):
            return ""
        with open(path, "rb") as file:
            data = base64.b64encode(file.read()).decode("ascii")
    # As an image: within the page, names in one picture would be taken for those of another.
    return f'<img style="max-width: 100%" alt="" src="data:image/svg+xml;base64,{data}">'


def html_bars(rows: Iterable[tuple[str, Mapping[str, int], int]]) -> str:
    """Stacked bars as HTML.

    Parameters
    ----------
    rows
        For each bar its name, the bytes of each part (names are keys of ``COLOURS``), and how many bytes the whole is;
        0 where that is not known: then the bar is full.
    """
    bars, seen = [], dict[str, None]()
    for name, sizes, whole in rows:
        total = max(whole, sum(sizes.values()), 1)
        parts = []
        for part, size in sizes.items():
            if size:
                seen[part] = None
                tip = html.escape(f"{part}: {size / 2**20:,.1f} MiB", quote=True)
                style = f"display: inline-block; height: 100%; width: {100 * size / total:.3f}%; background: "
                parts.append(f'<span title="{tip}" style="{style}{COLOURS[part]}"></span>')
        frame = f"height: 1em; width: 100%; font-size: 14px; line-height: 0; outline: 1px solid {TEXT}"
        bars.append(
            f'<div style="display: grid; grid-template-columns: 8em 1fr; max-width: 48em; margin: 4px 0">'
            f'<span>{html.escape(name)}</span><div style="{frame}">{"".join(parts)}</div></div>'
        )
    squares = (f'<span style="color: {COLOURS[part]}">&#9632;</span> {html.escape(part)}' for part in seen)
    legend = "".join(f'<span style="margin-right: 1em">{square}</span>' for square in squares)
    return f"{''.join(bars)}<div>{legend}</div>"
