"""Whether calls are read as their template writes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import every_template
import pytest
import tiny_vocab

from moebind import ChatPrompt, ChatTemplateError, Model, ModelParams
from moebind.chat.grammar import schema_warnings
from moebind.chat.round_trip import misreads_calls

HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {"type": "function", "function": {"name": "sing", "parameters": {"type": "object", "properties": {}}}}
#: llama.cpp takes an id for a part of the form, or writes a separator twice.
MISREAD = {"Mistral-Small-3.2-24B-Instruct-2506", "upstage-Solar-Open-100B"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = tiny_vocab.write(tmp_path_factory.mktemp("round") / "chat.gguf", tiny_vocab.bpe("gpt-2"))
    with Model.load_from_file(path, ModelParams(n_gpu_layers=0, vocab_only=True)) as model:
        yield model


@pytest.mark.parametrize(
    "name",
    [
        *sorted(MISREAD),
        "CohereForAI-c4ai-command-r-plus-tool_use",  # writes more behind a call
        "LFM2-8B-A1B",  # leaves calls out of the history
        "MiniMax-M3",
        "Qwen-QwQ-32B",
        "Qwen3-Coder",
        "ibm-granite-granite-3.3-2B-Instruct",  # of which llama.cpp finds no form
        "openai-gpt-oss-120b",
    ],
)
def test_templates_whose_calls_are_misread_warn(model: Model, name: str) -> None:
    prompt = model.chat_format(HELLO, tools=[TOOL], template=every_template.templates()[name])
    assert prompt.misreads_calls == (name in MISREAD)
    told = [
        each for each in schema_warnings(prompt, [TOOL], True) if "in another form than the template writes" in each
    ]
    assert len(told) == (name in MISREAD)


def test_it_is_found_out_once(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    template = every_template.templates()["Qwen3-Coder"]
    model.chat_format(HELLO, tools=[TOOL], template=template)
    monkeypatch.setattr("moebind.chat.templates.misreads_calls", lambda render: pytest.fail("asked again"))
    assert not model.chat_format(HELLO, tools=[TOOL], template=template).misreads_calls
    assert not model.chat_format(HELLO, template="chatml").misreads_calls


def test_a_template_that_refuses_the_sample_is_not_judged() -> None:
    def refuse(asked: Mapping[str, Any]) -> ChatPrompt:
        raise ChatTemplateError("no tools, please")

    assert not misreads_calls(refuse)
