"""What the tests compare with, and moebind's side of it. Run it to see the figures:

    python tests/numerics/references.py

It needs moebind alone. ``make_references.py`` says where the files in ``data/`` come from.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import bounds

from moebind import Batch, Context, ContextParams, FlashAttnType, GgmlType, Model, ModelParams

DATA = Path(__file__).resolve().parent / "data"
NAMES = ("llama", "mixtral", "qwen2moe", "qwen3moe", "olmoe", "gpt-oss", "phimoe")
MOE = NAMES[1:]

CPU = ModelParams(n_gpu_layers=0)
#: Nothing rounded: keys and values in F32, attention step by step.
EXACT = ContextParams(
    n_ctx=256,
    n_threads=1,
    n_threads_batch=1,
    type_k=GgmlType.F32,
    type_v=GgmlType.F32,
    flash_attn_type=FlashAttnType.DISABLED,
)


@dataclass(frozen=True)
class Comparison:
    """A model, what it is compared with, and the largest difference of a logit that is allowed."""

    name: str
    #: Which array of the file: what computed it.
    reference: str
    bound: float
    n_ctx: int = 256
    params: ModelParams = CPU

    def __str__(self) -> str:
        return f"{self.name}-{self.reference}"

    def tokens(self) -> np.ndarray:
        """int32, ``(n_tokens,)``."""
        with np.load(DATA / f"{self.name}.npz") as arrays:
            return arrays["tokens"]

    def context(self) -> AbstractContextManager[Context]:
        """What moebind computes it with."""
        return context_of(self.name, EXACT.with_n_ctx(self.n_ctx), self.params)

    def logits(self) -> np.ndarray:
        """float32, ``(n_tokens, n_vocab)``."""
        with np.load(DATA / f"{self.name}.npz") as arrays:
            return arrays[self.reference]


ATTN_FACTOR = "phimoe.rope.scaling.attn_factor"
#: What llama.cpp computes: for the first five architectures what transformers does.
COMPARISONS = (
    *(Comparison(name, "transformers", bounds.ORDER) for name in NAMES[:5]),
    # gpt-oss with the range of YaRN's blend rounded to whole dimensions, as llama.cpp has it.
    Comparison("gpt-oss", "truncate", bounds.ORDER),
    # phimoe with llama.cpp's norm, router weights and magnitude scale. The file's original context is 256 tokens: a
    # larger n_ctx takes the long rotary factors.
    Comparison("phimoe", "graph", bounds.ORDER),
    Comparison("phimoe", "graph_long", bounds.ORDER, n_ctx=512),
    # The same with the config's own scale instead of the file's.
    Comparison("phimoe", "graph_mscale", bounds.ORDER, params=CPU.with_kv_override(ATTN_FACTOR, 1.243163121016122)),
)
#: Where llama.cpp differs from transformers.
DIFFERING = (Comparison("gpt-oss", "transformers", 5e-2), Comparison("phimoe", "transformers", np.inf))


@contextmanager
def context_of(name: str, context: ContextParams = EXACT, params: ModelParams = CPU) -> Iterator[Context]:
    """A context of one of the models."""
    with Model.load_from_file(DATA / f"{name}.gguf", params) as model, model.new_context(context) as made:
        yield made


def batch_logits(context: Context, tokens: np.ndarray) -> np.ndarray:
    """All logits, ``(n_tokens, n_vocab)``, of the tokens as one batch."""
    batch = Batch(len(tokens))
    batch.add_sequence(tokens, 0, logits_all=True)
    context.decode(batch)
    return context.get_logits().copy()


def step_logits(context: Context, tokens: np.ndarray) -> np.ndarray:
    """The same, one token after the other."""
    rows = []
    for token in tokens:
        context.decode(Batch.get_one([token]))
        rows.append(context.get_logits_ith(-1).copy())
    return np.stack(rows)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest absolute difference."""
    return float(np.abs(a - b).max())


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    """How often both have the same likeliest token, from 0 to 1."""
    return float((a.argmax(-1) == b.argmax(-1)).mean())


def divergence(a: np.ndarray, b: np.ndarray) -> float:
    """The mean Kullback-Leibler divergence of ``b``'s distribution from ``a``'s, in nats."""
    p, q = (x - x.max(-1, keepdims=True) for x in (a.astype(np.float64), b.astype(np.float64)))
    p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (p, q))
    return float((np.exp(p) * (p - q)).sum(-1).mean())


#: Other ways to compute the same, and how: against one batch with ``EXACT``.
DEFAULTS = ContextParams(n_ctx=256, n_threads=1, n_threads_batch=1)
WAYS: dict[str, tuple[ContextParams, Callable[[Context, np.ndarray], np.ndarray]]] = {
    "another number of threads": (EXACT.with_n_threads(2).with_n_threads_batch(2), batch_logits),
    "one token after the other": (EXACT, step_logits),
    "a cache in F16": (EXACT.with_type_k(GgmlType.F16).with_type_v(GgmlType.F16), batch_logits),
    "flash attention": (EXACT.with_flash_attn_type(FlashAttnType.ENABLED), batch_logits),
    "the defaults: both": (DEFAULTS, batch_logits),
    "the defaults, one token after the other": (DEFAULTS, step_logits),
}


def measured(each: Comparison) -> tuple[int, float, float]:
    """Positions, the largest difference, and how often the likeliest token is the same."""
    with each.context() as context:
        computed, expected = batch_logits(context, each.tokens()), each.logits()
    return len(expected), difference(computed, expected), agreement(computed, expected)


def measured_way(way: str) -> float:
    """The largest difference that this makes, over all models."""
    params, compute = WAYS[way]
    found = []
    for name in NAMES:
        tokens = Comparison(name, "transformers", 0).tokens()
        with Model.load_from_file(DATA / f"{name}.gguf", CPU) as model:
            with model.new_context(EXACT) as exact, model.new_context(params) as other:
                found.append(difference(batch_logits(exact, tokens), compute(other, tokens)))
    return max(found)


def main() -> None:
    """Print the tables of docs/numerics.md."""
    print("| model | compared with | positions | largest difference | same argmax |\n| --- | --- | --- | --- | --- |")
    for each in (*COMPARISONS, *DIFFERING):
        positions, largest, same = measured(each)
        print(f"| {each.name} | `{each.reference}` | {positions} | {largest:.0e} | {same:.0%} |")
    print("\n| what is different | largest difference |\n| --- | --- |")
    for way in WAYS:
        print(f"| {way} | {measured_way(way):.0e} |")


if __name__ == "__main__":
    main()
