"""The process in which tests/fuzz/calls.py runs its sequences, and the children that it makes for them."""

from __future__ import annotations

import atexit
import codecs
import gc
import inspect
import os
import pickle
import resource
import shutil
import signal
import struct
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from calls import CLASSES, OPERATORS, PATIENCE, TIMEOUT, Array, Call, Many, Pool

import moebind
from moebind import Batch, ContextParams, Model, ModelParams, Sampler, TokenDataArray

#: What a call may raise. An AttributeError is somebody's missing check of a type; a NativeError one of a value.
ALLOWED = (
    moebind.MoebindError,
    TypeError,
    ValueError,
    LookupError,
    OverflowError,
    OSError,
    MemoryError,
    RuntimeError,
    StopIteration,
)
Objects = dict[str, list[object]]


def starting_objects(folder: str) -> Objects:
    """What there is before the first call."""
    objects: Objects = {name: [] for name in CLASSES}
    paths = [os.path.join(folder, name) for name in [*sorted(os.listdir(folder)), "missing"]]
    moe = Model.load_from_file(paths[0], ModelParams(n_gpu_layers=0))
    dense = Model.load_from_file(paths[1], ModelParams(n_gpu_layers=0))
    words = Model.load_from_file(paths[1], ModelParams(n_gpu_layers=0, vocab_only=True))
    small = ContextParams(n_ctx=64, n_batch=32, n_threads=1, n_threads_batch=1)
    objects["Model"] += [moe, dense, words]
    objects["ModelParams"] += [ModelParams(n_gpu_layers=0), ModelParams(n_gpu_layers=0).with_cpu_moe_all()]
    objects["ContextParams"] += [small, small.with_n_seq_max(3), small.with_embeddings(True)]
    objects["Context"] += [moe.new_context(small), dense.new_context(small.with_n_seq_max(3).with_kv_unified(True))]
    objects["Context"] += [dense.new_context(small.with_n_ctx(512))]  # with room for long replies
    objects["LoraAdapter"] += [moe.lora_adapter_init(paths[5])]  # type: ignore[attr-defined]
    objects["Gguf"] += [moebind.Gguf.from_file(paths[0])]
    batch = Batch(32, 3)
    batch.add_sequence([1, 5, 6], 0)
    objects["Batch"] += [batch, Batch.get_one([1, 2, 3]), Batch(8)]
    chain = Sampler.chain_simple([Sampler.top_k(5), Sampler.dist(1)])
    objects["Sampler"] += [chain, Sampler.greedy(), Sampler.penalties(8), Sampler.temp(0.5)]
    outer = Sampler.chain([Sampler.chain([Sampler.top_k(4), Sampler.dist(2)])])
    objects["Sampler"] += [outer, outer[0], outer[0][1], chain[0]]
    objects["TokenDataArray"] += [TokenDataArray.from_logits(np.arange(9, dtype=np.float32))]
    recorder = moebind.RoutingRecorder(order=True)
    objects["RoutingRecorder"] += [recorder, moebind.RoutingRecorder()]
    objects["ContextParams"] += [small.with_eval_callback(recorder)]
    objects["path"] = list(paths)
    objects["array"] = []
    objects["new path"] = [os.path.join(folder, f"new-{number}") for number in range(4)]
    objects["bytes"] = [b"", b"GGUF", bytes(2000)]
    objects["decoder"] = [codecs.getincrementaldecoder("utf-8")("replace")]
    context = objects["Context"][0]
    objects["callable"] = [
        lambda *_: True,
        lambda *_: None,
        lambda *_: 1 // 0,
        lambda *_: context.decode(batch),  # type: ignore[attr-defined]
        lambda *_: "text",
        lambda *_: objects and None,  # what calls it is one of them: a cycle
    ]
    return objects


class Tangle:
    """Something in a cycle with others."""

    def __init__(self, *others: object) -> None:
        self.others = others
        self.itself = self


def tangle(what: str, arguments: list[object], objects: Objects) -> None:
    """Have objects refer to each other, in a cycle; drop one; collect."""
    if what == "link":
        first, second = arguments
        node = Tangle(first, second)
        for each in arguments:
            if hasattr(each, "__dict__") and not inspect.isroutine(each):
                each.__dict__["tangle"] = node
    elif what == "drop":
        for each in objects.values():
            each[:] = [other for other in each if other is not arguments[0]]
    else:
        gc.collect()


def made(value: object, objects: Objects) -> object:
    """The argument that a description describes."""
    if isinstance(value, Pool):
        there = objects.get(value.kind) or [None]
        return there[value.index % len(there)]
    if isinstance(value, Many):
        values = [made(each, objects) for each in value.values]
        if value.keys:
            return dict(zip([made(key, objects) for key in value.keys], values, strict=False))
        return values
    if isinstance(value, Array):
        return made_array(value)
    return value


def made_array(value: Array) -> object:
    """An array of some layout; one that numpy cannot make is a list instead."""
    if value.layout == "list":
        return list(value.values)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            array = np.array(value.values).astype(value.dtype)
    except (TypeError, ValueError, OverflowError):
        return list(value.values)
    if value.layout == "strided":
        return np.repeat(array, 2)[::2]
    if value.layout == "reversed":
        return array[::-1]
    if value.layout == "read-only":
        array.flags.writeable = False
    if value.layout == "2-D":
        return array.reshape(1, -1)
    if value.layout == "column":
        return array.reshape(-1, 1)
    if value.layout == "0-D" and array.size:
        return array[0]
    if value.layout == "big-endian":
        return array.astype(array.dtype.newbyteorder(">"))
    return array


def perform(call: Call, objects: Objects) -> object:
    """Do it, and keep what it gives."""
    member = call.member
    arguments = [made(each, objects) for each in call.arguments]
    keywords = {name: made(each, objects) for name, each in call.keywords}
    if member.owner == "~":
        tangle(member.name, arguments, objects)
        return None
    if member.owner == "!":  # the test of this program's own
        exec(member.name)  # noqa: S102
        return None
    if not member.owner:
        result = getattr(moebind, member.name)(*arguments, **keywords)
    elif member.name == "()":
        result = CLASSES[member.owner](*arguments, **keywords)
    else:
        there = objects[member.owner]
        target = there[call.target % len(there)] if there else CLASSES[member.owner]
        if isinstance(target, type):
            # There is none yet to call it on: of what belongs to the class, the methods that it has itself are left.
            if member.name in OPERATORS or not inspect.ismethod(getattr(target, member.name)):
                return None
            result = getattr(target, member.name)(*arguments, **keywords)
        elif member.name in OPERATORS:
            result = OPERATORS[member.name][1](target, *arguments)
        else:
            result = getattr(target, member.name)
            if callable(result) and not isinstance(getattr(type(target), member.name, None), property):
                result = result(*arguments, **keywords)
    if isinstance(result, Iterator):
        result = [item for item, _ in zip(result, range(400), strict=False)]
    for each in result if isinstance(result, list) else [result]:
        array = "array" if isinstance(each, np.ndarray) else ""
        for kind in (type(each).__name__, array or ("bytes" if isinstance(each, (bytes, memoryview)) else "")):
            if kind in objects and len(objects[kind]) < 12:
                objects[kind].append(each)
    return result


def run(sequence: list[Call], objects: Objects) -> tuple[int, str]:
    """Do all of them: how many returned normally, and the first exception that none may raise."""
    returned = 0
    finding = ""

    def one(call: Call) -> None:
        nonlocal returned, finding
        try:
            perform(call, objects)
            returned += 1
        except ZeroDivisionError:
            pass  # our own callable's
        except ALLOWED as error:
            if isinstance(error, moebind.NativeError):
                finding = finding or f"{call}\n{traceback.format_exc()}"
        except Exception:
            finding = finding or f"{call}\n{traceback.format_exc()}"

    for call in sequence:
        print(call, file=sys.stderr)
        if call.mode == "here":
            one(call)
            continue
        threads = [threading.Thread(target=one, args=(call,)) for _ in range(1 + (call.mode == "race"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return returned, finding


def receive() -> object:
    """The next message of the parent's."""
    size = sys.stdin.buffer.read(4)
    if len(size) < 4:
        sys.exit(0)
    return pickle.loads(sys.stdin.buffer.read(struct.unpack("<I", size)[0]))  # noqa: S301


def child(sequence: list[Call], folder: str, report: int) -> None:
    """Run a sequence and report; what follows is the normal end of an interpreter, with all that is still open."""
    os.chdir(folder)  # any text is the name of a file
    with open("/proc/self/statm", encoding="ascii") as pages:  # sanitizers reserve terabytes
        limit = int(pages.read().split()[0]) * resource.getpagesize() + 8 * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    result = run(sequence, starting_objects(folder))
    os.write(report, pickle.dumps(result))
    os.close(report)


def main() -> None:
    """Make a child for each sequence that comes, and tell how it ended."""
    warnings.simplefilter("ignore")
    moebind.set_log(None)
    originals = str(receive())
    answers = sys.stdout.buffer
    work = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, work, ignore_errors=True)
    folder, log = os.path.join(work, "files"), os.path.join(work, "log")
    while True:
        sequence: list[Call] = receive()  # type: ignore[assignment]
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(originals, folder)
        read, write = os.pipe()
        process = os.fork()
        if process == 0:
            resource.setrlimit(resource.RLIMIT_CPU, (TIMEOUT, TIMEOUT + 5))
            signal.alarm(PATIENCE)
            os.close(read)
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 2)
            os.dup2(output, 1)
            atexit.unregister(shutil.rmtree)
            child(sequence, folder, write)
            return
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            said = pipe.read()
        _, status = os.waitpid(process, 0)
        returned, finding = pickle.loads(said) if said else (0, "")  # noqa: S301
        code = os.waitstatus_to_exitcode(status)
        if code != 0:
            with open(log, "rb") as text:
                tail = text.read()[-6000:].decode("utf-8", "replace")
            what = "did not end by itself" if code in {-signal.SIGALRM, -signal.SIGXCPU} else f"ended with {code}"
            finding = f"the process {what}{' after its last call' if said else ''}; its last words:\n{tail}"
        data = pickle.dumps((returned, finding))
        answers.write(struct.pack("<I", len(data)) + data)
        answers.flush()


if __name__ == "__main__":
    main()
