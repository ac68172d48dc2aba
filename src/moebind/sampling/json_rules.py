"""Rules of llama-common's grammars that are not what a schema says, and what stands in their place."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from moebind.errors import GrammarError

__all__ = ["with_corrected_rules", "with_property_order"]

CORRECTED = {
    # An escape may be half of a surrogate pair, which is no character; two are one.
    r'char ::= [^"\\\x7F\x00-\x1F] | [\\] (["\\bfnrt] | "u" [0-9a-fA-F]{4})': (
        r'char ::= [^"\\\x7F\x00-\x1F] | [\\] (["\\bfnrt] | "u" ([0-9a-cA-CefEF] [0-9a-fA-F]{3} | '
        r'[dD] [0-7] [0-9a-fA-F]{2} | [dD] [89abAB] [0-9a-fA-F]{2} "\\u" [dD] [c-fC-F] [0-9a-fA-F]{2}))'
    ),
    # Every month has 31 days, and there is a year 0000.
    'date ::= [0-9]{4} "-" ( "0" [1-9] | "1" [0-2] ) "-" ( "0" [1-9] | [1-2] [0-9] | "3" [0-1] )': (
        'date ::= ( [1-9] [0-9]{3} | "0" ( [1-9] [0-9]{2} | "0" ( [1-9] [0-9] | "0" [1-9] ) ) ) "-" ( '
        '( "0" [13578] | "1" [02] ) "-" ( "0" [1-9] | [12] [0-9] | "3" [01] ) | '
        '( "0" [469] | "11" ) "-" ( "0" [1-9] | [12] [0-9] | "30" ) | "02-" ( "0" [1-9] | "1" [0-9] | "2" [0-8] ) )'
    ),
}
#: How they begin.
NAMES = tuple(rule.partition("::=")[0] + "::=" for rule in CORRECTED)


def with_corrected_rules(grammar: str) -> str:
    """A grammar of llama-common's with what stands in place of its wrong rules.

    Raises
    ------
    GrammarError
        If one of them is there in another form than the known one.
    """
    lines = grammar.split("\n")
    for line in lines:
        if line.startswith(NAMES) and line not in CORRECTED:
            raise GrammarError(f"llama-common wrote a rule that moebind does not know: {line}")
    return "\n".join(CORRECTED.get(line, line) for line in lines)


#: Names of properties.
Names: TypeAlias = tuple[str, ...]

_RULE = re.compile(r"([a-zA-Z0-9-]+) ::= (.*)")
#: An object with properties that are required, and others.
_OBJECT = re.compile(r'"\{" space ([a-zA-Z0-9-]+(?: "," space [a-zA-Z0-9-]+)*) \( "," space \( (.+) \) \)\? space "\}"')
_KEY = re.compile(r'"((?:[^"\\]|\\.)*)" space ":" space ')
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}


def with_property_order(grammar: str, orders: Mapping[tuple[Names, Names], Sequence[Names]]) -> str:
    """A grammar of llama-common's in which the properties of an object come in the schema's order.

    llama-common puts the required ones first. ``orders`` are those by the names of the required and the other ones.
    """
    lines = grammar.split("\n")
    rules = {found[1]: found[2] for found in map(_RULE.fullmatch, lines) if found}
    keys = {rule: _key(found[1]) for rule, text in rules.items() if (found := _KEY.match(text))}
    for at, line in enumerate(lines):
        rule = _RULE.fullmatch(line)
        found = rule and _OBJECT.fullmatch(rule[2])
        if not rule or not found:
            continue
        first = found[1].split(' "," space ')
        last = [each.split()[0] for each in found[2].split(" | ")]
        if not all(each in keys for each in (*first, *last)):
            continue
        names = tuple(keys[each] for each in first), tuple(keys[each] for each in last)
        wanted = [order for order in orders.get(names, ()) if order != names[0] + names[1]]
        if not wanted:
            continue
        by_name = {keys[each]: each for each in (*first, *last)}
        ways = [_ordered([by_name[key] for key in order], set(first)) for order in wanted]
        if len(orders[names]) > len(wanted):
            ways.append(rule[2])  # another object is written so
        lines[at] = f"{rule[1]} ::= {' | '.join(ways)}"
    return "\n".join(lines)


def _key(literal: str) -> str:
    """A property's name, from the text of its JSON in a rule."""
    return str(json.loads(re.sub(r"\\(.)", lambda found: _ESCAPES.get(found[1], found[1]), literal)))


def _ordered(rules: Sequence[str], required: set[str]) -> str:
    """An object of which some properties, but not all, may be left out."""
    parts, begun = [], False
    for rule in rules:
        if rule not in required:
            parts.append(f'( "," space {rule} )?' if begun else f'( {rule} "," space )?')
        else:
            parts.append(f'"," space {rule}' if begun else rule)
            begun = True
    return f'"{{" space {" ".join(parts)} space "}}"'
