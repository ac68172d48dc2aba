"""vendor/page.py has npm make llama-server's web page, keeps it, and says in a few words why there is none.

npm is played by a script here.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from checkout import VENDOR, contents, page

from moebind.server.process import has_page

#: Writes what it was asked, and makes a page of what it finds.
NPM = """#!/bin/sh
echo "$*" >> "$CALLS"
case "$1" in
  ci) mkdir -p node_modules/one && echo "One's licence" > node_modules/one/LICENSE ;;
  run) mkdir -p "$LLAMA_UI_OUT_DIR/_app" && cp src/app.ts "$LLAMA_UI_OUT_DIR/_app/bundle.js"
       echo "<p>page" > "$LLAMA_UI_OUT_DIR/index.html"
       echo "$LLAMA_BUILD_NUMBER" > "$LLAMA_UI_OUT_DIR/build.json" ;;
esac
"""
LOCK = {
    "packages": {
        "": {"devDependencies": {"one": "1"}},
        "node_modules/one": {"version": "1.0", "license": "MIT", "dependencies": {"two": "^2"}},
        "node_modules/one/node_modules/two": {"version": "2.0", "license": "ISC"},
        "node_modules/two": {"version": "1.0", "dependencies": {"three": "^3", "gone": "1"}},
        "node_modules/three": {"version": "3.0"},
        "node_modules/tests": {"version": "1.0"},
    }
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "ui"
    (folder / "src/vendors/four").mkdir(parents=True)
    (folder / "package-lock.json").write_text(json.dumps(LOCK))
    (folder / "src/app.ts").write_text("import { a } from 'one';\nimport type { t } from 'tests';\n")
    (folder / "src/app.d.ts").write_text("import 'tests';\n")
    (folder / "src/vendors/four/LICENSE").write_text("Four's licence")
    return folder


class Npm:
    """A program of that name, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, folder / "calls"
        folder.mkdir()
        self.plays(NPM)
        (folder / "node").symlink_to("/bin/true")

    def plays(self, script: str) -> None:
        (self.folder / "npm").write_text(script)
        (self.folder / "npm").chmod(0o755)

    @property
    def asked(self) -> list[str]:
        return [line.split()[0] for line in self.calls.read_text().splitlines()] if self.calls.exists() else []


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Npm:
    found = Npm(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{found.folder}:/usr/bin:/bin")
    monkeypatch.setenv("CALLS", str(found.calls))
    monkeypatch.setenv("MOEBIND_CACHE", str(tmp_path / "cache"))
    return found


def unpacked(folder: Path) -> dict[str, bytes]:
    return {
        name.removesuffix(".gz"): gzip.decompress(data)
        for name, data in contents(folder).items()
        if name.endswith(".gz")
    }


def test_a_page_is_made_once(npm: Npm, source: Path, tmp_path: Path) -> None:
    made = page.page(source, "b1")
    assert unpacked(made) == {
        "index.html": b"<p>page\n",
        "build.json": b"b1\n",
        "_app/bundle.js": (source / "src/app.ts").read_bytes(),
    }
    assert npm.asked == ["ci", "run"]
    assert "--include=dev" in npm.calls.read_text()
    assert page.page(source, "b1") == made
    assert npm.asked == ["ci", "run"]
    assert list((tmp_path / "cache").iterdir()) == [made]  # and nothing else is left
    assert not (source / "node_modules").exists()


def test_the_list_says_what_llama_server_has_to_know(npm: Npm, source: Path) -> None:
    made = page.page(source)
    lines = [line.split("\t") for line in (made / page.LIST).read_text().splitlines()]
    assert [line[:2] for line in lines] == [
        ["_app/bundle.js", "text/javascript"],
        ["build.json", "application/json"],
        ["index.html", "text/html; charset=utf-8"],
    ]
    for name, _, digest in lines:
        assert digest == hashlib.sha256((made / f"{name}.gz").read_bytes()).hexdigest()


def test_other_sources_are_another_page(npm: Npm, source: Path) -> None:
    made = {page.page(source, "b1"), page.page(source, "b2")}
    (source / "src/app.ts").write_text("2")
    made.add(page.page(source, "b1"))
    (source / "src/app.ts").rename(source / "src/other.ts")
    (source / "src/app.ts").touch()
    made.add(page.page(source, "b1"))
    assert len(made) == 4


def test_the_licences_are_those_of_what_may_be_in_it(npm: Npm, source: Path) -> None:
    text = (page.page(source) / page.LICENCES).read_text()
    titles = [line for line in text.splitlines() if line and line[0] not in "=" and "icence" not in line]
    assert titles == ["one 1.0 (MIT)", "two 2.0 (ISC)", "four"]
    assert "One's licence" in text
    assert "Four's licence" in text


def test_several_at_once_make_one(npm: Npm, source: Path) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(page.page(source))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len({*found}) == 1
    assert npm.asked == ["ci", "run"]


def test_what_an_ended_one_left_is_removed(npm: Npm, source: Path, tmp_path: Path) -> None:
    (tmp_path / "cache/page-build-left/node_modules").mkdir(parents=True)
    made = page.page(source)
    shutil.rmtree(made / "_app")
    (made / page.LIST).unlink()  # half of one
    assert page.page(source) == made
    assert (made / "_app").is_dir()
    assert list((tmp_path / "cache").iterdir()) == [made]


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (NPM.replace("ci)", "ci) echo 'npm error code EBADENGINE' >&2; exit 1;"), "npm ci failed: code EBADENGINE"),
        (
            "#!/bin/sh\nfor each in warn 'error code E1' error 'error no' 'error A complete log of this run'; do\n"
            'echo "npm $each" >&2\ndone\nexit 3',
            "npm ci failed: code E1; no",
        ),
        (NPM.replace("run)", "run) echo; echo It broke >&2; exit 1;"), "npm run failed: It broke"),
        ("#!/bin/sh\nexit 7", "npm ci failed: exit status 7"),
        ("#!/bin/sh\nexit 0", "npm made no index.html"),
        (NPM.replace("build.json", "other.json"), "npm made no build.json"),
    ],
)
def test_what_npm_cannot_do(npm: Npm, source: Path, tmp_path: Path, script: str, says: str) -> None:
    npm.plays(script)
    with pytest.raises(page.PageError) as failed:
        page.page(source)
    assert str(failed.value) == says
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("missing", ["npm", "node"])
def test_without_npm(npm: Npm, source: Path, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (npm.folder / missing).unlink()
    monkeypatch.setenv("PATH", str(npm.folder))
    with pytest.raises(page.PageError, match="^npm is not installed$"):
        page.page(source)


def test_sources_that_are_none(npm: Npm, tmp_path: Path) -> None:
    with pytest.raises(page.PageError, match="has no package-lock.json"):
        page.page(tmp_path)


def test_a_cache_that_cannot_be_written(
    npm: Npm, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MOEBIND_CACHE", str(tmp_path / "file"))
    with pytest.raises(page.PageError, match="it could not be written"):
        page.page(source)


def test_as_a_program(npm: Npm) -> None:
    npm.plays("#!/bin/sh\nexit 7")
    command = [sys.executable, "-W", "error", str(VENDOR / "page.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == "npm ci failed: exit status 7"


def test_the_one_that_was_installed_is_found_without_npm(monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_page():
        pytest.skip("this moebind was built without the page")
    monkeypatch.setenv("PATH", os.devnull)
    made = page.page(number=page.read_lock().commit)
    files = unpacked(made)
    assert b"bundle" in files["index.html"]
    assert json.loads(files["build.json"]) == {"version": page.read_lock().commit}
    text = (made / page.LICENCES).read_text()
    for name in ("svelte", "mermaid", "katex", "highlight.js", "pdfjs-dist", "nerdamer-prime", "workbox-core"):
        assert f"\n{name}" in text, name
