"""Texts and the byte tokens of tiny models: asking a grammar about a text, and having it write one."""

from __future__ import annotations

import numpy as np

from moebind import Model, Sampler, TokenDataArray

#: The byte tokens follow <unk>, <s> and </s>.
FIRST_BYTE = 3
END = 2


def spelled(text: str | bytes) -> list[int]:
    data = text.encode() if isinstance(text, str) else text
    return [FIRST_BYTE + byte for byte in data]


def begins(grammar: Sampler, text: str | bytes) -> bool:
    """Whether the grammar allows the text, byte by byte, from where it is; its state goes on."""
    return all(grammar.try_accept(token) for token in spelled(text))


def matches(model: Model, grammar: str, text: str | bytes) -> bool:
    """Whether a grammar describes the text, all of it."""
    with Sampler.grammar(model, grammar) as sampler:
        return begins(sampler, text) and sampler.try_accept(END)


def allowed(grammar: Sampler, model: Model) -> set[int]:
    """The tokens that a grammar lets through."""
    candidates = TokenDataArray.from_logits(np.zeros(model.n_vocab))
    grammar.apply(candidates)
    return set(candidates.data["id"][candidates.data["logit"] > -np.inf].tolist())


def written(model: Model, grammar: Sampler, seed: int, most: int = 2000) -> str:
    """A text that a grammar allows, by chance; what closes strings and lists becomes likelier with time."""
    random = np.random.default_rng(seed)
    closing = [*spelled('"}]'), END]
    tokens: list[int] = []
    with Sampler.chain([grammar, Sampler.dist(seed)]) as chain:
        while len(tokens) < most:
            logits = random.normal(0, 2, model.n_vocab)
            logits[closing] += 0.05 * len(tokens)
            token = TokenDataArray.from_logits(logits).with_sampler(chain).selected_token
            assert token is not None
            chain.accept(token)
            if token == END:
                return b"".join(model.token_to_bytes(each) for each in tokens).decode()
            tokens.append(token)
    raise AssertionError(f"no end after {most} tokens: {model.tokens_to_str(tokens)[:200]}")
