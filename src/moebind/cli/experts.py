"""``moebind experts``: what a model's experts are and weigh."""

from __future__ import annotations

from moebind.cli import options as o
from moebind.cli.model_argument import takes_model
from moebind.cli.output import show, show_json
from moebind.placement.experts import experts


@takes_model
def command(model: o.ModelPath, as_json: o.AsJson = False) -> None:
    """Tell what a model's experts are and weigh, layer by layer.

    Example: moebind experts moe.gguf
    """
    found = experts(model)
    if not as_json:
        show(found)
        return
    show_json(
        {
            "path": found.path,
            "n_expert": found.n_expert,
            "n_expert_used": found.n_expert_used,
            "nbytes": found.nbytes,
            "active_nbytes": found.active_nbytes,
            "shared_nbytes": found.shared_nbytes,
            "total_nbytes": found.total_nbytes,
            "layers": [
                {
                    "layer": layer.layer,
                    "n_expert": layer.n_expert,
                    "n_expert_used": layer.n_expert_used,
                    "nbytes": layer.nbytes,
                    "types": [kind.name for kind in layer.types],
                    "tensors": list(layer.tensors),
                    "shared_nbytes": layer.shared_nbytes,
                    "shared_tensors": list(layer.shared_tensors),
                    "dense_nbytes": layer.dense_nbytes,
                }
                for layer in found
            ],
        }
    )
