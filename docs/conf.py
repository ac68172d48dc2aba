"""Sphinx's settings. Build with ``sphinx-build -nW -b html docs docs/_build/html``, moebind being installed."""

from __future__ import annotations

import enum
import html
import os
import re

from docutils import nodes
from docutils.parsers.rst.directives.tables import CSVTable
from sphinx.application import Sphinx
from sphinx.util import inspect

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
toc_object_entries_show_parents = "hide"  # the column beside a page is narrow
#: Longer signatures than two lines have one parameter in a line.
python_maximum_signature_line_length = 200
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
#: What is told apart in signatures only for a type checker, and defaults as they are written.
_FOR_TYPES = [
    (r"(~typing\.)?SupportsIndex", "int"),
    (r"(?<![~\w.])os\.PathLike", "~os.PathLike"),
    (r"TypeAliasForwardRef\('([\w.]+)'\)", r"~\1"),
    (r"(?<![\w.])ModelBase\b", "~moebind.Model"),
    (r"(?<![\w.])ProjectorBase\b", "~moebind.mtmd.MtmdContext"),
    (r"~?([\w.]+\.)?\bDecoding\b", "~moebind.Context"),
    (r"(?<![~\w.])(moebind\.(Model|Context|mtmd\.MtmdContext))\b", r"~\1"),
    (r"(?<![\w.])Stop\b", "str | int"),
    (r"<(\w+\.\w+): -?\d+>", r"\1"),
    (
        r"~moebind\.([\w.]+\.)?ModelParams = <factory>",
        "~moebind.ModelParams = ModelParams()",
    ),
]


def _readable(
    app: Sphinx,
    _what: str,
    _name: str,
    documented: object,
    _options: object,
    signature: str | None,
    result: str | None,
) -> tuple[str, str | None] | None:
    """The signature as somebody writes it who makes an object or calls a function."""
    if isinstance(documented, type) and issubclass(documented, enum.Enum):
        return "", None
    if (
        isinstance(documented, type)
        and signature
        and re.fullmatch(_FOR_ERRORS[0][0], signature)
    ):
        # That of Owner.__new__, which takes whatever the class takes.
        taken = inspect.signature(
            documented.__init__,
            bound_method=True,
            type_aliases=app.config.autodoc_type_aliases,
        )
        signature = inspect.stringify_signature(
            taken, show_return_annotation=False, unqualified_typehints=True
        )
    for pattern, readable in [*_FOR_ERRORS, *_FOR_TYPES]:
        signature = signature and re.sub(pattern, readable, signature)
        result = result and re.sub(pattern, readable, result)
    return None if signature is None else (signature, result)


def _name_defaults(
    _app: Sphinx, _domain: str, _kind: str, content: nodes.Element
) -> None:
    """Fields whose default is an enumerator show it by name; Sphinx knows its number."""
    signature = content.parent[0]
    owner, _, field = signature.get("fullname", "").rpartition(".")
    default = getattr(getattr(moebind, owner, None), field, None)
    if isinstance(default, enum.Enum) and owner != type(default).__name__:
        number = next(
            text
            for text in reversed(list(signature.findall(nodes.Text)))
            if text.strip("-").isdigit()
        )
        number.parent.replace(
            number, nodes.Text(f"{type(default).__name__}.{default.name}")
        )


def setup(app: Sphinx) -> None:
    """Have figures and words of code kept whole, and signatures shown as somebody writes them."""
    app.add_directive("name-table", NameTable)
    app.connect("source-read", _keep_figures_whole)
    app.connect("html-page-context", _may_cut_long_words)
    app.connect("autodoc-process-signature", _readable)
    app.connect("object-description-transform", _name_defaults)
