"""Python code that tests run in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys

HEAD = """
import faulthandler, os, sys, threading
import moebind
from moebind import Batch, ClosedError, ContextParams, Model, ModelParams, MoebindError, Sampler
path = sys.argv[-1]
cpu = ModelParams(n_gpu_layers=0, devices=())
two = ContextParams(n_ctx=128, n_threads=2, n_threads_batch=2)

def text(model):
    with model.new_context(two) as context:
        return [piece.token for piece in context.generate("hello there", max_tokens=8)]

def in_child(function):
    child = os.fork()
    if child == 0:
        faulthandler.dump_traceback_later(120, exit=True)  # says what it waits for
        function()
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


def run(code: str, *arguments: object, **environment: str) -> str:
    """What a process prints; it must end by itself, well and in silence."""
    command = [sys.executable, "-W", "ignore", "-c", HEAD + code, *map(str, arguments)]
    variables = {**os.environ, "OMP_WAIT_POLICY": "passive", **environment}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, env=variables)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout
