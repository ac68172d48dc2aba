"""benchmarks/speed.py: what it concludes and writes, whose structures it accepts, and that it runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import tiny

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import page_tables
import programs
import speed
import speed_judge
import speed_llama_cpp_python as other
import speed_models
import speed_report
import speed_rows
from speed_rows import Group, Measured, Row
from speed_settings import Settings
from speed_sides import FailedError

from moebind import Model, ModelParams, plan

ROW = Row("one : two", "one", "two", target=0.9)
GROUP = Group("pair", [("a", "x"), ("b", "y")], [ROW])


# --- what is concluded -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "at_most", "verdict"),
    [
        ([0.95] * 7, False, "reached"),
        ([0.95] * 7, True, "missed"),
        ([0.85] * 7, False, "missed"),
        ([0.85] * 7, True, "reached"),
        ([0.85] * 3 + [0.95] * 4, False, "not decided"),
        ([0.95] * 6, False, "not decided"),
        ([0.95] * 6 + [0.1], False, "not decided"),
        ([0.95] * 14 + [0.1], False, "reached"),
    ],
)
def test_a_target_is_reached_if_the_interval_is_on_its_side(values: list[float], at_most: bool, verdict: str) -> None:
    assert speed_judge.judge(values, 0.9, at_most).verdict == verdict


def test_nothing_is_concluded_from_a_wide_spread_or_few_pairs() -> None:
    assert speed_judge.judge([1.0] * 7).concluded
    assert not speed_judge.judge([1.0] * 6).concluded
    assert not speed_judge.judge([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.3]).concluded


@pytest.mark.parametrize(
    ("verdicts", "together"),
    [
        (["missed", "reached"], "reached"),
        (["not decided", "reached"], "reached"),
        (["missed", "not decided"], "not decided"),
        (["missed", "missed"], "missed"),
        (["missed"], "missed"),
        ([], None),
    ],
)
def test_one_of_several_targets_is_enough(verdicts: list[speed_judge.Verdict], together: str | None) -> None:
    assert speed_judge.either(verdicts) == together


# --- the rounds --------------------------------------------------------------------------------------------------


class Scripted:
    """Answers as a list says, and keeps who was asked."""

    def __init__(self, ones: list[float], failing: str = "") -> None:
        self.ones, self.failing = ones, failing
        self.asked: list[str] = []

    def ask(self, side: str, work: str) -> dict[str, float]:
        self.asked.append(side)
        if side == self.failing:
            raise FailedError("it is not there")
        return {"one": self.ones.pop(0)} if side == "a" else {"two": 1.0}


def test_both_take_turns_and_change_places() -> None:
    sides = Scripted([0.95] * 7)
    found = speed_rows.measure(GROUP, sides, 7, 21)
    assert "".join(sides.asked) == "abba" * 3 + "ab"
    assert list(speed_rows.ratios(ROW, found)) == [0.95] * 7


def test_rounds_go_on_until_it_is_decided() -> None:
    assert len(speed_rows.measure(GROUP, Scripted([0.95] * 6 + [0.1] + [0.95] * 30), 7, 21).rounds) == 9
    assert len(speed_rows.measure(GROUP, Scripted([0.85, 0.95] * 30), 7, 11).rounds) == 11


PLAN = next(group for group in speed_rows.GROUPS if group.name == "plan")


def plans(ms: float, numpy_ms: float, split_ms: float = 100) -> dict[str, float]:
    return {"plan_ms": ms, "plan_numpy_ms": numpy_ms, "split_ms": split_ms, "split_numpy_ms": 100}


def test_a_plan_is_to_be_fast_by_the_clock_or_beside_an_import() -> None:
    def results(rounds: list[dict[str, float]]) -> list[object]:
        measured = Measured(rounds)
        return [speed_report.cells(PLAN, row, measured)[-1] for row in PLAN.rows]

    assert [row.target for row in PLAN.rows] == [40, 0.3, 150, 1.2]
    # A slow machine, on which numpy is slow as well.
    assert results([plans(80, 400)] * 7) == ["missed; of both: reached", "reached", "reached", "reached"]
    assert results([plans(30, 60)] * 7)[:2] == ["reached", "missed; of both: reached"]
    assert results([plans(80, 100)] * 7)[:2] == ["missed", "missed"]
    undecided = [plans(ms, 100) for ms in (38, 39, 39, 42, 42, 42, 43)]
    assert results(undecided)[:2] == ["not decided", "missed; of both: not decided"]
    assert results([plans(80, 100, 200)] * 7)[2:] == ["missed", "missed"]


@pytest.mark.parametrize(("numpy_ms", "rounds"), [(400, 7), (100, 9)])
def test_no_more_rounds_once_one_of_both_targets_is_reached(numpy_ms: float, rounds: int) -> None:
    class Plans:
        """The plan takes 38 or 42 ms, which decides nothing by the clock."""

        def __init__(self) -> None:
            self.at = 0

        def ask(self, side: str, work: str) -> dict[str, float]:
            self.at += 1
            return plans(38 + 4 * (self.at // 2 % 2), numpy_ms)

    assert len(speed_rows.measure(PLAN, Plans(), 7, 9).rounds) == rounds


def test_what_fails_is_not_tried_again_and_said() -> None:
    sides = Scripted([0.95] * 7, failing="b")
    found = speed_rows.measure(GROUP, sides, 7, 21)
    assert sides.asked.count("b") == 1
    assert speed_rows.judged(ROW, found) is None
    assert speed_report.cells(GROUP, ROW, found)[-1] == "not measured: it is not there"


def test_nothing_works_at_all() -> None:
    class Broken:
        def ask(self, side: str, work: str) -> dict[str, float]:
            raise OSError("gone")

    found = speed_rows.measure(GROUP, Broken(), 7, 21)
    assert found.rounds == [{}]
    assert found.failures == {"a x": "gone", "b y": "gone"}


def test_the_quantities_of_the_rows_are_measured_by_somebody() -> None:
    assert len({row.name for group in speed_rows.GROUPS for row in group.rows}) == sum(
        len(group.rows) for group in speed_rows.GROUPS
    )
    assert len({group.name for group in speed_rows.GROUPS}) == len(speed_rows.GROUPS)


# --- what is written ---------------------------------------------------------------------------------------------


def test_results_are_kept_by_group_and_become_a_table(tmp_path: Path) -> None:
    path = tmp_path / "speed.json"
    sizes = {"tokens": 4, "prompt": 16, "sequences": 2, "texts": 3}
    about = {"text": "A quiet day.", "load": [0.5, 3.2], "sizes": sizes}
    first = Measured([{"greedy_wall": 99.0, "bench_decode": 100.0}] * 7, {"other greedy": "no network"})
    speed_report.write(path, about, {"writing": first}, {})
    speed_report.write(path, about, {"load": Measured([{"load": 2.0, "other_load": 1.0}] * 7)}, {})
    results = speed_report.read(path)
    lines = list(speed_report.lines(results))
    assert "| greedy decode : llama-bench | 0.990 | 0.990 to 0.990 | 7 | at least 0.98 | reached |" in lines
    assert "| load : llama-cpp-python | 2.00 | 2.00 to 2.00 | 7 | at least 1 | reached |" in lines
    assert "| greedy decode : llama-cpp-python |  |  | 0 |  | not measured: no network |" in lines
    assert lines[-3:] == [
        "- A quiet day.",
        "- The load of the machine was 0 to 3.",
        "- Texts of 4 tokens, prompts of 16, 2 sequences, 3 embeddings.",
    ]
    other = about | {"sizes": sizes | {"tokens": 8}}
    speed_report.write(tmp_path / "more.json", about, {"writing": first}, {})
    speed_report.write(tmp_path / "more.json", other, {"load": Measured([{"load": 2.0, "other_load": 1.0}] * 7)}, {})
    *_, of_writing, of_load = speed_report.lines(speed_report.read(tmp_path / "more.json"))
    assert of_writing.startswith("- Texts of 4 tokens, prompts of 16, 2 sequences, 3 embeddings. In: greedy decode : ")
    assert of_load == "- Texts of 8 tokens, prompts of 16, 2 sequences, 3 embeddings. In: load : llama-cpp-python."
    page = f"# Speed\n\n{page_tables.begin('speed.py')}\nold\n{page_tables.END}\n\nMore.\n"
    written = speed_report.with_table(page, results)
    assert "old" not in written
    assert written.endswith("More.\n")
    assert speed_report.with_table(written, results) == written


def test_a_page_without_a_place_for_the_table() -> None:
    with pytest.raises(SystemExit, match="no place for the table"):
        speed_report.with_table("# Speed\n", {"groups": {}})


def test_a_plot(tmp_path: Path) -> None:
    path = tmp_path / "speed.svg"
    growth = {"texts": {"1": [2.0, 3.0], "16": [1.0]}, "tensors": {"100": [5.0]}}
    speed_report.plot(growth, path)
    text = path.read_text(encoding="utf-8")
    assert "ms an embedding" in text
    speed_report.plot(growth, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text(encoding="utf-8") == text


def test_the_page_is_made_of_the_results() -> None:
    page = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    assert speed_report.with_table(page, speed_report.read(ROOT / "docs" / "speed.json")) == page


def test_a_group_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        speed.main(["writting"])
    assert raised.value.code == 2
    assert "there is no group writting; there are writing, schema" in capsys.readouterr().err


# --- llama-cpp-python --------------------------------------------------------------------------------------------

DECLARED = '''class llama_first(ctypes.Structure):
    """What it is."""

    _fields_ = [
        ("a", ctypes.c_int),
        ("b", ctypes.c_int),
    ]


class llama_opaque(ctypes.Structure): ...


class llama_second(ctypes.Structure):
    _fields_ = [
        ("c", ctypes.c_int),
    ]
'''


def test_declarations_that_fit_are_left_alone() -> None:
    ours = {"llama_first": [("a", "int"), ("b", "int")], "llama_second": [("c", "int")], "llama_third": [("d", "int")]}
    assert other.adapted(DECLARED, ours) == (DECLARED, [])


def test_a_field_that_only_libllama_has_is_added_and_told() -> None:
    changed, added = other.adapted(DECLARED, {"llama_first": [("a", "int"), ("new", "size_t"), ("b", "int")]})
    assert changed == DECLARED.replace(
        '("a", ctypes.c_int),\n', '("a", ctypes.c_int),\n        ("new", ctypes.c_size_t),\n'
    )
    assert added == ["llama_first was given new (size_t), which it does not know"]


@pytest.mark.parametrize(
    "fields",
    [
        [("a", "int")],
        [("b", "int"), ("a", "int")],
        [("new", "int32_t"), ("a", "int"), ("b", "int")],
        [("a", "int"), ("new", "char *"), ("b", "int")],
        [("x", "int"), ("b", "int")],
    ],
)
def test_declarations_that_do_not_fit_are_refused(fields: list[tuple[str, str]]) -> None:
    with pytest.raises(other.UnlikeError, match="llama_first"):
        other.adapted(DECLARED, {"llama_first": fields})


def test_the_structures_of_libllama() -> None:
    found = other.structures()
    assert ("n_ctx", "uint32_t") in found["llama_context_params"]
    assert set(found) == set(other.PASSED)


def test_the_archive_is_pinned() -> None:
    pin = other.pin()
    assert pin.project == "llama-cpp-python"
    assert pin.archive_name == f"llama_cpp_python-{pin.version}.tar.gz"


# --- it runs -----------------------------------------------------------------------------------------------------


def settings(folder: Path) -> Settings:
    """A tiny model for everything."""
    path = str(tiny.write(folder / "tiny.gguf", tiny.Shape()))
    return Settings(path, path, path, path, path, tokens=4, prompt=16, sequences=2, texts=3)


@pytest.mark.thorough
def test_it_runs(tmp_path: Path) -> None:
    names = ["prompt", "text", "state", "load", "import", "plan", "embeddings"]
    output = tmp_path / "speed.json"
    options = speed.options([*names, "--rounds", "1", "--most", "1", "--without-other"])
    speed.run(settings(tmp_path), options, names, output)
    results = speed_report.read(output)
    assert list(results["groups"]) == [group.name for group in speed_rows.GROUPS if group.name in names]
    for name in names:
        found = results["groups"][name]
        assert all(
            reason == "llama-cpp-python was left out" for at, reason in found["failures"].items() if "other" in at
        )
        assert not [
            at for at in found["failures"] if at.startswith(("moebind", "new imports", "new plan", "new split"))
        ]
        assert all(value > 0 for round_ in found["rounds"] for value in round_.values())
    assert "too few pairs" in "\n".join(speed_report.lines(results))


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["context", "sequences", "tensors", "schema", "texts"])
def test_costs_by_size(name: str, tmp_path: Path) -> None:
    path = programs.demo_model(dense=True)  # a tiny one of random weights would end its text at once
    given = Settings(path, path, path, str(tmp_path / "large.gguf"), path, tokens=4, prompt=16, texts=3)
    with speed.sides(given, with_other=False) as sides:
        found = sides.ask("growth", name)
    sizes = [float(size) for size in found]
    assert len(sizes) > 1
    assert sizes == sorted(sizes)
    assert all(value == value for value in found.values())  # no NaN


def test_a_side_that_ends_is_a_failure(tmp_path: Path) -> None:
    missing = Settings(*[str(tmp_path / "none.gguf")] * 5)
    with speed.sides(missing, with_other=False) as sides:
        with pytest.raises(FailedError, match=r"ModelNotFoundError: .*none\.gguf"):
            sides.ask("moebind", "load")
        with pytest.raises(FailedError, match="llama-cpp-python was left out"):
            sides.ask("other", "load")
        with pytest.raises(FailedError, match="KeyError"):
            sides.ask("moebind", "nothing of the kind")


def test_a_vocabulary_is_extended(tmp_path: Path) -> None:
    dense = tiny.write(tmp_path / "tiny.gguf", tiny.Shape(tied=True))
    with Model.load_from_file(speed_models.wide_model(dense, tmp_path, 400), ModelParams(n_gpu_layers=0)) as model:
        assert model.n_vocab == 400
        assert model.str_to_token("the and of", add_special=False).size > 0


def test_a_large_model_in_files(tmp_path: Path) -> None:
    import shapes

    shape = shapes.small(shapes.SHAPES["deepseek-v3-q4_k_m"])
    first = shapes.write(tmp_path / "model.gguf", shape, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"model-0000{at}-of-00003.gguf" for at in (1, 2, 3)]
    whole = shapes.write(tmp_path / "whole.gguf", shape)
    counts = [plan(path, ModelParams(), devices=["1TiB"]).device_bytes for path in (first, whole)]
    assert counts[0] == counts[1]


def test_settings_are_text() -> None:
    given = Settings("a", "b", "c", "d", "e", threads=3)
    assert Settings(**json.loads(str(given))) == given
