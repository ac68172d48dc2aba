"""The model for lm-evaluation-harness, with the harness itself, which is installed beside the environment."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from packages import packages
from transcripts import VARIABLES, assert_shows, transcripts

#: A question after those that docs/evaluation.md shows.
LAST = '{"country": "Germany", "capital": "Berlin"}\n'
PROGRAM = Path(__file__).with_name("with_lm_eval.py")


#: As it is without the harness, whether or not that is installed here; or with a harness that lacks something.
LACKS = """
import runpy, sys
sys.modules[{lacking!r}] = None
"""


def without(lacking: str, what: str) -> subprocess.CompletedProcess[str]:
    code = LACKS.format(lacking=lacking) + what
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_without_the_harness_a_sentence_says_what_to_install() -> None:
    sentence = "the model for lm-evaluation-harness needs that package: pip install 'moebind[lm-eval]'"
    done = without("lm_eval", "import moebind.integrations.lm_eval")
    assert done.stderr.splitlines()[-1] == f"ModuleNotFoundError: {sentence}"
    done = without("lm_eval", "runpy.run_module('moebind.integrations.lm_eval', run_name='__main__', alter_sys=True)")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"moebind: {sentence}\n")


def test_what_a_harness_lacks_is_told_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "lm_eval").mkdir()
    (tmp_path / "lm_eval" / "__init__.py").write_text("import a_package_of_the_harness")
    code = f"sys.path.insert(0, {str(tmp_path)!r})\nimport moebind.integrations.lm_eval"
    done = without("nothing_else", code)
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'a_package_of_the_harness'"


HARNESS = ("lm_eval>=0.4.13", "huggingface_hub>=1.31")


@pytest.mark.thorough
@pytest.mark.timeout(1800)
def test_the_harness_has_it_as_a_model() -> None:
    environment = packages(*HARNESS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", PROGRAM]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout, done.stdout


@pytest.mark.thorough
@pytest.mark.timeout(1800)
def test_what_the_page_shows(demo_path: Path, tmp_path: Path) -> None:
    """docs/evaluation.md: a task file, its first questions, and what the harness writes of it."""
    shown = dict(transcripts("evaluation.md"))
    [first] = [output for command, output in shown.items() if command.startswith("head -3 ")]
    [(command, table)] = [each for each in shown.items() if "lm_eval --model moebind" in each[0]]
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/capitals.yaml").write_text(shown["cat tasks/capitals.yaml"], encoding="utf-8")
    assert [json.loads(line)["capital"] for line in first.splitlines()] == ["Paris", "Rome", "Madrid"]
    (tmp_path / "capitals.jsonl").write_text(first + LAST, encoding="utf-8")
    (tmp_path / "moe.gguf").symlink_to(demo_path)
    told = {**packages(*HARNESS), **VARIABLES, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    typed = command.replace("cpu_moe=True", "cpu_moe=True,n_threads=1")
    done = subprocess.run(["bash", "-c", typed], cwd=tmp_path, env=told, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert_shows(table, done.stdout)
