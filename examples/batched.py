"""Many prompts at once: the weights are read once for all sequences, instead of once for each.

    python examples/batched.py
    python examples/batched.py -m moe.gguf --side-by-side 8

docs/batching.md says more.
"""

from __future__ import annotations

import time

from arguments import ModelParser

from moebind import ContextParams, Model

COUNTRIES = ("France", "Italy", "Spain", "Japan", "Egypt", "Norway", "Peru", "Kenya")


def main() -> None:
    """Answer all prompts one after another, then side by side."""
    parser = ModelParser(__doc__, max_tokens=12)
    parser.add_argument("--side-by-side", type=int, default=4, help="how many are computed together (%(default)s)")
    arguments = parser.parsed()
    prompts = [f"The capital of {country} is" for country in COUNTRIES]

    with Model.load_from_file(arguments.model) as model:
        for n_seq in (1, arguments.side_by_side):
            with model.new_context(ContextParams(n_ctx=256 * n_seq, n_seq_max=n_seq)) as context:
                began = time.perf_counter()
                texts = context.generate_many(prompts, max_tokens=arguments.max_tokens).complete()
                seconds = time.perf_counter() - began
            n_tokens = sum(text.usage.generated_tokens for text in texts)
            print(f"{n_seq} at a time: {n_tokens} tokens in {seconds:.1f} s, {n_tokens / seconds:.1f} tokens/s")
    for prompt, text in zip(prompts, texts, strict=True):
        print(f"  {prompt}{text.text!r}")


if __name__ == "__main__":
    main()
