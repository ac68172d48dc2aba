"""Tools: the model asks for a function's result, gets it, and answers with it.

    python examples/tools.py
    python examples/tools.py -m moe.gguf --template default "What is the weather in Rome?"

The first call is demanded, since a small model would not ask by itself. The demo model's template knows no tools, so
that another takes its place; models that were made for tools have one of their own (`--template default`).
"""

from __future__ import annotations

import json

from arguments import ModelParser

from moebind import ContextParams, Model


def weather(city: str) -> dict[str, object]:
    """The weather in a city. A real one would ask a service."""
    return {"city": city, "degrees": {"Paris": 18, "Rome": 24}[city], "sky": "clear"}


FUNCTIONS = {"weather": weather}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather in a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
                "required": ["city"],
            },
        },
    }
]


def main() -> None:
    """Ask, run what the model asks for, and let it answer."""
    parser = ModelParser(__doc__, max_tokens=64)
    parser.add_argument("question", nargs="?", default="What is the weather in Paris?")
    parser.add_argument("--template", default="chatml-tools", help="a chat template; 'default' is the model's own")
    arguments = parser.parsed()
    template = None if arguments.template == "default" else arguments.template

    with Model.load_from_file(arguments.model) as model, model.new_context(ContextParams(n_ctx=2048)) as context:
        messages: list = [{"role": "user", "content": arguments.question}]
        message = context.chat(
            messages,
            tools=TOOLS,
            tool_choice="required",
            parallel_tool_calls=False,
            template=template,
            max_tokens=arguments.max_tokens,
        ).complete()
        messages.append(message)
        for call in message["tool_calls"]:
            name, given = call["function"]["name"], json.loads(call["function"]["arguments"])
            result = FUNCTIONS[name](**given)
            print(f"{name}({given}) gave {result}")
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": json.dumps(result)})
        answer = context.chat(
            messages, tools=TOOLS, tool_choice="none", template=template, max_tokens=arguments.max_tokens
        ).complete()
        print(answer["content"])


if __name__ == "__main__":
    main()
