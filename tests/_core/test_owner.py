"""Objects of this process: not made by their classes, and not pickled."""

from __future__ import annotations

import copy
import pickle

import pytest

from moebind import (
    Batch,
    BatchExt,
    ChatReply,
    Context,
    EvalTensor,
    Gguf,
    LoraAdapter,
    Model,
    Sampler,
    SeqState,
    ThreadPool,
    TokenDataArray,
)


@pytest.mark.parametrize("arguments", [(), (1, 2)])
@pytest.mark.parametrize(
    ("kind", "maker"),
    [
        (ChatReply, "Context.chat"),
        (Context, "Model.new_context"),
        (EvalTensor, "with_eval_callback"),
        (Gguf, "Gguf.from_file"),
        (LoraAdapter, "Model.lora_adapter_init"),
        (Model, "Model.load_from_file"),
        (Sampler, "Sampler.greedy"),
        (SeqState, "Context.state_seq_get"),
    ],
)
def test_classes_say_what_makes_their_objects(kind: type, maker: str, arguments: tuple[object, ...]) -> None:
    with pytest.raises(TypeError, match=maker):
        kind(*arguments)


def test_native_memory_is_not_pickled(moe: Model, context: Context) -> None:
    context.decode(Batch.get_one([1]))
    made = [
        (moe, "load it there again"),
        (context, r"Model.new_context\(params\)"),
        (Gguf.from_file(moe.path), r"Gguf.from_file\(path\)"),
        (Sampler.greedy(), "make another one there"),
        (Batch(1), "make another one there"),
        (BatchExt(context), "make another one there"),
        (ThreadPool(1), "make another one there"),
        (context.token_data_array(), "make another one there"),
    ]
    assert isinstance(made[-1][0], TokenDataArray)
    for each, hint in made:
        for way in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match=f"a {type(each).__name__} cannot be pickled or copied: .*{hint}"):
                way(each)
    pickle.dumps(context.state_seq_get(0))
