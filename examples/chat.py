"""A chat in the terminal: the context remembers it, so that each turn computes only what is new.

    python examples/chat.py
    python examples/chat.py -m moe.gguf --temperature 0.8

An empty line, or Ctrl-D, ends it. `moebind chat` does the same and more.
"""

from __future__ import annotations

from arguments import ModelParser

import moebind
from moebind import Model


def main() -> None:
    """Ask for a line, answer it, and so on."""
    parser = ModelParser(__doc__, max_tokens=256)
    parser.add_argument("--system", default="You are a helpful assistant.", help="what the model is told first")
    parser.add_argument("--temperature", type=float, help="how random; without it, always the likeliest token")
    arguments = parser.parsed()

    # Experts that the graphics card has no room for stay in host memory.
    fit = moebind.fit(arguments.model, n_ctx=4096)
    with (
        Model.load_from_file(arguments.model, fit.model_params) as model,
        model.new_context(fit.context_params) as context,
    ):
        messages = [{"role": "system", "content": arguments.system}]
        while True:
            try:
                question = input("> ").strip()
            except EOFError:
                break
            if not question:
                break
            messages.append({"role": "user", "content": question})
            reply = context.chat(messages, temperature=arguments.temperature, max_tokens=arguments.max_tokens)
            for piece in reply:
                print(piece.text, end="", flush=True)
            usage = reply.usage
            print(f"\n[{usage.prompt_tokens} tokens, of which {usage.cached_tokens} were computed before]")
            messages.append(reply.message)


if __name__ == "__main__":
    main()
