"""The words of a command line: which of them are options.

As for llama.cpp's programs, a single dash begins the name of one option, of one letter or more: ``-no-cnv`` is never
``-n`` with the value ``o-cnv``, nor several options in one word.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from moebind.cli.other_programs import changes_nothing

__all__ = ["WrongOptionError", "is_single", "names_of", "read_words"]

#: An option of one letter with a number behind it, such as ``-c4096``, which no option of several letters looks like.
_NUMBER = re.compile(r"(-[A-Za-z])-?\.?\d.*", re.DOTALL)


class WrongOptionError(TypeError):
    """A command has no option of this name, or one that takes no value has one."""


def read_words(words: Sequence[str], params: Iterable[Any], command: str, why_not: Callable[[str], str]) -> list[str]:
    """The words as typer is to read them: without options that change nothing.

    Parameters
    ----------
    words
        Those behind the command.
    params
        Its options and arguments, as typer has them.
    command
        Its name.
    why_not
        The sentence on an option that it does not have.

    Raises
    ------
    WrongOptionError
        If there is a single dash before what is none of its options, or before one with a value that it does not take.
    """
    takes_value = {name: not each.is_flag for each in params if hasattr(each, "is_flag") for name in names_of(each)}
    return list(_read(iter(words), takes_value, command, why_not))


def names_of(param: Any) -> list[str]:
    """All names of an option of typer's."""
    return [*param.opts, *param.secondary_opts]


def _read(
    words: Iterator[str], takes_value: dict[str, bool], command: str, why_not: Callable[[str], str]
) -> Iterator[str]:
    for word in words:
        name, equals, value = word.partition("=")
        if word == "--":
            yield word
            yield from words
        elif name in takes_value:
            if not equals:
                yield word
                yield from islice(words, int(takes_value[name]))
            elif name.startswith("--"):
                yield word
            elif takes_value[name]:
                yield from (name, value)  # of one letter, typer would take =16 for the value of -n=16
            else:
                raise WrongOptionError(f"{name} has a value, and takes none")
        elif is_single(word) and not changes_nothing(word, command) and not _has_number(word, takes_value):
            raise WrongOptionError(why_not(name))
        elif not changes_nothing(word, command):
            yield word


def is_single(word: str) -> bool:
    """Whether it begins with a single dash, and has something behind it."""
    return len(word) > 1 and word[0] == "-" != word[1]


def _has_number(word: str, takes_value: dict[str, bool]) -> bool:
    """Whether it is an option of one letter with a number behind it."""
    found = _NUMBER.fullmatch(word)
    return found is not None and takes_value.get(found[1], False)
