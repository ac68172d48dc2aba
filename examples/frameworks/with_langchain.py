"""LangChain: a chain of a prompt and a chat model, and a reply in the form of a class.

Packages: langchain-openai
"""

from __future__ import annotations

import sys

from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field


class Capital(BaseModel):
    """The capital of a country."""

    capital: str = Field(max_length=20)


url, name = sys.argv[1:] or ("http://127.0.0.1:11435", "any")
model = ChatOpenAI(
    base_url=f"{url}/v1",
    api_key="none",
    model=name,
    temperature=0,
    max_tokens=64,
)
prompt = ChatPromptTemplate.from_messages([("user", "What is the capital of {country}?")])

print((prompt | model).invoke({"country": "France"}).content)
print((prompt | model.with_structured_output(Capital)).invoke({"country": "Italy"}))
