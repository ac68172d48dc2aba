"""Reports: as objects, JSON, tables and pictures."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from moebind import BufferMemory, DeviceMemory, DeviceType, MemoryBreakdown
from moebind.bench import Agreement, OffloadReport, OffloadRow, Resident, Samples, Seen, TimedRun, resident

GIB = 2**30
BUILD = {"moebind": "0.1.0", "llama_cpp": "1", "commit": "abc", "cuda": "out", "system_info": "CPU : AVX = 1 | "}


def breakdown(on_device: int, host: int = GIB) -> MemoryBreakdown:
    device = DeviceMemory("CUDA0", DeviceType.GPU, on_device, 64, 32, (BufferMemory("CUDA0", on_device, 64, 32),))
    return MemoryBreakdown(
        (device, DeviceMemory("Host", DeviceType.CPU, host, 0, 8, (BufferMemory("CPU", host, 0, 8),), 5, 9))
    )


def row(name: str, on_device: int, kl: float) -> OffloadRow:
    runs = tuple(TimedRun(8, 2, 0.1 * at, 0.1 * at + 0.01, (0.2, 0.2 + 0.01 * at, 0.2 + 0.03 * at)) for at in (1, 2, 3))
    seen = Seen(Resident(5, 3, 1, 1, 9), {}, {"CUDA0": on_device + GIB // 4}, {"CUDA0": 2 * on_device})
    return OffloadRow(
        name,
        None,
        "2026-01-01T00:00:00+00:00",
        name.encode().hex(),
        {},
        {"n_ctx": 64},
        1.5,
        runs,
        breakdown(on_device + 4096),
        breakdown(on_device),
        replace(seen, gpu={}, cards={"CUDA0": 0}),
        seen,
        None,
        Agreement(kl, 2 * kl, 0.99, 100, 0.5, 3, 8),
    )


@pytest.fixture
def report() -> OffloadReport:
    rows = (
        row("all | everything", 24 * GIB, 0.0),
        row("experts in host memory", GIB, 1.26e-3),
        OffloadRow("broken", "it\n  broke", "2026-01-01T00:00:00+00:00", "k"),
    )
    settings = {
        "repeats": 3, "warmup": 1, "n_prompt": 8, "n_generate": 2, "prompts": ["a"], "context_params": {"n_ctx": 64},
        "devices": [{"kind": "local", "name": "CUDA0"}, {"kind": "loopback", "memory": None, "n_threads": 2}],
    }  # fmt: skip
    environment = {
        "date": "2026-01-01T00:00:00+00:00", "command": "moebind bench offload m.gguf", "build": BUILD,
        "load_average": [0.5, 0, 0], "files": [{"name": "m.gguf", "size": 3 * GIB, "sha256": "f" * 64}],
        "machine": {
            "processor": "P", "cores": 8, "cores_allowed": 4, "driver": "550.1",
            "devices": [{"name": "CUDA0", "description": "A card", "backend": "CUDA", "type": "GPU"}],
        },
    }  # fmt: skip
    return OffloadReport(rows, rows[0].name, settings, environment)


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


def test_json_round_trip(report: OffloadReport, tmp_path: Path) -> None:
    text = json.dumps(report.to_dict(), allow_nan=False)
    (tmp_path / "report.json").write_text(text, encoding="utf-8")
    assert OffloadReport.load(tmp_path) == report
    assert OffloadReport.load(tmp_path / "report.json").to_dict() == json.loads(text)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"form": 2}', "null", "nonsense", '{"form": 1, "rows": [{}]}'])
def test_other_files_are_no_reports(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"x\.json is not a report"):
        OffloadReport.load(tmp_path / "x.json")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        OffloadReport.load(tmp_path)
    with pytest.raises(TypeError, match="path"):
        OffloadReport.load(3)  # type: ignore[arg-type]


def test_the_table_has_the_form_of_the_published_one(report: OffloadReport) -> None:
    lines = report.to_markdown().splitlines()
    assert lines[0] == "**m.gguf (3.00 GiB)**"
    head, ruler, first, second, broken = lines[2:7]
    assert head.startswith("| placement | device, GiB | seen from outside, GiB | reduction | host, GiB | prompt, ")
    assert ruler == "| " + " | ".join(["---"] * (head.count("|") - 1)) + " |"
    assert r"| all \| everything | 24.00 | 24.25 |  |" in first
    assert "| 1.00 | 1.25 | 95.8% |" in second
    assert "| 1.3e-03 | 99.0% | 3 of 8 |" in second
    assert broken == "| broken | failed: it broke |"
    printed = "\n".join(lines[7:])
    for part in (
        "SHA-256 " + "f" * 64,
        "llama.cpp 1 (abc)",
        "AVX",
        "550.1",
        "A card",
        "4 of 8 cores",
        "`moebind bench",
    ):
        assert part in printed


def test_conditions_are_those_of_the_rows(report: OffloadReport) -> None:
    first, second, broken = report.rows
    rows = (
        replace(first, date="2025-12-30T00:00:00+00:00", load_average=0.25),
        replace(second, load_average=2.0),
        broken,
    )
    resumed = replace(report, rows=rows)
    assert "date: 2025-12-30T00:00:00+00:00 to 2026-01-01T00:00:00+00:00\n" in str(resumed)
    assert "load at the start: 0.25 to 2.00\n" in str(resumed)
    # One date is told once; a load that no row knows is not made up.
    assert "date: 2026-01-01T00:00:00+00:00\n" in str(report)
    assert "load at the start" not in str(report)
    assert "load at the start: 0.25\n" in str(replace(report, rows=rows[:1]))


def test_conditions_are_told_in_words(report: OffloadReport) -> None:
    second = report.rows[1]
    assert second.agreement is not None
    printed = str(report)
    assert "of 100 positions of 8 prompts, with all | everything" in printed
    assert "at most 4096 bytes off" in printed
    one = replace(second, agreement=replace(second.agreement, n_positions=1, n_prompts=1, mean_kl=0.0))
    one = replace(one, predicted=one.allocated)
    context = {"context_params": {"n_threads": 1}}  # what is the default is not carried
    first = replace(report.rows[0], predicted=one.allocated, allocated=one.allocated, agreement=one.agreement)
    printed = str(replace(report, rows=(first, one), settings={**report.settings, **context}))
    assert "of 1 position of 1 prompt, with all | everything" in printed
    assert "plan against allocation: exact" in printed
    assert "context: n_ctx 512, n_threads 1\n" in printed
    assert "0.0e+00" not in printed
    assert "  0  " in printed


def test_reports_of_before_there_were_loads_of_rows(report: OffloadReport, tmp_path: Path) -> None:
    data = json.loads(json.dumps(report.to_dict()))
    for each in data["rows"]:
        del each["load_average"]
    (tmp_path / "report.json").write_text(json.dumps(data), encoding="utf-8")
    assert OffloadReport.load(tmp_path) == report


def test_printed(report: OffloadReport) -> None:
    lines = str(report).splitlines()
    head, first, second = lines[2:5]
    assert len(head) == len(second)
    assert first.rstrip() == first  # it is not compared with itself
    assert head.index("host, GiB") + len("host, GiB") == first.index("1.00  ") + len("1.00")
    assert lines[5].endswith("failed: it broke")
    small = replace(report, rows=(row("a", 2**20, 0.0),), reference="a")
    assert "device, MiB" in str(small)
    none = replace(report, rows=report.rows[2:], reference=None)
    assert "failed: it broke" in str(none)
    assert "failed: it broke" in none.to_markdown()
    assert str(replace(report, rows=(), reference=None))


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_pictures(report: OffloadReport, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"plot.{ending}"
    report.plot(path)
    assert path.stat().st_size > 1000


def test_nothing_to_draw(report: OffloadReport, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        replace(report, rows=report.rows[2:]).plot(tmp_path / "x.png")


def test_resident_memory() -> None:
    found = resident(os.getpid())
    assert found is not None
    assert found.total == found.anonymous + found.file + found.shared
    assert found.total <= found.peak
    assert resident(2**30) is None
