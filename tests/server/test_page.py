"""The web page that llama-server has beside it: a small one, made here, so that no npm is needed."""

from __future__ import annotations

import gzip
import http.client
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from checkout import page
from serving import PATIENCE, SMALL_SERVER, ask

from moebind.server import Server, server
from moebind.server.process import has_page, program

MakeTiny = Callable[..., Path]
#: Names, contents and types of a page's files; the shortest is one whose text lies in the object itself in C++.
FILES = {
    "index.html": ("<!doctype html><p>Hello", "text/html; charset=utf-8"),
    "sw.js": ("//", "text/javascript"),
    "manifest.webmanifest": ("{}", "application/manifest+json"),
    "_app/immutable/bundle.js": ("let x = 1;\n" * 1000, "text/javascript"),
    "_app/a.css": ("p { color: red }", "text/css"),
    "some.thing": ("?", "application/octet-stream"),
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the program with its libraries, and a page beside them."""
    folder = tmp_path_factory.mktemp("installed") / "moebind"
    package = Path(program()).parent.parent
    for part in ("bin", "lib"):
        shutil.copytree(package / part, folder / part)
    if (beside := package.with_name("moebind.libs")).is_dir():  # what a repaired wheel brings
        shutil.copytree(beside, folder.with_name("moebind.libs"))
    for name, (text, _) in FILES.items():
        (folder / "built" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "built" / name).write_text(text)
    page.pack(folder / "built", folder / "ui")
    (folder / "ui/some.thing.gz").rename(folder / "ui/some.thing.else")  # one that is listed, and not there
    return folder


@pytest.fixture
def with_page(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "program", lambda: str(installed / "bin/llama-server"))
    monkeypatch.setattr(server, "has_page", lambda: True)


@pytest.fixture
def guarded(with_page: None, tiny_path: MakeTiny) -> Iterator[Server]:
    """A server with a page, and a key."""
    with Server(tiny_path(n_expert=4), api_key="sesame", **SMALL_SERVER) as found:
        yield found


def get(url: str, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    there = urlsplit(url)
    connection = http.client.HTTPConnection(str(there.hostname), int(there.port or 0), timeout=PATIENCE)
    try:
        connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def test_the_page_is_for_everyone_and_the_rest_for_those_who_have_the_key(guarded: Server) -> None:
    assert guarded.page == f"{guarded.url}/"
    assert str(guarded).splitlines()[-1] == f"Chat in a browser: {guarded.page}"
    for name, (text, kind) in FILES.items():
        path = "/" if name == "index.html" else f"/{name}"
        status, headers, data = get(guarded.url, path, Accept_Encoding="gzip")
        if name == "some.thing":
            assert status == 401  # as whatever there is not
            continue
        assert (status, headers["content-type"], headers["content-encoding"]) == (200, kind, "gzip")
        assert gzip.decompress(data).decode() == text
    assert ask(guarded.url, "/props").status == 401
    assert ask(guarded.url, "/props", Authorization="Bearer sesame").status == 200


def test_what_a_browser_has_is_not_sent_again(guarded: Server) -> None:
    _, first, _ = get(guarded.url, "/", Accept_Encoding="gzip")
    assert first["cache-control"] == "no-cache"  # it asks each time
    status, again, data = get(guarded.url, "/", Accept_Encoding="gzip", If_None_Match=first["etag"])
    assert (status, again["etag"], data) == (304, first["etag"], b"")
    assert get(guarded.url, "/", Accept_Encoding="gzip", If_None_Match='"another"')[0] == 200
    _, other, _ = get(guarded.url, "/_app/a.css", Accept_Encoding="gzip")
    assert "immutable" in other["cache-control"]
    assert other["etag"] != first["etag"]
    assert get(guarded.url, "/")[0] == 415  # who cannot unpack it


def test_other_pages_cannot_read_it(guarded: Server) -> None:
    _, headers, _ = get(guarded.url, "/", Accept_Encoding="gzip", Origin="http://elsewhere.example")
    assert headers["access-control-allow-origin"] == guarded.url
    assert headers["cross-origin-opener-policy"] == "same-origin"


def test_without_the_page(with_page: None, tiny_path: MakeTiny) -> None:
    with Server(tiny_path(n_expert=4), ui=False, **SMALL_SERVER) as found:
        assert found.page is None
        assert found.to_dict()["page"] is None
        assert "browser" not in str(found)
        for path in ("/", "/index.html", "/_app/a.css"):
            assert get(found.url, path, Accept_Encoding="gzip")[0] == 404
        assert ask(found.url, "/props").status == 200


def test_several_models_have_one_page(with_page: None, tiny_path: MakeTiny) -> None:
    with Server([tiny_path(n_expert=4), tiny_path()], **SMALL_SERVER) as found:
        status, _, data = get(found.url, "/", Accept_Encoding="gzip")
        assert (status, gzip.decompress(data).decode()) == (200, FILES["index.html"][0])
        assert str(found).splitlines()[-1] == f"Chat in a browser: {found.page}"


def test_where_there_is_no_page_it_serves_the_rest(
    installed: Path, with_page: None, tiny_path: MakeTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "has_page", lambda: False)
    hidden = (installed / "ui").rename(installed / "hidden")
    try:
        with Server(tiny_path(n_expert=4), **SMALL_SERVER) as found:
            assert found.page is None
            assert get(found.url, "/", Accept_Encoding="gzip")[0] == 404
            assert ask(found.url, "/props").status == 200
    finally:
        hidden.rename(installed / "ui")


@pytest.mark.parametrize("extra", [["--no-ui"], ["--ui"], ["--no-webui"]])
def test_whether_there_is_one_is_asked_of_the_server(extra: list[str], tiny_path: MakeTiny) -> None:
    with pytest.raises(ValueError, match=f"{extra[0]} is among .*moebind's to set: use ui"):
        Server(tiny_path(n_expert=4), extra=extra)
    with pytest.raises(TypeError, match="ui is 'no'"):
        Server(tiny_path(n_expert=4), ui="no")  # type: ignore[arg-type]


def test_the_installed_one_is_whole() -> None:
    if not has_page():
        pytest.skip("this moebind was built without the page")
    folder = Path(program()).parent.parent / "ui"
    listed = [line.split("\t") for line in (folder / "files.tsv").read_text().splitlines()]
    assert all(len(columns) == 3 for columns in listed)
    assert {f"{name}.gz" for name, _, _ in listed} == {
        path.relative_to(folder).as_posix() for path in folder.rglob("*.gz")
    }
    assert {"index.html", "sw.js", "build.json", "manifest.webmanifest"} <= {name for name, _, _ in listed}
    assert not [name for name, kind, _ in listed if kind == "application/octet-stream"]
