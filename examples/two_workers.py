"""One model on two machines: all but the experts on one worker, the experts on another.

On each of the other machines:   moebind rpc-worker --host ADDRESS --allow-network
Here:                            python examples/two_workers.py --worker ADDRESS:50052 --worker ADDRESS:50052

Without --worker, two processes of this machine take their place, which makes nothing faster. docs/machines.md says
what to know before you do this over a network.
"""

from __future__ import annotations

from contextlib import ExitStack

from arguments import ModelParser

import moebind
from moebind import ContextParams, Model, ModelParams


def main() -> None:
    """Load, generate, and say what each machine holds."""
    parser = ModelParser(__doc__, max_tokens=24)
    parser.add_argument("--worker", action="append", default=[], metavar="HOST:PORT", help="two of them, or none")
    parser.add_argument("-p", "--prompt", default="Once upon a time")
    arguments = parser.parsed()
    if len(arguments.worker) not in (0, 2):
        parser.error(f"--worker was given {len(arguments.worker)} times; it takes two, or none")

    with ExitStack() as stack:
        if arguments.worker:
            first, second = (moebind.add_rpc_server(address)[0] for address in arguments.worker)
        else:
            first, second = (stack.enter_context(moebind.loopback_device()) for _ in range(2))
        # No layers go to the second one; only what the rule names does.
        params = ModelParams(devices=[first, second], tensor_split=[1, 0]).with_tensor_override(r"_exps\.", second)
        model = stack.enter_context(Model.load_from_file(arguments.model, params))
        context = stack.enter_context(model.new_context(ContextParams(n_ctx=512)))
        print(context.generate(arguments.prompt, max_tokens=arguments.max_tokens).complete().text)
        print(context.memory_breakdown())


if __name__ == "__main__":
    main()
