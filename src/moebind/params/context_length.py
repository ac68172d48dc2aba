"""A context's length, where it is another one than was asked for, or longer than the model knows."""

from __future__ import annotations

__all__ = ["length_notes"]


def length_notes(asked: int, n_ctx: int, n_ctx_seq: int, n_ctx_train: int) -> list[str]:
    """Sentences for people.

    Parameters
    ----------
    asked
        ``ContextParams.n_ctx``; 0: nobody asked.
    n_ctx, n_ctx_seq
        Tokens of the context, and of one sequence in it, as llama.cpp has them.
    n_ctx_train
        Tokens that the model was trained with; 0: its file does not say.
    """
    found: list[str] = []
    if 0 < asked < n_ctx:
        found.append(f"n_ctx {asked} is rounded up to {n_ctx}: each sequence has a multiple of 256 tokens.")
    if asked and 0 < n_ctx_train < n_ctx_seq:
        found.append(
            f"A sequence can have {n_ctx_seq} tokens, and the model was trained with {n_ctx_train}: what it writes "
            "beyond them may make no sense."
        )
    return found
