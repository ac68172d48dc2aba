"""Instructor: a reply as an object of a class, asked for again if the class refuses it.

Packages: instructor
"""

from __future__ import annotations

import sys

import instructor
import openai
from pydantic import BaseModel, Field


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=20)
    inhabitants: int = Field(ge=0, le=40_000_000)


url, name = sys.argv[1:] or ("http://127.0.0.1:11435", "any")
server = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
client = instructor.from_openai(server, mode=instructor.Mode.JSON_SCHEMA)

asked = [{"role": "user", "content": "Paris has 2102650 inhabitants. Describe it."}]
city = client.chat.completions.create(
    model=name,
    messages=asked,
    response_model=City,
    temperature=0,
    max_tokens=64,
)
print(city)
