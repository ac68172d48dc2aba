"""llama.cpp's own tests of its server, run against llama-server and against ``moebind serve``, side by side.

    python tests/server/upstream.py [--only tokenize,completion] [--json FILE]

The tests are taken from the archive that the lock names. They want small models of the Hugging Face Hub; here tiny ones
with random weights stand in for them (``STAND_INS``), so that tests that expect certain words fail with both servers.
What is told is the difference: tests that pass with llama-server and not with ``moebind serve``, and why.

Their program is started by a name of its own, ``LLAMA_SERVER_BIN_PATH``; this file is that program, too, and says in
moebind's options what they say in llama-server's. And it is the pytest plugin that notes how each test ended.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve()
TESTS = HERE.parent.parent
#: What the archive has of them, relative to llama.cpp's root.
WANTED = ("tools/server/tests/", "models/templates/")
#: Variables of the run: a folder with stand-ins, which program is tested, where llama-server itself is, and a file in
#: which is noted how each test ended.
MODELS, PROGRAM, PLAIN, OUTCOMES = "UPSTREAM_MODELS", "UPSTREAM_PROGRAM", "UPSTREAM_PLAIN", "UPSTREAM_OUTCOMES"
#: The folder, in that of the stand-ins, of what a router serves.
SEVERAL = "several"

#: Tiny models by the names of those that the tests ask for.
STAND_INS: Mapping[str, Mapping[str, Any]] = {
    "ggml-org/test-model-stories260K": {"n_ctx_train": 2048},
    "ggml-org/models:tinyllamas/split/stories15M-q8_0-00001-of-00003.gguf": {"n_ctx_train": 2048},
    "ggml-org/models:bert-bge-small/ggml-model-f16.gguf": {"arch": "bert", "n_head_kv": 4, "n_ctx_train": 512},
    "ggml-org/models:jina-reranker-v1-tiny-en/ggml-model-f16.gguf": {
        "arch": "bert",
        "n_head_kv": 4,
        "n_ctx_train": 512,
        "n_cls_out": 1,
    },
    "ggml-org/stories15M_MOE:stories15M_MOE-F16.gguf": {"n_expert": 4, "n_ctx_train": 2048},
    "stories15M-q4_0.gguf": {"n_ctx_train": 2048, "n_layer": 1},
}

#: Options that moebind serve has itself, under the same names.
OURS = {
    "--batch-size",
    "--cache-type-k",
    "--cache-type-v",
    "--ctx-size",
    "--flash-attn",
    "--host",
    "--models-dir",
    "--n-gpu-layers",
    "--parallel",
    "--pooling",
    "--port",
    "--threads",
    "--ubatch-size",
    "-ctk",
    "-ctv",
    "-fa",
}
SWITCHES = {"--embedding", "--kv-unified", "--no-ui", "--swa-full"}


PROGRAMS = ("llama-server", "moebind serve")


class Outcome(NamedTuple):
    """How a test ended: passed, failed or skipped; and the line that says why."""

    ended: str
    reason: str


# --- The program that the tests start


def write_stand_ins(folder: Path) -> None:
    """All of them, before the tests begin."""
    import tiny

    for number, shape in enumerate(STAND_INS.values()):
        tiny.write(folder / f"{number}.gguf", tiny.Shape(**shape))
    several = folder / SEVERAL
    several.mkdir()
    for name in "ab":
        (several / f"{name}.gguf").symlink_to(folder / "0.gguf")


def stand_in(name: str) -> Path:
    """A model in the place of another."""
    if name not in STAND_INS:
        raise SystemExit(f"upstream: no stand-in for {name}")
    return Path(os.environ[MODELS], f"{[*STAND_INS].index(name)}.gguf")


def options(arguments: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Options with their values; None for those without."""
    rest = list(arguments)
    while rest:
        name = rest.pop(0)
        has_value = bool(rest) and not (rest[0].startswith("--") or rest[0] in OURS)
        yield name, rest.pop(0) if has_value else None


def translated(arguments: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """The same for moebind serve, for llama-server itself, and the keys."""
    given = dict(options(arguments))
    ours: list[str] = []
    theirs: list[str] = []
    model, alias = chosen(given), given.pop("--alias", None)
    if model is not None:
        ours.append(model if alias is None else called(model, alias))
    elif "--models-dir" not in given:
        given["--models-dir"] = os.path.join(os.environ[MODELS], SEVERAL)
    keys = str(given.pop("--api-key", "") or "").split(",")
    given.pop("--offline", None)  # as moebind always does
    if given.pop("--reranking", "") is None:
        ours += ["--embeddings", "--pooling", "rank"]
    if "--parallel" in given and "--kv-unified" not in given:
        ours.append("--no-kv-unified")  # llama-server's default for a number that is given
    given.setdefault("--threads", "1")
    for name, value in given.items():
        into = ours if name in OURS or name in SWITCHES else theirs
        into += [name] if value is None else [name, value]
    return ours, theirs, [key for key in keys if key]


def chosen(given: dict[str, str | None]) -> str | None:
    """The model that they name; None for a router, which llama-server is for the models of its cache."""
    repo, file = given.pop("--hf-repo", None), given.pop("--hf-file", None)
    if repo is None:
        return given.pop("--model", None)
    return str(stand_in(repo if file is None else f"{repo}:{file}"))


def called(model: str, alias: str) -> str:
    """The same model in a file of that name, since moebind calls a model as its file."""
    link = Path(tempfile.mkdtemp(dir=os.environ[MODELS]), f"{alias}.gguf")
    link.symlink_to(model)
    return str(link)


def as_llama_server(arguments: Sequence[str]) -> None:
    """Become the program that the tests mean to start."""
    if os.environ[PROGRAM] == "moebind serve":
        ours, theirs, keys = translated(arguments)
        if keys:
            file = Path(tempfile.mkdtemp(dir=os.environ[MODELS]), "keys")
            file.write_text("\n".join(keys) + "\n", encoding="utf-8")
            ours += ["--api-key-file", str(file)]
        command = [sys.executable, "-m", "moebind", "serve", *ours, "--verbose", "--", *theirs]
    else:
        given = dict(options(arguments))
        model = chosen(given)
        if model is not None:
            given["--model"] = model
        elif "--models-dir" not in given:
            given["--models-dir"] = os.path.join(os.environ[MODELS], SEVERAL)
        given.setdefault("--threads", "1")
        written = [each for pair in given.items() for each in pair if each is not None]
        command = [os.environ[PLAIN], *written]
    os.execv(command[0], command)  # noqa: S606  # this is its process


# --- The plugin of the run


def download(url: str, out: str) -> None:
    """Put a stand-in where a model would have been downloaded to; the tests import it as ``wget.download``."""
    name = url.rsplit("/", 1)[-1]
    if name not in STAND_INS:
        raise OSError(f"no stand-in for {name}")
    Path(out).parent.mkdir(exist_ok=True)
    shutil.copyfile(stand_in(name), out)


def pytest_configure(config: Any) -> None:
    """Fill no cache from the Hub before the tests begin."""
    import utils  # of the tests

    utils.ServerPreset.load_all = staticmethod(lambda: None)
    if hasattr(config, "workerinput"):  # of xdist, which sends its reports to the first process
        del os.environ[OUTCOMES]


def pytest_runtest_logreport(report: Any) -> None:
    """Note how a test ended, at once: a run may be ended before its end."""
    if OUTCOMES in os.environ and (report.when == "call" or (report.when == "setup" and not report.passed)):
        with open(os.environ[OUTCOMES], "a", encoding="utf-8") as file:
            print(json.dumps([report.nodeid, report.outcome, reason(report)]), file=file)


def reason(report: Any) -> str:
    """Why it failed: what the program said of that itself, or the line at which it did."""
    if report.passed:
        return ""
    if report.skipped:
        return str(report.longrepr[-1]) if isinstance(report.longrepr, tuple) else str(report.longrepr)
    lines = report.capstdout.splitlines() + report.capstderr.splitlines()
    said = [line for line in lines if line.startswith(("moebind: ", "upstream: "))]
    crash = getattr(report.longrepr, "reprcrash", None)
    failed = str(report.longrepr) if crash is None else crash.message
    return said[-1] if said else failed.splitlines()[0][:200]


# --- The run


def program_path() -> str:
    """llama-server itself."""
    from moebind.server.process import program

    return program()


def unpack(into: Path) -> Path:
    """The tests, in a folder."""
    sys.path.insert(0, str(TESTS))
    from checkout import fetch

    pin = fetch.read_lock()
    with tarfile.open(fetch.cached_archive(pin, fetch.LOCK), "r:gz") as tar:
        for member in tar:
            path = member.name.partition(f"/{pin.folder}/")[2]
            if member.isfile() and path.startswith(WANTED):
                target = into / path
                target.parent.mkdir(parents=True, exist_ok=True)
                data = tar.extractfile(member)
                assert data is not None
                target.write_bytes(data.read())
    folder = into / WANTED[0]
    (folder / "wget.py").write_text(f"from {HERE.stem} import download\n", encoding="utf-8")
    return folder


def run(program: str, folder: Path, only: Sequence[str], workers: int) -> dict[str, Outcome]:
    """How each test ended with a server."""
    with tempfile.TemporaryDirectory() as scratch:
        starter, outcomes, models = (Path(scratch) / name for name in ("llama-server", "outcomes", "models"))
        models.mkdir()
        write_stand_ins(models)
        outcomes.touch()
        starter.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{HERE}" --as-llama-server "$@"\n', encoding="utf-8")
        starter.chmod(0o755)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        environment = os.environ | {
            "LLAMA_SERVER_BIN_PATH": str(starter),
            "PORT": str(port),
            "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(TESTS), str(folder)]),
            MODELS: str(models),
            PLAIN: program_path(),
            PROGRAM: program,
            OUTCOMES: str(outcomes),
        }
        files = [f"unit/test_{name}.py" for name in only] or ["unit"]
        command = [sys.executable, "-m", "pytest", "-q", "-p", HERE.stem, "-p", "no:cacheprovider", "-m", "not slow"]
        command += ["--tb=no", "--timeout=300", *(["-n", str(workers), "--dist=worksteal"] if workers > 1 else [])]
        subprocess.run([*command, *files], cwd=folder, env=environment, check=False)
        lines = [json.loads(line) for line in outcomes.read_text(encoding="utf-8").splitlines()]
        return {name: Outcome(ended, why) for name, ended, why in lines}


def table(plain: Mapping[str, Outcome], ours: Mapping[str, Outcome]) -> list[str]:
    """A row for each file of tests."""
    rows = ["| tests | llama-server | moebind serve | both fail | left out |", "| --- | --- | --- | --- | --- |"]
    files = sorted({name.split("::")[0] for name in {**plain, **ours}})
    for file in files:
        names = [name for name in {**plain, **ours} if name.startswith(f"{file}::")]
        ends = [(plain.get(name, Outcome("", "")).ended, ours.get(name, Outcome("", "")).ended) for name in names]
        count = Counter(ends)
        passed = [sum(end[at] == "passed" for end in ends) for at in (0, 1)]
        skipped = sum("skipped" in end for end in ends)
        label = Path(file).stem.removeprefix("test_")
        rows.append(f"| {label} | {passed[0]} | {passed[1]} | {count['failed', 'failed']} | {skipped} |")
    return rows


def differences(plain: Mapping[str, Outcome], ours: Mapping[str, Outcome]) -> list[str]:
    """Tests that pass with one of them only."""
    return [
        f"{name.split('/')[-1]}: {'llama-server' if ended == 'passed' else 'moebind serve'} only: "
        f"{(ours[name].reason or why).strip()}"
        for name, (ended, why) in plain.items()
        if name in ours and (ended == "passed") != (ours[name].ended == "passed")
    ]


def main() -> None:
    """Run them with both, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", default="", metavar="A,B", help="some files of tests")
    parser.add_argument("--json", type=Path, help="write how each test ended there")
    parser.add_argument("--workers", type=int, default=1, help="tests at a time; these take ports from 8080 on")
    asked = parser.parse_args()
    only = [each for each in asked.only.split(",") if each]
    with tempfile.TemporaryDirectory() as scratch:
        folder = unpack(Path(scratch))
        plain, ours = (run(program, folder, only, asked.workers) for program in PROGRAMS)
    print(*table(plain, ours), "", *differences(plain, ours), sep="\n")
    if asked.json is not None:
        asked.json.write_text(json.dumps(dict(zip(PROGRAMS, (plain, ours), strict=True)), indent=1), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as-llama-server"]:
        as_llama_server(sys.argv[2:])
    else:
        main()
