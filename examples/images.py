"""Ask a model about pictures or sound.

    python examples/images.py model.gguf photo.jpg -p "What does it show?"

The projector is the mmproj*.gguf that lies beside the model, unless --mmproj names another one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import moebind
from moebind import ContextParams, Model, ModelParams
from moebind.mtmd import Bitmap, MtmdContext


def main() -> None:
    """Read the arguments, and answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file")
    parser.add_argument("media", nargs="+", help="pictures (PNG, JPEG, GIF, BMP) and sound (WAV, MP3, FLAC)")
    parser.add_argument("-p", "--prompt", default="What is this?")
    parser.add_argument("--mmproj", help="the projector's file")
    parser.add_argument("-n", "--predict", type=int, default=256, help="tokens at most")
    parser.add_argument("-ngl", "--n-gpu-layers", type=int, default=-1)
    parser.add_argument("-c", "--ctx-size", type=int, default=8192)
    parser.add_argument("--chat-template", help="where the model has none: a name, such as chatml")
    arguments = parser.parse_args()

    # What the model and its projector take together, before either is loaded.
    params, context_params = ModelParams(n_gpu_layers=arguments.n_gpu_layers), ContextParams(n_ctx=arguments.ctx_size)
    plan = moebind.plan(arguments.model, params, context_params, mmproj=arguments.mmproj or True)
    print(plan, file=sys.stderr)
    assert plan.mmproj is not None

    with (
        Model.load_from_file(arguments.model, params) as model,
        MtmdContext.init_from_file(plan.mmproj, model) as mtmd,
        model.new_context(context_params) as context,
    ):
        media = [Bitmap.from_file(Path(path), mtmd) for path in arguments.media]
        message = {"role": "user", "content": [*media, {"type": "text", "text": arguments.prompt}]}
        reply = context.chat([message], mtmd=mtmd, max_tokens=arguments.predict, template=arguments.chat_template)
        for piece in reply:
            print(piece.text, end="", flush=True)
        print()
        print(reply.usage, file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except (moebind.MoebindError, OSError, ValueError) as error:
        sys.exit(str(error))
