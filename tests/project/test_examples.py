"""The examples, as a reader would run them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import projectors
import pytest
from packages import packages
from transcripts import assert_shows, transcripts

from conftest import EXAMPLES

MakeTiny = Callable[..., Path]


def run(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=check)


def test_generate_on_the_cpu(demo_path: Path) -> None:
    said = run(
        EXAMPLES / "generate.py", demo_path, "-p", "The capital of France is", "-n", 8, "-ngl", 0, "-t", 1
    ).stdout
    assert said.startswith("The capital of France is Paris")
    assert re.search(r"^8 tokens in [\d.]+ s; the load took [\d.]+ s$", said, re.MULTILINE)
    assert re.search(r"^prompt \d+ tokens in", said, re.MULTILINE)  # llama.cpp's "load" has the prompt in it
    assert re.search(r"decode 7 tokens in \d+ ms", said)


def test_generate_with_experts_in_host_memory(demo_path: Path) -> None:
    said = run(
        EXAMPLES / "generate.py", demo_path, "-dev", "loopback", "--n-cpu-moe", 3, "-ot", r"blk\.2\d\.ffn_up_exps=CPU",
        "--cpu-moe", "--no-mmap", "-n", 4, "-t", 1, "-c", 256,
    ).stdout  # fmt: skip
    assert re.findall(r"(\d+) tensors, [\d.]+ MiB to CPU", said) == ["10", "9", "71"]
    assert re.search(r"RPC0 +45\.2", said)


def test_generate_repeats_with_a_seed(tiny_path: MakeTiny) -> None:
    texts = [
        run(EXAMPLES / "generate.py", tiny_path(), "-ngl", 0, "-s", seed, "--temp", 1.2, "-n", 12, "-t", 1).stdout
        for seed in (1, 1, 2)
    ]
    first = [text.partition(" tokens in")[0] for text in texts]
    assert first[0] == first[1] != first[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.gguf"], "none.gguf does not exist"),
        (["{model}", "-dev", "CUDA9"], "there is no device CUDA9; there are CPU"),
        (["{model}", "--cpu-moe", "-ngl", "0"], "has no experts"),
        (["{model}", "-ot", "nothing=CPU", "-ngl", "0"], "matches none of"),
        (["{model}", "-n", "x"], "invalid int value"),
    ],
)
def test_generate_says_what_is_wrong(tiny_path: MakeTiny, arguments: list[str], message: str) -> None:
    done = run(EXAMPLES / "generate.py", *(each.format(model=tiny_path()) for each in arguments), check=False)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_images(tmp_path: Path) -> None:
    model = projectors.text_model(tmp_path / "model.gguf", "gemma3")
    photo = projectors.photo(tmp_path / "photo.jpg")
    arguments = [EXAMPLES / "images.py", model, photo, "-n", 4, "-ngl", 0, "-c", 512, "--chat-template", "chatml"]
    done = run(*arguments, check=False)
    assert done.returncode == 1
    assert "no projector (mmproj*.gguf) lies beside" in done.stderr
    projectors.write(tmp_path / "mmproj-model.gguf", "gemma3")
    done = run(*arguments)
    assert re.search(r"mmproj +\d", done.stderr)
    assert re.search(r"prompt_tokens=\d\d", done.stderr)
    (tmp_path / "photo.jpg").write_text("no picture")
    done = run(*arguments, check=False)
    assert "photo.jpg is of another format" in done.stderr
    assert "Traceback" not in done.stderr


def test_demo() -> None:
    said = run(EXAMPLES / "demo.py").stdout
    assert "The text is the same three times." in said
    share = re.search(r"the device holds ([\d.]+) % of the model's bytes", said)
    assert share is not None
    assert float(share[1]) <= 12
    [shown] = re.findall(
        r"^```text\n(.*?)^```", (EXAMPLES.parent / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    assert_shows(shown, said)


def test_the_demo_on_a_device_that_is_not_there() -> None:
    done = run(EXAMPLES / "demo.py", "--device", "CUDA9", check=False)
    assert done.returncode == 1
    assert re.match(r"there is no GPU 'CUDA9' \(there are: .+\); `moebind doctor` says what is missing\n$", done.stderr)


def test_demo_model_is_made_once(demo_path: Path) -> None:
    before = demo_path.stat().st_mtime_ns
    assert run(EXAMPLES / "demo_model.py").stdout.strip() == str(demo_path)
    assert demo_path.stat().st_mtime_ns == before


def test_a_demo_model_that_there_is_not() -> None:
    done = run(EXAMPLES / "demo_model.py", "--small", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("error: unrecognized arguments: --small\n")


def test_the_dense_model_by_itself(demo_path: Path) -> None:
    path = Path(run(EXAMPLES / "demo_model.py", "--dense").stdout.strip())
    assert path.is_file()
    assert path.stat().st_size < demo_path.stat().st_size


@pytest.mark.parametrize(
    ("name", "missing"), [("demo_model.py", "gguf"), ("demo_model.py", "tqdm"), ("demo.py", "psutil")]
)
def test_a_package_that_is_missing_is_a_sentence(
    name: str, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOEBIND_CACHE", str(tmp_path))  # whoever has the demo model needs nothing to make it
    code = f"import runpy, sys; sys.modules[{missing!r}] = None; sys.path.insert(0, sys.argv.pop())\n"
    code += f"runpy.run_path(sys.path[0] + '/{name}', run_name='__main__')"
    done = run("-c", code, EXAMPLES, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"{missing} is missing, with which the demo")
    assert done.stderr.count("\n") == 1
    assert f"pip install {missing}" in done.stderr or "pip install gguf tqdm" in done.stderr


BENCHMARKS = sorted((EXAMPLES.parent / "benchmarks").glob("*.py"))
#: In one process, since each of them imports moebind: what a program prints with --help, and what is no program does.
EVERY_HELP = """
import contextlib, io, json, runpy, sys, types
from pathlib import Path
sys.modules["llama_cpp"] = types.ModuleType("llama_cpp")  # which a benchmark downloads
said = {}
for path in sys.argv[1:]:
    sys.path[0], sys.argv = str(Path(path).parent), [path, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        runpy.run_path(path, run_name="__main__")
    said[Path(path).name] = out.getvalue()
print(json.dumps(said))
"""


def test_help_of_a_benchmark_does_nothing(tmp_path: Path) -> None:
    # The children of others have no options: they are told what to do in another way.
    paths = [path for path in BENCHMARKS if not path.stem.endswith("_child")]
    done = subprocess.run(
        [sys.executable, "-c", EVERY_HELP, *paths], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    programs = {path.name for path in paths if '__name__ == "__main__"' in path.read_text(encoding="utf-8")}
    assert len(programs) > 15
    for name, text in said.items():
        assert text.startswith(f"usage: {name}") if name in programs else text == "", name
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [path.stem for path in BENCHMARKS if path.stem.endswith("_child")])
def test_a_child_of_a_benchmark_can_be_imported(name: str) -> None:
    run("-c", f"import sys; sys.path.insert(0, {str(EXAMPLES.parent / 'benchmarks')!r}); import {name}")


def test_a_shape_that_there_is_not(tmp_path: Path) -> None:
    done = run(EXAMPLES.parent / "benchmarks" / "shapes.py", tmp_path / "new", "phi", check=False)
    assert done.returncode == 2
    assert "there is no shape phi; there are phi-3.5-moe-q4_k_m" in done.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_clients_that_others_wrote() -> None:
    environment = packages("anthropic", "langchain-openai", "litellm", "llm", "openai>=1.50")
    done = subprocess.run(
        [sys.executable, EXAMPLES / "clients.py"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    [shown] = [
        output for command, output in transcripts("clients.md") if command.startswith("python examples/clients.py")
    ]
    expected, said = (
        dict(re.findall(r"^# (.*)\n((?:[^#].*\n)*)", text, re.MULTILINE)) for text in (shown, done.stdout)
    )
    assert [*said] == ["curl", "openai", "anthropic", "langchain-openai", "litellm", "llm"]
    without = {name for name, told in said.items() if told == "not installed\n"}
    assert without <= {"curl"}
    assert said == expected | dict.fromkeys(without, "not installed\n")
    for name in ("openai", "anthropic", "langchain-openai"):
        assert re.search(r"^tools: \[\('weather', .*Oslo", said[name], re.MULTILINE)
