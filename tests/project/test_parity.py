"""What the crate llama-cpp-2 has is here, and what llama.h declares: the tables that docs/parity.md shows."""

from __future__ import annotations

import builtins
import importlib.util
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import moebind
from conftest import SMALL
from moebind import Batch, ContextParams, Model, ModelParams, Sampler, StateSeqFlags, TokenDataArray

MakeTiny = Callable[..., Path]

ROOT = Path(__file__).resolve().parents[2]
ROWS = [line.split("\t") for line in (ROOT / "docs/llama-cpp-2.tsv").read_text(encoding="utf-8").splitlines()[1:]]
#: Our names of the crate's items; those without one say in a note what takes their place.
NAMES = sorted({row[1] for row in ROWS} - {"-"})
#: Not built yet. An entry that is there all the same fails a test, so that the list shrinks.
PLANNED = ("mtmd", "MtpSpeculative")


def planned(name: str) -> bool:
    return name.partition(".")[0] in {*PLANNED, "MtpSpeculativeParams"}


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


@pytest.mark.parametrize("name", [name for name in NAMES if not planned(name)])
def test_every_item_of_the_crate_has_its_name(name: str) -> None:
    resolve(name)


@pytest.mark.parametrize("name", PLANNED)
def test_what_is_planned_is_not_there_yet(name: str) -> None:
    assert name not in moebind.__all__


@pytest.fixture
def live(moe: Model, demo: Model) -> dict[str, object]:
    """An object of each class whose properties are read."""
    context = moe.new_context(SMALL.with_embeddings(True))
    context.decode(Batch.get_one([1, 5, 6]))
    chain = Sampler.chain_simple([Sampler.top_k(3), Sampler.dist(7)])
    return {
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
    }


def test_every_property_of_a_live_object_answers(live: dict[str, object]) -> None:
    read = 0
    for name, value in live.items():
        assert type(value).__name__ == name
        for member in dir(type(value)):
            if not member.startswith("_") and isinstance(inspect.getattr_static(type(value), member), property):
                getattr(value, member)
                read += 1
    assert read > 90
    live["Context"].close()  # type: ignore[attr-defined]


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
    sources = [*(ROOT / "moebind").rglob("*.py"), *(ROOT / "native").rglob("*.cpp")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    stood_on = {name for name, (names, _) in c_api.table().items() if names}
    assert {name for name in stood_on - NOT_CALLED if not re.search(rf"\b{name}\b(?!`)", code)} == set()
