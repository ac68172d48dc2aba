"""Reports: what was measured, as JSON, tables and pictures."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass

from moebind._core import checks
from moebind._core.pictures import html_of
from moebind._core.shown import shown
from moebind.bench.plot import plot_rows
from moebind.bench.rows import OffloadRow, OffloadRows, memory_record, read_row
from moebind.bench.tables import markdown, plain

__all__ = ["REPORT", "OffloadReport"]

#: The file in a benchmark's folder.
REPORT = "report.json"
#: The form of the JSON; it changes when something in it changes its meaning.
FORM = 1


@dataclass(frozen=True)
class OffloadReport(OffloadRows):
    """The result of :func:`moebind.bench.offload`. Printing it gives the table and the conditions.

    Attributes
    ----------
    rows : tuple[OffloadRow, ...]
        One per placement, in the order of the call.
    reference : str or None
        The row that others are compared with: the first that did not fail.
    settings : Mapping[str, object]
        What was asked for.
    environment : Mapping[str, object]
        Files with their checksums, build, machine, date and load of the last call, and the command that makes it
        again. Rows have dates of their own.
    """

    def to_dict(self) -> dict[str, object]:
        """All of it as plain values, for JSON: keys stay the same from version to version.

        Sizes are bytes, times seconds, speeds tokens per second.
        """
        found = {
            "form": FORM,
            "reference": self.reference,
            "settings": dict(self.settings),
            "environment": dict(self.environment),
            "rows": [self._row(row) for row in self.rows],
        }
        plain: dict[str, object] = json.loads(json.dumps(found))  # tuples as lists, as they are when they are read
        return plain

    def _row(self, row: OffloadRow) -> dict[str, object]:
        measured = {name: getattr(row, name) for name in ("prompt", "decode", "first_token")}
        return {
            "name": row.name,
            "failure": row.failure,
            "date": row.date,
            "key": row.key,
            "model_params": dict(row.model_params),
            "context_params": dict(row.context_params),
            "load": row.load,
            **{
                name: None if each is None else {"mean": each.mean, "std": each.std, "values": list(each.values)}
                for name, each in measured.items()
            },
            "token_quantiles": {f"{at:g}": value for at, value in row.token_quantiles.items()},
            "runs": [asdict(run) for run in row.runs],
            "device_bytes": None if row.allocated is None else row.allocated.device_bytes,
            "device_bytes_seen": row.device_bytes_seen,
            "reduction": self.reduction(row.name),
            "worst_error": row.worst_error,
            "predicted": None if row.predicted is None else memory_record(row.predicted),
            "allocated": None if row.allocated is None else memory_record(row.allocated),
            "before": None if row.before is None else asdict(row.before),
            "held": None if row.held is None else asdict(row.held),
            "nvml": row.nvml,
            "agreement": None if row.agreement is None else asdict(row.agreement),
            "moe_cache": None if row.moe_cache is None else asdict(row.moe_cache),
            "load_average": row.load_average,
        }

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> OffloadReport:
        """Read a report that :func:`offload` wrote.

        Parameters
        ----------
        path
            The folder or the JSON file that was given as ``output``.

        Raises
        ------
        FileNotFoundError
            If there is none.
        ValueError
            If the file is something else.
        """
        file = checks.path("path", path)
        if os.path.isdir(file):
            file = os.path.join(file, REPORT)
        with open(file, encoding="utf-8") as opened:
            text = opened.read()
        try:
            data = json.loads(text)
            if data["form"] != FORM:
                raise ValueError(f"its form is {shown(data['form'])}, and this moebind reads {FORM}")
            rows = tuple(read_row(row) for row in data["rows"])
            return cls(rows, data["reference"], data["settings"], data["environment"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} is not a report of the offload benchmark: {error}") from error

    def to_markdown(self) -> str:
        """The table of placements, what it was measured with, and what it took, as Markdown."""
        return markdown(self)

    def __str__(self) -> str:
        return plain(self)

    def _repr_html_(self) -> str:
        """What a notebook shows: the picture, and the table."""
        return html_of(str(self), draw=self.plot)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw what each placement holds, by class, and how fast it was, into a file.

        Parameters
        ----------
        path
            Where to; its ending chooses the format (``.png``, ``.svg``, ``.pdf``). The background is transparent, and
            the colours read on a light page as on a dark one.

        Raises
        ------
        ImportError
            Without matplotlib, which comes with the extra ``plot``.
        ValueError
            If every placement failed.
        """
        plot_rows(self, checks.path("path", path))
