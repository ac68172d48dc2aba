"""What is kept of llama.cpp's architectures and limits is what its source says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from moebind._core import checks
from moebind.files import architecture_facts as facts
from moebind.sampling import kinds

VENDORED = Path(__file__).resolve().parents[2] / "vendor/llama.cpp"
#: Models of these rotate or not: without is what some of them say.
SOMETIMES_WITHOUT_ROPE = {"granitehybrid"}


def source(name: str) -> str:
    return (VENDORED / name).read_text(encoding="utf-8")


def names_of() -> dict[str, str]:
    """Architectures by their names in C++."""
    return dict(re.findall(r"\{ (LLM_ARCH_\w+), +\"([\w.-]+)\" +\}", source("src/llama-arch.cpp")))


def cases(function: str) -> Iterator[tuple[str, str]]:
    """Of a function that switches over architectures: each of them, and what is returned for it."""
    body = source("src/llama-model.cpp").partition(f"{function}(const llama_model * model) {{")[2].partition("\n}\n")[0]
    assert body, f"llama-model.cpp has no {function}"
    waiting: list[str] = []
    for arch, returned in re.findall(r"case (LLM_ARCH_\w+):|return ([^;]+);", body):
        if arch:
            waiting.append(names_of()[arch] if arch != "LLM_ARCH_UNKNOWN" else "unknown")
        else:
            yield from ((name, returned) for name in waiting)
            waiting = []


def test_all_names_are_llama_cpps() -> None:
    named = {*facts.WITHOUT_ROPE, *facts.SEVERAL_AXES, *facts.ENCODER_DECODER, *facts.USE_OTHER_CONTEXT}
    named |= {*facts.ONE_EXPERT_IS_NONE, *facts.DRAFT_FROM_STATES, *facts.NEVER_AHEAD}
    named |= {name for several in (*facts.NONZERO_KEYS.values(), *facts.REQUIRED_KEYS.values()) for name in several}
    named |= {name for several, _, _ in facts.REQUIRED_TENSORS for name in several}
    assert named - set(names_of().values()) == set()


def test_which_rotate_no_positions() -> None:
    without = {name for name, returned in cases("llama_model_rope_type") if returned == "LLAMA_ROPE_TYPE_NONE"}
    assert {*facts.WITHOUT_ROPE} - SOMETIMES_WITHOUT_ROPE == without - {"clip", "unknown"}


def test_which_have_positions_on_several_axes() -> None:
    found = {name for name, kind in cases("llama_model_rope_type") if re.fullmatch("LLAMA_ROPE_TYPE_I?MROPE", kind)}
    assert {*facts.SEVERAL_AXES} == found - {"dflash"}  # which has several only if its file says so


def test_which_read_what_an_encoder_made() -> None:
    conditions = set(re.findall(r"model\.arch == (LLM_ARCH_T5\w*)", source("src/llama-context.cpp")))
    assert {names_of()[arch] for arch in conditions} == {*facts.ENCODER_DECODER}
    encoders = {name for name, _ in cases("llama_model_has_encoder")}
    assert encoders == {*facts.ENCODER_DECODER, "t5encoder", *facts.DRAFT_FROM_STATES}
    models = VENDORED / "src/models"
    wide = {path.stem for path in models.glob("*.cpp") if "n_embd_inp_enc_impl =" in path.read_text("utf-8")}
    assert wide == {*facts.DRAFT_FROM_STATES}


def test_which_use_another_context() -> None:
    text = source("src/llama-context.cpp")
    found = set()
    uses = r"\n    if \(([^{]*LLM_ARCH_[^{]*)\) \{(?=(?:(?!\n    \}\n).)*ctx_other = params\.ctx_other)"
    for condition in re.findall(uses, text, re.DOTALL):
        found |= {names_of()[arch] for arch in re.findall(r"LLM_ARCH_\w+", condition)}
    assert found == {*facts.USE_OTHER_CONTEXT}


def test_which_multiply_by_their_embeddings() -> None:
    # moebind_model_ties_output, native/peek/model.cpp
    models = VENDORED / "src/models"
    found = [path.stem for path in models.glob("*.cpp") if "build_lora_mm(model.tok_embd" in path.read_text("utf-8")]
    assert found == ["bitnet"]


def test_which_never_load_the_layers_that_predict_ahead() -> None:
    # Others skip them where load_mtp is false: llama_model_base::nextn_flags.
    models = VENDORED / "src/models"
    always = re.compile(r"flags \|= TENSOR_SKIP;|= is_mtp \? TENSOR_SKIP \|")
    found = {path.stem for path in models.glob("*.cpp") if always.search(path.read_text("utf-8"))}
    assert found == {*facts.NEVER_AHEAD}
    skipping = {path.stem for path in models.glob("*.cpp") if re.search(r"TENSOR_SKIP\b", path.read_text("utf-8"))}
    assert skipping == found


def test_in_which_steps_a_kernel_goes() -> None:
    kernel = source("ggml/src/ggml-cpu/ops.cpp").partition("static void ggml_compute_forward_rwkv_wkv7_f32(")[2]
    steps = re.findall(r"j < head_size; j \+= (\w+)\)", kernel.partition("\n}\n")[0])
    assert steps == ["GGML_F32_STEP"] * 2
    widest = max(map(int, re.findall(r"#define GGML_F32_STEP (\d+)", source("ggml/src/ggml-cpu/simd-mappings.h"))))
    assert {"wkv.head_size": (widest, ("rwkv7", "arwkv7"))} == facts.MULTIPLES


@pytest.mark.parametrize(
    ("ours", "file", "pattern"),
    [
        (facts.LAYERS_MAX, "src/llama-hparams.h", r"#define LLAMA_MAX_LAYERS +(\d+)"),
        (facts.EXPERTS_MAX, "src/llama-hparams.h", r"#define LLAMA_MAX_EXPERTS +(\d+)"),
        (checks.THREADS_MAX, "ggml/include/ggml.h", r"#define GGML_MAX_N_THREADS +(\d+)"),
        (kinds.BREAKER_BYTES_MAX, "src/llama-sampler.cpp", r"const int MAX_CHAR_LEN = (\d+)"),
    ],
)
def test_limits(ours: int, file: str, pattern: str) -> None:
    assert re.findall(pattern, source(file)) == [str(ours)]
