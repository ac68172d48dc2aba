"""The tests of a wheel: those of the project's that take an installed moebind and a moment.

``python tools/wheels/tested.py`` runs them with the moebind that this Python has, after it has seen it write with a
tiny model (smoke.py). It takes the packages of ``TESTERS``. cibuildwheel runs it for every wheel of a release. With
names of files or of tests it runs those instead, as for a processor that is emulated, where all would take hours.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["ROOT", "TESTED", "TESTERS", "tiny_model"]

ROOT = Path(__file__).resolve().parents[2]
#: Of each room some, and what a wheel can get wrong: libraries that are found, assertions that unwind through them,
#: OpenMP under a name of its own (forks), what the processor's library computes (numerics), programs, and files beside
#: them (the page).
TESTED = (
    "tests/_core/test_core_native.py",
    "tests/_core/test_fork.py",
    "tests/_core/test_log.py",
    "tests/backend/test_devices.py",
    "tests/backend/test_loopback.py",
    "tests/chat/test_templates.py",
    "tests/context/test_generate.py",
    "tests/files/test_gguf.py",
    "tests/model/test_model.py",
    "tests/model/test_vocab.py",
    "tests/mtmd/test_projector.py",
    "tests/native/test_guards.py",
    "tests/numerics/test_transformers.py",
    "tests/placement/test_worker.py",
    "tests/sampling/test_sampler.py",
    "tests/sampling/test_sampling_grammar.py",
    "tests/server/test_isolation.py",
    "tests/server/test_page.py",
    "tests/state/test_state.py",
    "tests/test_public.py",
)
#: What they take besides moebind. The conftest.py of tests and docs import what these share.
TESTERS = (
    "gguf>=0.17",
    "huggingface_hub>=2",
    "hypothesis>=6.100",
    "psutil>=5.9",
    "pytest>=8",
    "pytest-timeout>=2.3",
    "sybil>=8",
    "tqdm>=4.60",
)


def tiny_model(folder: Path) -> Path:
    """A tiny mixture of experts of random weights, as the tests have it."""
    sys.path.insert(0, str(ROOT / "tests"))
    import tiny

    return tiny.write(folder / "tiny.gguf", tiny.Shape(n_expert=4))


def main() -> int:
    """Run them, or those that are named: the exit status of pytest."""
    with tempfile.TemporaryDirectory() as scratch:
        smoke = [sys.executable, str(ROOT / "tools/wheels/smoke.py"), str(tiny_model(Path(scratch)))]
        subprocess.run(smoke, check=True, cwd=scratch)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        "not thorough",
        *(sys.argv[1:] or TESTED),
    ]
    return subprocess.run(command, check=False, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
