"""Makes ``data/``: tiny random models as GGUF files, and the logits that transformers computes for them.

    python -m venv /tmp/references
    /tmp/references/bin/pip install torch transformers==4.57.6 gguf
    /tmp/references/bin/python tests/numerics/make_references.py

Any build of torch for the CPU will do. ``--check`` writes nothing: it makes everything anew, and says whether what is
committed is still that. The tests need neither torch nor transformers; they read what this script wrote, and it is
beside them because nothing else uses it.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import architectures
import numpy as np
import phimoe
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from committed_references import write_or_check

DATA = Path(__file__).resolve().parent / "data"
SEED = 3
#: More than gpt-oss's sliding window, and than the original context of llama's rotary factors.
N_TOKENS = 64
#: The logits' standard deviation, about what real models have.
SPREAD = 2.0
#: How far apart, in router logits, the last expert that is chosen and the first that is not are kept. Where they are
#: closer, the last bit of a sum decides, and two correct programs differ by whole experts.
CLEARANCE = 0.01


@dataclass(frozen=True)
class Way:
    """One way to compute the logits, ``(n_tokens, n_vocab)``."""

    model: nn.Module
    run: Callable[[Tensor], Tensor]

    @classmethod
    def plain(cls, model: nn.Module) -> Way:
        """As transformers does."""

        def run(tokens: Tensor) -> Tensor:
            with torch.no_grad():
                return model(tokens[None], use_cache=False).logits[0]

        return cls(model, run)


def ways(name: str, model: nn.Module) -> dict[str, Way]:
    """What llama.cpp is compared with, by name; the first sets the logits' spread."""
    if name == "gpt-oss":
        # llama.cpp rounds the range of dimensions over which YaRN blends; gpt-oss asks for it unrounded.
        rounded = copy.deepcopy(model)
        rounded.config.rope_scaling["truncate"] = True
        rounded.model.rotary_emb = type(rounded.model.rotary_emb)(rounded.config)
        return {"transformers": Way.plain(model), "truncate": Way.plain(rounded)}
    if name == "phimoe":
        return {
            "graph": Way(model, partial(phimoe.logits, model)),
            "graph_long": Way(model, partial(phimoe.logits, model, long=True)),
            "graph_mscale": Way(model, partial(phimoe.logits, model, parts=("norm", "router"))),
            "transformers": Way.plain(model),
        }
    return {"transformers": Way.plain(model)}


def margins(way: Way, tokens: Tensor) -> Tensor:
    """For each token the smallest distance to a router tie, over the layers."""
    found: list[Tensor] = []

    def watch(router: nn.Module, arguments: tuple[Tensor]) -> None:
        logits = functional.linear(arguments[0].reshape(len(tokens), -1), router.weight, getattr(router, "bias", None))
        ordered = logits.sort(-1, descending=True).values
        k = way.model.config.num_experts_per_tok
        found.append(ordered[:, k - 1] - ordered[:, k])

    # phimoe's ways copy the model, and with it these hooks.
    routers = [each for name, each in way.model.named_modules() if name.endswith((".gate", ".router"))]
    hooks = [each.register_forward_pre_hook(watch) for each in routers]
    try:
        way.run(tokens)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(found).amin(0) if found else torch.full((len(tokens),), torch.inf)


def clear_tokens(computed: Iterable[Way]) -> Tensor:
    """Random tokens after which no router is near a tie: from the first on, another one until it is so."""
    random = np.random.RandomState(SEED)

    def draw(n: int) -> Tensor:
        return torch.from_numpy(random.randint(3, architectures.N_VOCAB, n).astype(np.int64))

    tokens = draw(N_TOKENS)
    while True:
        smallest = torch.stack([margins(way, tokens) for way in computed]).amin(0)
        near = (smallest < CLEARANCE).nonzero()
        if not len(near):
            return tokens
        tokens[near[0]] = draw(1)


def set_spread(way: Way) -> None:
    """Scale the last norm, and with it the logits."""
    spread = way.run(torch.arange(3, 3 + N_TOKENS)).std().item()
    # Rounded: the weights do not depend on the last bit of a sum.
    scale = float(f"{SPREAD / spread:.2g}")
    for parameter in way.model.model.norm.parameters():
        parameter.data *= scale


def finished(name: str) -> nn.Module:
    """The model, with logits of the spread."""
    model = architectures.model(architectures.configs()[name], SEED)
    set_spread(next(iter(ways(name, model).values())))
    return model


def make(name: str, folder: Path) -> None:
    """One model and its references."""
    model = finished(name)
    computed = ways(name, model)
    tokens = clear_tokens(computed.values())
    logits = {key: way.run(tokens).numpy() for key, way in computed.items()}
    architectures.write(folder / f"{name}.gguf", model)
    np.savez(folder / f"{name}.npz", tokens=tokens.numpy().astype(np.int32), **logits)
    for key, values in logits.items():
        print(f"{name:10}{key:14}logits' standard deviation {values.std():.2f}")
    if name == "phimoe":
        report_parts(model, tokens)


def report_parts(model: nn.Module, tokens: Tensor) -> None:
    """What each of phimoe's three differences makes alone."""
    plain = phimoe.logits(model, tokens, ())
    assert torch.equal(plain, Way.plain(model).run(tokens))
    for part, meaning in phimoe.PARTS.items():
        changed = phimoe.logits(model, tokens, (part,))
        same = (changed.argmax(-1) == plain.argmax(-1)).double().mean()
        print(f"{'':10}{(changed - plain).abs().max():5.2f}, same argmax {same:4.0%}: only {meaning}")


def main() -> int:
    """Write the data, or check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with what is committed")
    check = parser.parse_args().check
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()

    def make_all(folder: Path) -> None:
        for name in architectures.configs():
            make(name, folder)

    return write_or_check(make_all, DATA, check=check)


if __name__ == "__main__":
    sys.exit(main())
