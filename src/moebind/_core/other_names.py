"""Names that llama-cpp-python, llama-cpp-2 and the C API have for things that go by another name here."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from types import MappingProxyType

from moebind._core.native import lib
from moebind._core.shown import shown

__all__ = ["SETTINGS", "elsewhere", "instead_of", "missing", "refuse_module_name", "uncallable"]

#: Of the module.
_MODULE = {
    "Llama": "Model.load_from_file(path, params), and a context of it: model.new_context(params)",
    "LlamaGrammar": "Sampler.grammar(model, text), or Sampler.json_schema(model, schema)",
    "LlamaState": "context.state_get() and state_set(data)",
    "LlamaTokenizer": "model.str_to_token(text) and tokens_to_str(tokens)",
    "LlamaCache": "what a context does by itself; it keeps more with state_seq_get()",
    "LlamaRAMCache": "what a context does by itself; it keeps more with state_seq_get()",
    "LlamaDiskCache": "context.state_save_file(path), and state_load_file(path)",
    "LogitsProcessorList": "Sampler.from_callable(function)",
    "StoppingCriteriaList": "a loop over the pieces of generate() that is left",
    **dict.fromkeys(("load_model", "loadmodel", "load", "load_from_file"), "Model.load_from_file(path, params)"),
    **dict.fromkeys(("from_pretrained", "from_hub"), "Model.from_pretrained(repo_id, filename, params)"),
    "LlamaBackend": "moebind.init(), which is called where it is needed",
    **dict.fromkeys(("AutoModelForCausalLM", "AutoModel"), "Model.from_pretrained(repo_id, filename, params)"),
    "AutoTokenizer": "model.str_to_token(text) and tokens_to_str(tokens)",
    **{name: f"moebind.mtmd.{name}" for name in ("Bitmap", "MtmdContext", "MtmdContextParams", "default_marker")},
    **{name: f"moebind.mtmd.{name}" for name in ("InputChunk", "InputChunkType", "InputChunks")},
    **{name: f"moebind.server.{name}" for name in ("Server", "ServedModel")},
}
#: Of models and contexts, which are one object there.
_OBJECTS = {
    "create_completion": "context.generate(prompt).complete()",
    "create_chat_completion": "context.chat(messages).complete()",
    "create_chat_completion_openai_v1": "context.chat(messages).complete()",
    **dict.fromkeys(("create_context", "context", "make_context"), "model.new_context(params)"),
    "create_embedding": "model.embed(texts)",
    "embed": "model.embed(texts)",
    "rerank": "model.rerank(query, texts)",
    "generate": "context.generate(prompt), with context = model.new_context(params)",
    "chat": "context.chat(messages), with context = model.new_context(params)",
    "tokenize": "model.str_to_token(text)",
    "detokenize": "model.tokens_to_str(tokens)",
    "token_to_piece": "model.token_to_piece(token, decoder)",
    "eval": "context.decode(batch)",
    "sample": "sampler.sample(context)",
    "reset": "context.kv_cache_clear()",
    "save_state": "context.state_get()",
    "load_state": "context.state_set(data)",
    "set_cache": "what a context does by itself; it keeps more with state_seq_get()",
    "set_seed": "the seed of generate() and chat()",
    "metadata": "model.meta",
    "chat_format": "the template of context.chat() and model.chat_format()",
    "chat_handler": "the template of context.chat()",
    "scores": "context.get_logits_ith(i), of the tokens of the last batch that have outputs",
    "eval_logits": "context.get_logits_ith(i), of the tokens of the last batch that have outputs",
    "input_ids": "what you decoded: a context tells how many tokens it has, not which",
    "eval_tokens": "what you decoded: a context tells how many tokens it has, not which",
    "n_tokens": "context.kv_cache_seq_pos_max(seq_id) + 1",
    "tokenizer": "model.str_to_token(text) and tokens_to_str(tokens)",
    "ctx": "context.native",
    "n_ctx": "context.n_ctx; of a model, n_ctx_train",
    "n_vocab": "model.n_vocab",
    "token_bos": "model.token_bos",
    "token_eos": "model.token_eos",
}
#: Of engines, which generate, and leave the rest to the model and to contexts that are made of it.
_ENGINES = {
    **_OBJECTS,
    "create_completion": "engine.generate(prompt).complete()",
    "create_chat_completion": "engine.chat(messages).complete()",
    "create_chat_completion_openai_v1": "engine.chat(messages).complete()",
    **dict.fromkeys(("generate_many", "generate_batch"), "[engine.generate(p) for p in prompts]"),
    **dict.fromkeys(
        ("context", "ctx", "native"), "engine.generate(prompt) and engine.chat(messages): its context is its own"
    ),
    **dict.fromkeys(("scores", "eval_logits"), "engine.generate(prompt, logprobs=5), whose pieces have them"),
    **dict.fromkeys(("set_cache", "reset"), "what an engine does by itself"),
    "n_ctx": "engine.n_ctx_seq, for one text; engine.params.n_ctx, for all",
    "chat_format": "the template of engine.chat()",
    "chat_handler": "the template of engine.chat()",
}

#: Of classes.
_CLASSES: dict[str, dict[str, str]] = {
    "Sampler": {
        "temperature": "Sampler.temp(t)",
        "temperature_ext": "Sampler.temp_ext(t, delta, exponent)",
        **dict.fromkeys(("repeat_penalty", "repetition_penalty", "penalty"), "Sampler.penalties(n, repeat)"),
        **dict.fromkeys(("presence_penalty", "frequency_penalty"), "Sampler.penalties(n, 1.0, frequency, presence)"),
        **dict.fromkeys(("random", "multinomial", "seed"), "Sampler.dist(seed)"),
        **dict.fromkeys(("softmax",), "Sampler.dist(seed), which computes it"),
        **dict.fromkeys(("argmax",), "Sampler.greedy()"),
        **dict.fromkeys(("regex", "lark"), "Sampler.llguidance(model, regex=...), or lark=..."),
        "gbnf": "Sampler.grammar(model, text)",
        "json": "Sampler.json_schema(model, schema)",
        "locally_typical": "Sampler.typical(p)",
        "mirostat_v1": "Sampler.mirostat(n_vocab, seed, tau, eta)",
    },
    "Model": {
        **dict.fromkeys(("load", "open", "from_file", "load_model", "from_path"), "Model.load_from_file(path, params)"),
        **dict.fromkeys(("from_hub", "from_hf", "from_repo"), "Model.from_pretrained(repo_id, filename, params)"),
    },
    "Context": {
        **dict.fromkeys(("create", "new", "from_model", "load", "from_pretrained"), "model.new_context(params)"),
    },
}
#: Of what is generated.
_TEXTS = {
    "finish_reason": "stop_reason, 'eog' or 'stop' where it would be 'stop', 'length' or 'context' where 'length'",
    "choices": "the text of one completion; generate_many([prompt] * n, temperature=...) gives several",
    "content": "text; of a chat, the 'content' of the message that complete() gives",
    "message": "text; of a chat, the message that complete() gives",
    "delta": "text; of a chat, what deltas() gives",
}
#: Of counts of tokens.
_USAGES = {
    **dict.fromkeys(("completion_tokens", "output_tokens", "eval_count"), "usage.generated_tokens"),
    **dict.fromkeys(("input_tokens", "prompt_eval_count"), "usage.prompt_tokens"),
    **dict.fromkeys(("prompt_tokens_details", "input_tokens_details"), "usage.cached_tokens"),
}
#: Of fits.
_FITS = {
    "params": "fit.model_params, and fit.context_params",
    "n_gpu_layers": "fit.model_params.n_gpu_layers",
    "tensor_overrides": "fit.model_params.tensor_overrides",
    "n_ctx": "fit.context_params.n_ctx",
    "n_ubatch": "fit.context_params.n_ubatch",
    "devices": "fit.plan.devices",
}
#: Of parameters: what is set elsewhere.
SETTINGS = {
    "logits_all": "batch.add_sequence(tokens, 0, logits_all=True), for the batch that needs it",
    "seed": "the seed of generate() and chat(), or Sampler.dist(seed)",
    "verbose": "moebind.set_log('info'), or None for silence",
    "chat_format": "template='chatml', for example, of context.chat(); without, it is the file's own",
    "chat_handler": "template=..., Jinja source, of context.chat(); without, it is the file's own",
    "lora_path": "context.set_lora_adapters({model.lora_adapter_init(path): scale})",
    "lora_scale": "context.set_lora_adapters({model.lora_adapter_init(path): scale})",
    "lora_base": "nothing: an adapter is applied to the model that was loaded",
    "last_n_tokens_size": "Sampler.penalties(n, ...), in a chain",
    "numa": "moebind.init(NumaStrategy...), before the first load",
    "tokenizer": "the model's own: model.str_to_token(text)",
    "override_tensor": "ModelParams().with_tensor_override(pattern, target)",
    **dict.fromkeys(("device_map", "max_memory"), "moebind.fit(path), whose model_params say what goes where"),
}

#: Of pools, which generate for asyncio only.
_POOLS = {
    "generate": "await pool.agenerate(prompt).complete(), or async for piece in pool.agenerate(prompt)",
    "chat": "await pool.achat(messages).complete(), or async for piece in pool.achat(messages)",
}
#: Of objects, by their classes; those of others are as of models and contexts.
_ATTRIBUTES: Mapping[str, Mapping[str, str]] = {
    "Piece": _TEXTS,
    "Completion": _TEXTS,
    "Usage": _USAGES,
    "Fit": _FITS,
    "ContextPool": _POOLS,
    "Engine": _ENGINES,
}
#: Of objects that are called there, by their classes.
_CALLED = {
    "Model": "context.generate(prompt).complete(), with context = model.new_context(params)",
    "Context": "context.generate(prompt).complete(), or context.chat(messages).complete()",
    "Engine": "engine.generate(prompt).complete(), or engine.chat(messages).complete()",
    "ContextPool": "await pool.agenerate(prompt).complete(), or await pool.achat(messages).complete()",
}


def elsewhere(name: str) -> str:
    """Where something is set that is no parameter here, as the end of a sentence; empty if that is not known."""
    return _hint(name, SETTINGS)


def missing(owner: object, name: str) -> AttributeError:
    """The error for an attribute that an object does not have, with what to write instead if that is known."""
    known = next((_ATTRIBUTES[kind.__name__] for kind in type(owner).__mro__ if kind.__name__ in _ATTRIBUTES), _OBJECTS)
    hint = _hint(name, known)
    return AttributeError(f"{type(owner).__name__!r} object has no attribute {name!r}{hint}", name=name, obj=owner)


def instead_of(owner: str, name: str) -> str:
    """What to write in place of a name that a class does not have, as the end of a sentence; empty if unknown."""
    return _hint(name, _CLASSES.get(owner, {}))


def uncallable(owner: object) -> TypeError:
    """The error for an object that is called, as llama-cpp-python's is, with what to write instead."""
    name = type(owner).__name__
    return TypeError(f"{name!r} object is not callable. Here it is {_CALLED[name]}; docs/migrating.md has more")


def refuse_module_name(name: str, known: Collection[str]) -> None:
    """Raise for a name that the module does not have.

    Raises
    ------
    AttributeError
        As Python would; or ImportError, with what to write instead, where such a name is imported.
    """
    here: Mapping[str, str] = _MODULE
    bare = name.removeprefix("Llama")
    if name not in here and name != bare and bare in known:
        here = MappingProxyType({name: f"moebind.{bare}"})
    elif name.startswith(("llama_", "ggml_", "gguf_")) and hasattr(lib, name):
        here = MappingProxyType({name: f"moebind.lib.{name}"})
    hint = _hint(name, here)
    if hint and _imports(2):
        # Python would replace an AttributeError by one of its own, without the hint.
        raise ImportError(f"cannot import name {shown(name)} from 'moebind'{hint}")
    if not hint and not name.startswith("_"):
        import difflib  # rarely needed

        near = difflib.get_close_matches(name, known, 1, 0.75)
        hint = f"; did you mean {near[0]!r}?" if near else ""
    raise AttributeError(f"module 'moebind' has no attribute {shown(name)}{hint}")


def _hint(name: str, known: Mapping[str, str]) -> str:
    return f". Here it is {known[name]}; docs/migrating.md has more" if name in known else ""


def _imports(depth: int) -> bool:
    """Whether a caller, so many calls up, is in the middle of ``from moebind import ...``."""
    from opcode import opmap  # rarely needed

    caller = sys._getframe(depth + 1)
    return caller.f_code.co_code[caller.f_lasti] == opmap["IMPORT_FROM"]
