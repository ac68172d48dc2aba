"""Read the vendored C headers into a syntax tree.

The preprocessor sees small stand-ins for the system's headers, so that what reaches pycparser is the API and
nothing else. Everything keeps the header it came from; ``cdef.py`` and ``guards.py`` choose by that.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pycparser import CParser, c_ast

STAND_INS = Path(__file__).parent / "stand-ins"

#: Headers whose functions and constants are bound. Types may come from anything that these include.
API_HEADERS = (
    "llama.h",
    "mtmd.h",
    "mtmd-helper.h",
    "ggml-backend.h",
    "gguf.h",
    "ggml-rpc.h",
    "ggml-cpu.h",
    "ggml.h",
    "shim.h",
    "drafts.h",
    "grammars.h",
)
#: Those of them that are moebind's own, in native/core.
OWN_HEADERS = ("shim.h", "drafts.h", "grammars.h")
#: moebind's own: what C++ calls and Python defines.
CALLBACK_HEADER = "callbacks.h"


@dataclass(frozen=True)
class Function:
    """A C function as declared: ``decl`` is pycparser's node."""

    name: str
    header: str
    decl: c_ast.Decl

    @property
    def parameters(self) -> list[c_ast.Node]:
        """Its parameters, ``(void)`` being none."""
        arguments = self.decl.type.args
        found = list(arguments.params) if arguments else []
        if len(found) == 1 and isinstance(found[0], c_ast.Typename) and is_void(found[0].type):
            return []
        return found

    @property
    def is_variadic(self) -> bool:
        """Whether it ends in ``...``: such a call cannot be forwarded."""
        return any(isinstance(parameter, c_ast.EllipsisParam) for parameter in self.parameters)

    @property
    def builds_graph(self) -> bool:
        """Whether it adds an operation to a ggml graph: (ggml_context *, ..., ggml_tensor *, ...) -> ggml_tensor *."""
        parameters = self.parameters
        return (
            self.header == "ggml.h"
            and struct_behind(self.decl.type.type) == "ggml_tensor"
            and any(struct_behind(parameter.type) == "ggml_tensor" for parameter in parameters)
            and any(struct_behind(parameter.type, writable=True) == "ggml_context" for parameter in parameters)
        )


@dataclass
class Declarations:
    """What the headers declare, in their order."""

    types: list[c_ast.Node] = field(default_factory=list)
    constants: list[c_ast.Decl] = field(default_factory=list)
    functions: list[Function] = field(default_factory=list)
    callbacks: list[Function] = field(default_factory=list)
    macros: dict[str, str] = field(default_factory=dict)


def is_void(node: c_ast.Node) -> bool:
    """Whether a type node is plain ``void``."""
    return (
        isinstance(node, c_ast.TypeDecl) and isinstance(node.type, c_ast.IdentifierType) and node.type.names == ["void"]
    )


def struct_behind(node: c_ast.Node, writable: bool = False) -> str | None:
    """The name of the struct that a one-level pointer type points to; with ``writable``, only if it is not const."""
    if not isinstance(node, c_ast.PtrDecl) or not isinstance(node.type, c_ast.TypeDecl):
        return None
    if writable and "const" in node.type.quals:
        return None
    target = node.type.type
    return target.name if isinstance(target, c_ast.Struct) else None


def preprocess(compiler: Sequence[str], includes: Sequence[Path]) -> str:
    """Run the C preprocessor over all headers; definitions are kept for :func:`read_macros`."""
    source = "".join(f'#include "{header}"\n' for header in (*API_HEADERS, CALLBACK_HEADER))
    command = [*compiler, "-E", "-dD", "-nostdinc", "-x", "c", "-std=c11", "-D__attribute__(x)=", "-D__extension__="]
    command += [f"-I{folder}" for folder in (STAND_INS, *includes)]
    done = subprocess.run([*command, "-"], input=source, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"the preprocessor failed on the vendored headers:\n{done.stderr}")
    return done.stdout


def read_macros(preprocessed: str) -> dict[str, str]:
    """Object-like macros with a value, of the API's headers only."""
    macros: dict[str, str] = {}
    header = ""
    for line in preprocessed.splitlines():
        if marker := re.match(r'# \d+ "([^"]*)"', line):
            header = Path(marker[1]).name
        elif header in API_HEADERS and (macro := re.match(r"#define (\w+) (\S.*)$", line)):
            macros[macro[1]] = macro[2].strip()
    return macros


def read(compiler: Sequence[str], includes: Sequence[Path]) -> Declarations:
    """Parse the headers found in the folders ``includes``."""
    preprocessed = preprocess(compiler, includes)
    found = Declarations(macros=read_macros(preprocessed))
    text = "\n".join(line for line in preprocessed.splitlines() if not re.match(r"#\s*(define|undef|pragma)", line))
    typedefs: set[str] = set()
    for node in CParser().parse(text):
        header = Path(node.coord.file).name if node.coord else ""
        if Path(node.coord.file).parent == STAND_INS:
            continue
        if isinstance(node, c_ast.Decl) and isinstance(node.type, c_ast.FuncDecl):
            function = Function(node.name, header, node)
            if header == CALLBACK_HEADER:
                found.callbacks.append(function)
            elif header in API_HEADERS:
                found.functions.append(function)
        elif isinstance(node, c_ast.Decl) and node.name is not None:
            found.constants.append(node)  # static const ... = ...;
        elif isinstance(node, c_ast.Decl) or node.name not in typedefs:
            # The headers repeat some typedefs, which C allows and cffi does not.
            if isinstance(node, c_ast.Typedef):
                typedefs.add(node.name)
            found.types.append(node)
    return found
