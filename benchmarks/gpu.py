"""Build, test and measure on a machine with an NVIDIA GPU, in pieces of less than ten minutes, without a network.

    python benchmarks/gpu.py --step build                 # compile moebind with CUDA, and llama-bench
    python benchmarks/gpu.py --step measure               # the tests of tests/gpu, and all measurements
    python benchmarks/gpu.py --step report                # docs/results/...: one JSON file, one page of tables

Each measurement is kept as soon as it is there. A command stops before one that would not be over in time
(``--minutes``), ends with 3, and goes on there when it is given again. docs/gpu.md tells the rest.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
from datetime import datetime, timezone
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import gpu_carry  # beside this file, like all that follow; none of these needs moebind
import gpu_record

ROOT = gpu_carry.ROOT
#: Every step in order. What "measure" stands for is in gpu_measure.STEPS.
MEASURING = ("test", "weights", "phi", "pairs", "theirs", "demo", "settings", "refuse")
STEPS = ("pack", "unpack", "build", "measure", *MEASURING, "report")
#: What a command ends with when there is more to do.
MORE = 3


def arguments_of(given: list[str] | None = None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", nargs="+", choices=STEPS, required=True, metavar="STEP", help=", ".join(STEPS))
    parser.add_argument("--device", default="CUDA0", help="CUDA0; or loopback, a worker process that plays a GPU")
    parser.add_argument("--small", action="store_true", help="a small model and few tokens, to try the whole")
    parser.add_argument("--work", type=Path, default=ROOT / "build/gpu", help="models, records, the environment")
    parser.add_argument("--output", type=Path, help="where the report goes (docs/results)")
    parser.add_argument("--minutes", type=float, help="what this command may take; without it, as long as it needs")
    parser.add_argument("--retry", action="store_true", help="measure what failed before once more")
    parser.add_argument("--resume", type=Path, action="append", default=[], help="take measurements from this JSON")
    parser.add_argument("--threads", type=int, default=max((os.cpu_count() or 2) // 2, 1), help="half of the cores")
    parser.add_argument("--commit", help="of this checkout, where there is no git to ask")
    parser.add_argument("--architectures", default="native", help="of CUDA, for the build: native, 90, 86;90, ...")
    parser.add_argument("--carry", type=Path, default=ROOT / "carry", help="pack and unpack: the folder of parts")
    parser.add_argument("--part-size", type=int, default=56, help="pack: MiB of each part")
    parser.add_argument("--python-version", default="3.12", help="pack: of the machine that is to build")
    parser.add_argument("--skip", nargs="*", default=[], help="pack: packages that are there already")
    parser.add_argument(
        "--cuda-wheels", action="store_true", help="pack: nvcc, the runtime and cuBLAS as well (0.6 GB)"
    )
    return parser.parse_args(given)


def commit_of(arguments: argparse.Namespace) -> str:
    """The commit of this checkout, with a plus sign if files were changed since."""
    if arguments.commit:
        return str(arguments.commit)
    git = ["git", "-C", str(ROOT)]
    done = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False)
        return done.stdout.strip() + ("+" if changed.stdout.strip() else "")
    packed = arguments.work / "carried" / "commit"
    return packed.read_text(encoding="utf-8").strip() if packed.exists() else "unknown"


def pack(arguments: argparse.Namespace) -> None:
    """Gather what a machine without a network needs."""
    parts = gpu_carry.pack(
        arguments.carry,
        python=arguments.python_version,
        skip=arguments.skip,
        cuda=arguments.cuda_wheels,
        commit=commit_of(arguments),
        part_size=arguments.part_size * 2**20,
    )
    for part in parts:
        size = sum(path.stat().st_size for path in part.iterdir())
        print(f"{part}: {size / 2**20:.1f} MiB")


def unpack(arguments: argparse.Namespace) -> None:
    """Put together what was carried so far."""
    target = arguments.work / "carried"
    missing = gpu_carry.join(arguments.carry, target)
    gpu_carry.place(target)
    print(f"still to be carried: {', '.join(missing)}" if missing else "everything is there")


def environment_python(arguments: argparse.Namespace) -> Path:
    """The interpreter of the environment that ``build`` makes."""
    return Path(arguments.work) / "venv/bin/python"


def cuda_folders() -> list[str]:
    """Where pip's packages of CUDA are, of this interpreter and of any other that can be found from here."""
    found = [Path(sysconfig.get_path("purelib")) / "nvidia/cu13"]
    for name in ("python3", "python"):
        program = shutil.which(name)
        if program is not None:
            found += Path(program).parent.parent.glob("lib/python3*/site-packages/nvidia/cu13")
    return [str(path) for path in dict.fromkeys(found) if path.is_dir()]


def build(arguments: argparse.Namespace) -> None:
    """An environment of its own with moebind in it, and llama-bench."""
    python = environment_python(arguments)
    if not python.exists():
        # Its pip is the one that we have: some systems' Pythons cannot give it one.
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", python.parent.parent], check=True)
    wheels = arguments.work / "carried" / "wheels"
    offline = ["--no-index", "--find-links", wheels] if wheels.is_dir() else []
    wanted = gpu_carry.wanted(cuda=bool(offline))
    if offline:  # what was not packed is there already
        wanted = [each for each in wanted if any(wheels.glob(f"{each.split('>')[0].replace('-', '_')}-*"))]
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "--disable-pip-version-check",
        "install",
        "--quiet",
        *offline,
    ]
    subprocess.run([str(part) for part in [*pip, *wanted]], check=True)
    environment = {**os.environ, "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
    if cuda_folders() and not {"CUDA_HOME", "CUDA_PATH"} & set(environment):
        environment["CUDA_PATH"] = cuda_folders()[0]  # cuBLAS is often there, and not where nvcc is
    options = ["MOEBIND_CUDA=ON", f"CMAKE_CUDA_ARCHITECTURES={arguments.architectures}"]
    if arguments.device == "loopback":
        options = ["MOEBIND_CUDA=AUTO"]
    defined = [part for option in options for part in ("-C", f"cmake.define.{option}")]
    install = [*pip, "--no-build-isolation", "--no-deps", "-v", *defined, "--editable", ROOT]
    subprocess.run([str(part) for part in install], check=True, env=environment)
    code = "import programs; print(programs.program('llama-bench'))"
    subprocess.run([python, "-c", code], check=True, cwd=ROOT / "benchmarks", env=environment)


def has_moebind() -> bool:
    """Whether this interpreter has it."""
    import importlib.util

    return importlib.util.find_spec("moebind") is not None


def measure(arguments: argparse.Namespace, steps: list[str]) -> None:
    """Run steps until time ends, and write the report as far as it goes."""
    import gpu_measure

    record = record_of(arguments)
    run = gpu_measure.Run(
        record,
        gpu_record.Clock(arguments.minutes),
        arguments.work,
        arguments.device,
        arguments.small,
        arguments.threads,
        arguments.retry,
    )
    more = False
    for step in steps:
        print(f"== {step}", flush=True)
        try:
            gpu_measure.STEPS[step](run)
        except gpu_record.OutOfTimeError as error:  # of what follows, something may be shorter
            print(f"{error}: later", flush=True)
            more = True
    report(arguments, record)
    if more:
        print("give the command again for what is left", flush=True)
        raise SystemExit(MORE)


def record_of(arguments: argparse.Namespace) -> gpu_record.Record:
    """The measurements of this checkout on this device."""
    import gpu_measure
    import gpu_report

    found = gpu_measure.look(arguments.device, arguments.threads)
    key = {
        "commit": commit_of(arguments),
        "size": "small" if arguments.small else "full",
        "device": found["device"],
        "driver": found["driver"],
    }
    # One file for each device and size. What another commit measured is left behind.
    record = gpu_record.Record(arguments.work / f"record-{gpu_report.slug(key)}.json", key)
    record.environment = found
    for path in arguments.resume:
        print(f"{path}: {record.take(path)} measurements taken over")
    return record


def report(arguments: argparse.Namespace, record: gpu_record.Record) -> None:
    """Write the JSON and the tables."""
    import gpu_report

    day = datetime.now(timezone.utc).date().isoformat()
    name = gpu_report.file_name(record, day)
    folder = arguments.output or (arguments.work / "results" if arguments.small else ROOT / "docs/results")
    command = "python benchmarks/gpu.py --step build measure report" + (" --small" if arguments.small else "")
    if arguments.device != "CUDA0":
        command += f" --device {arguments.device}"
    for path in gpu_report.write(record, folder, name, command):
        print(path)


def main(given: list[str] | None = None) -> None:
    """Do the steps that were asked for, in their order."""
    arguments = arguments_of(given)
    arguments.work = arguments.work.resolve()
    os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])  # its cmake
    asked = set(arguments.step) | (set(MEASURING) if "measure" in arguments.step else set())
    for name, do in (("pack", pack), ("unpack", unpack), ("build", build)):
        if name in asked:
            do(arguments)
    steps = [step for step in MEASURING if step in asked]
    if not steps and "report" not in asked:
        return
    if not has_moebind():
        python = environment_python(arguments)
        if not python.exists():
            raise SystemExit(f"{sys.executable} has no moebind: --step build makes an environment with it")
        words = list(sys.argv[1:] if given is None else given)
        rest = [word for word in words if word not in {"pack", "unpack", "build"}]
        os.execv(python, [str(python), os.path.abspath(__file__), *rest])  # noqa: S606  # the same again, with moebind
    if steps:
        measure(arguments, steps)
    else:
        report(arguments, record_of(arguments))


if __name__ == "__main__":
    main()
