"""What is bound is what the headers declare: nothing is listed by hand, and nothing is forgotten."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

import moebind
from moebind import ffi, lib

ROOT = Path(__file__).resolve().parent.parent.parent
OWN = (ROOT / "native/bind", ROOT / "native/core")
LLAMA = ROOT / "vendor/llama.cpp"
FOLDERS = ("include", "ggml/include", "tools/mtmd")
sys.path.insert(0, str(OWN[0]))

import cdef
import guards
import headers
from pycparser import c_ast


@pytest.fixture(scope="module")
def declared() -> headers.Declarations:
    return headers.read([os.environ.get("CC", "cc")], [*OWN, *(LLAMA / folder for folder in FOLDERS)])


@pytest.fixture(scope="module")
def bound() -> set[str]:
    return set(dir(lib))


def test_every_function_is_bound_or_has_a_reason(declared: headers.Declarations, bound: set[str]) -> None:
    functions, omitted = cdef.bound_functions(declared, None)
    missing = {function.name for function in functions} - bound
    # What the headers declare and no library has: found by looking at the libraries, when moebind was built.
    assert len(missing) <= 2, missing
    for function in declared.functions:
        assert function.name in bound or function.name in omitted or function.name in missing
    assert not set(omitted) & bound


def test_what_is_omitted(declared: headers.Declarations) -> None:
    _, omitted = cdef.bound_functions(declared, None)
    by_name = {function.name: function for function in declared.functions}
    assert set(omitted.values()) == {"graph building", "variadic: such a call cannot be guarded"}
    for name, reason in omitted.items():
        if reason == "graph building":
            assert by_name[name].header == "ggml.h"
    assert {"ggml_mul_mat", "ggml_rope", "ggml_add"} <= set(omitted)
    assert not {"ggml_nbytes", "ggml_get_tensor", "ggml_get_next_tensor", "ggml_type_name", "ggml_blck_size"} & set(
        omitted
    )


def test_functions_of_loaded_backends_are_looked_up(declared: headers.Declarations) -> None:
    # A call by name would keep the extension from being imported, where ggml's CPU backend is loaded and not linked.
    functions, _ = cdef.bound_functions(declared, None)
    loaded = {function.name for function in functions if function.header == "ggml-cpu.h"}
    assert {"ggml_threadpool_new", "ggml_threadpool_free", "ggml_cpu_has_avx2"} <= loaded
    functions = [*functions, *guards.owning(functions)]
    assert "own_ggml_threadpool_new" in {function.name for function in functions}
    source = guards.definitions(functions, [], loaded)
    called = {name for name in loaded if re.search(rf"(?<!\w){name}\(", source)}
    assert called == set()
    linked = guards.definitions(functions, [], set())
    assert {name for name in loaded if re.search(rf"(?<!\w){name}\(", linked)} == loaded


def test_functions_without_a_library_are_left_out(declared: headers.Declarations) -> None:
    functions, omitted = cdef.bound_functions(declared, {"llama_decode"})
    own = {function.name for function in declared.functions if function.header in headers.OWN_HEADERS}
    assert {function.name for function in functions} == {"llama_decode"} | own
    assert omitted["llama_encode"] == "declared, but no library exports it"


@pytest.mark.parametrize(
    "header", ["llama.h", "mtmd.h", "mtmd-helper.h", "ggml-backend.h", "gguf.h", "ggml-rpc.h", "ggml-cpu.h"]
)
def test_functions_that_a_search_finds(header: str, bound: set[str], declared: headers.Declarations) -> None:
    """The same by another way: declarations found by a regular expression instead of a parser."""
    (path,) = (LLAMA / folder / header for folder in FOLDERS if (LLAMA / folder / header).exists())
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"(?m)//.*|/\*.*?\*/|^ *#.*(\\\n.*)*", "", text)
    pattern = r"(?:LLAMA|GGML|GGML_BACKEND|MTMD)_API\b[^;()]*?\b(\w+)\s*\("
    names = set(re.findall(pattern, text)) - {"DEPRECATED", "GGML_DEPRECATED"}
    assert len(names) > 5
    _, omitted = cdef.bound_functions(declared, None)
    assert len(names - bound - set(omitted)) <= 1


def test_every_enumerator_is_bound(declared: headers.Declarations, bound: set[str]) -> None:
    class Enumerators(c_ast.NodeVisitor):  # type: ignore[misc]
        names: set[str] = set()  # noqa: RUF012

        def visit_Enumerator(self, node: c_ast.Enumerator) -> None:
            self.names.add(node.name)

    for node in declared.types:
        Enumerators().visit(node)
    assert len(Enumerators.names) > 300
    assert not Enumerators.names - bound


def test_constants(bound: set[str]) -> None:
    assert lib.LLAMA_DEFAULT_SEED == 0xFFFFFFFF
    assert lib.LLAMA_TOKEN_NULL == -1
    assert lib.LLAMA_FILE_MAGIC_GGSN == 0x6767736E
    assert lib.LLAMA_SESSION_MAGIC == lib.LLAMA_FILE_MAGIC_GGSN
    assert lib.RPC_PROTO_MAJOR_VERSION >= 7
    assert lib.GGML_RPC_MAX_SERVERS == 16
    assert ffi.string(lib.GGUF_MAGIC) == b"GGUF"
    assert ffi.sizeof("struct ggml_tensor") == lib.GGML_TENSOR_SIZE
    text = (LLAMA / "include/llama.h").read_text(encoding="utf-8")
    numbers = re.findall(r"^#define (LLAMA_\w+) +(?:-?\d+|0x[0-9a-fA-F]+u?)\s*(?://.*)?$", text, re.MULTILINE)
    assert len(numbers) > 6
    assert not set(numbers) - bound


def test_every_constant_that_a_search_finds(bound: set[str]) -> None:
    literal = r"""[-+]?(?:0x[0-9a-fA-F]+|\d[\d.]*(?:e[-+]?\d+)?)[uUlLf]*|"[^"]*"|'.'"""
    pattern = rf"^#\s*define ([A-Za-z]\w*)[ \t]+\(?(?:{literal})\)?[ \t]*(?://.*|/\*.*)?$"
    names: set[str] = set()
    for folder in FOLDERS:
        for header in (LLAMA / folder).glob("*.h"):
            if header.name in headers.API_HEADERS:
                names.update(re.findall(pattern, header.read_text(encoding="utf-8"), re.MULTILINE))
    assert len(names) > 40
    assert not names - bound


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("3", "#define X ..."),
        ("0xFFu", "#define X ..."),
        ("-1", "#define X ..."),
        ("(1 << 3)", "#define X ..."),
        ('"text"', "static const char *const X;"),
        ("1.5f", "static const double X;"),
        ("Y", "#define X ..."),
        ("Z", None),
        ("sizeof(int)", None),
        ("__attribute__((x))", None),
    ],
)
def test_macros(value: str, expected: str | None) -> None:
    assert cdef.macro_declaration("X", value, {"X": value, "Y": "7", "Z": "X"}) == expected


def test_structs_have_the_headers_fields() -> None:
    for struct in ("llama_model_params", "llama_context_params", "llama_batch", "llama_token_data", "llama_sampler_i"):
        text = (LLAMA / "include/llama.h").read_text(encoding="utf-8")
        body = re.search(rf"struct {struct} \{{(.*?)\n    \}}", text, re.DOTALL)
        assert body is not None
        plain = re.sub(r"//.*", "", body[1])
        names = re.findall(r"\(\*(\w+)\)\s*\(|[\s*](\w+)\s*;", plain)
        assert {name for pair in names for name in pair if name} == {
            name for name, _ in ffi.typeof(f"struct {struct}").fields
        }


def test_arrays_have_the_compilers_size() -> None:
    assert ffi.sizeof("struct llama_model_kv_override") == 4 + 128 + 128 + 4
    assert dict(ffi.typeof("struct ggml_tensor").fields)["ne"].type.length == lib.GGML_MAX_DIMS


def test_enums_of_the_package_are_complete(bound: set[str]) -> None:
    prefixes = {
        moebind.VocabType: "LLAMA_VOCAB_TYPE_", moebind.RopeType: "LLAMA_ROPE_TYPE_",
        moebind.RopeScalingType: "LLAMA_ROPE_SCALING_TYPE_", moebind.PoolingType: "LLAMA_POOLING_TYPE_",
        moebind.AttentionType: "LLAMA_ATTENTION_TYPE_", moebind.FlashAttnType: "LLAMA_FLASH_ATTN_TYPE_",
        moebind.SplitMode: "LLAMA_SPLIT_MODE_", moebind.LoadMode: "LLAMA_LOAD_MODE_",
        moebind.LazyMode: "LLAMA_LAZY_MODE_", moebind.ContextType: "LLAMA_CONTEXT_TYPE_",
        moebind.NumaStrategy: "GGML_NUMA_STRATEGY_", moebind.DeviceType: "GGML_BACKEND_DEVICE_TYPE_",
        moebind.GgmlType: "GGML_TYPE_", moebind.GgufType: "GGUF_TYPE_", moebind.TokenAttr: "LLAMA_TOKEN_ATTR_",
        moebind.StateSeqFlags: "LLAMA_STATE_SEQ_FLAGS_", moebind.Ftype: "LLAMA_FTYPE_",
    }  # fmt: skip
    #: Counts, and second names for the same number.
    not_members = {"COUNT", "MAX_VALUE", "SWA_ONLY"}
    for kind, prefix in prefixes.items():
        native = {name.removeprefix(prefix).removeprefix("MOSTLY_"): name for name in bound if name.startswith(prefix)}
        assert set(kind.__members__) == set(native) - not_members, kind
        for name, member in kind.__members__.items():
            assert member == getattr(lib, native[name])


def test_a_value_that_is_not_known_passes_through() -> None:
    unknown = moebind.PoolingType(17)
    assert (unknown, unknown.name) == (17, "UNKNOWN_17")
    with pytest.raises(ValueError, match="mean"):
        moebind.PoolingType("mean")


def test_a_cffi_that_writes_otherwise_stops_the_build() -> None:
    source = "  return pyresult;\n  Py_INCREF(Py_None);\n  return Py_None;\n"
    assert guards.make_calls_raise(source, 2).count("moebind_result") == 2
    with pytest.raises(SystemExit, match="does not know this cffi"):
        guards.make_calls_raise(source, 3)


def test_unchanged_files_keep_their_time(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    cdef.write_if_changed(path, "a")
    os.utime(path, (1, 1))
    cdef.write_if_changed(path, "a")
    assert path.stat().st_mtime == 1
    cdef.write_if_changed(path, "b")
    assert path.read_text() == "b"
    assert path.stat().st_mtime != 1


def test_headers_that_do_not_parse_stop_the_build(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="preprocessor failed"):
        headers.read(["cc"], [*OWN, tmp_path])
