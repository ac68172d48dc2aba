"""Whether a tag is the version of moebind: ``python tools/wheels/tag.py v0.1.0``, before anything is built for it."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

VERSION = "src/moebind/_core/version.py"


def main() -> int:
    """Compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tag")
    tag = parser.parse_args().tag
    text = (Path(__file__).resolve().parents[2] / VERSION).read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    if found is None:
        print(f"tag: {VERSION} tells no version", file=sys.stderr)
        return 1
    if tag != f"v{found[1]}":
        wanted = f"tag v{found[1]}, or change the version and tag that"
        print(f"tag: the tag is {tag}, and {VERSION} says {found[1]}: {wanted}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
