"""LlamaIndex: a chat, and a text that is streamed.

Packages: llama-index-llms-openai-like
"""

from __future__ import annotations

import sys

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

url, name = sys.argv[1:] or ("http://127.0.0.1:11435", "any")
model = OpenAILike(
    model=name,
    api_base=f"{url}/v1",
    api_key="none",
    is_chat_model=True,
    context_window=2048,  # what the server has for each request
    temperature=0,
    max_tokens=32,
)

asked = [ChatMessage(role="user", content="What is the capital of France?")]
print(model.chat(asked).message.content)
for piece in model.stream_complete("What is the capital of Italy?"):
    print(piece.delta, end="")
print()
