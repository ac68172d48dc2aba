"""Chats: messages, a template, and models that have it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tiny_vocab

from moebind import Model, ModelParams
from moebind.chat.named_templates import chatml_tools

VOCAB_ONLY = ModelParams(n_gpu_layers=0, vocab_only=True)
#: A template in the manner of many models: reasoning in <think>, calls in <tool_call>.
TEMPLATE = chatml_tools()
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
HELLO = [{"role": "user", "content": "Hello"}]
REPLY = (
    "<think>\nThey ask for the weather.\n</think>\n\nLet me see."
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
)
#: More than a template engine should be given.
DEEP: Any = []
for _ in range(150):
    DEEP = [DEEP]


@contextmanager
def templates(folder: Path) -> Iterator[Model]:
    """A model with a default template, one for tools and one with another name."""
    path = folder / "chat.gguf"
    templates = {
        "tokenizer.chat_template": TEMPLATE,
        "tokenizer.chat_template.tool_use": TEMPLATE.replace("# Tools", "# Only for tools"),
        "tokenizer.chat_template.short": "{{ messages[0].content }}!",
    }
    tiny_vocab.write(path, tiny_vocab.bpe("gpt-2"), **templates)
    with Model.load_from_file(path, VOCAB_ONLY) as model:
        yield model
