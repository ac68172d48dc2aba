"""Tiny random models of every architecture, those with experts in each form that llama.cpp takes: where tensors go.

    python tests/placement/every_architecture.py [ARCHITECTURE ...]

Each is planned, loaded onto a worker process with its experts there, in host memory, and in between, and computed with.
All of them take some minutes.
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "fuzz")]
import gguf_architectures
import weights_read
from gguf_architectures import Candidate, Loader
from gguf_recipes import NOT_MADE

import moebind
from moebind import Context, ContextParams, Device, DeviceMemory, Model, ModelParams
from moebind.files.architecture_facts import ENCODER_DECODER
from moebind.placement import simulation

SOURCE = TESTS.parent / "vendor/llama.cpp/src"
CONTEXT = ContextParams(n_ctx=256, n_threads=1, n_threads_batch=1)
#: In whose source there are tensors of experts, and why no model has them.
NO_EXPERTS = {
    "ernie4_5": "its code loads ernie4_5-moe, too",
    "lfm2": "its code loads lfm2moe, too",
    "paddleocr": "its code is that of ernie4_5",
}

PLACEMENTS: dict[str, Callable[[ModelParams], ModelParams]] = {
    "all on the device": lambda params: params,
    "experts on the host": lambda params: params.with_cpu_moe_all(strict=False),
    "the first layer's": lambda params: params.with_n_cpu_moe(1, strict=False),
    "one layer": lambda params: params.with_n_gpu_layers(2),
    "nothing": lambda params: params.with_n_gpu_layers(0),
    "no device": lambda params: params.with_devices(()),
}
#: Tensors that may be in a layer with experts, as far as they are there together.
OPTIONAL = (
    ("ffn_gate_exps.weight",),
    ("ffn_up_exps.bias", "ffn_down_exps.bias"),
    ("ffn_gate_exps.bias",),
    *((f"ffn_{part}_exps.{kind}",) for part in ("gate", "up", "down") for kind in ("scale", "input_scale")),
    ("ffn_gate_inp.bias",),
    ("exp_probs_b.bias",),
    ("ffn_gate_shexp.weight", "ffn_up_shexp.weight", "ffn_down_shexp.weight"),
    ("ffn_gate_inp_shexp.weight",),
    ("ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"),
)
#: What is done with weights of which a token uses those of its experts. Scales are looked up by their numbers, and
#: Granite Switch has adapters that are chosen like experts, one for each sequence.
BY_NUMBER = {"MUL_MAT_ID", "ADD_ID"}
_OTHERS = re.compile(r"_exps\.(input_)?scale$|\.lora_[ab]$")
#: What a token reads of these is not looked at: it is not a token alone that they take.
_NOT_ONLY_TOKENS = {*ENCODER_DECODER, "eagle3"}


def with_experts() -> set[str]:
    """The architectures that have experts, by llama.cpp's source."""
    names = dict(re.findall(r"\{ (LLM_ARCH_\w+), +\"([\w.-]+)\" +\}", _source("llama-arch.cpp")))
    bases = dict(re.findall(r"struct (llama_model_\w+) : public (llama_model_\w+) \{", _source("models/models.h")))
    texts = [path.read_text(encoding="utf-8") for path in sorted((SOURCE / "models").glob("*.cpp"))]
    function = re.compile(r"void (llama_model_\w+)::load_arch_tensors\(.*?\{\n(.*?)\n\}\n", re.DOTALL)
    loaders: dict[str, str] = dict(itertools.chain.from_iterable(map(function.findall, texts)))

    def has(model: str) -> bool:
        if model not in loaders:
            return model in bases and has(bases[model])
        calls = re.findall(r"(llama_model_\w+)::load_arch_tensors", loaders[model])
        return bool(re.search(r"_EXPS\b|_gate_up_exps", loaders[model])) or any(map(has, calls))

    cases = r"((?:\s*case LLM_ARCH_\w+:)+)\s*return new (llama_model_\w+)\(params\);"
    found = set()
    for several, model in re.findall(cases, _source("llama-model.cpp")):
        if has(model):
            found |= {names[each] for each in re.findall(r"LLM_ARCH_\w+", several)}
    assert {*NO_EXPERTS} < found
    return found - {*NO_EXPERTS}


def _source(name: str) -> str:
    return (SOURCE / name).read_text(encoding="utf-8")


def forms(
    candidate: Candidate, outcome_of: Callable[[Candidate], str], outcome_ahead_of: Callable[[Candidate], str]
) -> Iterator[tuple[str, Candidate]]:
    """A model that works in each form that there is of it, with what it is called."""
    layers = sorted({int(name.split(".")[1]) for name in candidate.tensors if "ffn_down_exps" in name})
    yield "as it is", candidate
    if not layers:
        return
    full = candidate
    for group in OPTIONAL:
        added = {f"blk.{layer}.{name}": [1] for layer in layers for name in group}
        if not added.keys() <= full.tensors.keys():
            more = full.changed_in(tensors={**added, **full.tensors})
            full = more if gguf_architectures.complete(more, outcome_of) == "works" else full
    if full is not candidate:
        yield "with all that may be there", full
    apart = re.compile(r"\.ffn_(gate|up)_exps\.weight$")
    fused = candidate.changed_in(
        tensors={
            **{name: shape for name, shape in candidate.tensors.items() if not apart.search(name)},
            **{f"blk.{layer}.ffn_gate_up_exps.weight": [1] for layer in layers},
        }
    )
    if gguf_architectures.complete(fused, outcome_of) == "works":
        yield "gate and up in one", fused
    ahead = candidate.changed_in(
        numbers={**candidate.numbers, "nextn_predict_layers": 1, "block_count": _layers_of(candidate) + 1},
    )
    ahead.tensors[f"blk.{_layers_of(candidate)}.nextn.eh_proj.weight"] = [1]
    ahead.numbers = {key: _longer(value, _layers_of(candidate)) for key, value in ahead.numbers.items()}
    if gguf_architectures.complete(ahead, outcome_ahead_of) == "works":
        yield "with a layer that predicts ahead", ahead


def _layers_of(candidate: Candidate) -> int:
    count = candidate.numbers["block_count"]
    assert isinstance(count, int)
    return count


def _longer(value: object, n_layer: int) -> object:
    """A list with a number for each layer, with one for another layer."""
    return [*value, max(value)] if isinstance(value, list) and len(value) == n_layer else value


def check(path: Path, device: Device) -> int:
    """Raise unless each tensor is where a plan and ``experts`` say; how many tensors of experts there are."""
    ahead = any(".nextn." in name for name in moebind.Gguf.from_file(path).tensors)
    loads = [ModelParams(devices=(device,), load_mtp=mtp) for mtp in ((False, True) if ahead else (False,))]
    return max(_check(path, params) for params in loads)


def _check(path: Path, base: ModelParams) -> int:
    places: dict[str, dict[str, str | None]] = {}
    outputs = []
    for name, change in PLACEMENTS.items():
        params, context = change(base), CONTEXT
        with Model.load_from_file(path, params) as model:
            architecture, context = model.meta["general.architecture"], gguf_architectures.context_of(model, CONTEXT)
            plan = moebind.plan(path, params, context)
            with model.new_context(context) as live:
                places[name] = simulation.places_of(simulation.tensors_of(model._open()))
                _same(f"{name}: places", plan.places, places[name])
                _same(f"{name}: memory", _sizes(plan.devices), _sizes(live.memory_breakdown().devices))
                outputs.append(_output(model, live))
        described = moebind.plan(path, params.with_devices(None), context, devices=["1GiB"] if params.devices else [])
        _same(f"{name}, described: places", _on_device(described.places), _on_device(plan.places))
        reads = (sorted(filter(None, each.weights_per_token.values())) for each in (described, plan))
        _same(f"{name}, described: reads", *reads)
        if architecture not in _NOT_ONLY_TOKENS:
            _check_reads(name, path, plan)
    for name, output in zip(PLACEMENTS, outputs, strict=True):
        if not np.array_equal(output, outputs[0], equal_nan=True):
            raise AssertionError(f"{name}: computes something else")
    summary = moebind.experts(path, load_mtp=base.load_mtp)
    told = {tensor for layer in summary for tensor in layer.tensors}
    first = {tensor for layer in summary for tensor in layer.tensors if layer.layer == 0}
    everywhere = _on_device(places["all on the device"])
    _same("experts that moved", told, everywhere - _on_device(places["experts on the host"]))
    _same("first experts that moved", first, everywhere - _on_device(places["the first layer's"]))
    return len(told)


def _check_reads(name: str, path: Path, plan: moebind.Plan) -> None:
    """What the graph of a token reads: experts are what it chooses from by their numbers, and nothing else is."""
    counter = weights_read.counted(path, plan.model_params, plan.context_params)
    _same(f"{name}: reads", {key: size for key, size in plan.weights_per_token.items() if size}, counter.reads)
    users = {tensor: used for tensor, used in counter.users.items() if not _OTHERS.search(tensor)}
    told = {tensor for layer in moebind.experts(path) for tensor in layer.tensors} & users.keys()
    _same(f"{name}: experts that are used", told, {tensor for tensor, used in users.items() if used & BY_NUMBER})
    every = {tensor for tensor, used in users.items() if used - BY_NUMBER}
    _same(f"{name}: experts that every token uses", set(), every & told)


def _output(model: Model, live: Context) -> np.ndarray:
    gguf_architectures.compute(model, live)
    return live.get_logits().copy() if live._has_logits else np.zeros(1)


def _on_device(places: Mapping[str, str | None]) -> set[str]:
    return {tensor for tensor, place in places.items() if place is not None}


def _sizes(devices: tuple[DeviceMemory, ...]) -> list[tuple[str, int, int, int]]:
    return [
        (buffer.name, buffer.model, buffer.context, buffer.compute)
        for device in devices
        for buffer in device.buffers
        if buffer.total
    ]


def _same(what: str, ours: object, theirs: object) -> None:
    if ours != theirs:
        if isinstance(ours, dict) and isinstance(theirs, dict):
            ours, theirs = ours.items() - theirs.items(), theirs.items() - ours.items()
        elif isinstance(ours, set) and isinstance(theirs, set):
            ours, theirs = ours - theirs, theirs - ours
        raise AssertionError(f"{what}: {ours} planned or told, {theirs} found")


def examine(architectures: list[str]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The forms of each architecture that were checked, and what is wrong."""
    known = with_experts()
    checked: dict[str, list[str]] = {}
    wrong: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder, moebind.loopback_device() as device:
        vocabulary = gguf_architectures.vocabulary_in(Path(folder))
        loader, ahead = Loader(folder), Loader(folder, load_mtp=True)
        for architecture in architectures:
            candidate = Candidate.of(architecture, vocabulary)
            outcome = gguf_architectures.complete(candidate, loader.outcome)
            if outcome != "works":
                wrong[architecture] = outcome[-200:]
                continue
            for number, (form, each) in enumerate(forms(candidate, loader.outcome, ahead.outcome)):
                path = each.write(Path(folder) / f"{architecture}-{number}.gguf", seed=number)
                try:
                    found = check(path, device)
                    if (found > 0) is not (architecture in known):
                        raise AssertionError(f"{found} tensors of experts")
                    checked.setdefault(architecture, []).append(form)
                except (AssertionError, moebind.MoebindError, ValueError) as error:
                    wrong[f"{architecture}, {form}"] = str(error)
                path.unlink()
        loader.close()
        ahead.close()
    return checked, wrong


def made() -> list[str]:
    """The architectures of which there are tiny models."""
    return [name for name in gguf_architectures.names() if name not in NOT_MADE]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("architectures", nargs="*")
    moebind.set_log(None)
    names = parser.parse_args().architectures or made()
    checked, wrong = examine(names)
    for architecture, found in checked.items():
        print(f"{architecture:16} {', '.join(found)}")
    for name, reason in wrong.items():
        print(f"{name}: {reason}")
    counts = Counter(itertools.chain.from_iterable(checked.values()))
    print(f"{len(checked)} of {len(names)} architectures, {len(with_experts() & {*checked})} with experts: {counts}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
