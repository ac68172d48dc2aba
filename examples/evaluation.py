"""Evaluation: how often a model finds the right answer among some, by how likely it takes each to be.

    python examples/evaluation.py
    python examples/evaluation.py -m moe-Q4_K_M.gguf            # compare with -m moe-Q8_0.gguf
    python examples/evaluation.py -m moe.gguf --questions questions.jsonl

Each line of the file is like {"question": "The capital of France is", "choices": [" Paris", " Rome"], "answer": 0}.
lm-evaluation-harness has the tasks that models are compared by; docs/evaluation.md says how it runs moebind.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from arguments import ModelParser

from moebind import Batch, Context, ContextParams, Model

CITIES = [" Paris", " Rome", " Madrid", " Berlin"]
COUNTRIES = ("France", "Italy", "Spain", "Germany")
QUESTIONS = [
    {"question": f"The capital of {country} is", "choices": CITIES, "answer": number}
    for number, country in enumerate(COUNTRIES)
]


def log_likelihoods(context: Context, question: str, choices: list[str]) -> list[float]:
    """The logarithm of the probability of each choice after the question. The question is computed once."""
    model = context.model
    given = model.str_to_token(question)
    context.kv_cache_clear()
    batch = Batch(context.n_batch, context.n_seq_max)
    batch.add_sequence(given, 0)
    context.decode(batch)
    after_question = context.get_logits_ith(-1).copy()

    # One sequence for each choice, all in the same batch.
    scored = [model.str_to_token(choice, add_special=False) for choice in choices]
    batch.clear()
    for sequence, tokens in enumerate(scored, start=1):
        context.kv_cache_seq_cp(0, sequence)
        batch.add_sequence(tokens, sequence, logits_all=True, pos=given.size)
    context.decode(batch)
    logits, sums, row = context.get_logits(), [], 0
    for tokens in scored:
        # What predicts a token is the row before it.
        rows = np.vstack([after_question, logits[row : row + tokens.size - 1]]).astype(np.float64)
        highest = rows.max(axis=1, keepdims=True)
        normal = rows - highest - np.log(np.exp(rows - highest).sum(axis=1, keepdims=True))
        sums.append(float(normal[np.arange(tokens.size), tokens].sum()))
        row += tokens.size
    return sums


def main() -> None:
    """Print the answer to each question, and the share that is right."""
    parser = ModelParser(__doc__)
    parser.add_argument("--questions", type=Path, help="a file with a question in each line")
    arguments = parser.parsed()
    questions = QUESTIONS
    if arguments.questions:
        questions = [json.loads(line) for line in arguments.questions.read_text(encoding="utf-8").splitlines()]

    # With one cache for all sequences, copying a sequence copies no data.
    n_seq = 1 + max(len(each["choices"]) for each in questions)
    params, right = ContextParams(n_ctx=2048, n_seq_max=n_seq, kv_unified=True), 0
    with Model.load_from_file(arguments.model) as model, model.new_context(params) as context:
        for each in questions:
            chosen = int(np.argmax(log_likelihoods(context, each["question"], each["choices"])))
            right += chosen == each["answer"]
            mark = "right" if chosen == each["answer"] else f"wrong, it is{each['choices'][each['answer']]}"
            print(f"{each['question']}{each['choices'][chosen]} ({mark})")
    print(f"{right} of {len(questions)} right")


if __name__ == "__main__":
    main()
