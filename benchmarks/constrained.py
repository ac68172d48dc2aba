"""What a JSON schema costs a token: moebind's grammars, and those of llguidance, on the same texts.

    python benchmarks/constrained.py [MODEL.gguf] [--rounds N] [--tokens N]

Both are asked, token by token, which of the whole vocabulary may come next, while a text that satisfies the schema is
written. Told is the processor time of one question, its median and the extremes over the rounds, and of the first,
for which llguidance has sorted the vocabulary before.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import numpy as np
from programs import arguments, demo_model

from moebind import Model, ModelParams, Sampler, TokenDataArray

SCHEMAS: dict[str, tuple[dict[str, object], object]] = {
    "object": (
        {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "age": {"type": "integer"},
                "tags": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["name", "age", "tags"],
            "additionalProperties": False,
        },
        {"name": "Ada Lovelace", "age": 36, "tags": ["mathematics", "engines"]},
    ),
    "choice": (
        {"type": "object", "properties": {"kind": {"enum": ["cat", "dog", "bird"]}}, "required": ["kind"]},
        {"kind": "bird"},
    ),
    "text": ({"type": "string"}, "A long text, in which nearly every token may come next, and few may not."),
}


def milliseconds(sampler: Sampler, candidates: TokenDataArray, tokens: list[int]) -> list[float]:
    """How long each question took, along a text."""
    times = []
    for token in tokens:
        candidates.data["logit"] = 0.0
        start = time.process_time()
        sampler.apply(candidates)
        times.append(1e3 * (time.process_time() - start))
        assert np.isfinite(candidates.data["logit"][token])  # noqa: S101  # both allow this text
        sampler.accept(token)
    return times


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__, "the demo model", tokens=0).parse_args()
    with Model.load_from_file(options.model or demo_model(), ModelParams(vocab_only=True)) as model:
        start = time.process_time()
        Sampler.llguidance(model, regex="a").close()
        print(f"{model.n_vocab} tokens; llguidance took {time.process_time() - start:.2f} s to sort them")
        kinds: dict[str, Callable[[dict[str, object]], Sampler]] = {
            "moebind": lambda schema: Sampler.json_schema(model, schema),
            "llguidance": lambda schema: Sampler.llguidance(model, json_schema=schema),
        }
        for name, (schema, value) in SCHEMAS.items():
            tokens = model.str_to_token(json.dumps(value), add_special=False).tolist()
            candidates = TokenDataArray.from_logits(np.zeros(model.n_vocab, np.float32))
            for kind, make in kinds.items():
                medians = []
                for _ in range(options.rounds):
                    with make(schema) as sampler:
                        medians.append(statistics.median(milliseconds(sampler, candidates, tokens)))
                told = f"{statistics.median(medians):.3f} ms ({min(medians):.3f} to {max(medians):.3f})"
                print(f"{name}, {len(tokens)} tokens, {kind}: {told}")


if __name__ == "__main__":
    main()
