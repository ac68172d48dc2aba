"""DSPy: a signature that the model fills in, in a form that llama-server enforces.

Packages: dspy
"""

from __future__ import annotations

import sys

import dspy


class Enforced(dspy.LM):
    """A model at a server that enforces JSON schemas, as llama-server does.

    DSPy only knows this of models by name.
    """

    supports_response_schema = True
    supported_params = frozenset({"temperature", "max_tokens", "response_format"})


url, name = sys.argv[1:] or ("http://127.0.0.1:11435", "any")
model = Enforced(
    f"openai/{name}",
    api_base=f"{url}/v1",
    api_key="none",
    temperature=0,
    max_tokens=64,
    cache=False,
)
dspy.configure(lm=model, adapter=dspy.JSONAdapter())

answer = dspy.Predict("country -> capital: Literal['Paris', 'Rome', 'Madrid']")
print(answer(country="France"))
