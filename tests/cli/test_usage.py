"""Command lines that are wrong: what is said of options, commands and arguments."""

from __future__ import annotations

import pytest
from commands import Capture, run

from moebind.cli.usage import meant, no_such

SHOWN = "moebind plan --help-all shows those that there are"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["plan", "m.gguf", "--ctxsize", "5"], "there is no option --ctxsize; did you mean --ctx-size?"),
        (["plan", "m.gguf", "--ctx_size", "5"], "there is no option --ctx_size; did you mean --ctx-size?"),
        (["plan", "m.gguf", "--CTX-SIZE", "5"], "there is no option --CTX-SIZE; did you mean --ctx-size?"),
        (["plan", "m.gguf", "--nctx", "5"], "there is no option --nctx; did you mean --n-ctx?"),
        (["plan", "m.gguf", "--n_ctx", "5"], "there is no option --n_ctx; did you mean --n-ctx?"),
        (["plan", "m.gguf", "--ctx", "5"], "there is no option --ctx; did you mean --ctx-size?"),
        (["plan", "m.gguf", "--context-size", "5"], "there is no option --context-size; did you mean --ctx-size?"),
        (["plan", "m.gguf", "--cpumoe"], "there is no option --cpumoe; did you mean --cpu-moe?"),
        (["generate", "m.gguf", "--max-tokens", "5"], "there is no option --max-tokens; did you mean --predict?"),
        (["generate", "m.gguf", "--n-gen=5"], "there is no option --n-gen; did you mean --predict?"),
        (["generate", "m.gguf", "--reverse-prompt", "a"], "there is no option --reverse-prompt; did you mean --stop?"),
        (["plan", "m.gguf", "-ngl99"], "there is no option -ngl99; did you mean -ngl?"),
        (["generate", "m.gguf", "--tmep", "5"], "there is no option --tmep; did you mean --temp?"),
        (["generate", "m.gguf", "--max-token", "5"], "there is no option --max-token; did you mean --predict?"),
        (
            ["chat", "m.gguf", "--colr"],
            "there is no option --colr; did you mean --color? There is no --color here: nothing is coloured; leave it "
            "out",
        ),
        (["plan", "m.gguf", "--max-tokens", "5"], f"there is no option --max-tokens: {SHOWN}"),
        (["plan", "m.gguf", "--zzz"], f"there is no option --zzz: {SHOWN}"),
        (["plan", "m.gguf", "-c"], "-c is the last word; it takes a value"),
        (["generate", "m.gguf", "-fa"], "-fa is the last word; it takes a value: on, off or auto"),
        (["plan", "m.gguf", "--cpu-moe=yes"], "--cpu-moe has a value, and takes none"),
        (["plan", "m.gguf", "x y"], "'x y' is more than there is a place for: moebind plan takes MODEL"),
        (
            ["chat", "m.gguf", "hi"],
            "'hi' is more than there is a place for: moebind chat takes MODEL; a text is given as --prompt TEXT",
        ),
        (
            ["generate", "m.gguf", "hi", "you"],
            "'you' is more than there is a place for: moebind generate takes MODEL PROMPT; put a text of several "
            "words in quotes",
        ),
        (
            ["generate", "-m", "m.gguf", "hi", "you"],
            "'you' is more than there is a place for beside --model; put texts in quotes",
        ),
        (
            ["serve", "llama3"],
            "MODEL is 'llama3', which does not exist; it takes a GGUF file, or hf://OWNER/REPO",
        ),
        (
            ["generate", "llama3", "hi"],
            "MODEL is 'llama3', which does not exist; it takes a GGUF file, or hf://OWNER/REPO",
        ),
        (["quantize"], "there is no SRC [DST] TYPE: moebind quantize takes SRC [DST] TYPE"),
        (["-m", "m.gguf"], "there is no option -m before a command, as in moebind chat -m ..."),
        (["-hf", "o/r"], "there is no option -hf before a command, as in moebind chat -hf ..."),
        (
            ["--n-gpu-layers=3"],
            "there is no option --n-gpu-layers before a command, as in moebind chat --n-gpu-layers ...",
        ),
        (["--verson"], "there is no option --verson; did you mean --version?"),
        (["genrate"], "there is no command genrate; did you mean generate?"),
        (["bench", "offlod"], "there is no command offlod; did you mean offload?"),
        (["bench", "xyz"], "there is no command xyz: moebind bench --help shows those that there are"),
        (["perplexity"], "there is no command perplexity: moebind --help shows those that there are"),
        (["run", "m.gguf"], "there is no command run; did you mean chat?"),
        (["pull", "o/r"], "there is no command pull; did you mean get?"),
        (["llama-server"], "there is no command llama-server; did you mean serve?"),
        (["help"], "there is no command help; did you mean --help?"),
        (["m.gguf"], "'m.gguf' is a model; a command comes before it, as in moebind chat m.gguf"),
        (["bench", "m.gguf"], "'m.gguf' is a model; a command comes before it, as in moebind bench decode m.gguf"),
    ],
)
def test_what_is_told(capsys: Capture, arguments: list[str], told: str) -> None:
    assert run(*arguments) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"moebind: {told}\n")


def test_names_that_differ_in_more_than_their_writing() -> None:
    known = ["--ctx-size", "-c", "--batch-size", "--n-cpu-moe", "--cpu-moe"]
    assert meant("--ctx-sizes", known) == "--ctx-size"
    assert meant("--cpu_moe", known) == "--cpu-moe"
    assert meant("--ncpumoe", known) == "--n-cpu-moe"
    for nothing in ("", "-", "--", "-x", "--seed"):
        assert meant(nothing, known) is None
    assert meant("--ctx-size", []) is None
    assert no_such("option", "--\x1b[2J", known) == r"there is no option --\x1b[2J"
