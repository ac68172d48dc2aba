"""Turn the vendored headers into cffi declarations, guarded wrappers and the extension's C source.

Run by CMake::

    python native/bind/cdef.py --cc "gcc" --include DIR ... --library FILE ... --out DIR

and by tests, which read :func:`bound_functions` to know what the binding must offer. Nothing of the C API is written
by hand: names, types and values come from the headers, what is exported from the libraries.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import cffi
import guards
from headers import OWN_HEADERS, Declarations, Function, read
from pycparser import c_ast, c_generator

MODULE = "moebind._libllama"
#: The folders of moebind's own headers: callbacks.h is here, shim.h, drafts.h and grammars.h in the other one.
OWN = (Path(__file__).parent, Path(__file__).parent.parent / "core")


def bound_functions(found: Declarations, exported: set[str] | None) -> tuple[list[Function], dict[str, str]]:
    """Choose the functions to bind, and say of each of the others why it is not.

    Parameters
    ----------
    found
        What the headers declare.
    exported
        Symbols of the built libraries; None takes every function to exist.
    """
    chosen: dict[str, Function] = {}
    omitted: dict[str, str] = {}
    for function in found.functions:
        if function.is_variadic:
            omitted[function.name] = "variadic: such a call cannot be guarded"
        elif function.builds_graph:
            omitted[function.name] = "graph building"
        elif exported is not None and function.name not in exported and function.header not in OWN_HEADERS:
            omitted[function.name] = "declared, but no library exports it"
        else:
            chosen[function.name] = function
    return list(chosen.values()), omitted


def exported_symbols(nm: str, libraries: Iterable[Path]) -> set[str]:
    """The names that the libraries define for others."""
    symbols: set[str] = set()
    for library in libraries:
        command = [nm, "--dynamic", "--defined-only", str(library)]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        symbols.update(line.split()[-1].partition("@")[0] for line in listing.splitlines() if line)
    return symbols


class CdefGenerator(c_generator.CGenerator):
    """pycparser's C generator, writing what cffi's parser takes: the compiler fills in values and array sizes."""

    def visit_Enumerator(self, node: c_ast.Enumerator) -> str:
        return f"{self._make_indent()}{node.name} = ...,\n"

    def visit_ArrayDecl(self, node: c_ast.ArrayDecl) -> str:
        return super().visit_ArrayDecl(self._unsized(node))

    def _generate_type(self, node: c_ast.Node, modifiers: list[c_ast.Node] | None = None, **rest: bool) -> str:
        if isinstance(node, c_ast.ArrayDecl):
            node = self._unsized(node)
        return str(super()._generate_type(node, modifiers or [], **rest))

    @staticmethod
    def _unsized(node: c_ast.ArrayDecl) -> c_ast.ArrayDecl:
        if node.dim is None or isinstance(node.dim, c_ast.Constant):
            return node
        changed = copy.copy(node)
        changed.dim = c_ast.ID("...")
        return changed


def macro_declaration(name: str, value: str, macros: dict[str, str]) -> str | None:
    """How a macro reads in a cdef: an integer, a number, a string, or (None) not a constant."""
    seen = {name}
    while re.fullmatch(r"[A-Za-z_]\w*", value) and value in macros and value not in seen:
        seen.add(value)
        value = macros[value]
    if re.fullmatch(r'"[^"]*"', value):
        return f"static const char *const {name};"
    number = r"[-+]?(0[xX][0-9a-fA-F]+|\d+)[uUlL]*"
    if re.fullmatch(rf"\(?{number}(\s*<<\s*\d+)?\)?", value):
        return f"#define {name} ..."
    if re.fullmatch(r"[-+]?\d*\.\d*(e[-+]?\d+)?f?", value):
        return f"static const double {name};"
    return None


def cdef_text(found: Declarations, functions: Sequence[Function]) -> str:
    """The declarations, as cffi's ``cdef`` takes them."""
    write = CdefGenerator()
    lines = [write.visit(node) + ";" for node in found.types]
    for constant in found.constants:
        bare = copy.copy(constant)
        bare.init = None
        lines.append(write.visit(bare) + ";")
    for name, value in found.macros.items():
        if declaration := macro_declaration(name, value, found.macros):
            lines.append(declaration)
    lines += [write.visit(function.decl) + ";" for function in functions]
    lines.append('extern "Python+C" {')
    lines += [write.visit(function.decl) + ";" for function in found.callbacks]
    lines.append("}")
    return re.sub(r"\b_Bool\b", "bool", "\n".join(lines)) + "\n"


def extension_source(cdef: str, functions: Sequence[Function], includes: Sequence[str]) -> str:
    """The C source of the extension module, with guarded calls that raise."""
    ffi = cffi.FFI()
    ffi.cdef(cdef)
    preamble = "".join(f'#include "{header}"\n' for header in includes) + guards.redirections(functions)
    ffi.set_source(MODULE, preamble, py_limited_api=True)
    with tempfile.TemporaryDirectory() as scratch:
        plain = Path(scratch) / "plain.c"
        ffi.emit_c_code(str(plain))
        return guards.make_calls_raise(plain.read_text(encoding="utf-8"), len(functions))


def write_if_changed(path: Path, text: str) -> None:
    """Leave an unchanged file's time alone, so that nothing is compiled again for it."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cc", required=True, help="the C compiler, with its first arguments")
    parser.add_argument("--nm", default="nm")
    parser.add_argument("--include", type=Path, action="append", default=[], help="folders of the vendored headers")
    parser.add_argument("--library", type=Path, action="append", default=[], help="libraries that are linked")
    parser.add_argument("--module", type=Path, action="append", default=[], help="backends that are loaded at run time")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    found = read(shlex.split(arguments.cc), [*OWN, *arguments.include])
    linked = exported_symbols(arguments.nm, arguments.library)
    loaded = exported_symbols(arguments.nm, arguments.module) - linked
    functions, omitted = bound_functions(found, linked | loaded)
    functions += guards.owning(functions)
    cdef = cdef_text(found, functions)
    headers = [*sorted({function.header for function in functions}), "callbacks.h"]

    write_if_changed(arguments.out / "cdef.h", cdef)
    write_if_changed(arguments.out / "guards.h", guards.declarations(functions))
    write_if_changed(arguments.out / "guards.cpp", guards.definitions(functions, headers, loaded))
    write_if_changed(
        arguments.out / "_libllama.c", extension_source(cdef, functions, [*headers, "guard.h", "guards.h"])
    )
    write_if_changed(arguments.out / "omitted.json", json.dumps(omitted, indent=1, sort_keys=True))
    (arguments.out / "generated.stamp").touch()


if __name__ == "__main__":
    main()
