"""Arguments of Context.chat: those of the template are in template_kwargs, and what it does not know it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from conftest import SMALL
from moebind import ContextParams, GrammarError, Model

HELLO = [{"role": "user", "content": "Hello"}]
TEMPLATE = "{{ 'thinks' if enable_thinking else 'answers' }} {{ tone }} {{ messages[0].content }}"


def test_arguments_of_the_template(moe: Model) -> None:
    with moe.new_context(SMALL) as context:
        reply = context.chat(HELLO, template=TEMPLATE, template_kwargs={"tone": "dryly"}, max_tokens=1)
        assert reply.prompt.prompt == "thinks dryly Hello"
        asked = {"enable_thinking": False, "tone": [1]}
        assert context.chat(HELLO, template=TEMPLATE, template_kwargs=asked).prompt.prompt == "answers 1 Hello"
        # As llama.cpp's server does; transformers leaves it undefined.
        assert moe.apply_chat_template(HELLO, template=TEMPLATE) == "thinks  Hello"


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ({"typical_p": 0.8}, r"no argument 'typical_p': pass .* Sampler.typical\(0.9\)"),
        ({"logit_bias": {}}, r"no argument 'logit_bias': pass .* Sampler.logit_bias"),
        ({"grammar": "root ::= [a]"}, r"Sampler.grammar"),
        ({"temp": 0.8}, "it is 'temperature' here"),
        ({"max_new_tokens": 8}, "it is 'max_tokens' here"),
        ({"temprature": 0.8}, "did you mean 'temperature'"),
        ({"max_token": 3}, "did you mean 'max_tokens'"),
        ({"tool": []}, "did you mean 'tools'"),
        ({"enable_thinking": False}, r"template_kwargs=\{'enable_thinking': ...\}"),
        ({"unknown": object()}, r"template_kwargs=\{'unknown': ...\}"),
        ({"template_kwargs": {"tools": []}}, "template_kwargs has 'tools'"),
        ({"template_kwargs": {"enforced": False}}, "template_kwargs has 'enforced'"),
        ({"template_kwargs": {3: 4}}, "template_kwargs has 3"),
        ({"template_kwargs": "x"}, "template_kwargs is 'x'"),
    ],
)
def test_what_chat_does_not_know_is_refused(moe: Model, argument: dict[str, Any], told: str) -> None:
    with moe.new_context(ContextParams(n_ctx=64, n_threads=1)) as context, pytest.raises(TypeError, match=told):
        context.chat(HELLO, template="chatml", **argument)


EMAIL = {"type": "string", "format": "email"}
LOST = "the grammar does not hold a .* to all of the"


def test_texts_need_not_be_held_to_all_of_a_schema(moe: Model) -> None:
    with moe.new_context(SMALL) as context:
        for call in (context.generate, lambda prompt, **given: context.generate_many([prompt], **given)):
            with pytest.raises(GrammarError, match="pass strict=False"):
                call("a", json_schema=EMAIL)
            with pytest.warns(UserWarning, match=LOST) as caught:
                text = call("a", json_schema=EMAIL, strict=False, max_tokens=2).complete()  # type: ignore[attr-defined]
            assert [each.filename for each in caught] == [__file__]
            assert str(text[0] if isinstance(text, list) else text).startswith('"')
            with pytest.raises(TypeError, match="strict is 1"):
                call("a", json_schema=EMAIL, strict=1)  # type: ignore[arg-type]


def test_each_prompt_may_say_how_strict_it_is(moe: Model) -> None:
    with moe.new_context(SMALL) as context:
        mine = {"prompt": "a", "json_schema": EMAIL}
        with pytest.warns(UserWarning, match=LOST):
            context.generate_many([{**mine, "strict": False}], max_tokens=1).complete()
        with pytest.warns(UserWarning, match=LOST):
            context.generate_many([mine], strict=False, max_tokens=1).complete()
        with pytest.raises(GrammarError, match=r"prompts\[0\]: .*email"):
            context.generate_many([{**mine, "strict": True}], strict=False, max_tokens=1)
