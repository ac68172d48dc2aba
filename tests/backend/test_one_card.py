"""A card that two backends list, each for itself: it is used once, by the one that comes first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/gpu"))
import pretended

MakeTiny = Callable[..., Path]

PROGRAM = """
import json, os, sys
import moebind
from moebind import ContextParams, DeviceType, Model, ModelParams, lib
from moebind._core.native import decoded
from moebind.backend import rpc_worker
from moebind.backend.devices import for_tensor_split

moebind.init()
path, *libraries = sys.argv[1:]
for library in libraries:
    os.environ["MOEBIND_PRETEND_FILE"] = library + ".used"
    assert lib.ggml_backend_load(library.encode())

listed = {each.name: each for each in moebind.devices()}
cards = [listed["CUDA0"], listed["Vulkan0"]]
small = ContextParams(n_ctx=256, n_threads=1)
told = {"cards": [each.card for each in cards]}
told["planned"] = [each.name for each in moebind.plan(path, None, small).devices]
with Model.load_from_file(path, ModelParams()) as model, model.new_context(small) as context:
    told["loaded"] = [each.name for each in model.devices]
    told["text"] = len(list(context.generate([1, 5], max_tokens=4)))
fit = moebind.fit(path, n_ctx=256, context_params=small)
told["fitted"] = [each.name for each in fit.plan.devices]
told["served"] = [decoded(lib.ggml_backend_dev_name(each)) for each in rpc_worker._chosen(None)]
told["cut up for"] = [decoded(lib.ggml_backend_dev_name(each)) for each in for_tensor_split()]
try:
    told["both"] = len(ModelParams(devices=cards).devices)
    told["both planned"] = len(moebind.plan(path, devices=cards).devices)
except ValueError as error:
    told["both"] = str(error)
with Model.load_from_file(path, ModelParams(devices=cards[1:])) as model:
    told["second"] = [each.name for each in model.devices]
told["doctor"] = "are one card" in str(moebind.doctor())
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Backends that pretend to be these."""
    folder = tmp_path_factory.mktemp("pretended")
    found = {backend: folder / f"libggml-pretend-{backend}.so" for backend in ("CUDA", "Vulkan")}
    for backend, library in found.items():
        pretended.build(library, backend)
    return found


def told(libraries: dict[str, Path], path: Path, order: tuple[str, str], cards: dict[str, str]) -> dict[str, Any]:
    variables = {f"MOEBIND_PRETEND_CARD_{backend}": card for backend, card in cards.items()}
    command = [sys.executable, "-W", "error", "-c", PROGRAM, str(path), *(str(libraries[each]) for each in order)]
    environment = {**os.environ, "MOEBIND_PRETEND_BYTES": str(2**31), "GGML_DISABLE_VULKAN": "1", **variables}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("order", [("CUDA", "Vulkan"), ("Vulkan", "CUDA")])
def test_one_card_is_used_once(libraries: dict[str, Path], tiny_path: MakeTiny, order: tuple[str, str]) -> None:
    at = "0000:01:00.0"
    found = told(libraries, tiny_path(n_expert=4), order, {"CUDA": at, "Vulkan": at})
    first = f"{order[0]}0"
    assert found["cards"] == [at, at]
    assert found["planned"] == found["fitted"] == [first, "Host"]
    assert found["loaded"] == found["served"] == found["cut up for"] == [first]
    assert found["text"] == 4
    assert "CUDA0 and Vulkan0, which are one card (0000:01:00.0)" in found["both"]
    assert found["second"] == ["Vulkan0"]
    assert found["doctor"]


@pytest.mark.parametrize(
    "cards",
    [{"CUDA": "0000:01:00.0", "Vulkan": "0000:02:00.0"}, {"CUDA": "0000:01:00.0"}, {}],
    ids=["two", "one", "none"],
)
def test_others_are_used_together(libraries: dict[str, Path], tiny_path: MakeTiny, cards: dict[str, str]) -> None:
    found = told(libraries, tiny_path(n_expert=4), ("CUDA", "Vulkan"), cards)
    both = ["CUDA0", "Vulkan0"]
    assert found["planned"] == found["fitted"] == [*both, "Host"]
    assert found["loaded"] == found["served"] == found["cut up for"] == both
    assert (found["both"], found["both planned"]) == (2, 3)
    assert not found["doctor"]


def test_cuda_comes_first_in_ggmls_registry() -> None:
    registry = (ROOT / "vendor/llama.cpp/ggml/src/ggml-backend-reg.cpp").read_text(encoding="utf-8")
    made = registry[registry.index("    ggml_backend_registry() {") :]
    assert (
        made.index("ggml_backend_cuda_reg()")
        < made.index("ggml_backend_vk_reg()")
        < made.index("ggml_backend_cpu_reg()")
    )
