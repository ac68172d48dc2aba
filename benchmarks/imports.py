"""How long ``import moebind`` takes beyond ``import numpy``, in fresh processes.

python benchmarks/imports.py [PYTHON]      # PYTHON: of an environment with moebind installed from a wheel
"""

from __future__ import annotations

import statistics
import subprocess
import sys

CODE = "import time, numpy; t = time.perf_counter(); import moebind; print(1e3 * (time.perf_counter() - t))"
ROUNDS = 15


def main() -> None:
    """Measure and print."""
    python = sys.argv[1] if len(sys.argv) > 1 else sys.executable
    command = [python, "-I", "-c", CODE]
    times = [float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(ROUNDS)]
    print(f"import moebind: {statistics.median(times):.1f} ms beyond numpy ({min(times):.1f} to {max(times):.1f})")


if __name__ == "__main__":
    main()
