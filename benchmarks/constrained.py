"""What a JSON schema costs a token: moebind's grammars, and those of llguidance, on the same texts.

    python benchmarks/constrained.py [MODEL.gguf] [--rounds N] [--vocabulary N]

Both are asked, token by token, which of the whole vocabulary may come next, and told which came, while a text that
satisfies the schema is written. Told is the processor time of a token, on average over the text: the median of the
rounds, with the extremes. "First" is for a schema that was never used before, and "again" for one that was; llguidance
has sorted the vocabulary before in any case. With --vocabulary, it is made that large (``wide_vocabulary.py``).
``constrained_decode.py`` measures how fast a model writes such texts.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from itertools import count

import numpy as np
from programs import arguments, demo_model
from wide_vocabulary import widened

from moebind import Model, ModelParams, Sampler, TokenDataArray, json_schema_to_grammar

STRING: dict[str, object] = {"type": "string"}


def an_object(**properties: dict[str, object]) -> dict[str, object]:
    """A schema: an object with these properties and no others."""
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


SCHEMAS: dict[str, tuple[dict[str, object], object]] = {
    "object": (
        an_object(name=STRING, age={"type": "integer"}, tags={"type": "array", "items": STRING}),
        {"name": "Ada Lovelace", "age": 36, "tags": ["mathematics", "engines"]},
    ),
    "nested": (
        an_object(
            order=an_object(id={"type": "integer"}, paid={"type": "boolean"}),
            customer=an_object(name=STRING, address=an_object(street=STRING, city=STRING)),
            items={"type": "array", "items": an_object(product=STRING, price={"type": "number"})},
        ),
        {
            "order": {"id": 20931, "paid": True},
            "customer": {"name": "Grace Hopper", "address": {"street": "12 Harbour Road", "city": "Arlington"}},
            "items": [{"product": "A box of pencils", "price": 3.75}, {"product": "Graph paper", "price": 12.5}],
        },
    ),
    "choice": (an_object(kind={"enum": ["cat", "dog", "bird", "horse"]}), {"kind": "bird"}),
    "pattern": (
        an_object(
            day={"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"}, code={"type": "string", "maxLength": 20}
        ),
        {"day": "2026-11-29", "code": "late in autumn"},
    ),
    "array": ({"type": "array", "items": {"type": "integer"}}, [3, 14, 159, 2653, 58979, 323846]),
    "any": ({"type": "object"}, {"title": "A list", "parts": [1, True, {"of": ["more", "and more"]}]}),
    "text": (STRING, "A long text, in which nearly every token may come next, and few may not."),
}

#: Makes each text of a grammar differ from all before it.
fresh = count()


def milliseconds(sampler: Sampler, candidates: TokenDataArray, tokens: list[int]) -> float:
    """How long a token took, along a text."""
    total = 0.0
    for token in tokens:
        candidates.data["logit"] = 0.0
        start = time.process_time()
        sampler.apply(candidates)
        total += time.process_time() - start
        assert np.isfinite(candidates.data["logit"][token])  # noqa: S101  # both allow this text
        start = time.process_time()
        sampler.accept(token)
        total += time.process_time() - start
    return 1e3 * total / len(tokens)


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__, "the demo model", tokens=0)
    parser.add_argument("--vocabulary", type=int, help="this many tokens")
    options = parser.parse_args()
    with (
        widened(options.model or demo_model(), options.vocabulary) as path,
        Model.load_from_file(path, ModelParams(vocab_only=True)) as model,
    ):
        start = time.process_time()
        with Sampler.grammar(model, 'root ::= "a"') as sampler:
            sampler.apply(TokenDataArray.from_logits(np.zeros(model.n_vocab, np.float32)))
        sorted_by = {"moebind": time.process_time() - start}
        start = time.process_time()
        Sampler.llguidance(model, regex="a").close()
        sorted_by["llguidance"] = time.process_time() - start
        print(f"{model.n_vocab} tokens; sorting them took", *(f"{k} {v:.2f} s" for k, v in sorted_by.items()))

        def again(schema: dict[str, object]) -> Sampler:
            return Sampler.json_schema(model, schema)

        def first(schema: dict[str, object]) -> Sampler:
            return Sampler.grammar(model, f"{json_schema_to_grammar(schema)}\n# {next(fresh)}")

        kinds: dict[str, Callable[[dict[str, object]], Sampler]] = {
            "first": first,
            "again": again,
            "llguidance": lambda schema: Sampler.llguidance(model, json_schema=schema),
        }
        for name, (schema, value) in SCHEMAS.items():
            tokens = model.str_to_token(json.dumps(value), add_special=False).tolist()
            candidates = TokenDataArray.from_logits(np.zeros(model.n_vocab, np.float32))
            print(f"{name:8} {len(tokens):3} tokens", end="")
            for kind, make in kinds.items():
                times = []
                for _ in range(options.rounds + (kind == "again")):
                    with make(schema) as sampler:
                        times.append(milliseconds(sampler, candidates, tokens))
                times = times[-options.rounds :]
                print(f"   {kind} {statistics.median(times):.3f} ms ({min(times):.3f} to {max(times):.3f})", end="")
            print(flush=True)


if __name__ == "__main__":
    main()
