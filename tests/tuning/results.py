"""A result that nobody has measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moebind import ContextParams, ModelParams, Tuning
from moebind.bench.agreement import Agreement
from moebind.placement.header import read_header
from moebind.placement.saved import Identity
from moebind.tuning.configuration import Configuration, Process
from moebind.tuning.goals import checked_goal
from moebind.tuning.machine import conditions
from moebind.tuning.search import Step
from moebind.tuning.trials import Trial

MODEL = ModelParams(n_gpu_layers=0).with_use_mmap(False)
CONTEXT = ContextParams(n_ctx=512, n_ubatch=128, n_threads=1, n_threads_batch=1)
START = Configuration.of(ModelParams(n_gpu_layers=0), CONTEXT.with_n_ubatch(512))
STEPS = (
    Step("placement", why="there is no device besides the processor"),
    Step("micro-batch", "n_ubatch 128", True, "", (0.2,) * 9, 1.22, 1.1, 1.3, 3, 0),
    Step("threads", "n_threads 2", False, "no faster beyond the noise", (0.0, 0.01), 1.0, 0.99, 1.01, 1, 1),
    Step("load mode", "read into memory", True, "", (0.1,) * 9, 1.1, 1.05, 1.2, 1, 0),
)
TOTAL = Step("all of it", "what was kept", True, "", (0.3,) * 9, 1.35, 1.2, 1.5)


def made_up(path: Path, **changes: Any) -> Tuning:
    """For a model, of this machine; with other attributes, if they are given."""
    best = Configuration.of(MODEL, CONTEXT)
    trials = [
        Trial(
            "all of it, confirmation", "best so far", START, None, {"prompt": 100.0, "decode": 10.0}, {"Host": 5}, 1.0
        ),
        Trial(
            "all of it, confirmation", "what was kept", best, None, {"prompt": 200.0, "decode": 13.5}, {"Host": 5}, 1.0
        ),
        Trial("threads, screening", "n_threads 9", best, "the process was ended by SIGSEGV", {}, {}, 1.0),
    ]
    fields: dict[str, Any] = {
        "goal": checked_goal("chat"),
        "process": Process(),
        "start": START,
        "steps": STEPS,
        "total": TOTAL,
        "trials": tuple(trials),
        "agreements": {"n_ubatch 128": Agreement(1e-4, 2e-3, 0.99, 60, 0.9, 7, 8)},
        "complete": True,
        "needs": None,
        "speculation": None,
        "path": str(path),
        "model_params": MODEL,
        "context_params": CONTEXT,
        "conditions": {**conditions([]), "date": "2026-11-29T04:00:00+00:00", "load_average": [1.0, 1.0, 1.0]},
        "_identity": Identity.of(read_header(str(path))),
    }
    return Tuning(**{**fields, **changes})
