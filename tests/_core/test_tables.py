"""Tables as text and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moebind._core.tables import Column, markdown_table, text_table

COLUMNS = [Column("name", left=True), Column("size", ".1f"), Column("share", ".0%")]


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert text_table(COLUMNS, [("a", 1, 0.5), ("much longer", 12345.67, 1.0)]) == [
        "name            size  share",
        "a                1.0    50%",
        "much longer  12345.7   100%",
    ]


def test_widths_separators_and_rules() -> None:
    columns = [Column("a", left=True, width=3), Column("b", width=4)]
    assert text_table(columns, [("x", 1), ("y", 123456)], separator=" | ", rule=True) == [
        "a   |      b",
        "------------",
        "x   |      1",
        "y   | 123456",
    ]


def test_none_is_empty_and_lines_do_not_end_with_blanks() -> None:
    assert text_table(COLUMNS, [("a", None, 1), ("b", 2.0, None), ("c", None, None)]) == [
        "name  size  share",
        "a            100%",
        "b      2.0",
        "c",
    ]


def test_texts_are_written_as_they_are() -> None:
    assert text_table(COLUMNS, [("a", "unknown", "-")]) == ["name     size  share", "a     unknown      -"]


def test_a_remark_widens_no_column() -> None:
    assert text_table(COLUMNS, [("a", 1.0, 0.5), ("broken", "failed: it took too long for anybody to wait")]) == [
        "name    size  share",
        "a        1.0    50%",
        "broken  failed: it took too long for anybody to wait",
    ]
    assert text_table(COLUMNS, [("only a remark, which is longer than all",)])[0] == "name  size  share"


def test_headings_alone() -> None:
    assert text_table(COLUMNS, []) == ["name  size  share"]
    assert list(markdown_table(COLUMNS, [])) == ["| name | size | share |", "| --- | --- | --- |"]


def test_markdown() -> None:
    rows = [("a|b\n c", 1, None), ("d", "failed: no | memory")]
    assert list(markdown_table(COLUMNS, rows))[2:] == ["| a\\|b c | 1.0 |  |", "| d | failed: no \\| memory |"]


def test_markdown_lines_come_as_soon_as_their_rows() -> None:
    made = []

    def rows() -> Iterator[tuple[str, int, int]]:
        for at in range(3):
            made.append(at)
            yield (str(at), at, at)

    lines = markdown_table(COLUMNS, rows())
    assert next(lines).startswith("| name")
    next(lines)
    assert made == []
    next(lines)
    assert made == [0]


@pytest.mark.parametrize("value", [[1], {}, object()])
def test_values_that_the_format_does_not_take(value: object) -> None:
    with pytest.raises(TypeError):
        text_table(COLUMNS, [("a", value, 1)])
    with pytest.raises(ValueError, match="format"):
        text_table([Column("a", "nonsense")], [(1.0,)])


@given(st.lists(st.tuples(st.text("ab |ä"), st.integers(), st.none() | st.floats(0, 9)), max_size=5))
def test_whole_rows_align(rows: list[tuple[str, int, float | None]]) -> None:
    lines = text_table([*COLUMNS, Column("end", width=1)], [(*row, "x") for row in rows])
    assert len(lines) == len(rows) + 1
    assert len({len(line) for line in lines}) == 1
    markdown = list(markdown_table(COLUMNS, rows))
    assert {line.replace("\\|", "").count("|") for line in markdown} == {4}
