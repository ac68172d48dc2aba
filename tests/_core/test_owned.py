"""What is made natively is owned from the first moment: whatever is raised between two calls, it is freed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lora
import pytest
from processes import run

MakeTiny = Callable[..., Path]

#: What is interrupted, after each native call in turn.
DOES = {
    "models": "Model.load_from_file(path, cpu).close()",
    "contexts": "model.new_context(two).close()",
    "contexts with chains": "model.new_context(two, samplers={0: Sampler.chain([Sampler.dist(1)])}).close()",
    "adapters": "context.set_lora_adapters({model.lora_adapter_init(other): 0.5})\ncontext.clear_lora_adapters()",
    "chains": "Sampler.chain([Sampler.grammar(model, 'root ::= \"a\"', 'root'), Sampler.from_callable(print)]).clone()",
    "attached chains": "context.set_sampler(0, Sampler.chain([Sampler.dist(1)]))\ncontext.set_sampler(0, None)",
    "threads": "context.attach_threadpool(moebind.ThreadPool(context.n_threads))\ncontext.detach_threadpool()",
    "batches": "batch = moebind.BatchExt(context)\nbatch.add(0, 0, token=1)\nbatch.close()",
    "templates": "model.parse_chat_response('a reply', template=TEMPLATE)",
    "headers": "moebind.Gguf.from_file(path)",
    "plans": "moebind.plan(path, cpu, two)",
    "views": "context.kv_cache_clear()\ncontext.decode(Batch.get_one([1]))\nkept = context.get_logits()\n"
    "batch = Batch(99)\nbatch.add_sequence([1] * 99, 0, logits_all=True)\ncontext.kv_cache_clear()\n"
    "context.decode(batch)",
}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lora.write(tmp_path_factory.mktemp("adapter") / "lora.gguf", lora.pairs(lora.WEIGHTS))


@pytest.mark.parametrize("what", DOES)
def test_ctrl_c_after_any_native_call(tiny_path: MakeTiny, adapter: Path, what: str) -> None:
    """As a signal handler raises it: between the end of a native call and what Python does next."""
    run(
        f"""
import gc
from moebind import lib
other = sys.argv[1]
TEMPLATE = "{{% for message in messages %}}{{{{ message.content }}}}{{% endfor %}}"
model = Model.load_from_file(path, cpu)

def do(context):
    {DOES[what].replace(chr(10), chr(10) + "    ")}

def interrupt_after(number):
    calls = 0
    def profile(frame, event, function):
        nonlocal calls
        if event == "c_return" and getattr(function, "__self__", None) is lib:
            calls += 1
            if calls == number:
                raise KeyboardInterrupt
    sys.setprofile(profile)

def interrupted(number):
    context = model.new_context(two)
    interrupt_after(number)
    try:
        do(context)
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
        model._ready = None  # templates that it keeps
    return False

interrupted(0)
gc.collect()
before = lib.moebind_owned_alive()
number = 1
while interrupted(number):
    gc.collect()
    assert lib.moebind_owned_alive() == before, number
    number += 1
assert number > 3
""",
        adapter,
        tiny_path(n_expert=4),
        MALLOC_PERTURB_="165",
    )


def test_a_result_that_is_not_returned_is_freed(tiny_path: MakeTiny) -> None:
    """A reply that is parsed when Ctrl-C comes: the call raises, though its result was made."""
    run(
        """
import gc, signal
from moebind import lib
model = Model.load_from_file(path, cpu)
prompt = model.chat_format([{"role": "user", "content": "?"}], template="{{ messages[0].content }}")
reply = "x" * 500_000

def stop(*_):
    signal.setitimer(signal.ITIMER_REAL, 0)
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, stop)
before = lib.moebind_owned_alive()
for number in range(1, 60):
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001 * number)
        while True:  # however fast the machine is
            prompt.parse(reply)
    except KeyboardInterrupt:
        pass
    gc.collect()
    assert lib.moebind_owned_alive() == before
""",
        tiny_path(n_expert=4),
    )
