"""Write ``docs/llama-h.tsv``: each function of llama.h, and the public Python names that use it.

A docstring that names a function in double backquotes says that its name uses it; so the table is read from the
package. What nothing uses has its reason below. ``python tools/c_api_table.py`` writes the table; with ``--check``
it only says whether it is up to date.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import moebind

ROOT = Path(__file__).resolve().parent.parent
HEADER = ROOT / "vendor/llama.cpp/include/llama.h"
TARGET = ROOT / "docs/llama-h.tsv"
#: Modules whose names are public too, beside those of ``moebind`` itself.
MODULES: tuple[str, ...] = ()

#: Why nothing uses a function. ``moebind.lib`` has them all the same.
REASONS = {
    "llama_ftype_name": "the members of Ftype have names",
    "llama_flash_attn_type_name": "the members of FlashAttnType have names",
    "llama_load_mode_name": "the members of LoadMode have names",
    "llama_load_mode_from_str": "LoadMode[name]",
    "llama_sampler_chain_default_params": "Sampler.chain has its one field, no_perf",
    "llama_backend_free": "backends stay until the process ends",
    "llama_model_init_from_user": "takes a C callback that fills each tensor; load a file",
    "llama_model_load_from_file_ptr": "takes a C FILE; Model.load_from_file takes a path",
    "llama_adapter_lora_init_from_file_ptr": "takes a C FILE; Model.lora_adapter_init takes a path",
    "llama_get_model": "Context.model is the Model that made it",
    "llama_get_memory": "the methods of Context that begin with kv_cache_ use it",
    "llama_model_get_vocab": "a Model is its vocabulary too",
    "llama_model_meta_val_str": "Model.meta is a mapping",
    "llama_adapter_meta_val_str": "LoraAdapter.meta is a mapping",
    "llama_state_load_file": "Context.state_load_file checks the file before llama.cpp sees what is in it",
    "llama_state_seq_get_size": "Context.state_seq_size takes flags, as llama_state_seq_get_size_ext does",
    "llama_state_seq_get_data": "Context.state_seq_get takes flags, as llama_state_seq_get_data_ext does",
    "llama_state_seq_set_data": "Context.state_seq_set takes flags, as llama_state_seq_set_data_ext does",
    "llama_batch_init": "the arrays of a Batch are numpy's",
    "llama_batch_free": "the arrays of a Batch are numpy's",
    "llama_batch_ext_add_embd": "adds what llama_batch_ext_add and llama_batch_ext_set_embd_token do",
    "llama_batch_ext_set_output_embd": "sets the flag that llama_batch_ext_set_output_logits sets",
    "llama_set_abort_callback": "set when a context is made; ContextParams.abort_callback is called by it",
    "llama_log_get": "the log has one reader, the logging module",
    "llama_perf_context_print": "Context.timings returns what it prints",
    "llama_perf_sampler_print": "Sampler.timings returns what it prints",
    "llama_sampler_copy": "Sampler.clone makes a copy",
    "llama_sampler_chain_n": "len() of a chain",
    "llama_sampler_chain_remove": "a chain keeps what it was made of; make another one of clones",
    "llama_split_path": "files of a split model are found from the name of any of them",
    "llama_split_prefix": "files of a split model are found from the name of any of them",
    "llama_opt_param_filter_all": "training, which llama.cpp calls experimental",
    "llama_opt_init": "training, which llama.cpp calls experimental",
    "llama_opt_epoch": "training, which llama.cpp calls experimental",
}
#: Names that have no docstring to say so in.
PLAIN_VALUES = {"llama_cpp_version": "Uses ``llama_version``."}


def functions() -> list[str]:
    """The functions of llama.h that are not deprecated, in its order."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", HEADER.read_text(encoding="utf-8"), flags=re.DOTALL)
    deprecated = set(re.findall(r"DEPRECATED\([^();]*?\b(llama_\w+)\s*\(", text))
    declared = re.findall(r"LLAMA_API[^;{]*?\b(llama_\w+)\s*\(", text)
    return [name for name in dict.fromkeys(declared) if name not in deprecated]


def documented() -> Iterator[tuple[str, str]]:
    """Public names, as they are typed after ``moebind.``, with their docstrings."""
    for prefix, module in [
        ("", moebind),
        *((f"{each}.", importlib.import_module(f"moebind.{each}")) for each in MODULES),
    ]:
        for name in sorted({*module.__all__} - {"lib", "ffi"}):
            value = getattr(module, name)
            yield prefix + name, PLAIN_VALUES.get(name) or value.__doc__ or ""
            if not inspect.isclass(value):
                continue
            for base in reversed(value.__mro__):
                if not base.__module__.startswith("moebind."):
                    continue
                for member, found in vars(base).items():
                    if not member.startswith("_") or member in {"__init__", "__len__", "__getitem__"}:
                        function = found.__func__ if isinstance(found, (classmethod, staticmethod)) else found
                        yield f"{prefix}{name}.{member}", inspect.getdoc(function) or ""


def table() -> dict[str, tuple[list[str], str]]:
    """For each function, the names that stand on it, or why there are none."""
    rows: dict[str, tuple[list[str], str]] = {name: ([], REASONS.get(name, "")) for name in functions()}
    for name, text in documented():
        for function in dict.fromkeys(re.findall(r"``(llama_\w+)``", text)):
            if function in rows and name not in rows[function][0]:
                rows[function][0].append(name)
    return rows


def text(rows: dict[str, tuple[list[str], str]]) -> str:
    """The file."""
    lines = ["llama.h\tmoebind\n"]
    for function, (names, reason) in rows.items():
        lines.append(f"{function}\t{', '.join(names) or reason}\n")
    return "".join(lines)


def main() -> int:
    """Write the file, or check it."""
    rows = table()
    wrong = [name for name, (names, reason) in rows.items() if bool(names) == bool(reason)]
    for name in wrong:
        names, _ = rows[name]
        print(
            f"{name}: {f'has a reason, but {names[0]} names it' if names else 'no docstring names it'}", file=sys.stderr
        )
    wrong += [name for name in REASONS if name not in rows]
    if "--check" in sys.argv:
        if not TARGET.exists() or TARGET.read_text(encoding="utf-8") != text(rows):
            print(f"{TARGET} is out of date: run python {Path(__file__).name}", file=sys.stderr)
            return 1
        return bool(wrong)
    TARGET.write_text(text(rows), encoding="utf-8")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
