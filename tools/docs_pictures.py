"""Draw the pictures of the documentation, docs/pictures: the plots from moebind's own output with the demo model.

    python tools/docs_pictures.py

`placement.svg` and `offload.svg` are drawn by hand, and stay as they are.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "examples"), str(ROOT / "tests")]
PICTURES = ROOT / "docs" / "pictures"
#: Readable on white and on black.
LINES, GREY = "#d27a22", "#737a85"
# The same files each time.
os.environ["SOURCE_DATE_EPOCH"] = "0"
matplotlib.rcParams["svg.hashsalt"] = "moebind"


def landscape(width: int, height: int) -> np.ndarray:
    """A drawn photo: sky, sun, hills and a house; uint8 (height, width, 3)."""
    y, x = np.mgrid[0:height, 0:width]
    u, v = x / width, y / height
    picture = np.empty((height, width, 3))
    picture[:] = (150, 190, 230)
    picture += (v[..., None] - 0.5) * np.array((60, 40, 0))
    picture[(u - 0.8) ** 2 * (width / height) ** 2 + (v - 0.2) ** 2 < 0.012] = (255, 215, 90)
    picture[v > 0.62 + 0.12 * np.sin(5 * u + 0.6)] = (90, 150, 90)
    picture[v > 0.75 + 0.06 * np.sin(9 * u)] = (60, 115, 70)
    picture[(abs(u - 0.3) < 0.1) & (v > 0.5) & (v < 0.78)] = (175, 90, 70)
    picture[(v < 0.5) & (v > 0.34) & (abs(u - 0.3) < (v - 0.34) * 0.85)] = (110, 55, 50)
    picture[(abs(u - 0.3) < 0.025) & (v > 0.64) & (v < 0.78)] = (70, 40, 35)
    return np.clip(picture, 0, 255).astype(np.uint8)


def seen(path: Path) -> None:
    """What becomes of a picture, for three kinds of projectors: where it is cut, and how many tokens it is."""
    import projectors

    from moebind.mtmd import Bitmap, InputChunkType

    photo = landscape(168, 112)
    panels = [(f"the picture\n{photo.shape[1]} x {photo.shape[0]} pixels", photo, (1, 1))]
    with tempfile.TemporaryDirectory() as folder:
        for kind, title in (("gemma3", "one square"), ("qwen2vl_merger", "its own shape")):
            loaded = projectors.load(Path(folder), kind)
            with loaded.model, loaded.mtmd:
                chunks = loaded.mtmd.tokenize([Bitmap.from_image_data(photo)])
                n_tokens = next(each for each in chunks if each.chunk_type == InputChunkType.IMAGE).n_tokens
            shape = photo.shape[1] / photo.shape[0] if projectors.SIDES[kind] == 0 else 1.0
            rows = max(1, round((n_tokens / shape) ** 0.5))
            scaled = Image.fromarray(photo).resize((round(112 * shape), 112))
            panels.append((f"{title}\n{n_tokens} tokens", np.asarray(scaled), (n_tokens // rows, rows)))
    figure = Figure(figsize=(7.5, 2.4), layout="constrained")
    for axes, (title, picture, (columns, rows)) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        height, width = picture.shape[:2]
        axes.imshow(picture)
        axes.set_title(title, color=GREY, fontsize=10)
        axes.axis("off")
        if columns * rows > 1:
            for column in range(columns):
                for row in range(rows):
                    corner = (column * width / columns - 0.5, row * height / rows - 0.5)
                    axes.add_patch(Rectangle(corner, width / columns, height / rows, fill=False, ec=LINES, lw=1.2))
    figure.savefig(path, transparent=True, dpi=110)


def main() -> None:
    """Draw all of them."""
    from demo_model import demo_model

    import moebind
    from moebind import ContextParams, Model, ModelParams

    PICTURES.mkdir(exist_ok=True)
    path, wanted = demo_model(), ContextParams(n_ctx=2048)
    for name, params in (("all", ModelParams()), ("offloaded", ModelParams().with_cpu_moe_all())):
        plan = moebind.plan(path, params, wanted, devices=["1GiB"], host="1GiB")
        plan.plot(PICTURES / f"plan-{name}.svg")

    recorder = moebind.RoutingRecorder(order=True)
    params = ContextParams(n_ctx=512).with_eval_callback(recorder)
    cpu = ModelParams(n_gpu_layers=0, devices=())
    with Model.load_from_file(path, cpu) as model, model.new_context(params) as context:
        context.generate("Once upon a time", max_tokens=48).complete()
    recorder.plot(PICTURES / "routing.png")
    heat_map = Image.open(PICTURES / "routing.png")
    heat_map.thumbnail((700, 640))  # a row for each layer is taller than a page has to be
    heat_map.save(PICTURES / "routing.png")
    recorder.cache_curve().plot(PICTURES / "cache.svg")
    seen(PICTURES / "seen.png")


if __name__ == "__main__":
    main()
