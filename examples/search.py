r"""Embeddings: which paragraphs of some files come nearest to a question.

    python examples/search.py "Does the file have to be in memory?" docs/state.md docs/files.md
    python examples/search.py -m nomic-embed-text-v1.5.Q8_0.gguf \
        --query "search_query: " --passage "search_document: " "Does the file have to be in memory?" docs/*.md

The demo model was made to write, not to find; an embedding model finds much better. docs/embeddings.md names some, and
what each wants before a text.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

from arguments import ModelParser

from moebind import Model


def paragraphs(path: str) -> list[tuple[str, str]]:
    """The paragraphs of a file that are long enough to say something, each with the file's name."""
    parts = Path(path).read_text(encoding="utf-8").split("\n\n")
    return [(path, " ".join(part.split())) for part in parts if len(part) > 80]


def main() -> None:
    """Print the nearest paragraphs."""
    parser = ModelParser(__doc__)
    parser.add_argument("question")
    parser.add_argument("files", nargs="+")
    parser.add_argument("--query", default="", help="what the model wants before a question")
    parser.add_argument("--passage", default="", help="what it wants before a paragraph")
    parser.add_argument("--top", type=int, default=3, help="how many to print (%(default)s)")
    arguments = parser.parsed()

    found = [each for path in arguments.files for each in paragraphs(path)]
    if not found:
        raise SystemExit("the files have no paragraph of more than 80 characters")
    with Model.load_from_file(arguments.model) as model:
        passages = model.embed([arguments.passage + text for _, text in found], normalize=True, truncate=True)
        question = model.embed(arguments.query + arguments.question, normalize=True)[0]
    scores = passages @ question  # cosines, as the vectors have length 1
    for index in scores.argsort()[::-1][: arguments.top]:
        path, text = found[index]
        print(f"{scores[index]:.3f}  {path}\n{textwrap.indent(textwrap.shorten(text, 240), '       ')}")


if __name__ == "__main__":
    main()
