"""glslc, from a cache: a shader that was compiled once is not compiled again, in whatever checkout.

``python cached_glslc.py GLSLC SHADERS ARGUMENT...``: SHADERS is a hash of glslc and of the folder that sources and what
they include are in. ggml-vulkan compiles 1,100 shaders, which takes most of its build.
"""

from __future__ import annotations

import hashlib
import os
import sys

#: How sources include others, for Ninja: all of the folder's, which is more than they do.
INCLUDED = (".glsl", ".comp")


def cache_folder() -> str:
    """As in ``vendor/fetch.py``, whose imports would take longer than all this does."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.environ.get("MOEBIND_CACHE") or os.path.join(home, "moebind")


def following(arguments: list[str], option: str) -> str | None:
    """The argument after an option."""
    return arguments[arguments.index(option) + 1] if option in arguments[:-1] else None


def kept_at(shaders: str, source: str, arguments: list[str], out: str, depends: str | None) -> str:
    """Where the shader is in the cache: by its name and options, wherever it comes from and goes to."""
    named = [os.path.basename(source) if each == source else each for each in arguments if each not in (out, depends)]
    key = hashlib.sha256("\0".join(named).encode()).hexdigest()
    return os.path.join(cache_folder(), "shaders", shaders, f"{key[:32]}.spv")


def copy(source: str, target: str) -> bool:
    """Copy a file, in one rename; False where there is none, or where it cannot be written."""
    try:
        with open(source, "rb") as file:
            content = file.read()
        os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
        with open(f"{target}.{os.getpid()}", "wb") as file:
            file.write(content)
        os.replace(file.name, target)
    except OSError:
        return False
    return True


def compiled(glslc: str, arguments: list[str]) -> tuple[int, bytes]:
    """Run glslc: its exit status, and what it complained about."""
    import subprocess  # takes as long as all the rest, where nothing is compiled

    done = subprocess.run([glslc, *arguments], check=False, stderr=subprocess.PIPE)
    sys.stderr.buffer.write(done.stderr)
    return done.returncode, done.stderr


def main(glslc: str, shaders: str, arguments: list[str]) -> int:
    """Compile, or take it from the cache; the exit status is glslc's."""
    out, depends = following(arguments, "-o"), following(arguments, "-MF")
    source = next((each for each in arguments if each.endswith(".comp")), None)
    if source is None or out in (None, "-"):  # to see what glslc supports
        return compiled(glslc, arguments)[0]
    kept = kept_at(shaders, source, arguments, str(out), depends)
    if not copy(kept, str(out)):
        status, complaints = compiled(glslc, arguments)
        if status == 0 and not complaints:
            copy(str(out), kept)
        return status
    if depends is not None:
        folder = os.path.dirname(source)
        files = [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name.endswith(INCLUDED)]
        with open(depends, "w", encoding="utf-8") as file:
            file.write(f"{out}: {' '.join(files)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
