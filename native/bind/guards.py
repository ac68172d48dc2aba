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

#: What must not be called once a device is lost: it would end the process (``device_lost`` in guard.h).
FREE_ON_DEVICES = {"llama_free", "llama_model_free", "ggml_backend_buffer_free", "mtmd_free"}

#: Functions that make something, and what frees it. For each f there is an own_f besides, which has the result owned
#: (native/core/owned.cpp) before Python sees it: whatever is raised between two calls, nothing leaks.
MADE = {
    "ggml_init": "ggml_free",
    "ggml_threadpool_new": "ggml_threadpool_free",
    "gguf_init_empty": "gguf_free",
    "gguf_init_from_file": "gguf_free",
    "llama_batch_ext_init": "llama_batch_ext_free",
    "llama_model_load_from_file": "llama_model_free",
    "llama_model_load_from_splits": "llama_model_free",
    "llama_sampler_chain_init": "llama_sampler_free",
    "llama_sampler_clone": "llama_sampler_free",
    "moebind_adapter_load": "moebind_adapter_free",
    "moebind_bitmap_decode": "mtmd_bitmap_free",
    "moebind_chat_apply": "moebind_text_free",
    "moebind_chat_parse": "moebind_text_free",
    "moebind_chat_parser_new": "moebind_chat_parser_free",
    "moebind_chat_templates_new": "moebind_chat_templates_free",
    "moebind_context_counted": "llama_free",
    "moebind_context_new": "llama_free",
    "moebind_gguf_open": "gguf_free",
    "moebind_grammars_new": "moebind_grammars_free",
    "moebind_hooks_new": "moebind_hooks_free",
    "moebind_model_load": "llama_model_free",
    "moebind_reference": "moebind_unreference",
    "moebind_sampler_grammar": "llama_sampler_free",
    "moebind_sampler_infill": "llama_sampler_free",
    "moebind_sampler_python": "llama_sampler_free",
    "moebind_speculative_new": "moebind_speculative_free",
    "moebind_take_output": "ggml_backend_buffer_free",
    "mtmd_batch_init": "mtmd_batch_free",
    "mtmd_bitmap_init": "mtmd_bitmap_free",
    "mtmd_bitmap_init_from_audio": "mtmd_bitmap_free",
    "mtmd_init_from_file": "mtmd_free",
    "mtmd_input_chunk_copy": "mtmd_input_chunk_free",
    "mtmd_input_chunks_init": "mtmd_input_chunks_free",
}

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


def freed_by(function: Function) -> str | None:
    """The function that frees what this one makes, if it is to be owned."""
    return "llama_sampler_free" if function.name.startswith("llama_sampler_init_") else MADE.get(function.name)


def owning(functions: Sequence[Function]) -> list[Function]:
    """``own_f`` for each function ``f`` that makes something: it takes a place for a ``moebind_owned`` first."""
    missing = MADE.keys() - {function.name for function in functions}
    if missing:
        raise SystemExit(f"native/bind/guards.py: llama.cpp has no {', '.join(sorted(missing))} any more")
    return [_owning(function) for function in functions if freed_by(function)]


def _owning(function: Function) -> Function:
    name = f"own_{function.name}"
    decl = copy.deepcopy(function.decl)
    decl.name = _innermost(decl.type.type).declname = name
    owned = c_ast.TypeDecl("owned", [], None, c_ast.Struct("moebind_owned", None))
    first = c_ast.Decl("owned", [], [], [], [], c_ast.PtrDecl([], c_ast.PtrDecl([], owned)), None, None)
    decl.type.args = c_ast.ParamList([first, *copy.deepcopy(function.parameters)])
    return Function(name, function.header, decl)


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
    by_name = {function.name: function for function in functions}

    def called(name: str, arguments: str) -> str:
        where = f'moebind::in_backend<decltype({name})>("{name}")' if name in loaded else name
        return f"{where}({arguments})"

    lines = [
        HEAD
        + includes
        + '#include "backends.h"\n#include "guard.h"\n#include "guards.h"\n#include "owned.h"\n\nextern "C" {\n'
    ]
    for function in functions:
        result, declaration, arguments = _named(function, f"guarded_{function.name}")
        call = called(function.name, arguments)
        made = by_name.get(function.name.removeprefix("own_"))
        if made is not None and made is not function:
            given = arguments.partition(", ")[2]
            call = f"moebind::own<guarded_{freed_by(made)}>(a0, {called(made.name, given)})"
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
