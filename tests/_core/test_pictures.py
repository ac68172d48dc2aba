"""What notebooks show."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

import moebind
from conftest import CPU, SMALL
from moebind import ContextParams, Diagnosis, Model, ModelParams, RoutingRecorder
from moebind._core.pictures import COLOURS, TEXT, html_bars, html_of
from moebind.bench import SpeedReport, SpeedRow, TimedRun
from moebind.bench import plot as bench_plot
from moebind.diagnosis.facts import Facts
from moebind.diagnosis.findings import PlannedLoad, findings
from moebind.tuning import plot as tuning_plot

MakeTiny = Callable[..., Path]


class Reader(HTMLParser):
    """Reads HTML, whose elements have to be closed in their order; its text, and how wide its bars are."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.text = ""
        self.widths: list[float] = []
        self.images: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "img":
            self.images.append(given["src"] or "")
            return
        self.open.append(tag)
        if "title" in given:
            [width] = re.findall(r"width: ([\d.]+)%", given["style"] or "")
            self.widths.append(float(width))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_bars_are_as_long_as_what_they_stand_for() -> None:
    read = Reader(html_bars([("a<b", {"model": 300, "compute": 100}, 800), ("c", {"model": 5, "context": 0}, 0)]))
    assert read.widths == [37.5, 12.5, 100.0]
    assert "a<b" in read.text
    assert "compute" in read.text
    assert "context" not in read.text
    # More than there is: the bar is full, and no longer than that.
    assert Reader(html_bars([("a", {"model": 30, "context": 10}, 20)])).widths == [75.0, 25.0]
    assert Reader(html_bars([])).widths == []


def luminance(colour: str) -> float:
    """As the guidelines for accessible pages (WCAG 2.2) define it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in parts]
    return sum(share * each for share, each in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    darker, brighter = sorted((luminance(one), luminance(other)))
    return (brighter + 0.05) / (darker + 0.05)


def test_colours_read_on_light_and_dark_pages() -> None:
    colours = [*COLOURS.values(), *bench_plot.SPEEDS.values(), tuning_plot.KEPT, tuning_plot.OTHER]
    for page in ("#ffffff", "#111111"):
        # The guidelines ask for 3 where something is to be told apart from the page, and 4.5 where it is to be read.
        # No colour has 4.5 on both; the most is the root of their contrast.
        assert min(contrast(colour, page) for colour in colours) >= 3
        assert contrast(TEXT, page) >= 0.99 * contrast("#ffffff", "#111111") ** 0.5


def test_a_text_is_no_markup() -> None:
    assert Reader(html_of("1 < 2 & <script>")).text == "1 < 2 & <script>"


def test_columns_stand_below_each_other_whatever_the_page_is_written_in() -> None:
    [style] = re.findall(r'<pre style="([^"]+)"', html_of("a  b"))
    assert "font-family: monospace" in style
    assert "white-space: pre" in style
    assert "word-break: normal" in style


def test_experts_are_their_table(tiny_path: MakeTiny) -> None:
    summary = moebind.experts(tiny_path(n_expert=4))
    assert Reader(summary._repr_html_()).text == str(summary)


def test_a_plan_a_fit_and_a_breakdown(tiny_path: MakeTiny) -> None:
    path = tiny_path(n_expert=4)
    plan, fit = moebind.plan(path, devices=["64MiB"]), moebind.fit(path, devices=["64MiB"])
    with Model.load_from_file(path, CPU) as model, model.new_context(SMALL) as context:
        held = context.memory_breakdown()
    for shown in (plan, fit, held):
        read = Reader(shown._repr_html_())
        assert str(shown) in read.text
        assert read.widths
    [device, *_] = plan.devices
    assert Reader(plan._repr_html_()).widths[0] == pytest.approx(100 * device.model / device.free, abs=0.001)


def test_speeds_and_a_diagnosis_are_what_is_printed() -> None:
    run = TimedRun(n_prompt=1, n_generate=1, prompt=1.0, first_token=1.0, stamps=(1.0, 2.0))
    row = SpeedRow(1, 1, 1, (run,) * 3, {"a <device>": 2**20})
    threads = {"n_threads": 1, "n_threads_batch": 1}
    facts = Facts(cuda_verdict="out: <b>not found</b>")
    for shown in (
        *(SpeedReport(kind, (row,), {}, threads, {"model": "<i>one"}) for kind in ("decode", "prompt", "batch")),
        Diagnosis(facts, findings(facts, PlannedLoad(None, ModelParams(), ContextParams()))),
    ):
        html = shown._repr_html_()
        assert html == html_of(str(shown))
        read = Reader(html)
        assert "<" in read.text
        assert read.text == str(shown)


def test_what_has_a_picture_shows_it(tiny_path: MakeTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = RoutingRecorder(order=True)
    with Model.load_from_file(tiny_path(n_expert=4), CPU) as model:
        with model.new_context(SMALL.with_eval_callback(recorder)) as context:
            list(context.generate("hello there", max_tokens=4))
    for shown in (recorder, recorder.cache_curve()):
        read = Reader(shown._repr_html_())
        assert [image[:26] for image in read.images] == ["data:image/svg+xml;base64,"]
        assert str(shown) in read.text
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    read = Reader(recorder._repr_html_())
    assert read.images == []
    assert str(recorder) in read.text


def test_a_recorder_that_counted_nothing_is_a_text() -> None:
    read = Reader(RoutingRecorder()._repr_html_())
    assert read.images == []
    assert read.text == str(RoutingRecorder())
