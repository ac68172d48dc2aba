"""Outlines: a reply in the form of a class, which llama-server's grammar holds it to.

Packages: outlines[openai]
"""

from __future__ import annotations

import sys
from enum import Enum

import openai
import outlines
from pydantic import BaseModel, Field


class Country(str, Enum):
    """Which ones the model may name."""

    france = "France"
    italy = "Italy"


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=20)
    country: Country


url, name = sys.argv[1:] or ("http://127.0.0.1:11435", "any")
model = outlines.from_openai(openai.OpenAI(base_url=f"{url}/v1", api_key="none"), name)

reply = model("Describe the city of Paris.", City, temperature=0, max_tokens=64)
print(City.model_validate_json(reply))
