"""Requests a second as a model of lm-evaluation-harness, against the harness's own ``hf``, and the scores of both.

    python -m venv /tmp/harness
    /tmp/harness/bin/pip install . lm_eval torch transformers==4.57.6 "datasets<4.6" accelerate peft gguf tqdm
    /tmp/harness/bin/python benchmarks/lm_eval_hf.py [--threads N] [--rounds N] [--questions N]

The model is the dense one that the demo model is made from: transformers reads the same GGUF file, as F32. moebind
computes once with an F32 copy and an F32 cache, which is the comparison of scores, and once with the file as it is,
which is how it would be used. Each question has four answers. The three take turns; on a shared machine only the
ratios mean something, and the median over the rounds is told.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from programs import arguments

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
os.environ["HF_HUB_OFFLINE"] = "1"
COUNTRIES = ["France", "Italy", "Spain", "Germany", "Greece", "Portugal", "Norway", "Poland", "Austria", "Ireland"]
CITIES = [" Paris", " Rome", " Madrid", " Berlin"]
ASKED = "Here is a question about the countries of Europe, and its answer.\nQuestion: what is the capital of {}, \
number {} of the list?\nAnswer: the capital is"


def main() -> None:
    """Measure and print."""
    import torch
    from demo_model import dense_model
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import moebind
    from moebind.integrations.lm_eval import MoebindLM

    parser = arguments(__doc__, "the dense model of the demo model", 3)
    parser.set_defaults(rounds=3)
    parser.add_argument("--questions", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path = Path(options.model or dense_model())
    read = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    theirs = HFLM(
        pretrained=AutoModelForCausalLM.from_pretrained(**read, dtype=torch.float32),
        tokenizer=AutoTokenizer.from_pretrained(**read),
        add_bos_token=False,  # as the file says; transformers does not read that
        batch_size=16,
        device="cpu",
        backend="causal",
    )
    pairs = [
        (ASKED.format(COUNTRIES[n % len(COUNTRIES)], n), city) for n in range(options.questions) for city in CITIES
    ]
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    with tempfile.TemporaryDirectory() as folder:
        exact = Path(folder, "F32.gguf")
        moebind.quantize(path, exact, moebind.Ftype.ALL_F32, allow_requantize=True, progress=False)
        saved = Path(folder, "exact.json")
        cache = {"n_ctx": 4096, "type_k": "F32", "type_v": "F32", "flash_attn_type": "DISABLED"}
        saved.write_text(json.dumps({"context_params": cache}), encoding="utf-8")
        settings = {"n_gpu_layers": 0, "n_threads": options.threads}
        sides = {
            "hf, F32": theirs,
            "moebind, F32": MoebindLM(exact, params=saved, **settings),
            "moebind, the file": MoebindLM(path, **settings),
        }
        took: dict[str, list[float]] = {name: [] for name in sides}
        scores: dict[str, np.ndarray] = {}
        for _ in range(options.rounds):
            for name, lm in sides.items():
                start = time.perf_counter()
                found = lm.loglikelihood(requests, disable_tqdm=True)
                took[name].append(time.perf_counter() - start)
                scores[name] = np.array(found)[:, 0]
    reference = scores["hf, F32"]
    print(f"{len(requests)} requests, {options.threads} threads, {options.rounds} rounds")
    print(f"{'':20}{'requests/s':>12}{'against hf':>24}{'largest difference of a score':>32}")
    for name in sides:
        ratios = [theirs_took / ours for theirs_took, ours in zip(took["hf, F32"], took[name], strict=True)]
        spread = f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
        speed = len(requests) / statistics.median(took[name])
        print(f"{name:20}{speed:12.1f}{spread:>24}{np.abs(scores[name] - reference).max():32.0e}")


if __name__ == "__main__":
    main()
