"""Configurations: plain values, and what is set for a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import moebind
from moebind import ContextParams, ModelParams
from moebind.tuning.configuration import MIN_BATCH, Configuration, Process
from moebind.tuning.speculation import Speculation


def test_it_is_plain_values() -> None:
    made = Configuration.of(
        ModelParams().with_n_cpu_moe(3).with_load_mode(moebind.LoadMode.NONE),
        ContextParams(n_ctx=1024, n_threads=2),
        Process({MIN_BATCH: "64"}, (0,), "DISTRIBUTE"),
    ).with_speculation(Speculation("ngram-mod"))
    again = Configuration.from_dict(json.loads(json.dumps(made.to_dict())))
    assert again == made
    assert again.speculation == Speculation("ngram-mod")
    older = {name: value for name, value in made.to_dict().items() if name != "speculation"}
    assert Configuration.from_dict(older) == made.with_speculation(None)
    assert again.model_params == ModelParams().with_n_cpu_moe(3).with_load_mode(moebind.LoadMode.NONE)
    assert again.context_params == ContextParams(n_ctx=1024, n_threads=2)


def test_threads_are_written_down_where_they_are_the_default() -> None:
    context = Configuration.of(ModelParams(), ContextParams()).context
    assert context["n_threads"] == ContextParams().n_threads
    assert context["n_threads_batch"] == ContextParams().n_threads_batch


def test_what_is_loaded_alike() -> None:
    first = Configuration.of(ModelParams(), ContextParams())
    assert first.with_context(n_ubatch=64).loaded == first.loaded
    assert first.with_speculation(Speculation("ngram-mod")).loaded == first.loaded
    assert first.with_model(ModelParams().with_cpu_moe_all()).loaded != first.loaded
    assert first.with_process(cpus=(0,)).loaded != first.loaded


def test_an_empty_process_is_false() -> None:
    assert not Process()
    assert Process(cpus=(0,))
    assert Process({"A": "1"})


def test_it_is_set_for_a_process() -> None:
    first = min(os.sched_getaffinity(0))
    code = f"""
import os
from moebind.tuning.configuration import Process
Process({{"{MIN_BATCH}": "77"}}, ({first},), "DISTRIBUTE").apply()
print(os.environ["{MIN_BATCH}"], os.sched_getaffinity(0) == {{{first}}})
import moebind
try:
    moebind.init(moebind.NumaStrategy.DISTRIBUTE)
except moebind.MoebindError:
    print("initialised")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["77", "True", "initialised"], done.stderr


@pytest.mark.parametrize(
    "fields",
    [{}, {"environment": {}, "cpus": None, "numa": "SOMEWHERE"}, {"environment": 3, "cpus": None, "numa": "DISABLED"}],
)
def test_damaged_values_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises((KeyError, AttributeError)):
        Process.from_dict(fields)
