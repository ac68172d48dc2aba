"""Pictures of steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from moebind.tuning.plot import plot_steps
from moebind.tuning.search import Step

STEPS = [
    Step("placement", why="there is no device"),
    Step("threads", "n_threads 2", True, "", (0.1,) * 9, 1.1, 1.05, 1.2),
    Step("repacking", "as they are", False, "no faster beyond the noise", (0.01, -0.01), 1.0, 0.99, 1.01),
]


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_it_draws(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"steps.{ending}"
    plot_steps(STEPS, str(path))
    content = path.read_bytes()
    assert content.startswith({"svg": b"<?xml", "png": b"\x89PNG"}[ending])


def test_without_comparisons_there_is_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_steps(STEPS[:1], str(tmp_path / "none.svg"))
    assert not (tmp_path / "none.svg").exists()
