"""What a generated token takes beside the computation, in instructions: they are the same under any load."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest
import tiny

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import instructions

#: How much more it may become before somebody has to look. With one interpreter, a count is the same to some percent
#: in every run; the rest is for other versions and builds of CPython, in which calls, locks and generators do not
#: become cheaper by the same factor as the loop that they are compared with, and for numpy's kernels, which it chooses
#: by the processor.
MOST = 1.5
#: Few, as each instruction takes the system some microseconds; of four texts, one of each.
TOKENS, TOKENS_OF_FOUR, TURNS = 2, instructions.TEXTS, 8


@pytest.fixture(scope="module")
def reference() -> float:
    """Instructions of a turn of the reference, which depend on the interpreter as those of a token do."""
    reason = instructions.missing()
    if reason is not None:
        pytest.skip(reason)
    try:
        return instructions.outside(instructions.count(Path("none"), TURNS)) / TURNS
    except instructions.NotAllowedError as error:
        pytest.skip(str(error))


@pytest.mark.thorough
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", instructions.KINDS)
def test_a_token_takes_no_more_instructions_than_is_known(kind: str, reference: int, tmp_path: Path) -> None:
    model = tiny.write(tmp_path / "tiny.gguf", tiny.Shape(n_expert=4))
    n = TOKENS_OF_FOUR if kind.startswith("four") else TOKENS
    found = instructions.count(model, n, instructions.KINDS[kind])
    assert instructions.outside(found) / n <= MOST * instructions.KNOWN[kind] * reference
    if kind == "JSON schema":
        # Its tokens are tried freely first, and no C++ exception says that one is forbidden: the unwinder is in there.
        assert [name for name in found if "libgcc_s" in name] == []


def test_what_is_outside_of_llama_cpp() -> None:
    counts = {
        "/a/_libllama.abi3.so": 5,
        "/a/lib/libllama.so": 7,
        "/a/lib/libggml-cpu.so": 2,
        "/lib/libc.so.6": 3,
        "": 1,
    }
    found = instructions.by_file(
        "".join(f"{number} {name}\n" for name, number in counts.items()) + "4 /lib/libc.so.6\n"
    )
    assert found == Counter({**counts, "/lib/libc.so.6": 7})
    assert instructions.outside(found) == 5 + 7 + 1


@pytest.mark.parametrize(("given", "near"), [(2, 4), (0, 4), (-4, 4), (10, 8)])
def test_a_part_of_a_batch_is_not_counted(given: int, near: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        instructions.main(["model.gguf", f"--tokens={given}"])
    assert raised.value.code == 2
    message = f"--tokens {given}: some kinds write 4 texts at once, and a part of a batch would count as a whole one; "
    assert f"{message}give a multiple of 4, such as {near}" in capsys.readouterr().err
