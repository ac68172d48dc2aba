"""Models that the tests share, and a device for machines without one."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, settings

import moebind
from moebind import Context, ContextParams, Device, FlashAttnType, GgmlType, LoraAdapter, Model, ModelParams
from moebind.backend.devices import backend_state

sys.path.insert(0, str(Path(__file__).parent))
import drafts  # beside this file
import edited
import hub_server
import projectors
import tiny

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import shapes  # headers of large models

sys.path.insert(0, str(Path(__file__).resolve().parent / "fuzz"))
import gguf_architectures  # models of every architecture

if TYPE_CHECKING:
    import lora

# Several programs may share the machine: how long an example takes says nothing.
settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")

#: What tests/gpu runs on: a GPU; with the value "loopback" a worker process that plays one, with "pretend" a backend
#: that pretends to be CUDA (tests/gpu/pretend.cpp), with "vulkan" Mesa's software driver.
GPU_TESTS = "MOEBIND_GPU_TESTS"
#: Where the software driver says that it is there.
SOFTWARE = sorted(Path("/usr/share/vulkan/icd.d").glob("lvp_icd*.json"))
if os.environ.get(GPU_TESTS) == "vulkan" and SOFTWARE:
    # Before the devices are listed: no other driver, and this one's device, which is a processor, as a GPU.
    os.environ |= {"VK_ICD_FILENAMES": str(SOFTWARE[0]), "GGML_VK_VISIBLE_DEVICES": "0"}
    # It keeps the shaders that it has compiled: one folder for all processes of a run.
    shaders = tempfile.TemporaryDirectory(prefix="moebind-mesa-")
    os.environ.setdefault("MESA_SHADER_CACHE_DIR", shaders.name)

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

#: Everything on the CPU, whatever devices there are, without a word about a missing GPU.
CPU = ModelParams(n_gpu_layers=0, devices=())
#: One thread: two processes that wait by spinning would slow each other down many times.
SMALL = ContextParams(n_ctx=256, n_threads=1, n_threads_batch=1)
#: As exact as llama.cpp computes, F32 throughout: another order of sums changes no more than ``bounds.ORDER``.
EXACT = SMALL.with_type_k(GgmlType.F32).with_type_v(GgmlType.F32).with_flash_attn_type(FlashAttnType.DISABLED)


def card() -> Device | None:
    """The first GPU of this machine that llama.cpp can use."""
    return next((each for each in moebind.devices() if each.backend in {"CUDA", "Vulkan"}), None)


#: Seconds that a test that takes long has at least: a limit finds what hangs, and says nothing of a slow machine.
LONG = 1800


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests/gpu where there is no GPU, and what stands in for one lacks what only a GPU has."""
    for item in items:
        own = item.get_closest_marker("timeout")
        if item.get_closest_marker("thorough") and (own is None or own.args[0] < LONG):
            item.add_marker(pytest.mark.timeout(LONG), append=False)
    folder = Path(__file__).resolve().parent / "gpu"
    inside = [item for item in items if item.path.parent == folder]
    stand_in = os.environ.get(GPU_TESTS)
    if not inside:
        return
    if stand_in == "pretend":
        import pretended  # beside those tests

        pretended.load()
    found = card() if stand_in in {None, "vulkan"} else None
    if stand_in in {None, "vulkan"} and found is None:
        state = ", ".join(f"{name} is {backend_state(name)}" for name in ("CUDA", "Vulkan"))
        drivers = "" if SOFTWARE or stand_in is None else "; Mesa's software driver (mesa-vulkan-drivers) is not there"
        reason = f"there is no GPU: {state}{drivers}. {GPU_TESTS}=pretend or loopback has something play one"
        missing = {"": reason}
    else:
        alone = {"card": "a worker process cannot play this part of a GPU", "driver": "there is no driver"}
        missing = {"loopback": alone, "pretend": {"driver": "there is no driver"}}.get(stand_in or "", {})
        if stand_in == "loopback" or (found is not None and found.backend != "CUDA"):
            missing = {**missing, "cuda": "only CUDA has it", "driver": "it needs NVIDIA's driver"}
        if stand_in != "vulkan":
            missing = {**missing, "software": f"it needs Mesa's software driver: {GPU_TESTS}=vulkan"}
    for item in inside:
        if stand_in == "vulkan":
            item.add_marker(pytest.mark.timeout(1800))  # the first to use a shader has it compiled
        for marker, reason in missing.items():
            if not marker or item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def gpu() -> Iterator[Device]:
    """The device that tests/gpu uses."""
    if os.environ.get(GPU_TESTS) == "loopback":
        with moebind.loopback_device() as device:
            yield device
    else:
        device = card()
        assert device is not None
        yield device


@pytest.fixture
def no_child_is_left() -> Iterator[None]:
    """Fail if a test leaves a process behind."""
    before = set(psutil.Process().children(recursive=True))
    yield
    _, alive = psutil.wait_procs(set(psutil.Process().children(recursive=True)) - before, timeout=60)
    assert not alive


@pytest.fixture(scope="session")
def demo_path(tiny_path: Callable[..., Path]) -> Path:
    """The demo model, made by the example that makes it; for the software driver, which is slow, a small one."""
    if os.environ.get(GPU_TESTS) == "vulkan":
        return tiny_path(n_expert=8, n_embd=256, n_head=4, n_head_kv=2, n_ff=384, n_layer=6, n_ctx_train=8192)
    spec = importlib.util.spec_from_file_location("demo_model", EXAMPLES / "demo_model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    path: Path = module.demo_model()
    return path


@pytest.fixture(scope="session")
def demo(demo_path: Path) -> Iterator[Model]:
    with Model.load_from_file(demo_path, CPU) as model:
        yield model


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes tiny models, each shape once."""
    folder = tmp_path_factory.mktemp("tiny")
    made: dict[tuple[tiny.Shape, int], Path] = {}

    def make(split: int = 1, **fields: object) -> Path:
        shape = tiny.Shape(**fields)  # type: ignore[arg-type]
        key = (shape, split)
        if key not in made:
            made[key] = tiny.write(folder / f"tiny-{len(made)}.gguf", shape, split)
        return made[key]

    return make


@pytest.fixture(scope="session")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], projectors.Seeing]]:
    """Loads a tiny model with its tiny projector, each kind once."""
    made: dict[str, projectors.Seeing] = {}

    def load(kind: str) -> projectors.Seeing:
        if kind not in made:
            made[kind] = projectors.load(tmp_path_factory.mktemp(kind), kind)
        return made[kind]

    yield load
    for each in made.values():
        each.model.close()


@pytest.fixture(scope="session")
def shape_path(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes the header of a large model, each once; ``n_layer`` makes it less tall."""
    folder = tmp_path_factory.mktemp("shapes")
    made: dict[tuple[str, int | None], Path] = {}

    def make(name: str, n_layer: int | None = None) -> Path:
        if (name, n_layer) not in made:
            shape = shapes.SHAPES[name] if n_layer is None else replace(shapes.SHAPES[name], n_layer=n_layer)
            made[name, n_layer] = shapes.write(folder / f"{name}-{n_layer}.gguf", shape)
        return made[name, n_layer]

    return make


@pytest.fixture(scope="session")
def architecture_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Path]]:
    """Makes a tiny model of any architecture, each once, from what libllama says that it lacks.

    Without a seed its weights are 0. ``numbers`` are added to its metadata, and ``named`` to its tensors.
    """
    folder = tmp_path_factory.mktemp("architectures")
    vocabulary = gguf_architectures.vocabulary_in(folder)
    loader = gguf_architectures.Loader(folder)
    completed: dict[str, gguf_architectures.Candidate] = {}
    made: dict[tuple[object, ...], Path] = {}

    def make(
        architecture: str,
        seed: int | None = None,
        numbers: tuple[tuple[str, object], ...] = (),
        named: tuple[tuple[str, tuple[int, ...]], ...] = (),
    ) -> Path:
        key = architecture, seed, numbers, named
        if key not in made:
            if architecture not in completed:
                bare = gguf_architectures.Candidate.of(architecture, vocabulary)
                outcome = gguf_architectures.complete(bare, loader.outcome)
                assert outcome == "works" or "requires ctx_other to be set" in outcome, outcome
                completed[architecture] = bare
            candidate = deepcopy(completed[architecture])
            candidate.numbers.update(numbers)
            candidate.tensors.update((name, list(shape)) for name, shape in named)
            made[key] = candidate.write(folder / f"{architecture}-{len(made)}.gguf", seed)
        return made[key]

    yield make
    loader.close()


@pytest.fixture(scope="session")
def dense(tiny_path: Callable[..., Path]) -> Iterator[Model]:
    with Model.load_from_file(tiny_path(), CPU) as model:
        yield model


@pytest.fixture(scope="session")
def moe(tiny_path: Callable[..., Path]) -> Iterator[Model]:
    with Model.load_from_file(tiny_path(n_expert=4), CPU) as model:
        yield model


@pytest.fixture(scope="session")
def drafters(tiny_path: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Model]]:
    """Models that draft for ``moe``: always right, hardly ever right, and right now and then."""
    shape = tiny.Shape(n_expert=4)
    noise = np.random.default_rng(3).standard_normal((len(tiny.TOKENS), shape.n_embd)).astype(np.float32)
    near = tiny.write(tmp_path_factory.mktemp("near") / "near.gguf", shape, add={"output.weight": 0.03 * noise})
    paths = {"same": tiny_path(n_expert=4), "other": tiny_path(seed=2, n_layer=1), "near": near}
    made = {name: Model.load_from_file(path, CPU) for name, path in paths.items()}
    yield made
    for model in made.values():
        model.close()


@pytest.fixture(scope="session")
def mtp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A model whose last layer predicts further ahead, and is right now and then."""
    path = drafts.write_mtp(tmp_path_factory.mktemp("mtp") / "mtp.gguf")
    with Model.load_from_file(path, CPU.with_load_mtp(True)) as model:
        yield model


@pytest.fixture
def context(moe: Model) -> Iterator[Context]:
    with moe.new_context(SMALL) as context:
        yield context


@pytest.fixture
def exact(moe: Model) -> Iterator[Context]:
    with moe.new_context(EXACT) as context:
        yield context


@pytest.fixture(scope="module")
def first() -> lora.Pairs:
    """The matrices of an adapter for ``moe``."""
    import lora  # which imports this file

    return lora.pairs(lora.WEIGHTS)


@pytest.fixture(scope="module")
def adapter(moe: Model, first: lora.Pairs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoraAdapter]:
    import lora

    path = lora.write(tmp_path_factory.mktemp("lora") / "first.gguf", first)
    with moe.lora_adapter_init(path) as adapter:
        yield adapter


@pytest.fixture(scope="module")
def bert(tiny_path: Callable[..., Path]) -> Iterator[Model]:
    with Model.load_from_file(tiny_path(arch="bert", n_head_kv=4, n_ctx_train=64), CPU) as model:
        yield model


@pytest.fixture(scope="module")
def silu(tiny_path: Callable[..., Path]) -> Iterator[Model]:
    """An encoder whose activations are computed, not looked up: all that differs is the order of sums."""
    with Model.load_from_file(tiny_path(arch="nomic-bert", n_head_kv=4, n_ctx_train=64), CPU) as model:
        yield model


@pytest.fixture(scope="module")
def ranker(tiny_path: Callable[..., Path]) -> Iterator[Model]:
    with Model.load_from_file(tiny_path(arch="bert", n_head_kv=4, n_ctx_train=64, n_cls_out=3), CPU) as model:
        yield model


@pytest.fixture(scope="module")
def t5(tiny_path: Callable[..., Path]) -> Iterator[Model]:
    with Model.load_from_file(tiny_path(arch="t5", n_head_kv=4), CPU) as model:
        yield model


@pytest.fixture(scope="module")
def wide(tiny_path: Callable[..., Path]) -> Path:
    """Rows that divide into all blocks."""
    return tiny_path(n_expert=2, n_embd=256, n_ff=256, n_layer=2)


@pytest.fixture(scope="module")
def one_layer(tiny_path: Callable[..., Path]) -> Path:
    """The same with a single layer: some quantisers are slow."""
    return tiny_path(n_expert=2, n_embd=256, n_ff=256, n_layer=1)


@pytest.fixture
def edit(tiny_path: Callable[..., Path], tmp_path: Path) -> Callable[..., edited.Edited]:
    def make(**fields: object) -> edited.Edited:
        return edited.Edited(tiny_path(**fields), tmp_path / "edited.gguf")

    return make


@pytest.fixture
def saved(context: Context) -> tuple[bytes, np.ndarray]:
    """A state of ``context``, and what follows in it."""
    from states import fill, what_follows  # which import this file

    fill(context)
    return context.state_get(), what_follows(context)


@pytest.fixture(scope="module")
def other(tiny_path: Callable[..., Path]) -> Iterator[Model]:
    """Of the same shape as ``moe``, with the same metadata, and other weights."""
    with Model.load_from_file(tiny_path(n_expert=4, seed=2), CPU) as model:
        yield model


@pytest.fixture(scope="module")
def talking(demo: Model) -> Iterator[Context]:
    with demo.new_context(SMALL) as context:
        yield context


@pytest.fixture(scope="session")
def device() -> Iterator[Device]:
    with moebind.loopback_device() as device:
        yield device


@pytest.fixture
def hub(tiny_path: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.Hub]:
    """A Hugging Face Hub with ``someone/tiny``: one model in three quantisations by name, and what lies beside them."""
    from huggingface_hub import constants

    from moebind.files.gguf import _read_on_hub

    split = tiny_path(3, n_expert=4)
    files: dict[str, Path | bytes] = {
        "README.md": b"# tiny",
        "mmproj-tiny-F16.gguf": b"GGUF",
        "tiny-Q4_K.gguf": tiny_path(n_expert=4),
        "tiny-Q4_K_M.gguf": tiny_path(n_expert=4, seed=2),
    }
    for part in sorted(split.parent.glob(split.name.replace("00001", "*"))):
        files[f"F32/tiny-F32-{part.name[-19:]}"] = part
    # What the machine's owner has for the real one.
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    _read_on_hub.cache_clear()
    with hub_server.serving({"someone/tiny": files}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub
