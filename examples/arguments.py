"""What the examples' command lines have in common: a model, which is the demo model unless one is named."""

from __future__ import annotations

import argparse

from demo_model import demo_model


class ModelParser(argparse.ArgumentParser):
    """A parser of an example's arguments, with its docstring as the help."""

    def __init__(self, doc: str | None, max_tokens: int | None = None) -> None:
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.add_argument("-m", "--model", help="a GGUF file, or hf://OWNER/NAME/FILE; without it, the demo model")
        if max_tokens is not None:
            self.add_argument("-n", "--max-tokens", type=int, default=max_tokens, help="of each text (%(default)s)")

    def parsed(self) -> argparse.Namespace:
        """The arguments, ``model`` being a path."""
        arguments = self.parse_args()
        arguments.model = arguments.model or str(demo_model())
        return arguments
