"""Which JSON schemas grammars can be made of, and what they then allow: moebind's own, and llguidance's.

    python benchmarks/schema_coverage.py [--reasons N]

Two public collections, which pip brings into the cache once: the required tests of the JSON Schema Test Suite (draft
2020-12), each a schema with texts that satisfy it or do not, and the schemas of SchemaStore that check-jsonschema has.
A text is asked for token by token, with the vocabulary of the demo model, and counts as allowed if the text may end
where it ends. It is written as ``json.dumps`` writes it, and without spaces, with properties in the order in which the
schema has them, as both kinds of grammars want it: one of these has to be allowed.

``--reasons N`` tells the N most frequent reasons of refusals, too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tarfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from programs import demo_model

from moebind import GrammarError, Model, ModelParams, Sampler, SamplerError

SUITE, STORE = "jsonschema==4.26.0", "check-jsonschema==0.39.0"
Make = Callable[[str], Sampler]


class Text(NamedTuple):
    """A value of a test, written in two ways, and whether it satisfies the schema."""

    written: tuple[str, str]
    valid: bool


class Group(NamedTuple):
    """A schema of the suite, and its texts."""

    schema: str
    texts: tuple[Text, ...]


@dataclass
class Coverage:
    """What was counted for one kind of grammars."""

    compiled: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    #: Whether each text was allowed, by the numbers of its group and of itself.
    allowed: dict[tuple[int, int], bool] = field(default_factory=dict)
    stored: int = 0


def downloaded(requirement: str, *options: str) -> Path:
    """An archive of PyPI's, in the cache."""
    folder = Path(demo_model()).parent / "schemas" / requirement
    if not (found := sorted(folder.glob("*"))):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *options, "-d", folder, requirement]
        subprocess.run(command, check=True)
        found = sorted(folder.glob("*"))
    return found[0]


def in_order(value: Any, schema: Any) -> Any:
    """A value with its properties in the schema's order, where the schema says one."""
    if not isinstance(schema, Mapping):
        return value
    if isinstance(value, Mapping):
        named = schema.get("properties")
        named = named if isinstance(named, Mapping) else {}
        names = [*(name for name in named if name in value), *(name for name in value if name not in named)]
        return {name: in_order(value[name], named.get(name)) for name in names}
    if isinstance(value, list):
        return [in_order(each, schema.get("items")) for each in value]
    return value


def suite() -> Iterator[Group]:
    """The schemas and texts of the test suite."""
    with tarfile.open(downloaded(SUITE, "--no-binary", ":all:")) as archive:
        for member in sorted(archive.getmembers(), key=lambda each: each.name):
            _, found, name = member.name.partition("/json/tests/draft2020-12/")
            if found and name.endswith(".json") and "/" not in name and (file := archive.extractfile(member)):
                for group in json.load(file):
                    tests, schema = group["tests"], group["schema"]
                    values = [in_order(each["data"], schema) for each in tests]
                    written = [(json.dumps(each), json.dumps(each, separators=(",", ":"))) for each in values]
                    texts = (Text(pair, each["valid"]) for pair, each in zip(written, tests, strict=True))
                    yield Group(json.dumps(schema), tuple(texts))


def store() -> Iterator[str]:
    """The schemas of SchemaStore."""
    with zipfile.ZipFile(downloaded(STORE, "--only-binary", ":all:")) as archive:
        for name in sorted(archive.namelist()):
            if "/builtin_schemas/vendor/" in name and name.endswith(".json"):
                yield archive.read(name).decode()


def allows(sampler: Sampler, model: Model, text: str) -> bool:
    """Whether a grammar allows a text, and its end."""
    sampler.reset()
    try:
        for token in model.str_to_token(text, add_special=False, parse_special=False).tolist():
            sampler.accept(token)
        sampler.accept(model.token_eos or 0)
    except SamplerError:
        return False
    return True


def measured(make: Make, model: Model, groups: list[Group], schemas: list[str]) -> Coverage:
    """Ask one kind of grammars for all of it."""
    found = Coverage()
    for at, group in enumerate(groups):
        try:
            sampler = make(group.schema)
        except GrammarError as error:
            found.reasons[" ".join(str(error).split())[:100]] += 1
            continue
        found.compiled += 1
        with sampler:
            for number, text in enumerate(group.texts):
                found.allowed[at, number] = any(allows(sampler, model, each) for each in text.written)
    for schema in schemas:
        try:
            make(schema).close()
            found.stored += 1
        except GrammarError as error:
            found.reasons[" ".join(str(error).split())[:100]] += 1
    return found


def share(part: int, whole: int) -> str:
    """A part of a whole, in words."""
    return f"{part} of {whole}" + (f" ({100 * part / whole:.0f} %)" if whole else "")


def row(found: Coverage, groups: list[Group], schemas: list[str]) -> list[str]:
    """The cells of one kind."""
    texts = {(at, number): text.valid for at, group in enumerate(groups) for number, text in enumerate(group.texts)}
    asked = {key: texts[key] for key in found.allowed}
    right = [key for key, valid in asked.items() if valid and found.allowed[key]]
    refused = [key for key, valid in asked.items() if not valid and not found.allowed[key]]
    return [
        share(found.compiled, len(groups)),
        share(len(right), sum(asked.values())),
        share(len(refused), len(asked) - sum(asked.values())),
        share(found.stored, len(schemas)),
    ]


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--reasons", type=int, default=0, help="how many reasons of refusals to tell")
    told = parser.parse_args().reasons
    warnings.simplefilter("ignore")  # what strict=False leaves out, schema by schema
    groups, schemas = list(suite()), list(store())
    with Model.load_from_file(demo_model(), ModelParams(vocab_only=True)) as model:
        kinds: dict[str, Make] = {
            "`json_schema`": lambda schema: Sampler.json_schema(model, schema),
            "`json_schema`, `strict=False`": lambda schema: Sampler.json_schema(model, schema, strict=False),
            "`llguidance`": lambda schema: Sampler.llguidance(model, json_schema=schema),
        }
        found = {name: measured(make, model, groups, schemas) for name, make in kinds.items()}
    print("| grammars | schemas taken | texts that satisfy them allowed | others refused | SchemaStore taken |")
    print("| --- | --- | --- | --- | --- |")
    for name, each in found.items():
        print(f"| {' | '.join([name, *row(each, groups, schemas)])} |")
    ours, theirs = found["`json_schema`"].allowed, found["`llguidance`"].allowed
    both = ours.keys() & theirs.keys()
    same = sum(ours[key] == theirs[key] for key in both)
    n_both = len({at for at, _ in both})
    print(f"\nOf the texts of the {n_both} schemas that both take, they decide {share(same, len(both))} alike.")
    for name, each in found.items():
        for reason, count in each.reasons.most_common(told):
            print(f"{name}: {count} times: {reason}")


if __name__ == "__main__":
    main()
