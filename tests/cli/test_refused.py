"""llama.cpp's options for drafts: each is taken, or refused with a reason."""

from __future__ import annotations

import re
from pathlib import Path

from commands import Capture, run

from moebind.cli.drafts import DRAFTS
from moebind.cli.refused import REFUSED, why_refused

SOURCE = Path(__file__).resolve().parents[2] / "vendor" / "llama.cpp" / "common" / "arg.cpp"


def of_llama_cpp() -> set[str]:
    """All names of the options that have to do with drafts, as llama.cpp's source declares them."""
    found: set[str] = set()
    for option in re.split(r"\badd_opt\(common_arg\(", SOURCE.read_text(encoding="utf-8"))[1:]:
        names = re.match(r"(?:\s|//.*\n)*((?:\{\s*\"-[^{}]*\}\s*,\s*)+)", option)
        assert names is not None, option[:100]
        if ".set_spec()" in option or "params.speculative" in option:
            found |= set(re.findall(r'"(-[^"]*)"', names[1]))
    return found


def test_each_is_taken_or_refused() -> None:
    taken = {flag for option in DRAFTS for flag in option.flags}
    theirs = of_llama_cpp()
    assert len(theirs) > 80
    assert not taken & set(REFUSED)
    assert theirs - taken - set(REFUSED) == set()
    # Nothing is listed, or taken under a name like llama.cpp's, that it does not have.
    assert set(REFUSED) - theirs == set()
    assert taken - theirs == set()


def test_the_reason_is_told(capsys: Capture) -> None:
    assert why_refused("--spec-type") is None
    assert why_refused("--spec-draft-prio") == f"there is no --spec-draft-prio here: {REFUSED['--spec-draft-prio']}"
    for given, name in (("--spec-draft-prio=2", "--spec-draft-prio"), ("-Cd", "-Cd"), ("-lcs", "-lcs")):
        assert run("generate", "m.gguf", given, "2", "--draft") == 2
        assert capsys.readouterr().err == f"moebind: there is no {name} here: {REFUSED[name]}\n"


def test_commands_that_take_no_drafts_have_nothing_to_refuse(capsys: Capture) -> None:
    assert run("list", "--draft-max", "8") == 2
    assert "there is no option --draft-max" in capsys.readouterr().err
    assert run("get", "someone/tiny", "--mtp") == 2
    assert "there is no --mtp here: give --spec-type draft-mtp" in capsys.readouterr().err


def test_the_page_has_those_that_are_taken() -> None:
    page = (SOURCE.parents[3] / "docs" / "cli.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^### Drafts\n.*?\n((?:\|[^\n]*\n)+)", page, re.MULTILINE | re.DOTALL)
    first = " ".join(row.split(" | ")[0] for row in table.splitlines())
    named = re.findall(r"`(--?[a-z0-9-]+)[^`]*`", first)
    assert sorted(named) == sorted(flag for option in DRAFTS for flag in option.flags)
