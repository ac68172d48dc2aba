"""Sphinx's settings. Build with ``sphinx-build -nW -b html docs docs/_build/html``, moebind being installed."""

from __future__ import annotations

import html
import os
import re

from docutils.parsers.rst.directives.tables import CSVTable
from sphinx.application import Sphinx

import moebind

project = "moebind"
author = project_copyright = "the moebind authors"
version = release = moebind.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_copybutton",
]
#: Results are reports of benchmarks, for those who read the repository.
exclude_patterns = ["_build", "results"]
nitpicky = True
#: Types of Python, numpy, matplotlib and cffi: references are elsewhere, and this site is built without a network.
nitpick_ignore_regex = [
    (r"py:.*", r"(np|os|codecs|contextlib|collections\.abc)\..*"),
    (r"py:class", r"ArrayLike|NDArray|CData|Buffer|Figure"),
    # What an engine's options are for type checkers; its documentation names them.
    (r"py:class", r"(moebind\..*\.)?(GenerateOptions|ChatOptions)"),
    # In a union, whose parts have no aliases.
    (
        r"py:class",
        r"ModelBase|ProjectorBase|Stop|TypeAliasForwardRef|(moebind\..*\.)?(SpeculativeType|Decoding)",
    ),
]

#: The base classes by which lower rooms know models and contexts; a reader has the real ones.
autodoc_type_aliases = {
    "ModelBase": "moebind.Model",
    "ContextBase": "moebind.Context",
    "SampledContext": "moebind.Context",
    "ProjectorBase": "moebind.mtmd.MtmdContext",
}

html_theme = "furo"
html_title = f"moebind {release}"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
#: Each page has a link to edit it where MOEBIND_REPOSITORY says whose files these are: https://github.com/OWNER/NAME.
if repository := os.environ.get("MOEBIND_REPOSITORY"):
    html_theme_options = {
        "source_repository": repository,
        "source_branch": "main",
        "source_directory": "docs/",
        "top_of_page_buttons": ["edit"],
    }
#: What is typed is copied, without prompts and output.
copybutton_prompt_text = "$ "
copybutton_line_continuation_character = "\\"
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autosummary_generate = False
numpydoc_show_class_members = False


#: Spaces within ``92.8 %``, ``58.0 ± 10.9``, ``0.13 ms`` and ``0.93 to 1.05``.
_IN_FIGURES = re.compile(
    r"(?<=\d) (?=[%±]|(?:[kMG]i?B|ms|µs|s)\b|to \d)"
    r"|(?:(?<=±)|(?<=\d to)|(?<=least)|(?<=most)) (?=\d)"
)


def _keep_figures_whole(app: Sphinx, page: str, source: list[str]) -> None:
    """In tables, no line breaks within figures, by spaces that do not break."""
    source[0] = "\n".join(
        _IN_FIGURES.sub("\u00a0", line) if line.startswith("|") else line
        for line in source[0].split("\n")
    )


class NameTable(CSVTable):
    """A file of names, tabs and notes as a table: names are code, and a note stands behind the name that it is of."""

    #: A name in a note: what has a point, an underline or a bracket, but for llama.cpp's own.
    _NAME = re.compile(r"(?<![\w.])(?!llama\.cpp\b)\w+(?:::|[._\[(=])[^\s,;]*")

    @classmethod
    def _of_names(cls, row: str) -> str:
        name, here, note = (*row.split("\t"), "")[:3]
        if re.fullmatch(r"\w+(\.\w+)*(, \w+(\.\w+)*)*", here):
            here = ", ".join(f"`{each}`" for each in here.split(", "))
        else:
            here = cls._NAME.sub(r"`\g<0>`", here)
        note = cls._NAME.sub(r"`\g<0>`", note)
        return f"`{name}`\t{note if here == '-' else f'{here}: {note}' if note else here}"

    def parse_csv_data_into_rows(
        self, csv_data: list[str], dialect: object, source: str
    ) -> tuple[list[object], int]:
        """Rows of two cells each."""
        head, *rows = csv_data
        head = "\t".join(head.split("\t")[:2])
        lines = [head, *map(self._of_names, rows)]
        return super().parse_csv_data_into_rows(lines, dialect, source)


def _may_cut_long_words(
    app: Sphinx, page: str, template: str, context: dict[str, object], doctree: object
) -> None:
    """Mark words of code that are wider than a telephone, or than a column there: site.css cuts only those."""

    def marked(word: re.Match[str]) -> str:
        length = len(html.unescape(word[1]))
        kind = " long" if length > 40 else " wide" if length > 13 else ""
        return f'<span class="pre{kind}">{word[1]}</span>'

    body = str(context.get("body", ""))
    context["body"] = re.sub(r'<span class="pre">([^<]+)</span>', marked, body)


#: What is in signatures only to say in an error what is meant: a class whose objects others make, fields of parameters
#: by position, arguments that go elsewhere.
_FOR_ERRORS = [
    (r"\(\*_arguments(: object)?, \*\*_keywords(: object)?\)", ""),
    (r"\(\*_arguments(: object)?, \*\*keywords(: object)?\)", "(**fields)"),
    (r", \*\*unknown: (~typing\.)?Never", ""),
]


def _readable(
    _app: object,
    _what: str,
    _name: str,
    _object: object,
    _options: object,
    signature: str | None,
    result: str | None,
) -> tuple[str, str | None] | None:
    if not signature:
        return None
    for pattern, readable in _FOR_ERRORS:
        signature = re.sub(pattern, readable, signature)
    return signature, result


def setup(app: Sphinx) -> None:
    """Have figures and words of code kept whole, and signatures shown without what is there only for errors."""
    app.add_directive("name-table", NameTable)
    app.connect("source-read", _keep_figures_whole)
    app.connect("html-page-context", _may_cut_long_words)
    app.connect("autodoc-process-signature", _readable)
