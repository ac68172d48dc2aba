"""LoRA adapters as objects: what they say, and how long they live."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import lora
import numpy as np
import pytest
from lora import EXACT

from conftest import CPU
from moebind import ClosedError, Context, LoraAdapter, Model

MakeTiny = Callable[..., Path]


def test_metadata(moe: Model, adapter: LoraAdapter, first: lora.Pairs, tmp_path: Path) -> None:
    assert adapter.meta["adapter.type"] == "lora"
    assert adapter.meta["general.architecture"] == "llama"
    assert float(adapter.meta["adapter.lora.alpha"]) == 8
    assert adapter.model is moe
    assert adapter.path.endswith("first.gguf")
    assert "first.gguf" in repr(adapter)
    assert adapter.alora_invocation_tokens.shape == (0,)
    with pytest.raises(TypeError, match="does not support item assignment"):
        adapter.meta["x"] = "y"  # type: ignore[index]
    told = {**lora.METADATA, "general.description": "ü" * 1000, "adapter.lora.task_name": "x"}
    told["adapter.alora.invocation_tokens"] = np.array([5, 9, 13], np.uint32)
    with moe.lora_adapter_init(lora.write(tmp_path / "told.gguf", first, metadata=told)) as activated:
        assert activated.meta["general.description"] == "ü" * 1000
        assert activated.meta["adapter.lora.task_name"] == "x"
        assert activated.alora_invocation_tokens.dtype == np.int32
        assert activated.alora_invocation_tokens.tolist() == [5, 9, 13]


def test_closed_adapters(exact: Context, moe: Model, first: lora.Pairs, tmp_path: Path) -> None:
    adapter = moe.lora_adapter_init(lora.write(tmp_path / "one.gguf", first))
    adapter.close()
    adapter.close()
    assert adapter.closed
    assert repr(adapter) == "<LoraAdapter, closed>"
    for call in (
        lambda: exact.set_lora_adapters({adapter: 1}),
        lambda: adapter.meta,
        lambda: adapter.alora_invocation_tokens,
        lambda: adapter.native,
    ):
        with pytest.raises(ClosedError):
            call()
    with pytest.raises(TypeError, match="lora_adapter_init"):
        LoraAdapter()


def test_its_memory_is_freed_when_nobody_needs_it(moe: Model, first: lora.Pairs, tmp_path: Path) -> None:
    file = lora.write(tmp_path / "one.gguf", first)
    for let_go in (Context.close, Context.clear_lora_adapters):
        with moe.new_context(EXACT) as context:
            adapter = moe.lora_adapter_init(file)
            memory = weakref.ref(adapter.native)
            context.set_lora_adapters({adapter: 1})
            adapter.close()
            gc.collect()
            assert memory() is not None
            let_go(context)
            gc.collect()
            assert memory() is None


#: Forks while an adapter is in use that only a context still has.
FORKS = """
import gc, os, sys
import moebind
from moebind import Batch, ContextParams, Model, ModelParams
with moebind.loopback_device() as device:
    model = Model.load_from_file(sys.argv[1], ModelParams(devices=(device,)))
    context = model.new_context(ContextParams(n_ctx=256, n_threads=1, n_threads_batch=1))
    adapter, other = model.lora_adapter_init(sys.argv[2]), model.lora_adapter_init(sys.argv[2])
    context.set_lora_adapters({adapter: 1.0, other: 0.5})
    adapter.close()
    del adapter
    context.decode(Batch.get_one([1, 5, 9]))
    before = context.get_logits_ith(-1).copy()
    child = os.fork()
    if child == 0:
        assert other.closed and context.closed and model.closed
        del context, other, model
        gc.collect()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    context.kv_cache_clear()
    context.decode(Batch.get_one([1, 5, 9]))
    assert (context.get_logits_ith(-1) == before).all()
"""


def test_a_child_of_a_fork_leaves_adapters_to_its_parent(moe: Model, adapter: LoraAdapter) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKS, moe.path, adapter.path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=90)
    assert (done.returncode, done.stderr) == (0, "")


def test_closing_a_model_closes_its_adapters(tiny_path: MakeTiny, first: lora.Pairs, tmp_path: Path) -> None:
    file = lora.write(tmp_path / "one.gguf", first)
    for order in ("model", "adapter", "context"):
        model = Model.load_from_file(tiny_path(n_expert=4), CPU)
        adapter, context = model.lora_adapter_init(file), model.new_context(EXACT)
        context.set_lora_adapters({adapter: 1})
        {"model": model, "adapter": adapter, "context": context}[order].close()
        if order != "context":
            assert adapter.closed
        model.close()
        assert adapter.closed
        assert context.closed
        del model, adapter, context
        gc.collect()
