"""What is measured with what: models, threads, sizes; the same for all sides."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

#: What models go on with, as long as they are asked to: nobody ends before the others.
COUNTING = ", ".join(str(number) for number in range(1, 21)) + ","
SAMPLING = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "seed": 1}


@dataclass(frozen=True)
class Settings:
    """Sizes of what is measured, which are small in tests.

    Attributes
    ----------
    model, dense, wide : str
        Paths: a mixture of experts, a model without, and one whose vocabulary has 150,000 tokens.
    large, split : str
        Headers of 25 GB, and of 380 GB in nine files.
    threads, tokens, prompt, sequences, texts : int
        Of each context; that are generated; of a prompt; at once; that are embedded.
    """

    model: str
    dense: str
    wide: str
    large: str
    split: str
    threads: int = 1
    tokens: int = 48
    prompt: int = 256
    sequences: int = 8
    texts: int = 256

    def __str__(self) -> str:
        return json.dumps(asdict(self))

    @property
    def clock(self) -> Callable[[], float]:
        """Seconds of the processor if one thread computes: what else runs then does not count."""
        return time.process_time if self.threads == 1 else time.perf_counter

    @property
    def n_ctx(self) -> int:
        """Room for a prompt of :data:`COUNTING` or of ``prompt`` tokens, and for what follows."""
        return -(-(max(self.prompt, 128) + self.tokens + 1) // 256) * 256


def shortest(work: Callable[[], object], times: int = 5) -> float:
    """Seconds of the processor for what takes milliseconds: the shortest of so many times."""
    found = []
    for _ in range(times):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def schema() -> dict[str, object]:
    """A JSON schema: people, of whom there is always another one."""
    person = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 24},
            "age": {"type": "integer"},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 12}},
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": False,
    }
    return {"type": "array", "items": person, "minItems": 8}


def short_texts(count: int) -> list[str]:
    """Sentences of a dozen tokens, each another one."""
    things = ("house", "river", "book", "garden", "letter", "train", "window", "song")
    return [f"The {things[at % 8]} number {at} is beside the {things[at // 8 % 8]}." for at in range(count)]


def long_text(length: int = 20000) -> str:
    """Text of so many characters."""
    return " ".join(short_texts(-(-length // 40)))[:length]
