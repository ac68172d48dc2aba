"""The folder of an offload benchmark: its report, and what it takes to go on."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import ExitStack

from moebind._core import checks
from moebind._core.atomic_files import write_whole
from moebind.bench.report import REPORT, OffloadReport

__all__ = ["Output"]


class Output:
    """Where a report and what goes with it are kept.

    Attributes
    ----------
    report : str or None
        The report's file; None if nobody asked for one.
    folder : str
        The folder for measurements and logits.
    checksums : str or None
        The file that remembers those of models.
    """

    def __init__(self, report: str | None, folder: str) -> None:
        self.report = report
        self.folder = folder
        self.checksums = None if report is None else os.path.join(folder, "checksums.json")

    @classmethod
    def of(cls, output: str | os.PathLike[str] | None, stack: ExitStack) -> Output:
        """The folder is made if it is not there; without an output, it is gone afterwards."""
        if output is None:
            return cls(None, stack.enter_context(tempfile.TemporaryDirectory(prefix="moebind-bench-")))
        path = checks.path("output", output)
        if path.endswith(".json") and not os.path.isdir(path):
            found = cls(path, f"{path[:-5]}.files")
        else:
            found = cls(os.path.join(path, REPORT), path)
        if os.path.exists(path) and not (path.endswith(".json") or os.path.isdir(path)):
            raise ValueError(f"output is {path!r}, which is a file; it takes a folder, or a path that ends in .json")
        if found.report is not None and os.path.exists(found.report):
            OffloadReport.load(found.report)  # whatever is no report is refused rather than written over
        os.makedirs(found.folder, exist_ok=True)
        return found

    def logits(self, key: str) -> str:
        """The file for a placement's logits."""
        return os.path.abspath(os.path.join(self.folder, f"logits-{key[:16]}.npz"))

    def write(self, report: OffloadReport) -> None:
        """Write the report, whole or not at all."""
        if self.report is not None:
            write_whole(self.report, [json.dumps(report.to_dict(), indent=1, allow_nan=False).encode()])
