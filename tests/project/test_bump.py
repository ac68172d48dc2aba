"""tools/bump.py tells what another llama.cpp changes, and pins it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ARCHIVE, Checkout, fetch, write_archive

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "native/bind")]
import bump

LISTING = 'set(LLAMA_VERSION_MAJOR 0)\nset(LLAMA_VERSION_MINOR 7)\nset(LLAMA_VERSION_PATCH 1)\nset(VERSION "x")\n'
WHOLE = {"include/llama.h": "// the API\n", "ggml/include/ggml.h": "// ggml\n", "CMakeLists.txt": LISTING}


def test_the_lock_is_written_by_it() -> None:
    pin = fetch.read_lock()
    told = (pin.project, pin.version, pin.sha256, pin.folder, pin.commit, pin.llama_version)
    assert bump.lock_text(*told) == fetch.LOCK.read_text(encoding="utf-8")


def test_what_an_archive_says_of_itself(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / ARCHIVE, WHOLE)
    lock = tmp_path / "lock"
    lock.write_text(bump.pinned(archive, "tiny-llama", "2026.10.12345", None), encoding="utf-8")
    pin = fetch.read_lock(lock)
    assert (pin.project, pin.version, pin.sha256) == ("tiny-llama", "2026.10.12345", fetch.sha256_of(archive))
    assert (pin.folder, pin.commit, pin.llama_version) == ("thirdparty/llama.cpp", "b12345", "0.7.1-dev")
    assert "# llama.cpp-commit: abc1234\n" in bump.pinned(archive, "tiny-llama", "1.0", "abc1234")


@pytest.mark.parametrize(
    ("files", "version", "says"),
    [
        (WHOLE, "1.0", "does not end in the number of a build: say which commit it is, with --commit"),
        (WHOLE | {"CMakeLists.txt": "project(llama)\n"}, "1.12345", "does not say its version"),
        ({"include/llama.h": "\n"}, "1.12345", "has llama.cpp whole in no folder"),
        (WHOLE | {f"twice/{name}": text for name, text in WHOLE.items()}, "1.12345", "it takes one"),
    ],
)
def test_archives_that_say_too_little(tmp_path: Path, files: dict[str, str], version: str, says: str) -> None:
    archive = write_archive(tmp_path / ARCHIVE, files)
    with pytest.raises(SystemExit, match=says):
        bump.pinned(archive, "tiny-llama", version, None)


def test_pip_brings_an_archive_whose_hash_nobody_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = Checkout(tmp_path / "checkout")
    monkeypatch.setenv("MOEBIND_CACHE", str(checkout.cache))
    monkeypatch.setenv("PIP_FIND_LINKS", str(checkout.index))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert bump.downloaded("tiny-llama", "1.0") == checkout.cache / ARCHIVE
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert bump.downloaded("tiny-llama", "1.0") == checkout.cache / ARCHIVE
    with pytest.raises(SystemExit, match=r"bump: pip could not download tiny-llama==2\.0 .* check the network"):
        bump.downloaded("tiny-llama", "2.0")
    assert [path.name for path in checkout.cache.iterdir()] == [ARCHIVE]


# --- what changed ---

HEADER = """
#define LLAMA_VERSION_OF_IT 3
enum llama_kind { LLAMA_KIND_A = 0, LLAMA_KIND_B, LLAMA_KIND_C = 1 << 4, LLAMA_KIND_D = LLAMA_KIND_C | 1 };
struct llama_things { int count; enum llama_kind kind; };
int llama_count(const struct llama_things * things);
"""
#: As little of the other headers as reads.
EMPTY = ("ggml.h", "ggml-backend.h", "gguf.h", "ggml-rpc.h", "ggml-cpu.h")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import headers

    monkeypatch.setattr(headers, "API_HEADERS", ("llama.h",))
    monkeypatch.setattr(headers, "CALLBACK_HEADER", "ggml.h")
    made = tmp_path / "tree"
    for folder in ("include", "ggml/include", "src"):
        (made / folder).mkdir(parents=True)
    for name in EMPTY:
        (made / "ggml/include" / name).touch()
    (made / "include/llama.h").write_text(HEADER, encoding="utf-8")
    (made / "src/llama-arch.cpp").write_text('    { LLM_ARCH_LLAMA, "llama" },\n    { LLM_ARCH_NEW,  "new-one" },\n')
    return made


def test_what_a_llama_cpp_offers(tree: Path) -> None:
    found = bump.api(tree)
    assert found["functions"] == {"llama_count": "int llama_count(const struct llama_things *things)"}
    assert found["fields"] == {"llama_things.count": "int count", "llama_things.kind": "enum llama_kind kind"}
    assert found["constants"] == {
        "LLAMA_VERSION_OF_IT": "3",
        "LLAMA_KIND_A": "0", "LLAMA_KIND_B": "1", "LLAMA_KIND_C": "16", "LLAMA_KIND_D": "17",
    }  # fmt: skip
    assert list(found["architectures"]) == ["llama", "new-one"]


def test_changes_are_told() -> None:
    before = {"same": "1", "gone": "2", "changed": "3"}
    after = {"same": "1", "changed": "4", "new": "5", "bare": ""}
    assert bump.changes(before, after) == ["  + bare", "  ~ changed: 3 -> 4", "  - gone", "  + new: 5"]
    assert bump.changes(before, before) == []


def test_what_is_used_from_inside_is_named(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    for tree in (before, after):
        for used in bump.uses():
            (tree / used).parent.mkdir(parents=True, exist_ok=True)
            (tree / used).write_text("the same\n", encoding="utf-8")
    assert bump.changed_inside(before, after) == []
    (after / "src/llama-model.h").write_text("the same\nand more\n", encoding="utf-8")
    (after / "src/llama-vocab.h").unlink()
    told = bump.changed_inside(before, after)
    assert len(told) == 2
    assert any("src/llama-model.h has 1 other lines: " in line and "peek/model.cpp" in line for line in told)
    assert any("src/llama-vocab.h is gone: " in line and "peek/tokenize.cpp" in line for line in told)


def test_the_guards_are_there() -> None:
    named = bump.guards()
    assert len(named) > 30
    assert all((ROOT / test.partition("::")[0]).exists() for test in named)


def test_nothing_to_move_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pin = fetch.read_lock()
    monkeypatch.setattr(bump, "NOTES", tmp_path)
    monkeypatch.setattr(sys, "argv", ["bump.py", pin.version])
    with pytest.raises(SystemExit, match=f"{pin.version} is .*pinned already"):
        bump.main()


def test_it_says_how_it_is_called() -> None:
    command = [sys.executable, str(ROOT / "tools/bump.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "required: version" in done.stderr
