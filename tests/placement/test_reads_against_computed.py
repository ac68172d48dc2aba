"""What a plan says that a token reads is what the graph of a token then does read, byte by byte."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import moebind
from conftest import CPU, SMALL
from moebind import Batch, ContextParams, Device, DeviceType, EvalTensor, Gguf, LazyMode, Model, ModelParams, ffi, lib

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fuzz"))
import gguf_architectures

MakeTiny = Callable[..., Path]

MODELS: dict[str, dict[str, object]] = {
    "dense": {},
    "tied": {"tied": True},
    "experts": {"n_expert": 4, "n_layer": 3},
    "dense first, shared experts": {"arch": "deepseek", "n_expert": 4, "n_dense_layers": 1, "n_layer": 3},
    "groups of experts": {"arch": "dots1", "n_expert": 8, "n_head_kv": 4, "n_expert_groups": 4},
    "fused": {"arch": "granite_swa", "n_expert": 4},
    "chexps": {"arch": "grovemoe", "n_expert": 4},
    "looked up": {"arch": "gemma4"},
    "recurrent": {"arch": "mamba"},
    "hybrid": {"arch": "lfm2"},
    "ahead": {"arch": "glm4moe", "n_expert": 4, "n_layer": 3, "n_mtp": 1},
}
PLACEMENTS: dict[str, Callable[[ModelParams], ModelParams]] = {
    "all on the device": lambda params: params,
    "experts on the host": lambda params: params.with_cpu_moe_all(strict=False),
    "one matrix": lambda params: params.with_cpu_override("ffn_down", strict=False),
    "two layers": lambda params: params.with_n_gpu_layers(2),
    "nothing": lambda params: params.with_n_gpu_layers(0),
}


class Counter:
    """An eval callback that adds up the bytes of weights that the nodes of a graph read, by device."""

    def __init__(self, path: Path) -> None:
        self.weights = set(Gguf.from_file(path).tensors)
        self.reads: dict[str, int] = {}

    def __call__(self, node: EvalTensor, ask: bool) -> bool:
        # Branches for batches of another kind are in the graph, too.
        done = node.native.flags & lib.GGML_TENSOR_FLAG_COMPUTE
        if ask and done and node.op not in {"VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE", "NONE"}:
            for at, source in enumerate(node.native.src):
                if source != ffi.NULL:
                    self._add(node, at, source)
        return False

    def _add(self, node: EvalTensor, at: int, source: object) -> None:
        base = source
        while base.view_src != ffi.NULL:  # type: ignore[attr-defined]
            base = base.view_src  # type: ignore[attr-defined]
        if ffi.string(base.name).decode() not in self.weights:  # type: ignore[attr-defined]
            return
        nbytes = int(lib.ggml_nbytes(source))
        others = node.native.src
        if node.op == "MUL_MAT_ID" and at == 0:
            nbytes = nbytes * int(others[2].ne[0]) // int(source.ne[2])  # type: ignore[attr-defined]
        elif node.op == "ADD_ID" and at == 1:
            nbytes = nbytes * int(others[2].ne[0]) // int(source.ne[1])  # type: ignore[attr-defined]
        elif node.op == "GET_ROWS" and at == 0:
            rows = int(lib.ggml_nrows(source))
            nbytes = nbytes * int(lib.ggml_nelements(others[1])) // rows
        device = lib.ggml_backend_buft_get_device(lib.ggml_backend_buffer_get_type(base.buffer))  # type: ignore[attr-defined]
        on_host = device == ffi.NULL or lib.ggml_backend_dev_type(device) == DeviceType.CPU
        name = "Host" if on_host else ffi.string(lib.ggml_backend_dev_name(device)).decode()
        self.reads[name] = self.reads.get(name, 0) + nbytes


def computed(path: Path, params: ModelParams, context: ContextParams) -> dict[str, int]:
    counter = Counter(path)
    with (
        Model.load_from_file(path, params) as model,
        model.new_context(context.with_eval_callback(counter)) as live,
    ):
        live.decode(Batch.get_one([1, 5, 6, 7]))
        counter.reads.clear()
        live.decode(Batch.get_one([8]))
        live.synchronize()
    return counter.reads


@pytest.mark.parametrize("model", MODELS)
def test_tiny_models(tiny_path: MakeTiny, device: Device, model: str) -> None:
    path = tiny_path(**MODELS[model])
    for change in PLACEMENTS.values():
        params = change(ModelParams(devices=(device,)))
        plan = moebind.plan(path, params, SMALL)
        found = computed(path, params, SMALL)
        assert {name: nbytes for name, nbytes in plan.weights_per_token.items() if nbytes} == found
        described = moebind.plan(path, change(ModelParams()), SMALL, devices=["1GiB"])
        assert sorted(described.weights_per_token.values()) == sorted(plan.weights_per_token.values())


def test_the_demo_model(demo_path: Path, device: Device) -> None:
    for change in (PLACEMENTS["experts on the host"], PLACEMENTS["two layers"]):
        params = change(ModelParams(devices=(device,)))
        assert dict(moebind.plan(demo_path, params, SMALL).weights_per_token) == computed(demo_path, params, SMALL)


def test_several_sequences_and_other_contexts(tiny_path: MakeTiny) -> None:
    path = tiny_path(n_expert=4)
    one = computed(path, CPU, SMALL)
    for context in (SMALL.with_n_seq_max(40).with_n_ctx(40 * 256), SMALL.with_n_seq_max(40).with_kv_unified(True)):
        plan = moebind.plan(path, CPU, context)
        assert {name: nbytes for name, nbytes in plan.weights_per_token.items() if nbytes} == one
        # So many that a GPU takes over experts of the host's.
        described = moebind.plan(path, ModelParams().with_cpu_moe_all(), context, devices=["1GiB"])
        assert sum(described.weights_per_token.values()) == sum(one.values())
        assert described.weights_per_token["Host"] > moebind.experts(path).active_nbytes


def test_layers_ahead_are_read_by_their_own_contexts_only(tiny_path: MakeTiny) -> None:
    path = tiny_path(arch="glm4moe", n_expert=4, n_layer=3, n_mtp=1)
    plans = [moebind.plan(path, ModelParams(load_mtp=mtp), SMALL, devices=["1GiB"]) for mtp in (False, True)]
    assert plans[0].weights_per_token == plans[1].weights_per_token
    assert plans[0].devices[0].model < plans[1].devices[0].model


@pytest.mark.parametrize("lazy", [LazyMode.OFF, LazyMode.ON])
def test_rows_are_looked_up_wherever_they_are(tiny_path: MakeTiny, lazy: LazyMode) -> None:
    path = tiny_path(arch="gemma4")
    params = CPU.with_lazy_mode(lazy)
    assert dict(moebind.plan(path, params, SMALL).weights_per_token) == computed(path, params, SMALL)


@pytest.fixture(scope="module")
def architecture_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """Makes models of any architecture, from what libllama says that it lacks."""
    folder = tmp_path_factory.mktemp("architectures")
    vocabulary = gguf_architectures.vocabulary_in(folder)
    loader = gguf_architectures.Loader(folder)

    def make(architecture: str) -> Path:
        candidate = gguf_architectures.Candidate.of(architecture, vocabulary)
        assert gguf_architectures.complete(candidate, loader.outcome) == "works"
        return candidate.write(folder / f"{architecture}.gguf")

    yield make
    loader.close()


@pytest.mark.parametrize(
    "architecture", ["qwen3next", "deepseek2", "gpt-oss", "minimax-01", "llama4", "kimi-linear", "phi3", "deepseek4"]
)
def test_other_architectures(architecture_path: Callable[[str], Path], device: Device, architecture: str) -> None:
    path = architecture_path(architecture)
    for change in (PLACEMENTS["experts on the host"], PLACEMENTS["two layers"]):
        params = change(ModelParams(devices=(device,)))
        plan = moebind.plan(path, params, SMALL)
        found = computed(path, params, SMALL)
        assert {name: nbytes for name, nbytes in plan.weights_per_token.items() if nbytes} == found
