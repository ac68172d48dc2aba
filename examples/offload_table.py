"""What each placement of a model takes of a graphics card, as a table.

    python examples/offload_table.py                            # the demo model, on a card of 512 MiB
    python examples/offload_table.py -m moe.gguf --card 24GiB --n-ctx 32768
    python examples/offload_table.py -m hf://OWNER/NAME/FILE.gguf --card 24GiB   # before the download

Nothing is loaded: only the file's header is read.
"""

from __future__ import annotations

from arguments import ModelParser

import moebind
from moebind import ContextParams, ModelParams


def main() -> None:
    """Plan each placement, and print a line for it."""
    parser = ModelParser(__doc__)
    parser.add_argument("--card", default="512MiB", help="memory of the card, which need not exist (%(default)s)")
    parser.add_argument("--n-ctx", type=int, default=2048, help="tokens of context (%(default)s)")
    arguments = parser.parsed()

    context_params = ContextParams(n_ctx=arguments.n_ctx)
    n_layer = len(moebind.experts(arguments.model).layers)
    placements = {
        "all on the card": ModelParams(),
        **{f"with_n_cpu_moe({n})": ModelParams().with_n_cpu_moe(n) for n in (n_layer // 4, n_layer // 2)},
        "with_cpu_moe_all()": ModelParams().with_cpu_moe_all(),
    }
    everything = None
    print(f"{'MiB':20} {'card':>9} {'host':>9} {'saved':>7}  fits")
    for name, params in placements.items():
        plan = moebind.plan(arguments.model, params, context_params, devices=[arguments.card])
        everything = everything or plan
        card, host = plan.device_bytes / 2**20, plan.host_bytes / 2**20
        print(f"{name:20} {card:9.1f} {host:9.1f} {plan.reduction_vs(everything):7.1%}  {'yes' if plan.fits else 'no'}")
    print("\nThe fastest that fits:")
    print(moebind.fit(arguments.model, devices=[arguments.card], n_ctx=arguments.n_ctx).explanation)


if __name__ == "__main__":
    main()
