"""Write the C++ functions that stand between Python and libllama.

Each bound function ``f`` gets a ``guarded_f`` that calls it inside ``moebind::guard`` (``native/core/guard.h``): a C++
exception or a failed GGML_ASSERT ends there, and the cffi wrapper raises it as ``NativeError``. Function-like macros
route the calls that cffi generates through the guards, while struct and enum tags of the same name stay as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from headers import Function
from pycparser import c_ast, c_generator

#: What must not be called once a device is lost: it would end the process (``settle_cuda_error`` in guard.cpp).
FREE_ON_DEVICES = {"llama_free", "llama_model_free", "ggml_backend_buffer_free"}

HEAD = "// Written by native/bind/guards.py from the vendored headers.\n"


def _innermost(node: c_ast.Node) -> c_ast.TypeDecl:
    """The part of a type that carries the declared name."""
    while not isinstance(node, c_ast.TypeDecl):
        node = node.type
    return node


def _text(node: c_ast.Node) -> str:
    return str(c_generator.CGenerator().visit(node)).replace("_Bool", "bool")


def _named(function: Function, name: str) -> tuple[str, str, str]:
    """(return type, declaration under ``name``, argument names), every parameter having a name."""
    decl = copy.deepcopy(function.decl)
    decl.storage, decl.funcspec = [], []
    result = c_ast.Typename(None, [], None, copy.deepcopy(decl.type.type))
    _innermost(result.type).declname = None
    _innermost(decl.type.type).declname = name
    parameters = Function(name, "", decl).parameters
    for index, parameter in enumerate(parameters):
        _innermost(parameter.type).declname = f"a{index}"
    if parameters:
        decl.type.args.params = [
            c_ast.Decl(f"a{index}", [], [], [], [], parameter.type, None, None)
            for index, parameter in enumerate(parameters)
        ]
    return _text(result), _text(decl), ", ".join(f"a{index}" for index in range(len(parameters)))


def declarations(functions: Sequence[Function]) -> str:
    """``guards.h``: what the extension's C source calls."""
    lines = [_named(function, f"guarded_{function.name}")[1] + ";" for function in functions]
    body = "\n".join(lines)
    return f'{HEAD}#pragma once\n#ifdef __cplusplus\nextern "C" {{\n#endif\n{body}\n#ifdef __cplusplus\n}}\n#endif\n'


def redirections(functions: Sequence[Function]) -> str:
    """Macros that send calls of ``f(...)`` to ``guarded_f(...)``."""
    return "".join(f"#define {f.name}(...) guarded_{f.name}(__VA_ARGS__)\n" for f in functions)


def definitions(functions: Sequence[Function], headers: Sequence[str], loaded: set[str]) -> str:
    """``guards.cpp``. Functions in ``loaded`` are in backends that are opened at run time, and are looked up there."""
    includes = "".join(f'#include "{header}"\n' for header in headers)
    lines = [HEAD + includes + '#include "backends.h"\n#include "guard.h"\n#include "guards.h"\n\nextern "C" {\n']
    for function in functions:
        result, declaration, arguments = _named(function, f"guarded_{function.name}")
        call = f"{function.name}({arguments})"
        if function.name in loaded:
            call = f'moebind::in_backend<decltype({function.name})>("{function.name}")({arguments})'
        if function.name in FREE_ON_DEVICES:
            call = f"moebind::device_lost() ? void() : {call}"
        lines.append(f"{declaration} {{ return moebind::guard([&]() -> {result} {{ return {call}; }}); }}\n")
    return "".join(lines) + "}\n"


def make_calls_raise(source: str, count: int) -> str:
    """Have each of cffi's wrappers end in ``moebind_result``, which raises what its guard caught.

    cffi has no hook for this, so its text is edited: the two ways in which a wrapper returns. A change in what cffi
    writes stops the build here.
    """
    value, nothing = "  return pyresult;\n", "  Py_INCREF(Py_None);\n  return Py_None;\n"
    edits = source.count(value) + source.count(nothing)
    if edits != count:
        raise SystemExit(
            f"cffi wrote {edits} wrappers for {count} functions: native/bind/guards.py does not know this cffi"
        )
    source = source.replace(value, "  return moebind_result(pyresult);\n")
    return source.replace(nothing, "  Py_INCREF(Py_None);\n  return moebind_result(Py_None);\n")
