"""Instructions that a generated token takes outside of llama.cpp: unlike time, they do not depend on the load.

    python benchmarks/instructions.py MODEL.gguf [--tokens N]      # a small model: it is not computed

A library takes the place of llama_decode, and does nothing (``instructions_null.c``). What is left is counted, once the
first tokens have gone by, without what is in llama.cpp's own libraries; so it does not matter for which processor
these were built. The system has the process execute one instruction after the other
(``instructions_steps.c``). It takes Linux and a C compiler.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
#: Tokens that go by first, in which Python adapts its code.
FIRST = 64
#: Texts that some kinds write at once: of them, whole batches are to be counted.
TEXTS = 4
#: What is counted: an expression for pieces, made of ``context``, ``model`` and ``n``, how many tokens there are to be.
KINDS = {
    "greedy": "context.generate([1, 5, 6], max_tokens=n)",
    "two stop strings": "context.generate([1, 5, 6], max_tokens=n, stop=['never this', 'nor that'])",
    "usual samplers": "context.generate([1, 5, 6], max_tokens=n, sampler=usual())",
    "JSON schema": "context.generate([1, 5, 6], max_tokens=n, json_schema=LONG)",
    "four of generate_many": "context.generate_many([[1, 5, each] for each in range(4)], max_tokens=n)",
    "four of an Engine": "of_engine(4, n)",
}
#: How many times a token takes what ``reference`` below does: docs/speed.md. Interpreters and compilers differ, but
#: change both alike.
KNOWN = {
    "greedy": 3.7,
    "two stop strings": 5.8,
    "usual samplers": 10,
    "JSON schema": 30,
    "four of generate_many": 9.5,
    "four of an Engine": 10.3,
}
CODE = (
    f"FIRST = {FIRST}\n"
    + """
import gc, os, signal, sys, threading
from dataclasses import dataclass
from itertools import islice
from moebind import ContextParams, Engine, Model, ModelParams, Sampler

LONG = {"type": "array", "items": {"type": "integer"}, "minItems": 1000}

@dataclass(frozen=True)
class Item:
    number: int
    text: str
    index: int

def reference():
    lock, texts, index = threading.RLock(), ["some", "text"], 0
    while True:
        with lock:
            item = Item(index % 2, texts[index % 2], index)
            index += 1
        yield item

def usual():
    ends = {token: -float("inf") for token in range(model.n_vocab) if model.is_eog_token(token)}
    chain = [Sampler.logit_bias(ends), Sampler.penalties(64, 1.1), Sampler.top_k(40), Sampler.top_p(0.95)]
    return Sampler.chain([*chain, Sampler.temp(0.8), Sampler.dist(1)])

def of_engine(texts, n):
    # The pieces of an engine whose thread's work is done in this one, which is the one that is counted.
    start, threading.Thread.start = threading.Thread.start, lambda thread: None
    engine = Engine(model, params, n_ahead=n)
    threading.Thread.start = start
    thread, readers = engine._thread, [engine.generate([1, 5, each], max_tokens=n) for each in range(texts)]
    while not thread._inbox.empty():
        thread._inbox.get()()
    for _ in range(n):
        thread._steps.fill()
        thread._deliver(thread._advance())
        for reader in readers:
            yield next(reader)

def counted(pieces):
    # With several texts, count is a multiple of how many: each batch is counted whole.
    for piece in islice(pieces, FIRST): pass
    gc.collect()
    os.kill(os.getpid(), signal.SIGUSR1)
    for piece in islice(pieces, count): pass
    os.kill(os.getpid(), signal.SIGUSR1)
    next(pieces)  # or they have ended, and there was less to count

path, count, expression = sys.argv[1], int(sys.argv[2]), sys.argv[3]
n = FIRST + count + 8
if expression == "reference()":
    counted(reference())
    sys.exit()
params = ContextParams(n_ctx=4 * 256, n_seq_max=4, n_threads=1, n_threads_batch=1)
with Model.load_from_file(path, ModelParams(n_gpu_layers=0, devices=())) as model:
    with model.new_context(params) as context:
        counted(iter(eval(expression)))
        os._exit(0)
"""
)
#: What the program ends with if it may not count.
NOT_TRACED, NO_STEPS = 126, 125
#: Files of llama.cpp's.
NATIVE = re.compile(r"/lib(llama|ggml|mtmd)[\w-]*\.so")


class NotAllowedError(Exception):
    """The system does not let a process be counted."""


def missing() -> str | None:
    """Why nothing can be counted here; None if it can."""
    if platform.machine() not in {"x86_64", "aarch64"}:
        return f"it is written for x86-64 and AArch64, and this is {platform.machine()}"
    return "there is no C compiler (cc)" if shutil.which("cc") is None else None


def count(model: Path, tokens: int, expression: str = "reference()") -> Counter[str]:
    """Instructions of ``tokens`` tokens, by the file that they are in.

    Raises
    ------
    NotAllowedError
        If a process may not look at another one here (ptrace).
    """
    with tempfile.TemporaryDirectory(prefix="moebind-instructions-") as folder:
        library, steps, out = (Path(folder) / name for name in ("null.so", "steps", "counts"))
        for options, target, source in ((["-shared", "-fPIC"], library, "null"), ([], steps, "steps")):
            command = ["cc", "-O1", *options, "-o", str(target), str(HERE / f"instructions_{source}.c")]
            subprocess.run(command, check=True)
        # With the same hashes, dictionaries are laid out alike.
        environment = os.environ | {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
        python = ["env", f"LD_PRELOAD={library}", sys.executable, "-c", CODE, str(model), str(tokens), expression]
        command = ["sh", "-c", 'out=$1; shift; exec "$@" 3>"$out"', "sh", str(out), str(steps), *python]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode in {NOT_TRACED, NO_STEPS}:
            raise NotAllowedError("a process may not look at another one here (ptrace)")
        if done.returncode != 0:
            raise RuntimeError(f"the program ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
        return by_file(out.read_text(encoding="utf-8", errors="replace"))


def by_file(text: str) -> Counter[str]:
    """The counts in the lines of ``instructions_steps.c``."""
    found: Counter[str] = Counter()
    for line in text.splitlines():
        number, _, name = line.partition(" ")
        found[name] += int(number)
    return found


def outside(found: Counter[str]) -> int:
    """Those that are not llama.cpp's."""
    return sum(number for name, number in found.items() if not NATIVE.search(name))


def main(given: Sequence[str] | None = None) -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=8, help=f"a multiple of {TEXTS} (default 8)")
    options = parser.parse_args(given)
    if options.tokens < TEXTS or options.tokens % TEXTS:
        near = max(TEXTS, options.tokens // TEXTS * TEXTS)
        said = f"--tokens {options.tokens}: some kinds write {TEXTS} texts at once, and a part of a batch would count"
        parser.error(f"{said} as a whole one; give a multiple of {TEXTS}, such as {near}")
    reason = missing()
    if reason is not None:
        raise SystemExit(f"nothing can be counted: {reason}")
    least = outside(count(options.model, options.tokens))
    print(f"the reference: {least // options.tokens} instructions a turn")
    for name, expression in KINDS.items():
        found = count(options.model, options.tokens, expression)
        most = ", ".join(f"{Path(each).name} {number // options.tokens}" for each, number in found.most_common(4))
        number = outside(found)
        print(f"{name}: {number // options.tokens} instructions a token outside of llama.cpp ({most})")
        print(f"  {number / least:.1f} times the reference; known are {KNOWN[name]}")


if __name__ == "__main__":
    main()
