"""Random sequences of public calls, each sequence in a process of its own, which has to end by itself.

    python tests/fuzz/calls.py [--calls N] [--seed N]     # a longer run than the tests'

What can be called is read from the package: every public function, class, method, property and operator. Arguments are
sensible for their names more often than not, since only calls that get somewhere leave something behind for the next;
the others are of any type, size and shape. Between the calls, objects come to refer to each other in cycles, and are
dropped and collected. An exception of the documented kinds is an answer like any other. Any other
exception, a signal, a process that does not end, or one that fails at its end, is a finding.
"""

from __future__ import annotations

import dataclasses
import inspect
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

import moebind

#: Seconds of processor time that one sequence may take. Most take a tenth of one.
TIMEOUT = 60
#: How long a process may take in all, which may wait for a processor that others have.
PATIENCE = 10 * TIMEOUT

#: What is left out, and why.
LEFT_OUT = {
    "bench": "a module; it starts processes, tests/bench has it",
    "mtmd": "a module; it needs a projector, tests/mtmd has it",
    "server": "a module; it starts processes, tests/server has it",
    "loopback_device": "starts a process, tests/placement has it",
    "add_rpc_server": "connects to whatever it is told",
    "load_backends": "loads libraries from any folder",
    "Model.from_pretrained": "asks a hub",
    "ThreadPool": "threads that wait by spinning, tests/backend/test_threadpool.py has it",
}

CLASSES: dict[str, type] = {
    name: getattr(moebind, name) for name in sorted(moebind.__all__) if inspect.isclass(getattr(moebind, name))
}
#: What is called by signs, with the method that says whether a class has it.
OPERATORS: dict[str, tuple[str, Callable[..., object]]] = {
    "repr()": ("__repr__", repr),
    "str()": ("__str__", str),
    "len()": ("__len__", len),
    "[]": ("__getitem__", lambda value, at: value[at]),
    "in": ("__contains__", lambda value, what: what in value),
    "iter()": ("__iter__", iter),
    "==": ("__eq__", lambda value, other: value == other),
    "hash()": ("__hash__", hash),
    "with": ("__enter__", lambda value: value.__enter__().__exit__(None, None, None)),
}


#: Objects that own native memory, or are called by what does.
OWNING = ("Model", "Context", "Sampler", "LoraAdapter", "Batch", "BatchExt", "TokenDataArray", "array", "callable")
#: What is done with objects between calls (``calls_child.tangle``), with what it takes.
TANGLES = {"link": ("tangled", "with_it"), "drop": ("tangled",), "collect": ()}


@dataclass(frozen=True)
class Member:
    """Something that can be called: of a class, or ("") of the package. ``parameters`` are (name, kind, annotation).

    The owner "~" has what is done with objects between calls.
    """

    owner: str
    name: str
    parameters: tuple[tuple[str, int, str], ...]


@dataclass(frozen=True)
class Pool:
    """An argument that is one of the objects there are of a kind."""

    kind: str
    index: int


@dataclass(frozen=True)
class Array:
    """An argument that is an array, made where it is used: perhaps not contiguous, perhaps read-only."""

    values: list[float] | list[int] | list[bool]
    dtype: str
    layout: str


@dataclass(frozen=True)
class Many:
    """An argument that is a list, or (with keys) a dict, of others."""

    values: tuple[object, ...]
    keys: tuple[object, ...] = ()


@dataclass(frozen=True)
class Call:
    """One call; ``mode`` says where: here, in another thread, or in two threads at once."""

    member: Member
    target: int
    arguments: tuple[object, ...]
    keywords: tuple[tuple[str, object], ...]
    mode: str


def _parameters(function: object) -> tuple[tuple[str, int, str], ...]:
    signature = inspect.signature(function)  # type: ignore[arg-type]
    return tuple((p.name, int(p.kind), str(p.annotation)) for p in signature.parameters.values())


def catalogue() -> list[Member]:
    """Every public member, in an order that does not change."""
    names = sorted({*moebind.__all__} - {*CLASSES, *LEFT_OUT, "lib", "ffi", "llama_cpp_version"})
    found = [Member("", name, _parameters(getattr(moebind, name))) for name in names]
    found += [Member("~", name, tuple((each, 1, "") for each in takes)) for name, takes in TANGLES.items()]
    for owner, kind in CLASSES.items():
        if owner in LEFT_OUT or issubclass(kind, (BaseException, dict)):
            continue
        if not dataclasses.is_dataclass(kind) or hasattr(kind, "_with"):  # results are made by the library only
            found.append(Member(owner, "()", _parameters(kind)))
        for sign, (method, _) in OPERATORS.items():
            if hasattr(kind, method):
                found.append(Member(owner, sign, (("at", 1, ""),) if sign in {"[]", "in", "=="} else ()))
        for name in sorted(dir(kind)):
            if name.startswith("_") or f"{owner}.{name}" in LEFT_OUT:
                continue
            value = inspect.getattr_static(kind, name)
            if isinstance(value, (classmethod, staticmethod)) or inspect.isfunction(value):
                found.append(Member(owner, name, _parameters(getattr(kind, name))))
            elif isinstance(value, property):
                found.append(Member(owner, name, ()))
    return found


MEMBERS = catalogue()


def _weight(member: Member) -> int:
    """More of what leads further than of what only tells. An enumeration's members say little."""
    if member.owner in CLASSES and issubclass(CLASSES[member.owner], int):
        return 0
    if member.owner == "~":
        return 8
    if not member.parameters:
        return 1
    return {"Context": 6, "Sampler": 3, "Model": 3, "Batch": 3, "TokenDataArray": 3}.get(member.owner, 1)


WEIGHTED = [member for member in MEMBERS for _ in range(_weight(member))]

# --- arguments -----------------------------------------------------------------------------------

SIZES = [0, -1, 1, 2**31 - 1, 2**31, -(2**31), 2**32, 2**63, -(2**63) - 1, 10**30]
NUMBERS = [float("nan"), float("inf"), float("-inf"), -0.0, 1e-40, 1e300, -1.5, 0.5]
TEXTS = [
    "",
    "\0",
    "a\0b",
    "\ud800",
    "é\u0301🦙" * 5,
    "x" * 3000,
    " " * 500,
    "<s></s>",
    "{% for",
    "root ::= (",
    "[",
    "日",
]

#: Replies of a talkative model.
LONG_TEXTS = ["x" * 200_000, "{" * 90 + '"a": [' * 9000, "日本 " * 30_000, "<think>" + "hm, " * 20_000 + "</think>yes"]

texts = st.one_of(st.sampled_from(TEXTS), st.text(max_size=30))
arrays = st.builds(
    Array,
    st.one_of(
        st.lists(st.integers(-2, 300), max_size=80),
        st.lists(st.sampled_from([0, 1, 2**31 - 1, -(2**31)]), max_size=5),
        st.lists(st.booleans(), max_size=8),
        st.lists(st.floats(width=32), max_size=64),
    ),
    st.sampled_from(["int32", "int64", "uint8", "float32", "float64", "bool", "object", "U3", "complex64"]),
    st.sampled_from(["plain", "strided", "reversed", "read-only", "2-D", "column", "0-D", "list", "big-endian"]),
)
token_arrays = st.builds(Array, st.lists(st.integers(0, 290), max_size=40), st.just("int32"), st.just("plain"))


def pool(*kinds: str) -> st.SearchStrategy[Pool]:
    """One of the objects of these kinds."""
    return st.builds(Pool, st.sampled_from(kinds), st.integers(0, 30))


anything = st.one_of(
    st.sampled_from([None, True, False, b"", b"\xff\0", (), object, Ellipsis, 1j]),
    st.sampled_from(SIZES),
    st.sampled_from(NUMBERS),
    texts,
    arrays,
    pool(*CLASSES, "path", "callable", "bytes"),
    st.builds(Many, st.lists(st.one_of(st.none(), st.integers(-2, 5), texts), max_size=4).map(tuple)),
)
small = st.integers(-1, 8)
messages = st.builds(
    Many,
    st.lists(
        st.builds(
            lambda role, content: Many((role, content), ("role", "content")),
            st.sampled_from(["user", "assistant", "system", "tool", "", "nobody"]),
            st.one_of(texts, st.none()),
        ),
        max_size=4,
    ).map(tuple),
)

#: What a parameter of that name is likely to take.
BY_NAME: dict[str, st.SearchStrategy[Any]] = {
    "token": st.integers(0, 290),
    "tokens": token_arrays,
    "pos": st.integers(0, 40),
    "seq_id": st.integers(0, 2),
    "seq_id_src": st.integers(0, 2),
    "seq_id_dst": st.integers(0, 2),
    "dest_seq_id": st.integers(0, 2),
    "seq_ids": st.one_of(st.integers(0, 2), st.builds(Many, st.lists(st.integers(0, 2), max_size=3).map(tuple))),
    "p0": st.one_of(st.none(), st.integers(0, 30)),
    "p1": st.one_of(st.none(), st.integers(0, 30)),
    "d": st.integers(1, 3),
    "i": st.integers(-2, 6),
    "idx": st.integers(-2, 6),
    "n_tokens": st.integers(1, 64),
    "n_threads": st.integers(1, 2),
    "n_threads_batch": st.integers(1, 2),
    "text": texts,
    "texts": st.builds(Many, st.lists(texts, max_size=3).map(tuple)),
    "query": texts,
    "prompt": st.one_of(texts, token_arrays, messages),
    "prompts": st.builds(Many, st.lists(st.one_of(texts, token_arrays), max_size=4).map(tuple)),
    "messages": messages,
    "max_tokens": st.one_of(st.integers(0, 6), st.integers(0, 6), st.sampled_from([70, 400])),
    "reply": st.one_of(texts, st.sampled_from(LONG_TEXTS)),
    "tangled": pool(*OWNING),
    "with_it": pool(*OWNING),
    "stop": st.one_of(st.just("a"), st.builds(Many, st.lists(texts, max_size=2).map(tuple))),
    "logits": st.one_of(
        st.booleans(), st.builds(Array, st.lists(st.floats(-9, 9), max_size=40), st.just("float32"), st.just("plain"))
    ),
    "path": pool("path"),
    "paths": st.builds(Many, st.lists(pool("path"), max_size=3).map(tuple)),
    "src": pool("path"),
    "dst": pool("new path"),
    "model": pool("Model"),
    "ctx": pool("Context"),
    "ctx_other": st.one_of(st.none(), pool("Context")),
    "batch": pool("Batch"),
    "sampler": st.one_of(st.none(), pool("Sampler")),
    "samplers": st.one_of(st.none(), st.builds(Many, st.lists(pool("Sampler"), min_size=1, max_size=3).map(tuple))),
    "array": pool("TokenDataArray"),
    "decoder": pool("decoder"),
    "adapter": pool("LoraAdapter"),
    "adapters": st.builds(Many, st.lists(st.floats(0, 2), max_size=1).map(tuple), st.just((Pool("LoraAdapter", 0),))),
    "fn": pool("callable"),
    "grammar": st.sampled_from(
        ['root ::= "a"', 'root ::= [a-z]+ | "b" root', "root ::= x", "", 'root ::= ("a"?){3,1}']
    ),
    "grammar_str": st.sampled_from(['root ::= "a"', 'root ::= [a-z]+ | "b" root', "root ::= x", "root ::= ((("]),
    "schema": st.sampled_from(['{"type": "integer"}', '{"enum": ["a", 1]}', "{", '{"type": "strange"}', "[]"]),
    "bias": st.builds(Many, st.lists(st.floats(-9, 9), max_size=3).map(tuple), st.just((1, 2, 290))),
    "data": st.one_of(pool("bytes"), arrays),
    "state": st.one_of(pool("SeqState"), pool("bytes")),
    "embeddings": st.one_of(st.booleans(), arrays),
    "seed": st.integers(0, 9),
    "progress": st.sampled_from([False, None]),
    "memory": st.one_of(st.none(), st.integers(0, 2**34)),
    "prefix": texts,
}


def sensible(member: Member, name: str, annotation: str) -> st.SearchStrategy[Any]:
    """What that parameter is likely to take."""
    if name == "params":
        return pool("ContextParams" if member.name == "new_context" else "ModelParams")
    if name == "text" and "parse" in member.name:
        return BY_NAME["reply"]
    if name in BY_NAME:
        return BY_NAME[name]
    for word, strategy in (
        ("bool", st.booleans()),
        ("SupportsIndex", small),
        ("int", small),
        ("float", st.one_of(st.floats(0, 2), small)),
        ("ArrayLike", arrays),
        ("str", texts),
        ("Callable", pool("callable")),
    ):
        if word in annotation:
            return strategy
    return anything


@st.composite
def calls(draw: st.DrawFn) -> Call:
    """One call of anything."""
    member = draw(st.sampled_from(WEIGHTED))
    arguments: list[object] = []
    keywords: list[tuple[str, object]] = []
    for name, kind, annotation in member.parameters:
        if name == "self" or kind == inspect.Parameter.VAR_POSITIONAL:
            continue
        if kind == inspect.Parameter.VAR_KEYWORD:
            continue
        optional = kind == inspect.Parameter.KEYWORD_ONLY
        if optional and draw(st.booleans()):
            continue
        wild = draw(st.integers(0, 9)) == 0
        value = draw(anything if wild and "n_threads" not in name else sensible(member, name, annotation))
        if optional:
            keywords.append((name, value))
        else:
            arguments.append(value)
    mode = draw(st.sampled_from(["here"] * 12 + ["thread", "race"]))
    return Call(member, draw(st.integers(0, 5)), tuple(arguments), tuple(keywords), mode)


# --- processes ------------------------------------------------------------------------------------


class Zygote:
    """A process that has moebind imported and nothing done with it, and makes a child for each sequence."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-X", "faulthandler", str(Path(__file__).with_name("calls_child.py"))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._send(str(folder))

    def _send(self, value: object) -> None:
        assert self._process.stdin is not None
        data = pickle.dumps(value)
        self._process.stdin.write(struct.pack("<I", len(data)) + data)
        self._process.stdin.flush()

    def run(self, sequence: list[Call]) -> tuple[int, str]:
        """Run a sequence: how many calls returned normally, and the finding ("" if there is none)."""
        self._send(sequence)
        assert self._process.stdout is not None
        size = self._process.stdout.read(4)
        returned, finding = pickle.loads(self._process.stdout.read(struct.unpack("<I", size)[0]))  # noqa: S301
        return returned, finding

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def shrunk(zygote: Zygote, sequence: list[Call], most: int = 80) -> str:
    """What a sequence with a finding is without the calls that it does not take, and what is found then."""
    _, finding = zygote.run(sequence)
    size = len(sequence) // 2
    while size and most > 0:
        for at in range(0, len(sequence), size):
            most -= 1
            shorter = sequence[:at] + sequence[at + size :]
            _, found = zygote.run(shorter)
            if found:
                sequence, finding = shorter, found
                break
        else:
            size //= 2
    return "\n".join([*map(str, sequence), finding])


def prepare(folder: Path) -> Path:
    """Files for the sequences to work on; each gets a copy of the folder."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    import lora
    import tiny

    moe = tiny.write(folder / "0-moe.gguf", tiny.Shape(n_expert=4))
    tiny.write(folder / "1-dense.gguf", tiny.Shape())
    (folder / "2-cut.gguf").write_bytes(moe.read_bytes()[:5000])
    (folder / "3-text").write_text("no model", encoding="utf-8")
    (folder / "4-folder").mkdir()
    lora.write(folder / "5-adapter.gguf", lora.pairs({"blk.0.attn_q.weight": (64, 64)}))
    return folder


def main() -> None:
    """Run many sequences with random seeds; stop at the first finding."""
    import argparse
    import tempfile
    import time

    from hypothesis import HealthCheck, Phase, given, seed, settings

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    done = returned = 0
    with tempfile.TemporaryDirectory() as folder:
        zygote = Zygote(prepare(Path(folder)))

        @seed(arguments.seed)
        @settings(
            max_examples=max(arguments.calls // 40, 1),
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.lists(calls(), min_size=20, max_size=60))
        def run(sequence: list[Call]) -> None:
            nonlocal done, returned
            good, finding = zygote.run(sequence)
            done, returned = done + len(sequence), returned + good
            if finding:
                raise SystemExit(shrunk(zygote, sequence))

        try:
            run()
        finally:
            zygote.close()
            print(f"seed {arguments.seed}: {done} calls, {returned} returned, the others raised what they may")


if __name__ == "__main__":
    from calls import main as run_main  # what is pickled belongs to the module, not to __main__

    run_main()
