"""Haystack: a pipeline of a prompt and a generator.

Packages: haystack-ai
"""

from __future__ import annotations

import sys

from haystack import Pipeline
from haystack.components.builders import ChatPromptBuilder
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.utils import Secret

url, name = sys.argv[1:] or ("http://127.0.0.1:11435", "any")
pipeline = Pipeline()
prompt = [ChatMessage.from_user("What is the capital of {{ country }}?")]
builder = ChatPromptBuilder(prompt, required_variables=["country"])
pipeline.add_component("prompt", builder)
pipeline.add_component(
    "model",
    OpenAIChatGenerator(
        api_key=Secret.from_token("none"),
        model=name,
        api_base_url=f"{url}/v1",
        generation_kwargs={"temperature": 0, "max_tokens": 32},
    ),
)
pipeline.connect("prompt.prompt", "model.messages")

print(pipeline.run({"prompt": {"country": "France"}})["model"]["replies"][0].text)
