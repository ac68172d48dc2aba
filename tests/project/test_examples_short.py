"""The short examples, one for each subject, as a reader would run them: with the demo model, and few tokens."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import EXAMPLES

#: Run elsewhere: in test_examples.py, in tests/server/test_ray.py, and by hand.
ELSEWHERE = {"arguments", "clients", "demo", "demo_model", "generate", "images", "ray_batch", "ray_serve"}
#: The machine may be busy with other tests.
pytestmark = pytest.mark.timeout(600)
#: A machine without a GPU may say so.
NO_CARD = "n_gpu_layers is"


def run(name: str, *arguments: object, said: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run an example, ``said`` being typed."""
    command = [sys.executable, "-W", "error", "-W", f"ignore:{NO_CARD}", EXAMPLES / f"{name}.py", *map(str, arguments)]
    return subprocess.run(command, input=said, capture_output=True, text=True, check=check)


def test_all_examples_are_run() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    run_here = set(re.findall(r'\brun\("(\w+)"', source))
    assert {path.stem for path in EXAMPLES.glob("*.py")} == run_here | ELSEWHERE


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.py")), ids=lambda path: path.stem)
def test_an_example_says_what_it_shows_and_how_it_is_run(path: Path) -> None:
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert doc
    assert (
        path.name == "arguments.py" or re.search(rf"python examples/[\w/]*{path.stem}\.py", doc) or "Packages: " in doc
    )


def test_chat() -> None:
    done = run("chat", "-n", 12, said="What is the capital of France?\nAnd of Italy?\n\nnot asked\n")
    assert "Paris" in done.stdout
    first, second = (tuple(map(int, each)) for each in re.findall(r"\[(\d+) tokens, of which (\d+) were", done.stdout))
    assert first[1] == 0
    assert first[0] <= second[1] < second[0]


def test_structured() -> None:
    found = re.findall(r"^  (.+), (France|Italy|Norway|another): (\d+)$", run("structured").stdout, re.MULTILINE)
    assert len(found) == 2
    assert "cut off after 4 tokens" in run("structured", "-n", 4, "Oslo is a city.").stdout


def test_tools() -> None:
    done = run("tools", "-n", 40)
    assert re.match(r"weather\(\{'city': 'Paris'\}\) gave \{'city': 'Paris', 'degrees': 18", done.stdout)
    assert done.stdout.count("\n") >= 2  # the answer


def test_speculative() -> None:
    said = run("speculative", "-n", 8).stdout
    plain, drafted = (
        re.search(
            rf"^{kind}:\n  (\d+) tokens in \d+ ms(?:, (\d+) of (\d+) drafted tokens were right)?$", said, re.MULTILINE
        )
        for kind in ("without drafts", "with a draft model")
    )
    assert plain is not None and drafted is not None
    assert plain.groups() == ("7", None, None)
    # The demo model writes about what the one that it is made of writes: of such drafts, some are right.
    assert drafted[1] == "7"
    assert 0 < int(drafted[2]) <= int(drafted[3])
    assert re.search(r"^the same text for [1-8] of 8 tokens:$", said, re.MULTILINE)


def test_search(tmp_path: Path) -> None:
    texts = {
        "cat": "A cat sat on the mat. It slept there all day long, as cats do, and nobody minded it.",
        "money": "Prices rose by two percent in the last year, the bank said, and wages by one percent.",
    }
    files = [tmp_path / f"{name}.txt" for name in texts]
    for path in files:
        path.write_text(f"Too short.\n\n{texts[path.stem]}\n", encoding="utf-8")
    lines = run("search", texts["cat"], *files).stdout.splitlines()
    assert re.fullmatch(r"1\.000  .*cat\.txt", lines[0])
    assert [line.split()[-1] for line in lines if line[0] != " "] == [str(path) for path in files]
    files[0].write_text("Too short.", encoding="utf-8")
    done = run("search", "cat", files[0], check=False)
    assert (done.returncode, done.stderr) == (1, "the files have no paragraph of more than 80 characters\n")


def test_batched() -> None:
    said = run("batched", "-n", 3).stdout
    assert re.findall(r"^(\d) at a time: (\d+) tokens", said, re.MULTILINE) == [("1", "24"), ("4", "24")]
    assert re.search(r"The capital of Japan is'.*Tokyo", said)


def test_lora() -> None:
    said = dict(line.split(": ", 1) for line in run("lora", "-n", 6).stdout.splitlines())
    plain = said.pop("no adapter")  # of the last one, as the first one has the same name
    assert "Paris" in plain
    assert list(said) == ["random-1 x 1.0", "random-2 x 1.0", "random-1 x 0.5, random-2 x 0.5"]
    assert len({plain, *said.values()}) > 2


def test_saved_prompt(tmp_path: Path) -> None:
    state = tmp_path / "rules.state"
    assert run("saved_prompt", "-n", 1, "--state", state).stdout.startswith("computed and saved in")
    said = run("saved_prompt", "-n", 1, "--state", state, "And snow?").stdout
    assert re.match(r"\d+ tokens loaded in", said)
    prompt, cached = map(int, re.findall(r"^(\d+) tokens of prompt, (\d+) of", said, re.MULTILINE)[0])
    assert 0 < prompt - cached <= len("\nQuestion: And snow?\nAnswer:") < cached
    state.write_bytes(state.read_bytes()[:1000])
    reason, computed = run("saved_prompt", "-n", 1, "--state", state).stdout.splitlines()[:2]
    assert str(state) in reason
    assert computed.startswith("computed and saved in")


def test_routing(tmp_path: Path) -> None:
    said = run("routing", "-n", 4, "--folder", tmp_path / "pictures").stdout
    assert re.search(r"A cache for the experts of one token, 97 MiB, hits \d+% of the time", said)
    for name in ("routing.png", "cache.png"):
        assert (tmp_path / "pictures" / name).read_bytes().startswith(b"\x89PNG")


def test_offload_table() -> None:
    said = run("offload_table", "--card", "400MiB").stdout
    rows = re.findall(r"^(.{20}) +([\d.]+) +([\d.]+) +([\d.]+)%  (yes|no)$", said, re.MULTILINE)
    assert [name.strip() for name, *_ in rows] == [
        "all on the card", "with_n_cpu_moe(7)", "with_n_cpu_moe(15)", "with_cpu_moe_all()",
    ]  # fmt: skip
    cards = [float(row[1]) for row in rows]
    assert cards == sorted(cards, reverse=True)
    assert [row[4] for row in rows] == ["yes" if card <= 400 else "no" for card in cards]
    assert "of experts" in said


def test_two_workers() -> None:
    said = run("two_workers", "-n", 4).stdout
    devices = re.findall(r"^RPC\d +([\d.]+) ", said, re.MULTILINE)
    assert [float(each) for each in devices] == [45.2, 379.7]
    done = run("two_workers", "--worker", "127.0.0.1:1", check=False)
    assert done.returncode == 2
    assert "--worker was given 1 times; it takes two, or none" in done.stderr


def test_evaluation(tmp_path: Path) -> None:
    assert run("evaluation").stdout.endswith("4 of 4 right\n")
    questions = tmp_path / "questions.jsonl"
    asked = {"question": "The capital of France is", "choices": [" Paris", " the city of Rome"], "answer": 1}
    questions.write_text(json.dumps(asked) + "\n", encoding="utf-8")
    said = run("evaluation", "--questions", questions).stdout
    assert "The capital of France is Paris (wrong, it is the city of Rome)\n0 of 1 right" in said


@pytest.mark.thorough
def test_the_notebook() -> None:
    nbformat, nbclient = (
        pytest.importorskip(name, reason="needs the extra [test]") for name in ("nbformat", "nbclient")
    )
    pytest.importorskip("ipywidgets", reason="needs the extra [test]")
    notebook = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # they are made anew by whoever runs it
    nbclient.NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(EXAMPLES)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    said = [output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    assert all(NO_CARD in each for each in said)
    shown = [output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    assert len(shown) == 8
    assert all("ExpertSummary(" not in each for each in shown)
    assert sum("<svg" in each or "<img" in each for each in shown) == 3  # heat map, curve and what was measured
    bars = [each for each in outputs if "application/vnd.jupyter.widget-view+json" in each.get("data", {})]
    assert len(bars) == 1
