"""Rows of a report: what follows from what was measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
import reports
from reports import GIB

from moebind.bench import OffloadReport, Samples


@pytest.fixture
def report() -> OffloadReport:
    return reports.report()


def test_numbers(report: OffloadReport) -> None:
    first, second, broken = report
    assert second.prompt == Samples(tuple(8 / (0.1 * at) for at in (1, 2, 3)))
    assert second.decode is not None
    assert second.decode.values == pytest.approx([2 / (0.03 * at) for at in (1, 2, 3)])
    assert second.token_quantiles[1.0] == pytest.approx(0.06)
    assert second.worst_error == 4096
    assert second.device_bytes_seen == GIB + GIB // 4
    assert report.reduction("experts in host memory") == pytest.approx(1 - GIB / (24 * GIB), abs=1e-6)
    assert report.reduction(first.name) == 0
    assert not report.ok
    assert (broken.prompt, broken.decode, broken.first_token, broken.token_quantiles) == (None, None, None, {})
    assert broken.worst_error is broken.device_bytes_seen is report.reduction("broken") is None
    assert Samples((2.0,)).std == 0.0
    with pytest.raises(KeyError, match="no row 'x'"):
        report["x"]


def test_cards_tell_where_processes_are_not_told(report: OffloadReport) -> None:
    second = report.rows[1]
    assert second.held is not None
    hidden = replace(second, held=replace(second.held, gpu={}))
    assert hidden.device_bytes_seen == 2 * GIB
    another = replace(second, held=replace(second.held, gpu={"CUDA0": 5, "CUDA1": 7}))
    assert another.device_bytes_seen == 5  # nothing of the model is on the other card
    by_uuid = replace(second, held=replace(second.held, gpu={"GPU-1-2": 5, "GPU-3-4": 7}))
    assert by_uuid.device_bytes_seen == 12
    assert replace(second, held=replace(second.held, gpu=None, cards=None)).device_bytes_seen is None
