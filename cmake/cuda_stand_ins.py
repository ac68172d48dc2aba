"""Link with one more object file: a function that aborts for each C++ function that the others use and none defines.

``python cuda_stand_ins.py CC NM LINKER ARGUMENT...``; see CudaSmoke.cmake.
"""

from __future__ import annotations

import re
import subprocess
import sys

SAYS = "this moebind is a smoke build (MOEBIND_CUDA_SMOKE=ON): it has no CUDA kernels"


def stand_ins(compiler: str, nm: str, objects: list[str], out: str) -> None:
    """Write ``out``."""
    listed = subprocess.run([nm, "--format=posix", *objects], check=True, capture_output=True, text=True).stdout
    symbols = [line.split()[:2] for line in listed.splitlines() if len(line.split()) >= 2]
    defined = {name for name, kind in symbols if kind != "U"}
    # Free functions: llama.cpp's own. The standard library's are in namespaces, CUDA's are C.
    wanted = sorted({name for name, kind in symbols if kind == "U" and re.match(r"_Z\d", name)} - defined)
    code = ["void ggml_abort(const char *, int, const char *, ...) __attribute__((noreturn));"]
    for index, name in enumerate(wanted):
        code += [f'void stand_in_{index}(void) __asm__("{name}");']
        code += [f'void stand_in_{index}(void) {{ ggml_abort("CudaSmoke.cmake", 0, "{SAYS}"); }}']
    command = [compiler, "-fPIC", "-fexceptions", "-c", "-x", "c", "-o", out, "-"]
    subprocess.run(command, input="\n".join(code), check=True, text=True)


def main(compiler: str, nm: str, link: list[str]) -> int:
    """Link, and give the linker's exit status."""
    made = f"{link[link.index('-o') + 1]}.stand-ins.o"
    stand_ins(compiler, nm, [word for word in link if word.endswith(".o")], made)
    return subprocess.run([*link, made], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
