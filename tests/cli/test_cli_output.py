"""Output that nobody reads, or that cannot be written."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

MakeTiny = Callable[..., Path]
MOEBIND = Path(sys.executable).with_name("moebind")


def test_a_reader_who_has_seen_enough(tiny_path: MakeTiny) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [MOEBIND, "experts", "--json", tiny_path(n_expert=4, n_layer=6)]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_output_that_cannot_be_written(tiny_path: MakeTiny, tmp_path: Path) -> None:
    command = [MOEBIND, "bench", "offload", tiny_path(n_expert=4), "--device", "loopback", "-p", "8", "-n", "2"]
    command += ["--placement", "all", "-t", "1", "--n-ctx", "256", "--warmup", "0"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert done.returncode == 0, done.stderr
    assert "all on the device" in done.stdout  # with a question mark for what ASCII does not have


def test_tables_come_before_pictures(tiny_path: MakeTiny, tmp_path: Path) -> None:
    # What was found is not lost when the drawing fails all the same.
    code = (
        "from matplotlib.figure import Figure\n"
        "def fail(*_, **__):\n    raise OSError('the disk is full')\n"
        "Figure.savefig = fail\n"
        f"from moebind.cli import main; main(['plan', {str(tiny_path())!r}, '--device', '1GiB', '--plot', 'x.png'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "moebind: the disk is full\n")
    assert "It fits." in done.stdout
