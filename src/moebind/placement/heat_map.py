"""Routing as a heat map of characters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["WIDTH_MIN", "heat_map"]

WIDTH_MIN = 40
#: From never used to four times an even share and more, in steps of a half.
SHADES = " .:-=+*#%@"


def heat_map(counts: NDArray[np.int64], n_tokens: NDArray[np.int64], width: int) -> str:
    """A line for each layer that routed something.

    Raises
    ------
    ValueError
        If none did.
    """
    layers = np.flatnonzero(n_tokens)
    if not layers.size:
        raise ValueError("nothing was counted yet: decode something with a context that has this recorder")
    n_expert = counts.shape[1]
    tokens = max(len(str(int(n_tokens.max()))), len("tokens"))
    room = width - tokens - len("layer    ||")
    each = -(-n_expert // room)
    padded = np.pad(counts[layers], ((0, 0), (0, -n_expert % each)))
    busiest = padded.reshape(len(layers), -1, each).max(axis=2)
    even = counts[layers].sum(axis=1, keepdims=True) / n_expert
    levels = np.where(busiest > 0, 1 + np.minimum(2 * busiest / even, len(SHADES) - 2).astype(np.int64), 0)
    together = "one expert" if each == 1 else f"the busiest of {each} experts"
    return "\n".join(
        [
            f"{'layer':>5}  {'tokens':>{tokens}}  a character is {together}; {n_expert} in all",
            *(
                f"{layer:5}  {n_tokens[layer]:{tokens}}  |{''.join(SHADES[level] for level in row)}|"
                for layer, row in zip(layers.tolist(), levels.tolist(), strict=True)
            ),
            "times an even share, from: "
            + ", ".join(f"'{shade}' {at / 2:g}" for at, shade in enumerate(SHADES[1:]))
            + f"; '{SHADES[0]}' never",
        ]
    )
