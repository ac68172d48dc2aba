"""The chat templates of real models that come with llama.cpp, from the archive that vendor/fetch.py keeps."""

from __future__ import annotations

import importlib.util
import tarfile
from functools import cache
from pathlib import Path

FETCH = Path(__file__).resolve().parents[2] / "vendor/fetch.py"
FOLDER = "/models/templates/"


@cache
def templates() -> dict[str, str]:
    """The templates by name."""
    spec = importlib.util.spec_from_file_location("vendor_fetch", FETCH)
    assert spec is not None
    assert spec.loader is not None
    fetch = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = fetch  # its dataclasses look there
    spec.loader.exec_module(fetch)
    found: dict[str, str] = {}
    pin = fetch.read_lock()
    with tarfile.open(fetch.cached_archive(pin, fetch.LOCK)) as archive:
        for member in archive:
            if pin.folder + FOLDER in member.name and member.name.endswith(".jinja"):
                file = archive.extractfile(member)
                assert file is not None
                found[Path(member.name).stem] = file.read().decode()
    assert len(found) > 50
    return found
