"""Clients that others wrote, each with what it is good for, at a server of moebind's.

    pip install ".[clients]"              # in .venv: "moebind[clients]"
    python examples/clients.py            # the demo model
    python examples/clients.py http://127.0.0.1:11435

What it writes is in docs/clients.md. Of a client that is not installed it says so.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

#: Clients insist on a key; a server without keys takes any.
KEY = "none"
N_TOKENS = 12
QUESTION = "What is the capital of France?"
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Oslo"]}},
    "required": ["city"],
}
TOOL = {"name": "weather", "description": "The weather in a city.", "parameters": WEATHER}
PARIS = {"city": "Paris"}
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": json.dumps(PARIS)}}
#: A small model needs an example of a call.
WEATHER_TALK = [
    {"role": "user", "content": "What is the weather in Paris?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "1", "content": "rain"},
    {"role": "assistant", "content": "It rains."},
    {"role": "user", "content": "What is the weather in Oslo?"},
]
ANSWER = {
    "type": "object",
    "properties": {"capital": {"type": "string", "maxLength": 20}},
    "required": ["capital"],
    "additionalProperties": False,
}


def with_curl(url: str, model: str) -> None:
    """curl, which every shell has."""
    body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": N_TOKENS, "temperature": 0}
    command = ["curl", "-sS", f"{url}/v1/chat/completions", "-d", json.dumps(body)]
    said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print("chat:", said["choices"][0]["message"]["content"])


def with_openai(url: str, model: str) -> None:
    """OpenAI's own client."""
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
    print("models:", [each.id for each in client.models.list()])
    asked = [{"role": "user", "content": QUESTION}]
    chat = client.chat.completions
    print(
        "chat:", chat.create(model=model, messages=asked, max_tokens=N_TOKENS, temperature=0).choices[0].message.content
    )
    pieces = chat.create(model=model, messages=asked, max_tokens=N_TOKENS, temperature=0, stream=True)
    print("streaming:", [piece.choices[0].delta.content for piece in pieces if piece.choices][:6], "...")
    called = chat.create(
        model=model,
        messages=WEATHER_TALK,
        tools=[{"type": "function", "function": TOOL}],
        tool_choice="required",
        temperature=0,
        max_tokens=64,
    )
    calls = called.choices[0].message.tool_calls or []
    print("tools:", [(call.function.name, call.function.arguments) for call in calls])
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": ANSWER}}
    reply = chat.create(model=model, messages=asked, response_format=form, temperature=0, max_tokens=64)
    print("JSON schema:", json.loads(reply.choices[0].message.content))
    try:
        found = client.embeddings.create(model=model, input=["a cat", "a dog"]).data
        print("embeddings:", [f"{len(each.embedding)} numbers" for each in found])
    except openai.APIStatusError as error:  # it was started without --embeddings
        print("embeddings:", error.body["message"])
    try:
        client.completions.create(model=model, prompt="a " * 10**6)
    except openai.BadRequestError as error:
        print("errors:", type(error).__name__, error.body["type"])


def with_anthropic(url: str, model: str) -> None:
    """Anthropic's client, at ``/v1/messages``."""
    import anthropic

    client = anthropic.Anthropic(base_url=url, api_key=KEY, max_retries=0)
    asked = [{"role": "user", "content": QUESTION}]
    print("count:", client.messages.count_tokens(model=model, messages=asked).input_tokens, "tokens")
    likeliest = {"temperature": 0}  # which this client has no argument for
    short = {"model": model, "messages": asked, "max_tokens": N_TOKENS, "extra_body": likeliest}
    reply = client.messages.create(**short)
    print("messages:", reply.content[0].text)
    with client.messages.stream(**short) as stream:
        print("streaming:", list(stream.text_stream)[:6], "...")
    tool = {"name": "weather", "description": TOOL["description"], "input_schema": WEATHER}
    called = client.messages.create(
        model=model,
        messages=[
            {"role": "user", "content": "What is the weather in Paris?"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "weather", "input": PARIS}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "rain"}]},
            {"role": "assistant", "content": "It rains."},
            {"role": "user", "content": "What is the weather in Oslo?"},
        ],
        tools=[tool],
        tool_choice={"type": "any"},
        max_tokens=64,
        extra_body=likeliest,
    )
    print("tools:", [(each.name, each.input) for each in called.content if each.type == "tool_use"])


def with_langchain(url: str, model: str) -> None:
    """LangChain's ``ChatOpenAI``."""
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(base_url=f"{url}/v1", api_key=KEY, model=model, temperature=0, max_tokens=64)
    print("invoke:", chat.invoke(QUESTION).content)
    print("stream:", [piece.content for piece in chat.stream(QUESTION) if piece.content][:6], "...")
    print("structured:", chat.with_structured_output({"title": "answer", **ANSWER}).invoke(QUESTION))
    bound = chat.bind_tools([{"type": "function", "function": TOOL}], tool_choice="required")
    print("tools:", [(call["name"], call["args"]) for call in bound.invoke(WEATHER_TALK).tool_calls])


def with_litellm(url: str, model: str) -> None:
    """LiteLLM, which calls it a model of OpenAI's at another address."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it would ask another server for prices
    import litellm

    asked = {"model": f"openai/{model}", "api_base": f"{url}/v1", "api_key": KEY, "temperature": 0}
    asked |= {"max_tokens": N_TOKENS}
    messages = [{"role": "user", "content": QUESTION}]
    print("completion:", litellm.completion(messages=messages, **asked).choices[0].message.content)
    pieces = litellm.completion(messages=messages, stream=True, **asked)
    print("streaming:", [piece.choices[0].delta.content for piece in pieces][:6], "...")


def with_llm(url: str, model: str) -> None:
    """The command ``llm``, which reads of models at other addresses in a file."""
    with tempfile.TemporaryDirectory() as folder:
        written = f"- model_id: here\n  model_name: {model}\n  api_base: {url}/v1\n"
        Path(folder, "extra-openai-models.yaml").write_text(written, encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "llm",
            "-m",
            "here",
            "-o",
            "temperature",
            "0",
            "-o",
            "max_tokens",
            str(N_TOKENS),
            QUESTION,
        ]
        environment = os.environ | {"LLM_USER_PATH": folder}
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        print("prompt:", done.stdout.strip())


#: What is asked, and the module that has to be there for it.
CLIENTS: dict[str, tuple[str, Callable[[str, str], None]]] = {
    "curl": ("", with_curl),
    "openai": ("openai", with_openai),
    "anthropic": ("anthropic", with_anthropic),
    "langchain-openai": ("langchain_openai", with_langchain),
    "litellm": ("litellm", with_litellm),
    "llm": ("llm", with_llm),
}


def ask(url: str, model: str) -> None:
    """Have each client ask."""
    for name, (module, client) in CLIENTS.items():
        print(f"# {name}")
        if importlib.util.find_spec(module) if module else shutil.which(name):
            client(url, model)
        else:
            print("not installed")


def main() -> None:
    """Ask the server that is named, or one with the demo model."""
    if sys.argv[1:]:
        url = sys.argv[1].rstrip("/")
        import urllib.request

        with urllib.request.urlopen(f"{url}/v1/models") as reply:  # noqa: S310  # as the user says
            ask(url, json.load(reply)["data"][0]["id"])
        return
    from demo_model import demo_model

    from moebind import ContextParams
    from moebind.server import Server

    # The model's own template knows no tools; llama-server would leave them out. It also lets a model write text before
    # a call, and this one would never come to that: so two tokens of <tool_call>, "<" and "call", are made likelier.
    tools = ["--chat-template", "chatml-tools", "--logit-bias", "44+5", "--logit-bias", "4350+8"]
    with Server(demo_model(), n_ctx=2048, context_params=ContextParams(embeddings=True), extra=tools) as server:
        ask(server.url, server.models[0].name)


if __name__ == "__main__":
    main()
