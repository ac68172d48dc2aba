"""Tiny targets and drafts, and whether a text with drafts is the one without."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import bounds
import numpy as np
import pytest
import tiny

from moebind import (
    Completion,
    Context,
    ContextParams,
    ContextType,
    EvalTensor,
    Model,
    ModelParams,
    Sampler,
    Speculative,
    SpeculativeType,
    TensorObserver,
)
from moebind.context.drafting import DraftModel, Wanted

#: As in conftest.py, which imports this file.
CPU = ModelParams(n_gpu_layers=0, devices=())
NGRAMS = [kind for kind in SpeculativeType if kind.name.startswith("NGRAM")]
#: Few tokens have to match, so that there is much to draft in short texts.
EAGER: dict[str, Any] = {"n_match": 2, "n_max": 6, "n_min": 1}
#: Longer than what is drafted at once.
REPEATED = "abcdefghij"
WORDS = ["the", "a", "of", "to", "and", "in", "it", "is", "was", "on"]


class FromStates(NamedTuple):
    """A tiny model that drafts from hidden states, as ``architecture_path`` makes it, and what it drafts for."""

    kind: SpeculativeType
    target: str
    architecture: str
    numbers: tuple[tuple[str, object], ...] = ()
    named: tuple[tuple[str, tuple[int, ...]], ...] = ()


_BLOCK = (("tokenizer.ggml.mask_token_id", 0), ("block_size", 4))
_N_VOCAB, _RANK = len(tiny.TOKENS), 8
_MARKOV = (("markov_w1.weight", (_RANK, _N_VOCAB)), ("markov_w2.weight", (_RANK, _N_VOCAB)))
_CONFIDENCE = (("conf_proj.weight", (64 + _RANK, 1)), ("conf_proj.bias", (1,)))
#: The architectures of drafts that read their target's hidden states.
FROM_STATES = {
    "eagle3": FromStates(SpeculativeType.DRAFT_EAGLE3, "qwen3", "eagle3"),
    "dflash": FromStates(SpeculativeType.DRAFT_DFLASH, "qwen3", "dflash", _BLOCK),
    "dspark": FromStates(SpeculativeType.DRAFT_DSPARK, "qwen3", "dflash", _BLOCK, _MARKOV),
    "dspark with confidence": FromStates(
        SpeculativeType.DRAFT_DSPARK, "qwen3", "dflash", _BLOCK, (*_MARKOV, *_CONFIDENCE)
    ),
    "dspark behind its anchor": FromStates(
        SpeculativeType.DRAFT_DSPARK, "qwen3", "dflash", (*_BLOCK, ("sample_from_anchor", False)), _MARKOV
    ),
    "gemma4-assistant": FromStates(SpeculativeType.DRAFT_MTP, "gemma4", "gemma4-assistant"),
}


#: Their names, as parameters of a test: the kinds of DSpark draft in one loop, and one of them is enough mostly.
EACH_FROM_STATES = [
    pytest.param(name, marks=[pytest.mark.thorough] if name.startswith("dspark ") else []) for name in FROM_STATES
]
#: A model whose last layer predicts further ahead.
MTP = tiny.Shape(arch="glm4moe", n_layer=4, n_expert=4, n_mtp=1, n_head_kv=4)


def write_mtp(path: Path, *, trunk: bool = True, ahead: bool = True) -> Path:
    """Write the model, or only its trunk, or only the layer ahead, as it is published beside a model.

    Its layers add little to a token's embedding, and the layer ahead reads that: so it is right now and then.
    """
    last = f"blk.{MTP.n_layer - 1}."
    without = ("(?!)" if trunk else rf"blk\.(?!{MTP.n_layer - 1}\.)") if ahead else re.escape(last)
    change = {}
    for name, data in tiny._tensors(MTP, np.random.default_rng(MTP.seed)).items():
        if re.match(without, name):
            continue
        if re.search("attn_output|ffn_down", name):
            change[name] = -0.95 * data
        elif name == last + "nextn.eh_proj.weight":
            change[name] = np.eye(*data.shape, dtype=np.float32) - data
    shape = MTP if ahead else replace(MTP, n_layer=MTP.n_layer - 1, n_mtp=0)
    return tiny.write(path, shape, add=change, without=without)


def prompts(n: int, seed: int = 0) -> list[str]:
    """Texts of words, of which every other one repeats itself."""
    random = np.random.default_rng(seed)
    made = []
    for number in range(n):
        words = random.choice(WORDS, random.integers(2, 12))
        made.append(" ".join(np.tile(words, 4) if number % 2 else words))
    return made


def repeating(model: Model, letters: str = REPEATED) -> Sampler:
    """Goes on with these for ever, whatever the model says: a text in which n-grams find what follows."""
    texts = (model.token_to_bytes(token) for token in range(model.n_vocab))
    single = Sampler.logit_bias({token: 1000.0 for token, text in enumerate(texts) if token > 258 and len(text) == 1})
    return Sampler.chain([Sampler.grammar(model, f'root ::= ("{letters}")+', "root"), single, Sampler.greedy()])


#: So many of some dozens of short texts may part where two tokens are as likely. The likeliest two of 297 are half a
#: logit apart, on average, and the order of sums changes that by 4e-6, a 25th of ``bounds.ORDER``: so it decides in one
#: of 100,000 places. Fifty texts have 1,200: one of a hundred tests sees it once, one of 10,000 twice.
PARTED_MAX = 1


def check_same(context: Context, prompt: object, drafted: Completion, plain: Completion, **options: object) -> bool:
    """Raise unless both texts are the same, or part where two tokens are as likely, as far as arithmetic can tell.

    Several tokens at once are added in another order than one alone. Returns whether they part.
    """
    if drafted.tokens == plain.tokens:
        assert drafted.text == plain.text
        assert (drafted.stop_reason, drafted.stop) == (plain.stop_reason, plain.stop)
        assert drafted.usage.generated_tokens == plain.usage.generated_tokens
        return False
    at = next(i for i, pair in enumerate(zip(drafted.tokens, plain.tokens, strict=False)) if pair[0] != pair[1])
    again = context.generate(prompt, logprobs=2, **options).complete()  # type: ignore[arg-type]
    first, second = again.pieces[at].top[:2]
    assert again.tokens[: at + 1] == plain.tokens[: at + 1]
    assert first.logprob - second.logprob < 2 * bounds.ORDER, (at, drafted.tokens, plain.tokens)
    return True


def check_greedy(target: Context, reference: Context, texts: Sequence[object], **options: object) -> None:
    """Raise unless greedy texts with drafts are those without. ``speculative`` is among the options."""
    plain = {name: value for name, value in options.items() if name != "speculative"}
    parted = 0
    for prompt in texts:
        expected = reference.generate(prompt, **plain).complete()  # type: ignore[arg-type]
        parted += check_same(reference, prompt, target.generate(prompt, **options).complete(), expected, **plain)  # type: ignore[arg-type]
    assert parted <= PARTED_MAX


@dataclass
class Drafting:
    """A target, another context of its model to compare with, and what drafts."""

    target: Context
    reference: Context
    made: Speculative

    def check(self, texts: Sequence[object], *, plainly: bool = False, **options: object) -> None:
        """Raise unless greedy texts with drafts are those without; ``plainly`` without drafts in both."""
        if not plainly:
            options["speculative"] = self.made
        check_greedy(self.target, self.reference, texts, **options)


@contextmanager
def drafting(
    model: Model,
    drafts: Model | None,
    params: ContextParams,
    draft_params: ContextParams | None = None,
    ctx_other: bool = False,
    **options: Any,
) -> Iterator[Drafting]:
    """Contexts of a model, and something that drafts for the first."""
    with ExitStack() as opened:
        target, reference = (opened.enter_context(model.new_context(params)) for _ in range(2))
        draft = None
        if drafts is not None:
            other = target if ctx_other else None
            draft = opened.enter_context(drafts.new_context(draft_params or params, ctx_other=other))
        yield Drafting(target, reference, opened.enter_context(Speculative(target, draft, **options)))


@contextmanager
def drafting_from_states(
    architecture_path: Callable[..., Path],
    name: str,
    params: ContextParams,
    draft_params: ContextParams | None = None,
    **options: Any,
) -> Iterator[Drafting]:
    """As :func:`drafting`, with one of ``FROM_STATES``."""
    kind = FROM_STATES[name]
    with (
        Model.load_from_file(architecture_path(kind.target, 1), CPU) as model,
        Model.load_from_file(architecture_path(kind.architecture, 2, kind.numbers, kind.named), CPU) as other,
    ):
        own = draft_params or params
        own = own.with_ctx_type(ContextType.MTP) if other.n_layer_nextn else own
        with drafting(model, other, params, own, ctx_other=True, **options) as made:
            yield made


class Watched:
    """Sees each tensor that a draft computes, and has something happen after one of them.

    Attributes
    ----------
    seen : int
        How many there were.
    ended : int
        How many graphs were computed to their ends after that.
    params : ContextParams
        Of the draft's context.
    """

    def __init__(self, params: ContextParams) -> None:
        self.params = params.with_eval_callback(TensorObserver(".", self._see))
        self.seen, self.ended, self._at, self._do = 0, 0, 0, lambda: None

    def after(self, n: int, do: Callable[[], None]) -> None:
        """Have that happen after so many tensors from now on."""
        self.seen, self.ended, self._at, self._do = 0, 0, n, do

    def _see(self, tensor: EvalTensor) -> None:
        if self.seen >= self._at and tensor.name == "result_output":
            self.ended += 1
        self.seen += 1
        if self.seen == self._at:
            self._do()


class Costs:
    """A clock for a context: each look at it is the beginning or the end of a step, which takes what is described."""

    def __init__(self, context: Context, plain: int, drafted: int) -> None:
        self._counts, self._took, self._now, self._seen = context._speculated, (plain, drafted), 0, 0

    def __call__(self) -> int:
        n = self._counts.n_drafted
        self._now += self._took[n > self._seen]
        self._seen = n
        return self._now

    def slow_prompts(self, drafter: DraftModel, microseconds: int) -> None:
        """Have the draft model take so long for a prompt, besides what it really takes."""
        catch_up = drafter._catch_up

        def slowly(native: Any, wanted: Wanted) -> bool:
            before = drafter.t_prompt_us
            able = catch_up(native, wanted)
            if drafter.t_prompt_us > before:
                drafter.t_prompt_us += microseconds
                self._counts.t_draft_us += microseconds
                self._now += microseconds
            return able

        drafter._catch_up = slowly  # type: ignore[method-assign]
