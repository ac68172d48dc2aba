"""Speeds of one placement."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import moebind
from conftest import CPU, SMALL
from moebind import ContextParams, ModelNotFoundError, ModelParams, MoebindError
from moebind.bench import BatchRun, SpeedReport, SpeedRow, TimedRun

MakeTiny = Callable[..., Path]
THREADS = ContextParams(n_ctx=256, n_threads=1, n_threads_batch=1)
FEW = {"repeats": 3, "warmup": 1, "progress": False}


@pytest.fixture
def path(tiny_path: MakeTiny) -> Path:
    return tiny_path(n_expert=4)


def test_single_tokens(path: Path) -> None:
    report = moebind.bench.decode(path, CPU, THREADS, n_prompt=20, n_generate=5, **FEW)  # type: ignore[arg-type]
    (row,) = report.rows
    assert (row.n_prompt, row.n_generate, row.n_sequences, len(row.runs)) == (20, 5, 1, 3)
    assert row.decode is not None
    for run, speed in zip(row.runs, row.decode.values, strict=True):
        assert run.n_prompt == 20  # as the tokenizer counts
        assert len(run.stamps) == 6
        assert list(run.stamps) == sorted(run.stamps)
        assert speed == pytest.approx(5 / (run.stamps[-1] - run.stamps[0]))
    assert row.memory["Host"] > Path(path).stat().st_size / 2
    assert "decode tokens/s" in str(report)
    assert "prompt tokens/s" not in str(report)


def test_prompts(path: Path) -> None:
    report = moebind.bench.prompt(path, CPU, THREADS, n_prompt=40, **FEW)  # type: ignore[arg-type]
    (row,) = report.rows
    assert row.decode is None
    assert [run.n_generate for run in row.runs] == [0, 0, 0]
    assert [run.prompt_speed for run in row.runs] == list(row.prompt.values)
    assert "decode tokens/s" not in str(report)


def test_sequences_side_by_side(path: Path) -> None:
    report = moebind.bench.batch(
        path, CPU, THREADS.with_n_ctx(32), n_sequences=[1, 3], n_prompt=12, n_generate=4, **FEW
    )  # type: ignore[arg-type]
    assert [row.n_sequences for row in report.rows] == [1, 3]
    for row in report.rows:
        assert row.decode is not None
        for run, speed in zip(row.runs, row.decode.values, strict=True):
            assert isinstance(run, BatchRun)
            assert speed == pytest.approx(row.n_sequences * 4 / (run.stamps[-1] - run.stamps[0]))
            assert run.prompt_speed == pytest.approx(row.n_sequences * 12 / run.prompt)
    lines = str(report).splitlines()
    assert lines[1].split()[:3] == ["sequences", "prompt", "generated"]
    assert [line.split()[0] for line in lines[2:4]] == ["1", "3"]


def test_means_and_deviations() -> None:
    runs = tuple(BatchRun(8, 2, 0.5, 0.6, (0.6, 0.6 + seconds / 2, 0.6 + seconds), 3) for seconds in (1.0, 2.0, 3.0))
    row = SpeedRow(8, 2, 3, runs)
    assert row.decode is not None
    assert row.decode.values == pytest.approx((6.0, 3.0, 2.0))
    assert (row.decode.mean, row.decode.std) == (pytest.approx(11 / 3), pytest.approx((13 / 3) ** 0.5))
    assert row.prompt.values == (48.0, 48.0, 48.0)
    assert SpeedRow(8, 0, 1, (TimedRun(8, 0, 0.5, 0.6, (0.6,)),)).decode is None


def test_plain_values(path: Path) -> None:
    report = moebind.bench.decode(path, CPU, None, n_prompt=4, n_generate=2, **FEW)  # type: ignore[arg-type]
    told = json.loads(json.dumps(report.to_dict()))
    assert told["kind"] == "decode"
    assert told["rows"][0]["decode"]["mean"] == report.rows[0].decode.mean  # type: ignore[union-attr]
    assert len(told["rows"][0]["runs"][0]["stamps"]) == 3
    assert told["environment"]["machine"]["cores"] > 0
    assert told["model_params"]["n_gpu_layers"] == 0
    assert told["context_params"]["n_ctx"] == 256  # enough


def test_progress_may_stop_it(path: Path) -> None:
    told: list[float] = []

    def stop(fraction: float) -> bool:
        told.append(fraction)
        return len(told) < 3

    with pytest.raises(MoebindError, match="stopped the benchmark"):
        moebind.bench.decode(path, CPU, THREADS, n_prompt=4, n_generate=2, progress=stop)
    assert told == sorted(told)
    told.clear()
    moebind.bench.batch(
        path, CPU, THREADS, n_sequences=[1, 2], n_prompt=4, n_generate=2, repeats=3, progress=lambda at: told.append(at)
    )
    assert (told[0], told[-1]) == (pytest.approx(1 / 9), 1.0)


@pytest.mark.parametrize(
    ("call", "keywords", "error", "message"),
    [
        ("decode", {"n_generate": 0}, ValueError, "n_generate is 0"),
        ("decode", {"n_prompt": 0}, ValueError, "n_prompt is 0"),
        ("decode", {"repeats": 2}, ValueError, "repeats is 2"),
        ("prompt", {"warmup": -1}, ValueError, "warmup is -1"),
        ("decode", {"n_prompt": 300}, MoebindError, "make n_ctx larger"),
        ("batch", {"n_sequences": []}, ValueError, "n_sequences is empty"),
        ("batch", {"n_sequences": [0]}, ValueError, r"n_sequences\[0\] is 0"),
        ("batch", {"n_sequences": "12"}, TypeError, "n_sequences is '12'"),
        ("decode", {"model_params": 3}, TypeError, "model_params is 3"),
        ("decode", {"context_params": SMALL.with_embeddings(True)}, ValueError, "embeddings"),
    ],
)
def test_arguments(path: Path, call: str, keywords: dict[str, object], error: type[Exception], message: str) -> None:
    given = {"model_params": CPU, "context_params": THREADS, "progress": False, **keywords}
    with pytest.raises(error, match=message):
        getattr(moebind.bench, call)(path, **given)


def test_what_cannot_be_measured(tiny_path: MakeTiny, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        moebind.bench.prompt(tmp_path / "none.gguf", progress=False)
    with pytest.raises(MoebindError, match="does not continue texts"):
        moebind.bench.decode(
            tiny_path(arch="t5", n_head_kv=4), ModelParams(n_gpu_layers=0), THREADS, progress=False, n_generate=2
        )


def test_reports_are_what_they_say(path: Path) -> None:
    report = moebind.bench.prompt(path, CPU, THREADS, n_prompt=4, **FEW)  # type: ignore[arg-type]
    assert isinstance(report, SpeedReport)
    assert str(report).splitlines()[0].startswith(str(report.environment["model"]))
    assert "3 runs" in str(report)
