"""Frameworks that others wrote, each with a short program, at a server of moebind's.

    python examples/frameworks/run.py                          # the demo model, all frameworks
    python examples/frameworks/run.py langchain dspy --url http://127.0.0.1:11435
    python examples/frameworks/run.py --write docs/frameworks.md

Their packages (700 MB) are installed into an environment of its own, which is thrown away at the end unless
`--environment` names a folder for it. With `--write`, what each prints goes into that page, after the line that names
its program.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
import venv
from contextlib import ExitStack
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
#: What keeps two of them from asking other servers for prices, and from telling theirs who they are.
QUIET = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "HAYSTACK_TELEMETRY_ENABLED": "False"}
FRAMEWORKS = {path.stem.removeprefix("with_"): path for path in sorted(HERE.glob("with_*.py"))}


def packages(program: Path) -> list[str]:
    """The packages that a program says it needs."""
    found = re.search(r"^Packages: (.+)$", program.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None, program
    return found[1].split()


def environment(folder: Path, wanted: list[str]) -> Path:
    """An environment with these packages; its Python."""
    python = folder / "bin/python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    print(f"installing {', '.join(wanted)} into {folder}", file=sys.stderr)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted], check=True)
    return python


def written(page: str, outputs: dict[str, str]) -> str:
    """The page, with what each program printed in the block after its ``$ python examples/frameworks/NAME.py`` line."""
    for name, output in outputs.items():
        block = re.compile(rf"(```console\n\$ python examples/frameworks/with_{name}\.py\n).*?(```\n)", re.DOTALL)
        if not block.search(page):
            raise SystemExit(f"the page has no block that begins with '$ python examples/frameworks/with_{name}.py'")
        page = block.sub(lambda found, output=output: found[1] + output + found[2], page)
    return page


def main() -> None:
    """Run the programs that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("frameworks", nargs="*", metavar="FRAMEWORK", help=f"of {', '.join(FRAMEWORKS)}")
    parser.add_argument("--url", help="a server that runs; without it, one with the demo model is started")
    parser.add_argument("--environment", type=Path, help="keep the environment in this folder")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write what they print into this page")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.frameworks if name not in FRAMEWORKS]
    if unknown:
        parser.error(f"there is no example for {unknown[0]}; there are {', '.join(FRAMEWORKS)}")
    chosen = {name: FRAMEWORKS[name] for name in arguments.frameworks or FRAMEWORKS}

    with ExitStack() as stack:
        folder = arguments.environment or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        python = environment(folder, [each for program in chosen.values() for each in packages(program)])
        if arguments.url:
            url = arguments.url.rstrip("/")
            with urllib.request.urlopen(f"{url}/v1/models") as reply:  # noqa: S310  # as the user says
                model = json.load(reply)["data"][0]["id"]
        else:
            from demo_model import demo_model

            from moebind import ContextParams
            from moebind.server import Server

            threads = ContextParams(n_threads=1, n_threads_batch=1)  # enough for this model, on a busy machine, too
            template = ["--chat-template", "chatml"]  # without a system prompt, which the model's own adds
            server = stack.enter_context(Server(demo_model(), n_ctx=8192, context_params=threads, extra=template))
            url, model = server.url, server.models[0].name
        outputs: dict[str, str] = {}
        for name, program in chosen.items():
            print(f"# {name}", flush=True)
            command = [python, program, url, model]
            done = subprocess.run(command, env=os.environ | QUIET, stdout=subprocess.PIPE, text=True, check=True)
            outputs[name] = done.stdout
            print(done.stdout, end="", flush=True)
    if arguments.write:
        page = arguments.write.read_text(encoding="utf-8")
        arguments.write.write_text(written(page, outputs), encoding="utf-8")


if __name__ == "__main__":
    main()
