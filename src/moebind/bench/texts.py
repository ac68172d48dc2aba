"""Texts to compute: one for prompts of any length, and prompts on which placements are compared."""

from __future__ import annotations

__all__ = ["AGREEMENT", "TEXT"]

#: Repeated until it is long enough: text, since routers send random tokens elsewhere than text.
TEXT = """\
A river begins as rain. It falls on a hill, runs down through grass and stones, and finds the place where other water
went before it. Where two such threads meet, the stream is wide enough to have a name; where ten of them meet, people
build a bridge. The first bridges were trees that had fallen the right way. Later ones were arches of stone, which hold
because each stone wants to fall and none can. A good arch needs no mortar, only weight, and patience while it is built.
Towns grew where the bridges were. A market came on Tuesdays, then on Fridays too; somebody opened an inn, somebody else
a school, and a printer hung his sheets to dry above the street. By 1850 the railway had arrived, 34 kilometres in 41
minutes, and the price of coal fell from 12 to 7 shillings a ton. Letters that had taken a week took a day.
def arch(span, rise):
    radius = (span ** 2 / 4 + rise ** 2) / (2 * rise)
    return {"radius": radius, "angle": 2 * asin(span / (2 * radius))}
Nobody remembers who laid the first stone. It is still there, under the third pier, where the water is slow and green.
"""

#: Prose, code, numbers, a list, another language, a dialogue, a definition, a question.
AGREEMENT = (
    "The lighthouse keeper had not spoken to anyone for eleven days when the small boat came around the point, and so "
    "his first words were not a greeting but a question about the price of tobacco.",
    "def fibonacci(n: int) -> list[int]:\n    numbers = [0, 1]\n    while len(numbers) < n:\n        numbers.append(",
    "In 1969 the crossing took 14 hours and cost 32 dollars; in 1989 it took 6 hours and cost 118 dollars; in 2009 it",
    "Ingredients for four people: 400 g of flour, 3 eggs, a pinch of salt, 250 ml of milk.\n1. Sift the flour.\n2.",
    "Der alte Bahnhof liegt am Rand der Stadt, und im Winter, wenn der Wind von Norden kommt, hört man die Züge bis",
    '"You cannot mean that," said Clara. "I mean every word of it," he replied, and put the letter back into his',
    "Entropy is a measure of how many arrangements of the parts of a system look the same from outside. A gas in a box",
    "Question: Why is the sky blue in the middle of the day, and red when the sun goes down?\nAnswer:",
)
