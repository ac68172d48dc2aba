"""Pictures of plans: what is told in them, and what is looked at before they are drawn."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

import moebind
from conftest import SMALL
from moebind import ModelParams
from moebind._core.sizes import show_size
from moebind.placement.plot import check_plot, plot_routing

MakeTiny = Callable[..., Path]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures that were saved."""
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *arguments: object, **named: object) -> None:
        save(figure, *arguments, **named)  # type: ignore[arg-type]
        figures.append(figure)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def test_the_host_has_a_scale_of_its_own(tiny_path: MakeTiny, tmp_path: Path, drawn: list[Figure]) -> None:
    plan = moebind.plan(tiny_path(n_expert=4), ModelParams(), SMALL, devices=["8MiB", "4MiB"])
    plan.plot(tmp_path / "plan.png")
    devices, host = drawn[0].axes
    assert [each.get_text() for each in devices.get_yticklabels()] == ["GPU0", "GPU1"]
    assert [each.get_text() for each in host.get_yticklabels()] == [plan.host.name]
    # The bars are seen: the host's memory, a thousand times larger, is not in the same picture.
    assert devices.get_xlim()[1] < 2 * 8 / 1024 < host.get_xlim()[1]
    assert sum(bar.get_width() for bar in devices.patches) == pytest.approx(plan.device_bytes / 2**30)  # type: ignore[attr-defined]


def test_no_line_runs_through_the_text(tiny_path: MakeTiny, tmp_path: Path, drawn: list[Figure]) -> None:
    # One that fits, and one that does not.
    plan = moebind.plan(tiny_path(n_expert=4), ModelParams(), SMALL, devices=["1GiB", "1MiB"])
    plan.plot(tmp_path / "plan.png")
    drawn[0].draw_without_rendering()  # at the dots per inch that it has now, not those of the file
    for axes, devices in zip(drawn[0].axes, (plan.devices[:-1], [plan.host]), strict=True):
        for device, text, line in zip(devices, axes.texts, axes.lines, strict=True):
            extent = text.get_window_extent()
            assert extent.x0 > line.get_window_extent().x1
            right = axes.transData.transform(((device.total - plan.gaps * (device is plan.host)) / 2**30, 0))[0]
            assert extent.x0 > right
            assert extent.x1 <= drawn[0].bbox.x1
    assert [text.get_text().partition(" of ")[2] for text in drawn[0].axes[0].texts] == ["1.00 GiB", "1.0 MiB"]
    assert drawn[0].axes[1].texts[0].get_text() == (
        f"{show_size(plan.host.total - plan.gaps)} of {show_size(plan.host.free)}"
    )


def test_a_plan_without_devices(tiny_path: MakeTiny, tmp_path: Path, drawn: list[Figure]) -> None:
    moebind.plan(tiny_path(), ModelParams(n_gpu_layers=0, devices=()), SMALL).plot(tmp_path / "plan.svg")
    assert len(drawn[0].axes) == 1


def test_what_is_looked_at_before(tmp_path: Path) -> None:
    check_plot("path", str(tmp_path / "x.PNG"), "plans")
    assert not list(tmp_path.iterdir())
    (tmp_path / "folder.png").mkdir()
    for name, kind, message in (
        ("x", ValueError, r"path is .*; it takes a file that ends in one of .*\.pdf, .*\.png"),
        ("x.gguf", ValueError, "ends in one of"),
        ("none/x.png", FileNotFoundError, "there is no folder"),
        ("folder.png", IsADirectoryError, "is a folder"),
    ):
        with pytest.raises(kind, match=message):
            check_plot("path", str(tmp_path / name), "plans")


def test_plots_refuse_the_same(tiny_path: MakeTiny, tmp_path: Path) -> None:
    plan = moebind.plan(tiny_path(), ModelParams(), SMALL, devices=["1GiB"])
    with pytest.raises(ValueError, match="ends in one of"):
        plan.plot(tmp_path / "x.gguf")
    with pytest.raises(FileNotFoundError):
        plan.plot(tmp_path / "none" / "x.png")
    with pytest.raises(ValueError, match="ends in one of"):
        plot_routing(np.ones((2, 2)), str(tmp_path / "x.gguf"))
    with pytest.raises(FileNotFoundError, match="path is .*x.png', and there is no folder"):
        plot_routing(np.ones((2, 2)), str(tmp_path / "none" / "x.png"))


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_plan_as_a_picture(tiny_path: MakeTiny, tmp_path: Path, ending: str) -> None:
    plan = moebind.plan(tiny_path(n_expert=4), ModelParams(), SMALL, devices=["1GiB", "1GiB"])
    plan.plot(tmp_path / f"plan.{ending}")
    assert (tmp_path / f"plan.{ending}").stat().st_size > 4000


def test_pictures_need_matplotlib_and_nothing_else_does(tiny_path: MakeTiny) -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import moebind\n"
        "plan = moebind.plan(sys.argv[1], devices=['1GiB'])\n"
        "try:\n    plan.plot('x.png')\n"
        "except ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, tiny_path()], capture_output=True, text=True, check=True)
    assert "moebind[plot]" in done.stdout
