"""Chat templates and messages that are wrong, too deep or too large, or never end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import chats
import numpy as np
import pytest
import tiny_vocab
from chats import DEEP, HELLO, TEMPLATE, VOCAB_ONLY

from moebind import ChatTemplateError, ClosedError, GrammarError, Model

HERE = Path(__file__).parents[1]
WEATHER = {"type": "function", "function": {"name": "weather"}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with chats.templates(tmp_path_factory.mktemp("chat")) as model:
        yield model


# --- what is refused ---

CIRCULAR: list[object] = []
CIRCULAR.append(CIRCULAR)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"template": 3}, TypeError, "template"),
        ({"template": ""}, ValueError, "template is empty"),
        ({"template": "{{ \0 }}"}, ValueError, "NUL"),
        ({"template": "{{ \ud800 }}"}, ValueError, "surrogate"),
        ({"template": "{{ 1 }}" + " " * 2**17}, ChatTemplateError, "at most 131072"),
        ({"template": "{% for x in y %}"}, ChatTemplateError, "wrong"),
        ({"template": "{{ 1 + }}"}, ChatTemplateError, "wrong.*Unexpected token"),
        ({"template": "{{ raise_exception('not so') }}"}, ChatTemplateError, "not so"),
        ({"template": "{{ f() }}"}, ChatTemplateError, "not a function"),
        ({"tools": "a"}, TypeError, "tools is 'a'"),
        ({"tools": [WEATHER, 3]}, TypeError, r"tools\[1\] is 3"),
        ({"tools": [{"type": "other"}]}, ValueError, r"tools\[0\] is of type 'other'"),
        ({"tools": [{"function": {}}]}, TypeError, "name"),
        ({"tools": [{"function": {"name": ""}}]}, ValueError, "empty name"),
        ({"tools": [{"function": {"name": "f", "description": 3}}]}, TypeError, "description"),
        ({"tools": [{"function": {"name": "f", "parameters": []}}]}, TypeError, "parameters"),
        ({"tools": [{"function": {"name": "f", "parameters": {"a": CIRCULAR}}}]}, ValueError, "nested"),
        ({"add_generation_prompt": 1}, TypeError, "add_generation_prompt"),
        ({"enable_thinking": "no"}, TypeError, "enable_thinking"),
        ({"tool_choice": "maybe"}, ValueError, "tool_choice"),
        ({"tool_choice": None}, TypeError, "tool_choice"),
        ({"parallel_tool_calls": "yes"}, TypeError, "parallel_tool_calls"),
        ({"reasoning_format": "x"}, ValueError, "reasoning_format"),
        ({"continue_final_message": 1}, TypeError, "continue_final_message"),
        ({"json_schema": 3}, TypeError, "schema is 3"),
        ({"json_schema": "{"}, GrammarError, "JSON"),
        ({"json_schema": "[" * 10**5}, GrammarError, "JSON|deep"),
        ({"json_schema": "3"}, GrammarError, "schema"),
        ({"json_schema": {"type": "nonsense"}}, GrammarError, "nonsense"),
        ({"x": float("inf")}, ValueError, "x is inf"),
        ({"x": {"a": [float("nan")]}}, ValueError, r"x\['a'\]\[0\] is nan"),
        ({"x": object()}, TypeError, "JSON cannot hold"),
        ({"x": np.float32(1)}, TypeError, "JSON cannot hold"),
        ({"x": b"a"}, TypeError, "JSON cannot hold"),
        ({"x": 2**64}, ValueError, "64 bits"),
        ({"x": DEEP}, ValueError, "nested more than 100"),
        ({"x": CIRCULAR}, ValueError, "nested more than 100"),
        ({"x": {"\udfff": 1}}, ValueError, "surrogate"),
        ({"\ud800": 1}, ValueError, "surrogate"),
    ],
)
def test_bad_arguments(model: Model, options: Mapping[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        model.apply_chat_template(HELLO, **options)


def test_a_closed_model(tmp_path: Path) -> None:
    path = tiny_vocab.write(tmp_path / "a.gguf", tiny_vocab.bpe("gpt-2"), **{"tokenizer.chat_template": TEMPLATE})
    model = Model.load_from_file(path, VOCAB_ONLY)
    prompt = model.chat_format(HELLO)
    model.close()
    assert prompt.parse("Hi")["content"] == "Hi"
    for use in (
        lambda: model.apply_chat_template(HELLO),
        lambda: model.parse_chat_response("Hi"),
        lambda: model.chat_template(),
        lambda: model.chat_template_names,
    ):
        with pytest.raises(ClosedError):
            use()


# --- what would end the process ---

IN_A_CHILD = """
import os, signal, sys, threading
sys.path.insert(0, {tests!r})
import tiny_vocab
from pathlib import Path
from moebind import ChatTemplateError, Model, ModelParams
path = tiny_vocab.write(Path({folder!r}) / "child.gguf", tiny_vocab.bpe("gpt-2"))
model = Model.load_from_file(path, ModelParams(n_gpu_layers=0, vocab_only=True))
def render(template, **options):
    return model.apply_chat_template([{{"role": "user", "content": "Hello"}}], template=template, **options)
{code}
assert render("{{{{ messages[0].content }}}}") == "Hello"
model.close()
print("done")
"""

#: Texts of two megabytes, and of nine hundred kilobytes.
LONG = "('" + "a" * 1000 + "' * 2000)"
SHORTER = "('" + "a" * 1000 + "' * 900)"
#: Each ends the process, or takes hours, in llama.cpp as it is.
DEADLY = {
    "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}": "recurses too deeply",
    "{% macro f(g) %}{{ g(g) }}{% endmacro %}{{ f(f) }}": "recurses too deeply",
    "{{ 1 is divisibleby(0) }}": "divisible by zero",
    "{{ range(1000000000000) | length }}": "range of more than",
    "{{ range(5, -1000000000000, -1) | length }}": "range of more than",
    "{% set n = namespace() %}{% set n.n = n %}{{ n }}": "contains itself",
    "{% set l = [1] %}{% set x = l.append(l) %}{{ l }}": "contains itself",
    "{% set n = namespace(l=[1]) %}{{ n.l.append(n) }}{{ n }}": "contains itself",
    "{% set l = [1] %}{% set x = [l][0].append(l) %}{{ l }}": "contains itself",
    "{% set l = [1] %}{% set x = l['app' ~ 'end'](l) %}{{ l }}": "contains itself",
    "{% set l = [1] %}{% set x = {'a': l}.get('a').append(l) %}{{ l }}": "contains itself",
    "{% set l = [1] %}{% set m = [l, l] %}{% set x = m.pop().append(l) %}{{ l }}": "contains itself",
    "{% set l = [1] %}{% set m = [l, l] %}{% set x = m.pop().append(m.pop()) %}{{ l }}": "contains itself",
    "{% set l = [1] %}{{ l | append(l) }}": "contains itself",
    "{% set l = [1] %}{% set x = [l] | map('append', l) | list %}{{ l }}": "contains itself|map",
    "{% for i in range(10000) %}{% set a = [a] %}{% endfor %}{{ a }}": "contains itself|nested",
    "{{ 'a' * 1000000000000 }}": "16 MiB",
    "{% set n = namespace(s='aa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}": "16 MiB",
    "{% set n = namespace(l=[1]) %}{% for i in range(60) %}{% set n.l = n.l + n.l %}{% endfor %}": "100,000 items",
    f"{{{{ {LONG} | replace('a', {LONG}) }}}}": "16 MiB",
    f"{{{{ {SHORTER} | replace('a', 'bb') }}}}": "splits or replaces too much",
    f"{{{{ {SHORTER}.split('a') }}}}": "100,000 items",
    "{{ ('a ' * 90000).split() | length }}": "splits or replaces too much",
    "{{ 'a' | indent(1000000000000) }}": "16 MiB",
    "{{ ('a\\n' * 9000) | indent(9000) }}": "16 MiB",
    f"{{{{ range(9999) | join({LONG}) }}}}": "16 MiB",
    "{{ [{'a': 1}] | tojson(indent=1000000000) }}": "indents by more than",
    f"{{% set s = {LONG} %}}{{{{ [" + "s," * 9000 + "] }}": "16 MiB|too large",
    f"{{% set s = {LONG} %}}{{{{ '" + "{}" * 9000 + "'.format(" + "s," * 8999 + "s) }}": "16 MiB",
    f"{{% set s = {LONG} %}}" + "{% for i in range(9999) %}{{ s }}{% endfor %}": "16 MiB",
    "{{ " + "[" * 60_000 + "]" * 60_000 + " }}": "recurses too deeply",
    "{{ " + "not " * 30_000 + "1 }}": "recurses too deeply",
    "{{ 'a'" + "~'a'" * 30_000 + " }}": "recurses too deeply",
    "{{ 'a'" + "|upper" * 20_000 + " }}": "recurses too deeply",
    "{{ " + "(" * 60_000 + " }}": "wrong",
    "{% if 1 %}" * 10_000 + "{% endif %}" * 2_000: "wrong",
}


def in_a_child(code: str, folder: Path) -> None:
    program = IN_A_CHILD.format(tests=str(HERE), folder=str(folder), code=code)
    script = folder / "child.py"
    script.write_text(program, encoding="utf-8")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-3000:]


def test_templates_that_would_end_the_process(tmp_path: Path) -> None:
    code = f"""
import re
for template, message in {DEADLY!r}.items():
    try:
        text = render(template)
    except ChatTemplateError as error:
        assert re.search(message, str(error)), (template[:80], str(error)[-300:])
    else:
        raise AssertionError((template[:80], text[:80]))
"""
    in_a_child(code, tmp_path)


def test_what_templates_usually_do_with_lists(model: Model) -> None:
    template = """
{%- set n = namespace(l=[], m={'a': []}) %}
{%- for i in range(5) %}{% set _ = n.l.append([i]) %}{% set _ = n.m['a'].append(n.l[-1]) %}{% endfor %}
{%- set _ = n.l.pop() %}{% set copy = n.l %}{{ copy | length }} {{ n.m.a | tojson }} {{ n.l.pop().append(1) is none }}
{%- for i in n.l %} {{ i[0] }}{% endfor %}"""
    text = model.apply_chat_template(HELLO, template=template)
    assert text.startswith("4 [[0], [1], [2], [3], [4]] ")
    assert text.endswith(" 0 1 2")


def test_ctrl_c_stops_a_template(tmp_path: Path) -> None:
    loop = "{% for i in range(10000) %}{% for j in range(10000) %}{{ i }}{% endfor %}{% endfor %}"
    code = f"""
for _ in range(2):
    try:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        render({loop!r})
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError("it was not stopped")
"""
    in_a_child(code, tmp_path)


def test_small_stacks_are_enough(tmp_path: Path) -> None:
    """The thread that calls may have hardly any stack itself."""
    code = """
threading.stack_size(64 * 1024)
texts = []
def work():
    texts.append(render("{{ messages[0].content }}" + "{{ (1 + (2 * 3)) }}" * 50))
    texts.append(model.tokens_to_str(model.str_to_token("some text " * 100)))
thread = threading.Thread(target=work)
thread.start()
thread.join()
assert texts == ["Hello" + "7" * 50, "some text " * 100], texts
"""
    in_a_child(code, tmp_path)
