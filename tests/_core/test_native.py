"""Importing moebind from its source folder, where nothing is built."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "moebind"


def import_in(folder: Path) -> subprocess.CompletedProcess[str]:
    # Without site: the environment of a checkout knows where its built library is.
    command = [sys.executable, "-S", "-c", "import moebind"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_source_folder_says_that_nothing_is_built_in_it(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "moebind", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    done = import_in(tmp_path)
    assert done.returncode != 0
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: {tmp_path / 'moebind'} is the source folder of moebind, which has no built")
    assert "another folder" in last
    assert ".venv/bin/python" in last


def test_other_missing_modules_are_not_explained_away(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "moebind", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (tmp_path / "moebind" / "_libllama.py").write_text("import not_there\n", encoding="utf-8")
    done = import_in(tmp_path)
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'not_there'"
