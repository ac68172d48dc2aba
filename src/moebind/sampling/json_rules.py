"""Rules of llama-common's grammars that let through what they should not, and what stands in their place."""

from __future__ import annotations

from moebind.errors import GrammarError

__all__ = ["with_corrected_rules"]

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
