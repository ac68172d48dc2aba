"""Looks at the rendered pages (``make docs``) in Chromium: which are wider than a window, and which lack a picture.

    python tools/look.py                              # all pages, in windows of 1400 and of 400 pixels
    python tools/look.py --pictures /tmp/pages tune   # and pictures of some: wide and narrow, light and dark

A page's pictures show all of it in the light, in parts from the top, and its beginning in the dark. Tables and code may
be wider than a window: they scroll by themselves. What the pictures show is for a person to judge.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

PAGES = Path(__file__).resolve().parents[1] / "docs/_build/html"
WIDTHS = (1400, 400)
#: How much of a page a picture shows, in pixels.
PART = 2400
#: Loads one page after the other into a frame of each width, since Chromium's windows have 500 pixels at least.
SCRIPT = """<pre></pre><iframe style="height: 900px; border: 0"></iframe><script>
const looks = LOOKS, frame = document.querySelector("iframe"), said = document.querySelector("pre");
let at = -1;
frame.onload = () => {
  if (at >= 0) {
    const page = frame.contentDocument, all = page.scrollingElement, [name, width] = looks[at];
    const broken = [...page.images].filter(each => each.complete && !each.naturalWidth).map(each => each.src);
    if (all.scrollWidth > all.clientWidth + 1) said.append(`${name}: ${all.scrollWidth} wide, of ${width}\\n`);
    if (broken.length) said.append(`${name}: no picture ${broken}\\n`);
    said.append(`=${all.scrollHeight}\\n`);
  }
  if (++at == looks.length) { said.append(`${at} looks\\n`); return; }
  frame.style.width = looks[at][1] + "px";
  frame.src = looks[at][2];
};
frame.src = "about:blank";
</script>"""


def chromium(content: str, *options: str) -> str:
    """What Chromium prints for a page that may look into others."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "page.html")
        page.write_text(content, encoding="utf-8")
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += ["--allow-file-access-from-files", "--disable-web-security", f"--user-data-dir={folder}/profile"]
        done = subprocess.run([*command, *options, page.as_uri()], capture_output=True, text=True, check=True)
    return done.stdout


def look(names: list[str]) -> tuple[list[str], dict[tuple[str, int], int]]:
    """What is wrong with pages, a line each; and how high each is in each width."""
    looks = [(name, width) for width in WIDTHS for name in names]
    content = SCRIPT.replace("LOOKS", json.dumps([[*each, (PAGES / each[0]).as_uri()] for each in looks]))
    shown = chromium(content, "--dump-dom", "--virtual-time-budget=600000")
    said = re.search(r"<pre>(.*?)</pre>", shown, re.DOTALL)
    *lines, last = said[1].splitlines() if said else [""]
    if last != f"{len(looks)} looks":
        raise SystemExit(f"Chromium ended after {lines[-1:]}, before it had seen all pages")
    heights = [int(line[1:]) for line in lines if line.startswith("=")]
    return [line for line in lines if not line.startswith("=")], dict(zip(looks, heights, strict=True))


def draw(name: str, width: int, height: int, folder: Path) -> None:
    """Pictures of a page: all of it in the light, part after part, and the first part in the dark."""
    stem = f"{name.removesuffix('.html').replace('/', '-')}-{width}"
    dark = "--blink-settings=preferredColorScheme=0"
    parts = [(f"{stem}-light-{at // PART + 1}", at, ()) for at in range(0, height, PART)]
    for title, at, options in [*parts, (f"{stem}-dark-1", 0, (dark,))]:
        size = f"width: {width}px; height: {height}px; border: 0; position: absolute; top: {-at}px; left: 0"
        page = '<body style="margin: 0; overflow: hidden">'
        page += f'<iframe src="{(PAGES / name).as_uri()}" style="{size}"></iframe>'
        window = (f"--window-size={max(width, 500)},{min(PART, height - at)}", "--virtual-time-budget=8000")
        chromium(page, *options, *window, f"--screenshot={folder / title}.png")


def main() -> None:
    """Look, say what is wrong, and draw what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", help="such as tune or api/model; all if none is named")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="leave pictures of them there")
    arguments = parser.parse_args()
    names = [f"{page}.html" for page in arguments.pages]
    names = names or sorted(each.relative_to(PAGES).as_posix() for each in PAGES.rglob("*.html"))
    if missing := [name for name in names if not (PAGES / name).exists()] or ([] if names else ["pages"]):
        parser.error(f"there is no {missing[0]} in {PAGES}: run make docs first")
    found, heights = look(names)
    print("\n".join(found) or f"{len(names)} pages: nothing is wider than its window, no picture is missing")
    if arguments.pictures:
        arguments.pictures.mkdir(parents=True, exist_ok=True)
        for (name, width), height in heights.items():
            draw(name, width, height, arguments.pictures)
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
