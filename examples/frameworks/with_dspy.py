"""DSPy: a signature that the model fills in.

Packages: dspy
"""

from __future__ import annotations

import sys

import dspy

url, name = sys.argv[1:] or ("http://127.0.0.1:11435", "any")
model = dspy.LM(f"openai/{name}", api_base=f"{url}/v1", api_key="none", temperature=0, max_tokens=64, cache=False)
dspy.configure(lm=model)

print(model("What is the capital of France?")[0])
answer = dspy.Predict("question -> answer")
print(answer(question="What is the capital of France?"))
