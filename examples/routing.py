"""Which experts a text uses, and how large a cache of experts would have to be: two pictures.

    python examples/routing.py
    python examples/routing.py -m moe.gguf -p "def quicksort(a):" -n 200 --folder pictures

It needs matplotlib (the extra `plot`).
"""

from __future__ import annotations

from pathlib import Path

from arguments import ModelParser

import moebind
from moebind import ContextParams, Model


def main() -> None:
    """Record the routing of a text, print what it says, and draw it."""
    parser = ModelParser(__doc__, max_tokens=48)
    parser.add_argument("-p", "--prompt", default="Once upon a time")
    parser.add_argument("--folder", type=Path, default=Path(), help="where routing.png and cache.png go")
    arguments = parser.parsed()

    recorder = moebind.RoutingRecorder(order=True)  # the order is for the cache; the heat map does without
    params = ContextParams(n_ctx=2048).with_eval_callback(recorder)
    with Model.load_from_file(arguments.model) as model, model.new_context(params) as context:
        print(context.generate(arguments.prompt, max_tokens=arguments.max_tokens).complete().text)

    print(recorder)
    curve = recorder.cache_curve()
    print(curve)
    point = curve.at(curve.token_bytes)
    print(f"A cache for the experts of one token, {point.size / 2**20:.0f} MiB, hits {point.hit_rate:.0%} of the time.")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    recorder.plot(arguments.folder / "routing.png")
    curve.plot(arguments.folder / "cache.png")


if __name__ == "__main__":
    main()
