"""benchmarks/planned_against_actual.py: its rows are those of docs/offload.md, and plans are what loads hold."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import moebind
from moebind import Device, LoadMode, Model, ModelParams

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import planned_against_actual as benchmark

#: A cache of Q8_0 takes heads of 32 at least.
WIDE = {"n_expert": 4, "n_layer": 8, "n_embd": 128, "n_head": 2, "n_head_kv": 1, "n_ctx_train": 8192}
PAGE = (ROOT / "docs/offload.md").read_text(encoding="utf-8").partition("\n## Planned against actual\n")[2]


def columns(heading: str, number: int) -> list[tuple[str, ...]]:
    """The first columns of a table's rows."""
    table = PAGE[PAGE.index(heading) :].partition("\n\n")[0].splitlines()[2:]
    return [tuple(cell.strip() for cell in row.split("|")[1 : number + 1]) for row in table]


def test_the_rows_are_those_of_the_page() -> None:
    files = {LoadMode.MMAP: "mapped", LoadMode.NONE: "read"}
    told = [(placement, context, files[mode]) for placement, context, mode in benchmark.combinations()]
    assert columns("| placement | context | file |", 3) == told
    *placements, cached = (name.strip("`") for (name,) in columns("| placement | weights |", 1))
    assert [*placements, "the same with a cache of 200MiB"] == [*benchmark.PARTS]
    assert cached == 'the same with `with_moe_cache_size("200MiB")'


def test_what_is_planned_is_what_is_held(tiny_path: Callable[..., Path], device: Device) -> None:
    errors: list[tuple[int, float, str]] = []
    found = [*benchmark.rows([str(tiny_path(**WIDE))], device, errors)]
    assert len(found) == len(errors) == 12
    assert {error for error, _, _ in errors} == {0}
    assert {row[-1] for row in found} == {"0"}


def test_an_error_is_told(tiny_path: Callable[..., Path], device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    planned, longer = moebind.plan, benchmark.BASE.with_n_ctx(2048)
    monkeypatch.setattr(moebind, "plan", lambda path, params, _: planned(path, params, longer))
    path, params = str(tiny_path(**WIDE)), ModelParams(devices=(device,))
    with Model.load_from_file(path, params) as model, model.new_context(benchmark.BASE) as context:
        held = context.memory_breakdown().devices[0].context
    _, _, where, error, share = benchmark.compare(path, params, benchmark.BASE)
    assert where == f"{device.name} context"
    assert (error, share) == (held, 1.0)


@pytest.mark.parametrize("arguments", [["--described"], ["--described", "2 apples"]])
def test_devices_that_there_cannot_be(arguments: list[str], tiny_path: Callable[..., Path]) -> None:
    program = [sys.executable, ROOT / "benchmarks/planned_against_actual.py", tiny_path(n_expert=4), *arguments]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode in {1, 2}
    assert re.search(r"expected one argument|2 apples", done.stderr.splitlines()[-1])
