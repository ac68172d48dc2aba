"""Wheels of moebind: build, repair and try them, as docs/wheels.md tells.

python tools/wheels build FOLDER                  # for this machine's kind of processor, on this system
python tools/wheels build FOLDER --flavour cuda13
python tools/wheels build FOLDER --machine aarch64
python tools/wheels repair WHEEL FOLDER
python tools/wheels root debian-13 ROOT           # a distribution in a folder
python tools/wheels index WHEEL FOLDER            # a local index with all that it depends on
python tools/wheels try FOLDER [--root ROOT]      # install from that index, and run it
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from building import CROSS, BuildError, build
from clean import TrialError, fill_index, libc_here, try_here, try_in
from flavours import FLAVOURS
from repair import RepairError, repair
from roots import PYTHON, ROOTS, RootError, make
from tested import ROOT, tiny_model


def build_and_repair(arguments: argparse.Namespace) -> None:
    """Build a wheel and repair it."""
    # In the checkout, at the depth of developers' builds: ccache then has what these have compiled.
    kind = "-".join(filter(None, (arguments.flavour, arguments.machine)))
    objects = arguments.objects or ROOT / "build" / f"wheel-{kind}"
    wanted = {name: getattr(arguments, name) for name in ("jobs", "architectures", "variants", "machine")}
    built = build(arguments.flavour, arguments.folder / "raw", objects, **wanted)
    print(built)
    repaired = repair(built.wheel, arguments.folder, CROSS[arguments.machine].libraries if arguments.machine else ())
    print(f"{repaired.name}: {repaired.stat().st_size / 1e6:.1f} MB")


def try_wheel(arguments: argparse.Namespace) -> None:
    """Install a wheel from a local index, and run it."""
    if arguments.tests and not arguments.root:
        raise TrialError("--tests are run in a distribution: give --root")
    with tempfile.TemporaryDirectory() as scratch:
        model = arguments.model or tiny_model(Path(scratch))
        if arguments.root:
            print(json.dumps(try_in(arguments.root, PYTHON, arguments.folder, model, arguments.tests)))
        else:
            print(json.dumps(try_here(arguments.folder, model.resolve(), Path(scratch) / "env")))


def commands() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python tools/wheels", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")

    one = verbs.add_parser("build", help="build a wheel and repair it")
    one.add_argument("folder", type=Path, help="where it goes")
    one.add_argument("--flavour", choices=FLAVOURS, default="cpu")
    one.add_argument("--architectures", default="", help="cards, such as 90, for a wheel with CUDA; empty: all")
    one.add_argument(
        "--variants", nargs="+", default=(), metavar="NAME", help="kinds of processors, such as haswell; all"
    )
    one.add_argument("--machine", choices=CROSS, default="", help="build with cross compilers")
    one.add_argument("--objects", type=Path, help="the build folder, in which a stopped build goes on")
    one.add_argument("--jobs", type=int, default=2)
    one.set_defaults(run=build_and_repair)

    one = verbs.add_parser("repair", help="make a wheel one that others can use")
    one.add_argument("wheel", type=Path)
    one.add_argument("folder", type=Path)
    one.set_defaults(run=lambda told: print(repair(told.wheel, told.folder)))

    one = verbs.add_parser("root", help="make a distribution in a folder")
    one.add_argument("name", choices=ROOTS)
    one.add_argument("folder", type=Path)
    one.set_defaults(run=lambda told: make(told.name, told.folder))

    one = verbs.add_parser("index", help="make a local index with a wheel and what it depends on")
    one.add_argument("wheel", type=Path)
    one.add_argument("folder", type=Path)
    here = ".".join(platform.python_version_tuple()[:2])
    one.add_argument("--python", default=here, help="for which Python, such as 3.13; this one")
    one.add_argument("--libc", type=int, default=libc_here(), help="for which C library: 36 is 2.36; this system's")
    one.set_defaults(run=lambda told: fill_index(told.wheel, told.folder, told.python, told.libc))

    one = verbs.add_parser("try", help="install a wheel from a local index, and run it")
    one.add_argument("folder", type=Path)
    one.add_argument("--root", type=Path, help="a distribution to try it in, without a compiler")
    one.add_argument("--model", type=Path, help="what it writes with; a tiny model if it is not given")
    one.add_argument("--tests", nargs="+", default=(), metavar="TEST", help="which, with a root; those of tested.py")
    one.set_defaults(run=try_wheel)
    return parser


def main() -> int:
    """Run a command."""
    arguments = commands().parse_args()
    try:
        arguments.run(arguments)
    except (BuildError, RepairError, RootError, TrialError, subprocess.CalledProcessError) as error:
        print(f"wheels: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
