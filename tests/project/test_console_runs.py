"""What the pages tell a reader to type is run, or is in a table below that says why not and what does it instead.

A command of moebind's is run as it stands, with tiny models, few tokens and one thread; servers take a free port. Where
the page shows what comes of it, the model is the demo's, and what comes is compared, but for its numbers.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import drafts
import projectors
import pytest
from hub_server import Hub, serving
from pages import PAGES, ROOT
from serving import PATIENCE
from transcripts import VARIABLES, assert_shows, blocks

MakeTiny = Callable[..., Path]


class Block(NamedTuple):
    """A block of a page: commands, and what each wrote there."""

    page: str
    commands: list[tuple[str, str]]


class Row(NamedTuple):
    """Commands that are not run here: why, and the tests of what they do, if there are some."""

    page: str
    pattern: str
    why: str
    tests: str = ""


BLOCKS = [Block(page.relative_to(ROOT).as_posix(), block) for page in PAGES for block in blocks(page)]
COMPILED = "compiles, which takes minutes"
NOT_HERE = (
    # Pages whose own tests run them.
    Row("docs/cli.md", r"(echo .*)?moebind (chat|generate|probe|embed|rerank|tokenize|bench [bd]|get|inspect|list)",
        "", "tests/cli/test_cli_docs.py"),
    Row("docs/cli.md", r"moebind (devices|quantize|routing)", "", "tests/cli/test_cli_docs.py"),
    Row("docs/integrations.md", r"llm |cat population\.py|export ", "", "tests/integrations/test_integrations_page.py"),
    Row("docs/placement.md", r"python benchmarks/shapes\.py|moebind fit models/", "",
        "tests/placement/test_placement_page.py"),
    Row("docs/serving.md", r"moebind serve .*(-ngl 3|--bind 127.0.0.1:11435|--host 0.0.0.0$)", "",
        "tests/server/test_serving_pages.py"),
    Row("docs/evaluation.md", r"cat |head |python -m moebind\.integrations\.lm_eval", "",
        "tests/integrations/test_lm_eval.py"),
    Row("docs/clients.md", r"python examples/clients\.py", "", "tests/project/test_examples.py"),
    # What makes an environment, brings packages, or builds.
    Row("", r"python3 -m venv|apt-get install", "changes the machine"),
    Row("", r"(MOEBIND_CUDA\w*=\w+ )*pip install ", COMPILED, "tests/project/test_extras.py"),
    Row("docs/build.md", r"python -m build --sdist", COMPILED, "tests/project/test_packaging.py"),
    Row("docs/build.md", r"cmake --build", COMPILED),
    Row("", r"make (environment|test|test-all|serve|demo|bench|bump VERSION=\S+)$", "sets up everything first"),
    Row("docs/build.md", r"GGML_VK_VISIBLE_DEVICES=0 make demo", "takes Mesa's software driver",
        "tests/project/test_examples.py"),
    Row("docs/wheels.md", r"python tools/wheels ", "compiles, downloads or takes root", "tests/project/test_wheels.py"),
    # Tests, and what runs for hours.
    Row("", r"(\w+=\w+ )?(\.venv/bin/)?python -m pytest ", "is a test itself"),
    Row("docs/clients.md", r"python tests/server/upstream\.py", "", "tests/server/test_upstream.py"),
    Row("docs/reliability.md", r"python tools/sanitize\.py", COMPILED, "tests/project/test_sanitize.py"),
    Row("docs/reliability.md", r"python tests/fuzz/hours\.py", "takes hours", "tests/fuzz/test_hours.py"),
    Row("docs/gpu.md", r"python benchmarks/gpu\.py", "takes a card, or minutes", "tests/project/test_gpu_benchmark.py"),
    Row("docs/gpu.md", r"python benchmarks/weights\.py", "writes 25 GB", "tests/project/test_weights.py"),
    Row("docs/speed.md", r"python benchmarks/speed\.py", "takes half an hour", "tests/project/test_speed_benchmark.py"),
    Row("docs/speed.md", r"python benchmarks/instructions\.py", "", "tests/project/test_instructions.py"),
    # Packages of hundreds of megabytes.
    Row("docs/frameworks.md", r"python examples/frameworks/", "brings large packages",
        "tests/project/test_frameworks.py"),
    Row("docs/ray.md", r"python examples/ray_", "brings Ray", "tests/server/test_ray.py"),
    Row("docs/examples.md", r"python examples/chat\.py$", "", "tests/project/test_examples_short.py"),
    # Other machines.
    Row("docs/ray.md", r"numactl ", "takes a machine with two NUMA nodes"),
    Row("docs/from_ollama.md", r"ln -s ~/\.ollama/", "takes Ollama's files"),
    Row("", r"moebind .*\b192\.168\.1\.2", "takes other machines", "tests/server/test_remote_workers.py"),
)  # fmt: skip
#: What takes minutes or hours, and what is asked of it here.
SHORTER = {
    r"(python benchmarks/serving_load\.py tiny\.gguf --threads 1)": r"\1 --seconds 1 --clients 2 --connections 4",
    r"(python benchmarks/serving_speed\.py) --seconds 150": r"\1 --seconds 1 --clients 2 --tokens 4 --threads 1",
    r"--forks 1500": "--forks 4 --per-round 2",
    r"--count 300": "--count 2",
    r"--minutes 20": "--minutes 0.02",
}


def plain(command: str) -> str:
    """A command on one line, without its comment."""
    return re.sub(r" +# .*$", "", command.replace("\\\n", " ").strip())


def elsewhere(page: str, command: str) -> Row | None:
    """Why a command is not run here."""
    return next((row for row in NOT_HERE if row.page in {"", page} and re.match(row.pattern, plain(command))), None)


def test_every_command_is_run_or_it_is_said_why_not() -> None:
    commands = [(block.page, command) for block in BLOCKS for command, _ in block.commands]
    assert len(commands) > 150
    left = [(page, command) for page, command in commands if not elsewhere(page, command) and not runs(command)]
    assert left == []
    for row in NOT_HERE:
        assert any(elsewhere(page, command) is row for page, command in commands), row
        assert row.why or row.tests, row
        assert not row.tests or (ROOT / row.tests).is_file(), row


def runs(command: str) -> bool:
    """Whether it is a command that is run here."""
    typed = re.match(r"moebind |curl |ln -sf |(?:\.venv/bin/)?python (\S+\.py)\b", plain(command))
    return typed is not None and (typed[1] is None or (ROOT / typed[1]).is_file())


def quick(command: str) -> str:
    """The same with few tokens, one thread, and a port that is free."""
    words, dashes, others = plain(command).partition(" -- ")
    for pattern, shorter in SHORTER.items():
        words = re.sub(pattern, shorter, words)
    words = re.sub(r"(?:\.venv/bin/)?python (?=benchmarks|examples|tests)", f"python {ROOT}/", words)

    def add(programs: str, option: str, value: str = "") -> None:
        nonlocal words
        if re.match(programs, words) and f" {option} " not in words:
            words += f" {option} {value}".rstrip()

    add(r"moebind (generate|chat)|python \S+examples/generate", "-n", "2")
    add(r"moebind (bench|cache|chat|generate|serve|tune)|python \S+examples/generate", "-t", "1")
    add(r"moebind chat", "--chat-template", "chatml")
    add(r"moebind get", "--yes")
    if words.startswith("moebind serve"):
        words = re.sub(r"--host 0\.0\.0\.0|--bind \S+|--port \d+", "", words) + " --port 0"
    if words.startswith("moebind bench offload"):
        words = re.sub(r"-p 256 -n 64 -c 2048", "", words) + " -p 8 -n 2 -c 256 -r 3 --no-progress"
    return words + dashes + others


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, tiny_path: MakeTiny) -> Iterator[Hub]:
    """The repositories that pages name, with a model that predicts ahead, and a head that drafts."""
    mtp = drafts.write_mtp(tmp_path_factory.mktemp("mtp") / "mtp.gguf")
    files = {"FILE.gguf": tiny_path(), "a-Q4_K_M.gguf": mtp, "eagle3-a.gguf": tiny_path(n_layer=1)}
    with serving({"OWNER/REPO": files, "someone/demo-moe-GGUF": {"demo-moe-Q4_1.gguf": tiny_path(n_expert=4)}}) as hub:
        yield hub


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_path: MakeTiny) -> Path:
    """What pages name, as tiny models, and files beside them."""
    folder = tmp_path_factory.mktemp("models")
    moe, dense = tiny_path(n_expert=4, n_ctx_train=8192), tiny_path(n_ctx_train=8192)
    projectors.put_seeing_model(folder)
    for name in ("moe", "models/moe", "tiny", "qwen3-30b"):
        (folder / f"{name}.gguf").parent.mkdir(exist_ok=True)
        (folder / f"{name}.gguf").symlink_to(moe)
    for name in ("draft", "more/small"):
        (folder / f"{name}.gguf").parent.mkdir(exist_ok=True)
        (folder / f"{name}.gguf").symlink_to(dense)
    (folder / "keys").write_text("a-key\n", encoding="utf-8")
    return folder


@pytest.fixture
def folder(models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models, tmp_path / "typed", symlinks=True))


def variables(folder: Path, hub: Hub) -> dict[str, str]:
    return {**VARIABLES, "HF_ENDPOINT": hub.endpoint, "HF_HUB_CACHE": str(folder / "cache"), "HF_TOKEN": ""}


@contextlib.contextmanager
def served(command: str, folder: Path, told: dict[str, str]) -> Iterator[str]:
    """A server, and its address; it ends as it should."""
    with subprocess.Popen(
        ["bash", "-c", f"exec {quick(command)}"], cwd=folder, env=told, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None and process.stderr is not None
            address = process.stdout.readline().strip()
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+", address), address + process.stderr.read()
            yield address
            process.terminate()
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


def typed(command: str, folder: Path, told: dict[str, str]) -> str:
    """What a command writes; somebody greets it."""
    done = subprocess.run(
        ["bash", "-c", quick(command)], cwd=folder, env=told, input="Hello\n", capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    # This benchmark ends with 1 where something was slower than it should be.
    ended = {0, 1} if "serving_speed" in command else {0}
    assert done.returncode in ended and "Traceback" not in done.stderr, done.stdout + done.stderr
    return done.stdout


HERE = [
    block
    for block in BLOCKS
    if any(not elsewhere(block.page, command) and not command.startswith("curl ") for command, _ in block.commands)
]
#: Pages with blocks that take several seconds.
LONG = ("docs/bench.md", "docs/clients.md", "docs/offload.md", "docs/reliability.md")


def cleaned(text: str) -> str:
    """A text without words that depend on how fast the machine is, and without the folders of files."""
    return re.sub(r"reached|missed|not decided|undecided|\S+/(?=[^/\s]+\.gguf)", "", text)


def headings(text: str) -> list[str]:
    """The heads of the columns and of the rows of the first table."""
    [_, table] = re.split(r"^(?=\|)", text, maxsplit=1, flags=re.MULTILINE)
    head, _, *rows = table.partition("\n\n")[0].splitlines()
    return [head.strip(), *(row.split("|")[1].strip() for row in rows)]


def marked(block: Block) -> object:
    name = f"{block.page}-{[each for each in BLOCKS if each.page == block.page].index(block)}"
    return pytest.param(block, id=name, marks=[pytest.mark.thorough] * (block.page in LONG))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("block", [*map(marked, HERE)])
def test_a_block_is_run(block: Block, folder: Path, hub: Hub, request: pytest.FixtureRequest) -> None:
    told = variables(folder, hub)
    if any("tune" in command for command, _ in block.commands):
        told["MOEBIND_CACHE"] = str(folder / "kept")
    for command, output in block.commands:
        if elsewhere(block.page, command):
            continue
        if command.startswith("moebind serve"):
            with served(command, folder, told):
                pass
            continue
        if (output.strip() and command.startswith("moebind ")) or "examples/chat.py" in command:  # it takes a template
            (folder / "moe.gguf").unlink()
            (folder / "moe.gguf").symlink_to(request.getfixturevalue("demo_path"))
        said = typed(command, folder, told)
        if command.startswith("moebind "):
            assert said
        if output.strip():
            assert_shows(cleaned(output), cleaned(said))
        if "--markdown" in command:
            assert headings(said) == headings((ROOT / block.page).read_text("utf-8").partition(command)[2])


ASKED = [(block.page, command) for block in BLOCKS for command, _ in block.commands if command.startswith("curl ")]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize(("page", "command"), ASKED, ids=[page for page, _ in ASKED])
def test_a_question_is_answered(page: str, command: str, folder: Path, hub: Hub) -> None:
    told = variables(folder, hub)
    assert "http://127.0.0.1:11435/" in command
    with served("moebind serve moe.gguf --ctx-size 256", folder, told) as address:
        asked = (
            plain(command).replace("http://127.0.0.1:11435", address).replace("curl ", "curl --silent --show-error ")
        )
        answer = json.loads(typed(asked, folder, told))
    [choice] = answer["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"]
