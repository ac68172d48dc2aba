"""Messages that are continued, with the chat template of every model that llama.cpp knows."""

from __future__ import annotations

from pathlib import Path

import every_template
import pytest
import tiny_vocab

from moebind import ChatTemplateError, Model, ModelParams

HELLO = [{"role": "user", "content": "Hello"}]
#: With these a message cannot be continued.
NOT_CONTINUED = {"CohereForAI-c4ai-command-r7b-12-2024-tool_use"}


def test_the_last_message_is_continued(tmp_path: Path) -> None:
    path = tiny_vocab.write(tmp_path / "chat.gguf", tiny_vocab.bpe("gpt-2"))
    chat = [*HELLO, {"role": "assistant", "content": "Hi, I am"}]
    refused = set()
    with Model.load_from_file(path, ModelParams(n_gpu_layers=0, vocab_only=True)) as model:
        for name, template in every_template.templates().items():
            try:
                prompt = model.chat_format(chat, template=template, continue_final_message=True)
            except ChatTemplateError as error:
                refused.add(f"{name}: {error}")
                continue
            assert prompt.prompt.endswith("Hi, I am"), name
            assert prompt.prompt.count("Hi, I am") == 1, name
            assert prompt.parse(" here.")["content"] == "Hi, I am here.", name
        with pytest.raises(ValueError, match="continues the assistant's message, but the last is the user's"):
            model.chat_format(HELLO, template="chatml", continue_final_message=True)
    assert {each.partition(": ")[0] for each in refused} == NOT_CONTINUED
    assert all("begins with the message to continue" in each for each in refused)
