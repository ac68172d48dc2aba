"""Roles that are misspelt."""

from __future__ import annotations

import re

import pytest
from chats import HELLO, TEMPLATE
from hypothesis import given
from hypothesis import strategies as st

from moebind import Context, Model
from moebind.chat.roles import _KNOWN, _distance, check_roles


@pytest.mark.parametrize(
    ("role", "meant"),
    [
        ("asistant", "assistant"),
        ("assitant", "assistant"),
        ("Assistant", "assistant"),
        ("USER", "user"),
        ("user ", "user"),
        ("usr", "user"),
        ("users", "user"),
        ("sytsem", "system"),
        ("tools", "tool"),
        ("develope", "developer"),
    ],
)
def test_slips_are_told(role: str, meant: str) -> None:
    told = re.escape(f"messages[1]['role'] is {role!r}; did you mean {meant!r}?")
    with pytest.raises(ValueError, match=f"^{told}$"):
        check_roles([{"role": "user"}, {"role": role}, {"role": role}], ["{{ message.role }}"])


@pytest.mark.parametrize("role", [*_KNOWN, "ipython", "critic", "context", "", "x" * 10**6, "\N{GRINNING FACE}"])
def test_other_roles_are_the_templates(role: str) -> None:
    check_roles([{"role": role}], ["{{ message.role }}"])


@pytest.mark.parametrize("source", ["{% if message.role == 'tools' %}", '{% if "tools" == role %}'])
def test_what_a_template_writes_it_knows(source: str) -> None:
    check_roles([{"role": "tools"}], ["nothing", source])
    with pytest.raises(ValueError, match="did you mean 'tool'"):
        check_roles([{"role": "tools"}], ["{{ tools }}"])


@given(st.text("abc", max_size=5), st.text("abc", max_size=5))
def test_distances(one: str, other: str) -> None:
    def slow(one: str, other: str) -> int:
        if not one or not other:
            return len(one) + len(other)
        return min(slow(one[1:], other) + 1, slow(one, other[1:]) + 1, slow(one[1:], other[1:]) + (one[0] != other[0]))

    assert min(_distance(one, other), 3) == min(slow(one, other), 3)


def test_chats_refuse_them(context: Context) -> None:
    model: Model = context.model
    wrong = [*HELLO, {"role": "asistant", "content": "Hi"}, *HELLO]
    for call in (context.chat, model.chat_format, model.apply_chat_template):
        for template in (TEMPLATE, "chatml"):
            with pytest.raises(ValueError, match=r"'role'\] is 'asistant'; did you mean 'assistant'\?"):
                call(wrong, template=template)
