"""Refuses models of single architectures whose numbers or tensors would end the process (``architecture_facts.py``)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from moebind.files.architecture_facts import MULTIPLES, NONZERO_KEYS, REQUIRED_KEYS, REQUIRED_TENSORS, SEVERAL_AXES

__all__ = ["architecture_problems"]


def architecture_problems(
    architecture: str,
    integers: Callable[[str], list[int]],
    head: int,
    tensors: Iterable[str],
) -> Iterator[tuple[str, str]]:
    """Find values and missing tensors that end the process when this architecture is loaded.

    Parameters
    ----------
    architecture
        Its name in files.
    integers
        Gives the numbers under a key, which is without the architecture's name.
    head
        The width of a head.
    tensors
        The names of all tensors.

    Yields
    ------
    tuple[str, str]
        A key without the architecture's name, or the name of a tensor, and what is wrong with it.
    """
    for key, concerned in NONZERO_KEYS.items():
        if architecture in concerned and 0 in integers(key):
            yield key, "is 0; it takes 1 or more"
    for key, concerned in REQUIRED_KEYS.items():
        if architecture in concerned and not integers(key):
            yield key, "is missing; it takes 1 or more"
    for key, (step, concerned) in MULTIPLES.items():
        for value in integers(key):
            if architecture in concerned and value and value % step:
                yield key, f"is {value}; it takes a multiple of {step}"
    sections = integers("rope.dimension_sections")
    if architecture in SEVERAL_AXES and not (any(sections[:3]) and sum(sections) <= max(head, 1)):
        yield (
            "rope.dimension_sections",
            f"is {sections or 'missing'}; the first three are not all 0, together they are at most {head}",
        )
    indexer = integers("attention.indexer.key_length")
    if architecture == "deepseek4" and indexer == integers("attention.key_length"):
        # Its caches without layers then divide by the width of their keys.
        yield "attention.indexer.key_length", f"is {indexer[0] if indexer else 'missing'}, as attention.key_length is"
    names = set(tensors)
    for concerned, mark, groups in REQUIRED_TENSORS:
        if architecture not in concerned:
            continue
        pattern = re.compile(re.escape(mark).replace(r"\{\}", r"(\d+)"))
        for name in names:
            found = pattern.fullmatch(name)
            if found is None:
                continue
            layer = found[1] if found.groups() else ""
            if not any(all(each.format(layer) in names for each in group) for group in groups):
                wanted = " or ".join(", ".join(each.format(layer) for each in group) for group in groups)
                yield name, f"does without {wanted}"
