"""vendor/fetch.py brings the pinned source, and says in one sentence why it could not."""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zlib
from pathlib import Path

import pytest
from checkout import ARCHIVE, PACKAGE, PREFIX, SOURCES, Checkout, contents, fetch, member, write_archive


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    made = Checkout(tmp_path / "checkout")
    monkeypatch.setenv("MOEBIND_CACHE", str(made.cache))
    return made


@pytest.fixture(scope="module")
def python_without_pip(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("no-pip")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return str(folder / "bin" / "python")


@pytest.fixture
def old_tree(checkout: Checkout) -> dict[str, bytes]:
    """The files of a tree that an earlier pin left; the lock names another one, which nobody has."""
    earlier = write_archive(checkout.cache / ARCHIVE, {"include/llama.h": "// old\n", "src/old.cpp": "\n"})
    right = checkout.lock.read_text()
    checkout.pin(earlier)
    checkout.fetch()
    checkout.lock.write_text(right)
    (checkout.cache / ARCHIVE).unlink()
    return contents(checkout.tree)


def the_sentence(result: tuple[int, str, str]) -> str:
    """What a failed run says: one line on stderr, beginning with who says it and ending like a sentence."""
    code, _, err = result
    assert code == 1, err
    assert err.startswith("fetch: ")
    assert err.endswith(".\n")
    assert err.count("\n") == 1, err
    return err


# --- the lock ---


def test_the_projects_own_lock() -> None:
    pin = fetch.read_lock()
    assert pin.archive_name == f"{pin.project}-{pin.version}.tar.gz"
    assert pin.patches
    assert all(fetch.sha256_of(patch) in pin.stamp for patch in pin.patches)
    assert pin.folder.endswith("llama.cpp")
    assert len(pin.sha256) == 64
    assert re.fullmatch(r"[0-9a-f]{7,40}|b\d+", pin.commit)
    assert pin.llama_version[0].isdigit()


@pytest.mark.parametrize(
    ("field", "value"),
    [("commit", "abc123456"), ("version", "0.1.0")],
)
def test_printing_a_field_fetches_nothing(checkout: Checkout, field: str, value: str) -> None:
    assert checkout.run("--print", field, online=False) == (0, value + "\n", "")
    assert not checkout.tree.exists()


GOOD_LOCK = f"""tiny-llama==1.0 --hash=sha256:{"0" * 64}
# llama.cpp-folder: a/b
# llama.cpp-commit: abc
# llama.cpp-version: 1
"""


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff\xfe\x00",
        GOOD_LOCK.replace("==1.0", "").encode(),
        GOOD_LOCK.replace("0000", "000", 1).encode(),
        GOOD_LOCK.replace("sha256", "md5").encode(),
        GOOD_LOCK.replace("commit", "date").encode(),
        GOOD_LOCK.replace("-version", "").encode(),
        GOOD_LOCK.replace("folder: a/b", "folder:").encode(),
        None,
    ],
    ids=[
        "empty",
        "binary",
        "no version",
        "short hash",
        "weak hash",
        "no commit",
        "no llama.cpp version",
        "no folder",
        "missing",
    ],
)
def test_broken_lock(checkout: Checkout, text: bytes | None) -> None:
    checkout.lock.write_text(GOOD_LOCK)
    assert fetch.read_lock(checkout.lock).commit == "abc"
    checkout.lock.unlink()
    if text is not None:
        checkout.lock.write_bytes(text)
    for arguments in ((), ("--print", "commit")):
        sentence = the_sentence(checkout.run(*arguments))
        assert str(checkout.lock) in sentence
        assert "restore it" in sentence


# --- when all is well ---


def test_fetches_through_pip_and_once(checkout: Checkout) -> None:
    code, out, err = checkout.run()
    assert (code, err) == (0, "")
    assert f"downloading {ARCHIVE}" in out
    assert "unpacking llama.cpp 0.1.0 (abc123456)" in out
    checkout.assert_right()
    assert (checkout.cache / ARCHIVE).read_bytes() == (checkout.index / ARCHIVE).read_bytes()
    times = {path: path.stat().st_mtime_ns for path in checkout.folder.rglob("*")}
    assert checkout.run(online=False) == (0, "fetch: vendor/llama.cpp is up to date\n", "")
    assert times == {path: path.stat().st_mtime_ns for path in checkout.folder.rglob("*")}


@pytest.mark.parametrize("backend", ["setuptools.build_meta", "scikit_build_core.build"])
def test_no_code_of_the_archive_is_run(checkout: Checkout, backend: str) -> None:
    marked = {**PACKAGE, "pyproject.toml": PACKAGE["pyproject.toml"].replace("setuptools.build_meta", backend)}
    assert "raise SystemExit" in marked["setup.py"]
    checkout.pin(write_archive(checkout.index / ARCHIVE, SOURCES, package=marked))
    assert checkout.run()[0] == 0
    checkout.assert_right()


def test_a_build_backend_that_nobody_knows(checkout: Checkout) -> None:
    unknown = {**PACKAGE, "pyproject.toml": PACKAGE["pyproject.toml"].replace("setuptools.build_meta", "no_such")}
    checkout.pin(write_archive(checkout.index / ARCHIVE, SOURCES, package=unknown))
    assert "check the network, or put tiny_llama-1.0.tar.gz into" in the_sentence(checkout.run())


# --- patches ---

PATCH = """Why, in words. A line with --- in it is no beginning.

--- a/src/llama.cpp
+++ b/src/llama.cpp
@@ -1,1 +1,2 @@ int main()
-int main() {}
+int main() {
+}
--- a/LICENSE
+++ b/LICENSE
@@ -1 +1,2 @@
 MIT
+
"""


def test_patches_are_applied(checkout: Checkout) -> None:
    checkout.fill_cache()
    checkout.patch("a.patch", PATCH)
    checkout.patch("b.patch", "--- a/LICENSE\n+++ b/LICENSE\n@@ -1,2 +1,2 @@\n-MIT\n+BSD\n \n")
    assert checkout.fetch() is True
    assert (checkout.tree / "src/llama.cpp").read_text() == "int main() {\n}\n"
    assert (checkout.tree / "LICENSE").read_text() == "BSD\n\n"
    assert checkout.fetch() is False


def test_another_patch_replaces_the_tree(checkout: Checkout) -> None:
    checkout.fill_cache()
    checkout.fetch()
    checkout.patch("a.patch", PATCH)
    assert checkout.fetch() is True
    checkout.patch("a.patch", PATCH.replace("+}", "+  }"))
    assert checkout.fetch() is True
    assert (checkout.tree / "src/llama.cpp").read_text() == "int main() {\n  }\n"
    (checkout.vendor / "patches/a.patch").rename(checkout.vendor / "patches/b.patch")
    assert checkout.fetch() is True
    assert checkout.run("--without", "b")[0] == 0
    checkout.assert_right()
    assert checkout.run("--without", "b", "--without", "c")[0] == 0


def test_a_patch_whose_lines_moved_is_applied(checkout: Checkout) -> None:
    checkout.pin(
        write_archive(checkout.cache / ARCHIVE, SOURCES | {"src/llama.cpp": "// new\n\nint main() {}\n// end\n"})
    )
    checkout.patch("a.patch", PATCH)
    checkout.fetch()
    assert (checkout.tree / "src/llama.cpp").read_text() == "// new\n\nint main() {\n}\n// end\n"


@pytest.mark.parametrize("source", ["int start() {}\n", "int main() {}\nint main() {}\n", "  int main() {}\n", None])
def test_a_patch_that_does_not_fit(checkout: Checkout, old_tree: dict[str, bytes], source: str | None) -> None:
    sources = {**SOURCES, "src/llama.cpp": source}
    archive = checkout.cache / ARCHIVE
    checkout.pin(write_archive(archive, {name: text for name, text in sources.items() if text is not None}))
    checkout.patch("a.patch", PATCH)
    sentence = the_sentence(checkout.run())
    assert "a.patch does not fit src/llama.cpp of this llama.cpp" in sentence
    assert "the lines after 'int main() {}'" in sentence
    assert contents(checkout.tree) == old_tree
    checkout.assert_tidy()


def test_second_call_does_nothing(checkout: Checkout) -> None:
    checkout.fill_cache()
    assert checkout.fetch() is True
    shutil.rmtree(checkout.cache)
    assert checkout.fetch() is False
    assert not checkout.cache.exists()


def test_cached_archive_needs_neither_network_nor_pip(checkout: Checkout, python_without_pip: str) -> None:
    checkout.fill_cache()
    code, out, err = checkout.run(python=python_without_pip, online=False)
    assert (code, err) == (0, "")
    assert "downloading" not in out
    checkout.assert_right()


def test_cache_folder_is_made(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout.cache.rmdir()
    checkout.cache = checkout.folder / "new" / "cache"
    assert checkout.run()[0] == 0
    assert (checkout.cache / ARCHIVE).is_file()


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOEBIND_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/somewhere")
    assert fetch.cache_folder() == Path("/somewhere/.cache/moebind")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert fetch.cache_folder() == Path("/caches/moebind")
    monkeypatch.setenv("MOEBIND_CACHE", "/mine")
    assert fetch.cache_folder() == Path("/mine")


def test_another_pin_replaces_the_tree(checkout: Checkout) -> None:
    checkout.fill_cache()
    checkout.fetch()
    newer = {"include/llama.h": "// newer\n", "src/new.cpp": "\n"}
    checkout.pin(write_archive(checkout.cache / ARCHIVE, newer), commit="def")
    assert checkout.fetch() is True
    assert contents(checkout.tree).keys() == {*newer, ".pin"}
    assert (checkout.tree / "include/llama.h").read_text() == "// newer\n"
    checkout.assert_tidy()


def test_a_change_in_what_is_wanted_replaces_the_tree(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout.fill_cache()
    checkout.fetch()
    monkeypatch.setattr(fetch, "WANTED", (*fetch.WANTED, "docs/"))
    assert checkout.fetch() is True
    assert (checkout.tree / "docs/build.md").is_file()
    assert checkout.fetch() is False


def test_a_damaged_stamp_replaces_the_tree(checkout: Checkout) -> None:
    checkout.fill_cache()
    checkout.fetch()
    (checkout.tree / ".pin").write_bytes(b"\xff")
    assert checkout.fetch() is True
    checkout.assert_right()


def test_files_are_as_old_as_their_unpacking(checkout: Checkout) -> None:
    # The archive says 1970. Were that kept, ninja would not see that a newer pin's sources are other ones.
    checkout.fill_cache()
    before = time.time() - 2  # file systems' clocks are coarse
    checkout.fetch()
    assert min((checkout.tree / name).stat().st_mtime for name in SOURCES) > before


def test_damaged_archive_in_the_cache_is_downloaded_again(checkout: Checkout) -> None:
    (checkout.cache / ARCHIVE).write_bytes((checkout.index / ARCHIVE).read_bytes()[:-9])
    code, out, err = checkout.run()
    assert (code, err) == (0, "")
    assert f"{checkout.cache / ARCHIVE} is damaged or of another pin" in out
    checkout.assert_right()
    assert (checkout.cache / ARCHIVE).read_bytes() == (checkout.index / ARCHIVE).read_bytes()


def test_two_at_once_in_one_checkout(checkout: Checkout) -> None:
    processes = [checkout.start() for _ in range(3)]
    said = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    assert sum("unpacking" in out for out, _ in said) == 1
    checkout.assert_right()


def test_two_checkouts_with_one_cache_at_once(tmp_path: Path) -> None:
    pair = Checkout(tmp_path / "a"), Checkout(tmp_path / "b")
    shutil.copy(pair[0].index / ARCHIVE, pair[1].index)
    pair[1].pin(pair[1].index / ARCHIVE)
    pair[1].cache = pair[0].cache
    processes = [checkout.start() for checkout in pair]
    said = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    for checkout in pair:
        checkout.assert_right()


# --- what is not taken out of an archive ---


def test_members_that_lead_outside_are_left_in_the_archive(checkout: Checkout) -> None:
    outside = checkout.folder / "outside"
    outside.mkdir()
    link = {"type": tarfile.SYMTYPE}
    evil = [
        (member(f"{PREFIX}src/../../../evil.h"), "evil"),
        (member(f"{PREFIX}src/.."), "evil"),
        (member(f"{PREFIX}../evil.h"), "evil"),
        (member(f"{PREFIX}{outside}/evil.h"), "evil"),
        (member(f"{outside}/evil.h"), "evil"),
        (member(f"{PREFIX}src/link", linkname=str(outside), **link), ""),
        (member(f"{PREFIX}src/link/evil.h"), "beside the tree"),
        (member(f"{PREFIX}src/hard.h", type=tarfile.LNKTYPE, linkname="../../../vendor/fetch.py"), ""),
        (member(f"{PREFIX}src/pipe", type=tarfile.FIFOTYPE), ""),
    ]
    checkout.pin(write_archive(checkout.cache / ARCHIVE, SOURCES, evil))
    before = contents(checkout.folder)
    assert checkout.fetch() is True
    new = contents(checkout.folder).keys() - before.keys()
    # The name below the link is an ordinary one, since the link is not made.
    assert new == {f"vendor/llama.cpp/{name}" for name in (*SOURCES, ".pin", "src/link/evil.h")}
    assert not [path for path in checkout.tree.rglob("*") if path.is_symlink()]
    assert not list(outside.iterdir())


# --- what can go wrong ---


def test_no_network(checkout: Checkout, old_tree: dict[str, bytes]) -> None:
    sentence = the_sentence(checkout.run(online=False))
    assert "could not download tiny-llama==1.0" in sentence
    assert "check the network" in sentence
    assert f"put {ARCHIVE} into {checkout.cache} by hand" in sentence
    assert contents(checkout.tree) == old_tree
    checkout.assert_tidy()


def test_damaged_archive_and_no_network(checkout: Checkout, old_tree: dict[str, bytes]) -> None:
    (checkout.cache / ARCHIVE).write_text("damaged")
    assert "check the network" in the_sentence(checkout.run(online=False))
    assert contents(checkout.tree) == old_tree
    assert not (checkout.cache / ARCHIVE).exists()


def test_no_pip(checkout: Checkout, python_without_pip: str) -> None:
    sentence = the_sentence(checkout.run(python=python_without_pip))
    assert "has no pip" in sentence
    assert "-m ensurepip" in sentence
    assert str(checkout.cache) in sentence
    checkout.assert_tidy()


def test_index_offers_another_archive(checkout: Checkout, old_tree: dict[str, bytes]) -> None:
    write_archive(checkout.index / ARCHIVE, {"include/llama.h": "// swapped\n"})
    sentence = the_sentence(checkout.run())
    assert "SHA-256 is not the pinned" in sentence
    assert "do not use it" in sentence
    assert contents(checkout.tree) == old_tree
    assert not list(checkout.cache.iterdir())
    checkout.assert_tidy()


def test_what_pip_brought_is_checked_again(
    checkout: Checkout, old_tree: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(pin: object, lock: Path, folder: Path) -> Path:
        return write_archive(folder / ARCHIVE, {"include/llama.h": "// swapped\n"})

    monkeypatch.setattr(fetch, "download", download)
    with pytest.raises(fetch.FetchError, match=r"has SHA-256 \w{64}, the lock says \w{64}: do not use it"):
        checkout.fetch()
    assert contents(checkout.tree) == old_tree
    assert not list(checkout.cache.iterdir())


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def spoil(data: bytes) -> bytes:
    """The first half as it was, then what no compressor writes."""
    files = gzip.decompress(data)
    packer = zlib.compressobj(wbits=31)
    return packer.compress(files[: len(files) // 2]) + packer.flush(zlib.Z_FULL_FLUSH) + b"\xff" * 100


@pytest.mark.parametrize(
    "damage",
    [cut, spoil, lambda data: b"", lambda data: b"<html>Not found</html>"],
    ids=["cut", "spoilt", "empty", "a web page"],
)
def test_broken_archive_of_the_pinned_hash(checkout: Checkout, old_tree: dict[str, bytes], damage: object) -> None:
    # Noise does not compress, so that the damage is inside a file's data.
    noise = "".join(hashlib.sha256(str(i).encode()).hexdigest() for i in range(3000))
    archive = write_archive(checkout.cache / ARCHIVE, SOURCES | {"src/noise.cpp": noise})
    archive.write_bytes(damage(archive.read_bytes()))  # type: ignore[operator]
    checkout.pin(archive)
    sentence = the_sentence(checkout.run())
    assert f"{archive} " in sentence
    assert "delete it and run fetch.py again" in sentence
    assert contents(checkout.tree) == old_tree
    checkout.assert_tidy()


def test_archive_without_llama_cpp(checkout: Checkout, old_tree: dict[str, bytes]) -> None:
    checkout.pin(write_archive(checkout.index / ARCHIVE, {"README.md": "moved\n"}))
    sentence = the_sentence(checkout.run())
    assert f"{checkout.cache / ARCHIVE} does not contain llama.cpp" in sentence
    assert contents(checkout.tree) == old_tree
    checkout.assert_tidy()


def test_no_space_for_the_tree(checkout: Checkout, old_tree: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    checkout.fill_cache()
    copied: list[int] = []

    def copy(source: object, target: object) -> None:
        copied.append(1)
        if len(copied) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(fetch.shutil, "copyfileobj", copy)
        with pytest.raises(
            fetch.FetchError, match=r"no space is left .*\d+ MB free at .*make room, or set MOEBIND_CACHE"
        ):
            checkout.fetch()
    assert contents(checkout.tree) == old_tree
    checkout.assert_tidy()
    assert checkout.fetch() is True
    checkout.assert_right()


def test_no_space_for_the_download(
    checkout: Checkout, old_tree: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **rest: object) -> subprocess.CompletedProcess[str]:
        if "download" not in command:
            return subprocess.CompletedProcess(command, 0, "", "")
        said = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n"
        return subprocess.CompletedProcess(command, 1, "", said)

    monkeypatch.setattr(fetch.subprocess, "run", run)
    with pytest.raises(fetch.FetchError, match="no space is left"):
        checkout.fetch()
    assert contents(checkout.tree) == old_tree
    checkout.assert_tidy()


def test_cache_that_is_no_folder(checkout: Checkout) -> None:
    checkout.cache.rmdir()
    checkout.cache.write_text("a file")
    sentence = the_sentence(checkout.run())
    assert str(checkout.cache) in sentence
    assert "could not be written" in sentence
    assert not checkout.tree.exists()


def test_failure_between_the_renames_puts_the_old_tree_back(
    checkout: Checkout, old_tree: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout.fill_cache()
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail)
        with pytest.raises(KeyboardInterrupt):
            checkout.fetch()
    assert contents(checkout.tree) == old_tree
    checkout.assert_tidy()
