"""What the crate llama-cpp-2 has is here, and what llama.h declares: the tables that docs/parity.md shows."""

from __future__ import annotations

import builtins
import collections.abc
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import lora
import numpy as np
import numpy.typing
import projectors
import pytest
from numpy.typing import NDArray

import moebind
from conftest import CPU, SMALL
from moebind import (
    Batch,
    BatchExt,
    ClosedError,
    ContextParams,
    Model,
    ModelParams,
    MtpSpeculative,
    MtpSpeculativeParams,
    Sampler,
    Speculative,
    StateSeqFlags,
    ThreadPool,
    TokenDataArray,
)

MakeTiny = Callable[..., Path]

ROOT = Path(__file__).resolve().parents[2]
ROWS = [line.split("\t") for line in (ROOT / "docs/llama-cpp-2.tsv").read_text(encoding="utf-8").splitlines()[1:]]
#: Our names of the crate's items; those without one say in a note what takes their place.
NAMES = sorted({row[1] for row in ROWS} - {"-"})


def resolve(name: str) -> object:
    """The object of that name: of the package, or a builtin exception."""
    first, *rest = name.split(" ")[0].split(".")
    value = getattr(moebind, first) if hasattr(moebind, first) else getattr(builtins, first)
    for part in rest:
        # Fields of a frozen dataclass are attributes of its objects.
        fields = getattr(value, "__dataclass_fields__", {})
        value = fields[part] if part in fields and not hasattr(value, part) else getattr(value, part)
    return value


def test_the_table_is_whole() -> None:
    assert len(ROWS) == 397
    assert all(len(row) >= 2 and row[1] for row in ROWS)
    assert all(len(row) == 3 and row[2] for row in ROWS if row[1] == "-")


@pytest.mark.parametrize("name", NAMES)
def test_every_item_of_the_crate_has_its_name(name: str) -> None:
    resolve(name)


@pytest.fixture
def speculative(moe: Model, tiny_path: MakeTiny) -> Iterator[dict[str, object]]:
    """What drafts: n-grams, and a model's own layers."""
    path = tiny_path(arch="glm4moe", n_layer=4, n_expert=4, n_mtp=1, n_head_kv=4)
    with (
        moe.new_context(SMALL) as context,
        Speculative(context, kind="ngram-simple") as ngrams,
        Model.load_from_file(path, CPU.with_load_mtp(True)) as ahead,
        ahead.new_context(SMALL) as target,
        MtpSpeculative(target) as mtp,
    ):
        yield {"Speculative": ngrams, "MtpSpeculative": mtp, "MtpSpeculativeParams": MtpSpeculativeParams()}


@pytest.fixture
def seen(seeing: Callable[[str], projectors.Seeing]) -> dict[str, object]:
    """What sees: a projector, a picture, and what becomes of it."""
    see = seeing("gemma3")
    bitmap = see.bitmap()
    chunks = see.mtmd.tokenize(["a", bitmap])
    of_text, of_bitmap = (
        next(chunk for chunk in chunks if (chunk.text_tokens is not None) is text) for text in (True, False)
    )
    made = {"Bitmap": bitmap, "MtmdContext": see.mtmd, "MtmdContextParams": see.mtmd.params, "InputChunks": chunks}
    return {**made, "InputChunk": of_bitmap, "InputChunk of text": of_text}


@pytest.fixture
def live(
    moe: Model, demo: Model, speculative: dict[str, object], seen: dict[str, object]
) -> Iterator[dict[str, object]]:
    """An object of each class whose properties are read."""
    chain = Sampler.chain_simple([Sampler.top_k(3), Sampler.dist(7)])
    with moe.new_context(SMALL.with_embeddings(True)) as context:
        context.decode(Batch.get_one([1, 5, 6]))
        yield {
            "Model": demo,
            "Context": context,
            "Batch": Batch.get_one([1, 2]),
            "Sampler": chain,
            "TokenDataArray": TokenDataArray.from_logits(np.arange(4.0)),
            "ModelParams": ModelParams(),
            "ContextParams": ContextParams(),
            "Timings": context.timings(),
            "Device": moebind.devices()[0],
            "MemoryBreakdown": context.memory_breakdown(),
            "SeqState": context.state_seq_get(0, StateSeqFlags.NONE),
            "Gguf": moebind.Gguf.from_file(demo.path),
            **speculative,
            **seen,
        }


def properties(kind: type) -> list[tuple[str, object]]:
    """Its public properties, each with the type that it is said to have."""
    # Types that are imported for checkers only are found where they are defined.
    known = {**vars(collections.abc), **vars(numpy.typing)}
    for module in sorted(sys.modules):
        if module.startswith("moebind."):
            known |= vars(sys.modules[module])
    found = []
    for name in dir(kind):
        value = inspect.getattr_static(kind, name)
        if not name.startswith("_") and isinstance(value, property):
            assert value.fget is not None
            found.append((name, get_type_hints(value.fget, localns=known)["return"]))
    return found


def fits(value: object, kind: Any) -> bool:
    """Whether a value is of a type as annotations write it."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any or kind is object:
        return True
    if origin in {Union, UnionType}:
        return any(fits(value, each) for each in arguments)
    if origin is np.ndarray:
        (number,) = get_args(arguments[1])
        return isinstance(value, np.ndarray) and np.issubdtype(value.dtype, get_origin(number) or number)
    if origin is tuple:
        each = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments  # type: ignore[arg-type]
        return isinstance(value, tuple) and len(value) == len(each) and all(map(fits, value, each))
    if origin in {dict, Mapping}:
        return isinstance(value, origin) and all(
            fits(key, arguments[0]) and fits(held, arguments[1]) for key, held in value.items()
        )
    if origin is not None and issubclass(origin, Iterable):
        return isinstance(value, origin) and all(fits(each, arguments[0]) for each in value)
    if origin is Callable:
        return callable(value)
    # A bool is no number here, and a number of numpy's none of Python's.
    return type(value) is kind if kind in {bool, int, float, str} else isinstance(value, kind)


def test_every_property_of_a_live_object_is_of_its_type(live: dict[str, object]) -> None:
    read = {}
    for name, value in live.items():
        assert type(value).__name__ == name.split(" ")[0]
        for member, kind in properties(type(value)):
            read[f"{name}.{member}"] = (getattr(value, member), kind)
    assert len(read) > 130
    assert {member: each for member, each in read.items() if not fits(*each)} == {}


@pytest.mark.parametrize("name", ["BatchExt", "Context", "LoraAdapter", "Model", "Sampler", "ThreadPool"])
def test_a_closed_object_says_so_or_still_knows(
    name: str, tiny_path: MakeTiny, first: lora.Pairs, tmp_path: Path
) -> None:
    with Model.load_from_file(tiny_path(n_expert=4), CPU) as model, model.new_context(SMALL) as context:
        made = {
            "BatchExt": lambda: BatchExt(context),
            "Context": lambda: context,
            "LoraAdapter": lambda: model.lora_adapter_init(lora.write(tmp_path / "lora.gguf", first)),
            "Model": lambda: model,
            "Sampler": lambda: Sampler.chain_simple([Sampler.greedy()]),
            "ThreadPool": lambda: ThreadPool(1),
        }[name]()
        before = {member: getattr(made, member) for member, _ in properties(type(made)) if member != "closed"}
        made.close()  # type: ignore[attr-defined]
        assert made.closed  # type: ignore[attr-defined]
        told = 0
        for member, value in before.items():
            try:
                np.testing.assert_equal(getattr(made, member), value, err_msg=member)
            except ClosedError:
                told += 1
        assert told or not before


def test_what_fits() -> None:
    row = np.zeros(2, np.float32)
    good = [(1, int), (None, int | None), ((1, 2), tuple[int, ...]), ({"a": 1}, Mapping[str, int]), ([], list[str])]
    good += [
        (row, NDArray[np.float32]),
        (row, NDArray[np.floating[Any]]),
        (len, Callable[..., int]),
        ((1, "a"), tuple[int, str]),
    ]
    bad = [
        (True, int),
        (np.int32(1), int),
        (1, float),
        (None, int),
        ((1, "2"), tuple[int, ...]),
        ((1,), tuple[int, str]),
    ]
    bad += [
        ({"a": "1"}, Mapping[str, int]),
        ([1], list[str]),
        (row, NDArray[np.int32]),
        (3, Callable[..., int]),
        ([1], tuple[int, ...]),
    ]
    assert all(fits(value, kind) for value, kind in good)
    assert not any(fits(value, kind) for value, kind in bad)


# --- llama.h ---


@pytest.fixture(scope="module")
def c_api() -> ModuleType:
    spec = importlib.util.spec_from_file_location("c_api_table", ROOT / "tools/c_api_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_function_of_llama_h_has_a_name_or_a_reason(c_api: ModuleType) -> None:
    rows = c_api.table()
    assert len(rows) > 200
    assert {name: row for name, row in rows.items() if not row[0] and not row[1]} == {}
    assert {name: row for name, row in rows.items() if row[0] and row[1]} == {}
    assert set(c_api.REASONS) <= set(rows)


def test_the_documentation_has_the_table_as_it_is(c_api: ModuleType) -> None:
    assert c_api.TARGET.read_text(encoding="utf-8") == c_api.text(c_api.table())


#: Named by a docstring as what does the same, or called by a name that is put together.
NOT_CALLED = {
    "llama_batch_get_one",
    "llama_chat_apply_template",
    "llama_log_set",
    "llama_sampler_init_grammar",
    "llama_sampler_init_grammar_lazy_patterns",
    "llama_state_save_file",
    "llama_state_seq_load_file",
    "llama_state_seq_save_file",
} | {f"llama_get_sampled_{what}{count}_ith" for what in ("logits", "probs") for count in ("", "_count")}


def test_what_stands_on_a_function_calls_it(c_api: ModuleType) -> None:
    sources = [
        path for folder in ("src", "native") for path in (ROOT / folder).rglob("*.*") if path.suffix in {".py", ".cpp"}
    ]
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    stood_on = {name for name, (names, _) in c_api.table().items() if names}
    assert {name for name in stood_on - NOT_CALLED if not re.search(rf"\b(own_)?{name}\b(?!`)", code)} == set()
