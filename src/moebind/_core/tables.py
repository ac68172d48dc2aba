"""Tables, as text and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

__all__ = ["Column", "markdown_table", "number_ranges", "text_table"]


class Column(NamedTuple):
    """A column of a table.

    Attributes
    ----------
    name : str
        Its heading.
    format : str
        How its values are written, as ``format`` takes it: ``".1f"``. Texts are written as they are, None is empty.
    left : bool
        Whether its cells begin at the left; in text only, as Markdown aligns by itself.
    width : int
        Characters that it has at least.
    """

    name: str
    format: str = ""
    left: bool = False
    width: int = 0


def text_table(
    columns: Sequence[Column], rows: Iterable[Sequence[object]], *, separator: str = "  ", rule: bool = False
) -> list[str]:
    """Lines of a table whose columns are as wide as their widest cell: the headings, and one for each row.

    A row with fewer values than there are columns ends with a remark, which makes no column wider. With ``rule`` a line
    of hyphens is below the headings.
    """
    lines = [[column.name for column in columns], *(_cells(columns, row) for row in rows)]
    counted = [line if len(line) == len(columns) else line[:-1] for line in lines]
    widths = [
        max(column.width, *(len(line[at]) for line in counted if at < len(line))) for at, column in enumerate(columns)
    ]
    found = [separator.join(_aligned(columns, widths, line)).rstrip() for line in lines]
    return [found[0], "-" * len(found[0]), *found[1:]] if rule else found


def markdown_table(columns: Sequence[Column], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Lines of a Markdown table, each as soon as its row is there."""
    yield _markdown_line([column.name for column in columns])
    yield _markdown_line(["---"] * len(columns))
    for row in rows:
        yield _markdown_line(_cells(columns, row))


def number_ranges(numbers: Iterable[int]) -> str:
    """Rising numbers in short, such as ``0-3, 6, 9-11``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)


def _cells(columns: Sequence[Column], row: Sequence[object]) -> list[str]:
    return [_cell(column, value) for column, value in zip(columns, row, strict=False)]


def _cell(column: Column, value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else format(value, column.format)


def _aligned(columns: Sequence[Column], widths: Sequence[int], line: Sequence[str]) -> list[str]:
    cells = [
        cell.ljust(width) if column.left else cell.rjust(width)
        for column, width, cell in zip(columns, widths, line, strict=False)
    ]
    if len(line) < len(columns):
        cells[-1] = line[-1]
    return cells


def _markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"
