"""The page in a browser: Chromium, without a window. CONTRIBUTING.md tells how to get it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from serving import ask

from moebind import ContextParams
from moebind.server import Server
from moebind.server.process import has_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(600)]

#: Where to leave pictures of what was seen, for whoever wants to look.
PICTURES = os.environ.get("MOEBIND_PICTURES")
#: Milliseconds that anything may take on a machine that is busy otherwise.
PATIENCE = 120_000
SIZES = {"wide": {"width": 1280, "height": 800}, "narrow": {"width": 390, "height": 844}}
CONTEXT = ContextParams(n_ctx=1024, n_threads=1, n_threads_batch=1)
#: The likeliest reply, and not a long one.
EXTRA = ("--temp", "0", "--predict", "8")
QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not has_page():
        pytest.skip("this moebind was built without the page")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as driver:
        # As root, as in containers, it does without its sandbox or not at all. It looks for updates otherwise.
        arguments = ["--no-sandbox"] if os.getuid() == 0 else []
        found = driver.chromium.launch(executable_path=chromium, args=[*arguments, "--disable-background-networking"])
        yield found
        found.close()


class Visit:
    """A page that was opened, and what it did: errors in its console, and whom it asked what."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url
        self.errors: list[str] = []
        self.asked: list[str] = []
        page.set_default_timeout(PATIENCE)
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.context.on("request", lambda request: self.asked.append(request.url))
        page.goto(url)

    def _console(self, message: ConsoleMessage) -> None:
        # It asks for tools that llama-server could run, which are off: the browser calls the answer, 403, an error.
        if message.type == "error" and urlsplit(message.location["url"]).path != "/tools":
            self.errors.append(f"{message.text} ({message.location['url']})")

    def show(self, name: str) -> None:
        """Leave a picture, if they are wanted."""
        if PICTURES:
            self.page.screenshot(path=Path(PICTURES, f"{name}.png"))

    def ask(self, text: str) -> str:
        """Type a message, and wait for the whole reply: what the page then shows of it."""
        self.page.get_by_placeholder("Type a message").fill(text)
        with self.page.expect_response(f"{self.url}/v1/chat/completions", timeout=PATIENCE) as answer:
            self.page.get_by_role("button", name="Send", exact=True).click()
        answer.value.finished()
        self.page.get_by_role("button", name="Stop", exact=True).wait_for(state="hidden")
        return self.page.get_by_role("group", name="Assistant message").last.inner_text()

    def stayed_here(self) -> bool:
        """Whether it asked nobody else."""
        return {urlsplit(each).netloc for each in self.asked if each.startswith("http")} == {urlsplit(self.url).netloc}


@pytest.fixture(scope="module")
def server(demo_path: Path, browser: Browser) -> Iterator[Server]:
    with Server(demo_path, context_params=CONTEXT, extra=EXTRA) as found:
        yield found


def reply(url: str, *messages: str, model: str = "", **headers: str) -> str:
    """What the server says to messages of a user and its own, in turn."""
    body = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(messages)]
    answer = ask(url, "/v1/chat/completions", {"messages": body, "model": model}, **headers)
    return str(answer.said["choices"][0]["message"]["content"]).strip()


@pytest.mark.parametrize("size", SIZES)
def test_a_chat(size: str, server: Server, browser: Browser) -> None:
    with browser.new_context(viewport=SIZES[size]) as context:  # type: ignore[arg-type]
        visit = Visit(context.new_page(), server.url)
        first = reply(server.url, QUESTION)
        assert first in visit.ask(QUESTION)
        assert reply(server.url, QUESTION, first, "And then?") in visit.ask("And then?")
        visit.show(f"chat-{size}")
        assert visit.errors == []
        assert visit.stayed_here()


def test_it_asks_for_the_key(demo_path: Path, browser: Browser) -> None:
    with Server(demo_path, context_params=CONTEXT, extra=EXTRA, api_key="sesame") as server:
        with browser.new_context() as context:
            visit = Visit(context.new_page(), server.url)
            visit.page.get_by_role("button", name="Enter API Key").click()
            visit.show("key")
            field = visit.page.get_by_label("API Key")
            field.fill("open")
            field.press("Enter")
            visit.page.get_by_text("Invalid API key").wait_for()
            visit.errors.clear()  # of all that was refused
            field.fill("sesame")
            field.press("Enter")
            assert reply(server.url, QUESTION, Authorization="Bearer sesame") in visit.ask(QUESTION)
            assert visit.errors == []
            assert visit.stayed_here()


def test_one_of_several_models_is_chosen(demo_path: Path, tmp_path: Path, browser: Browser) -> None:
    for name in ("first", "second"):
        (tmp_path / f"{name}.gguf").symlink_to(demo_path)
    with Server(models_dir=tmp_path, context_params=CONTEXT, extra=EXTRA) as server, browser.new_context() as context:
        visit = Visit(context.new_page(), server.url)
        visit.page.get_by_role("button", name="first").click()
        visit.page.get_by_role("option", name="second").click()
        visit.show("several")
        said = visit.ask(QUESTION)
        assert reply(server.url, QUESTION, model="second") in said
        assert "second" in said
        assert visit.errors == []
        assert visit.stayed_here()
