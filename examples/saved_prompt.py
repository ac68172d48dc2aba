"""A long prompt that is computed once: its state is saved, and the next run, or another process, goes on from it.

    python examples/saved_prompt.py          # computes the prompt, and saves it
    python examples/saved_prompt.py          # finds it

`--state` says where; without it, in the folder for temporary files.
"""

from __future__ import annotations

import os
import tempfile
import time

from arguments import ModelParser

from moebind import ContextParams, Model, StateError

RULES = "You answer questions of children about the weather. Be brief, be kind, and never use a foreign word. " * 5


def main() -> None:
    """Answer a question after the rules, and say how much of it had to be computed."""
    parser = ModelParser(__doc__, max_tokens=24)
    parser.add_argument("question", nargs="?", default="What is rain?")
    parser.add_argument("--state", default=os.path.join(tempfile.gettempdir(), "rules.state"))
    arguments = parser.parsed()

    with Model.load_from_file(arguments.model) as model, model.new_context(ContextParams(n_ctx=1024)) as context:
        began = time.perf_counter()
        try:
            tokens = context.state_seq_load_file(arguments.state, 0)
            print(f"{len(tokens)} tokens loaded in {time.perf_counter() - began:.2f} s")
        except StateError as error:
            if not isinstance(
                error, FileNotFoundError
            ):  # which is so the first time; else of another model, or damaged
                print(error)
            context.generate(RULES, max_tokens=1).complete()
            context.state_seq_save_file(arguments.state, 0)
            print(f"computed and saved in {time.perf_counter() - began:.2f} s")

        prompt = f"{RULES}\nQuestion: {arguments.question}\nAnswer:"
        asked = context.generate(prompt, max_tokens=arguments.max_tokens, stop=["\nQuestion:"])
        print(asked.complete().text.strip())
        print(f"{asked.usage.prompt_tokens} tokens of prompt, {asked.usage.cached_tokens} of them not computed again")


if __name__ == "__main__":
    main()
