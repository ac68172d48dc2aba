"""Structured output: facts from sentences, as JSON of a form that the model cannot leave.

    python examples/structured.py
    python examples/structured.py -m moe.gguf "Oslo has 717,710 inhabitants."

The form holds whatever the model is; whether the facts are right depends on the model.
"""

from __future__ import annotations

import json

from arguments import ModelParser

from moebind import ContextParams, Model

SENTENCES = [
    "Paris is the capital of France. It has 2,102,650 inhabitants.",
    "Rome, in Italy, has 2,746,984 inhabitants.",
]
#: JSON Schema. pydantic's `model_json_schema()` writes one from a class.
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 30},
        "country": {"enum": ["France", "Italy", "Norway", "another"]},
        "inhabitants": {"type": "integer", "minimum": 0},
    },
    "required": ["city", "country", "inhabitants"],
    "additionalProperties": False,
}


def main() -> None:
    """Print an object for each sentence."""
    parser = ModelParser(__doc__, max_tokens=96)
    parser.add_argument("sentences", nargs="*", default=SENTENCES)
    arguments = parser.parsed()

    with Model.load_from_file(arguments.model) as model, model.new_context(ContextParams(n_ctx=1024)) as context:
        for sentence in arguments.sentences:
            asked = [{"role": "user", "content": f"{sentence}\nWrite city, country and inhabitants as JSON."}]
            reply = context.chat(asked, json_schema=SCHEMA, max_tokens=arguments.max_tokens)
            message = reply.complete()
            if reply.stop_reason != "eog":
                print(f"{sentence}\n  cut off after {arguments.max_tokens} tokens")
                continue
            found = json.loads(message["content"])
            print(f"{sentence}\n  {found['city']}, {found['country']}: {found['inhabitants']}")


if __name__ == "__main__":
    main()
