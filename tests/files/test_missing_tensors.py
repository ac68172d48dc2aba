"""Files without tensors that a load calls optional and a graph uses: an exception, not the end of the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tiny

import moebind
from conftest import CPU, SMALL
from moebind import ContextCreationError, ContextParams, ContextType, Model, ModelParams

AHEAD = "only layers that predict further ahead"


@pytest.fixture(scope="module")
def mtp_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last layer of a model, as it is published beside the model."""
    path = tmp_path_factory.mktemp("mtp") / "mtp-tiny-F32.gguf"
    shape = tiny.Shape(arch="glm4moe", n_layer=3, n_expert=4, n_mtp=1)
    return tiny.write(path, shape, without=r"blk\.[01]\.")


def test_layers_that_predict_further_ahead_and_nothing_else(mtp_only: Path) -> None:
    for load_mtp in (False, True):
        params = ModelParams(load_mtp=load_mtp)
        for call in (moebind.plan, moebind.fit):
            with pytest.raises(ContextCreationError, match=AHEAD):
                call(mtp_only, model_params=params, devices=["1GiB"])
        with (
            Model.load_from_file(mtp_only, CPU.with_load_mtp(load_mtp)) as model,
            pytest.raises(ContextCreationError, match=AHEAD),
        ):
            model.new_context(SMALL)


def test_the_command_survives_them(mtp_only: Path) -> None:
    for command in ("plan", "fit", "experts"):
        done = subprocess.run(
            [sys.executable, "-m", "moebind", command, mtp_only],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode in {0, 1}
        as_draft = "and this one as its draft (--model-draft);" in done.stderr
        assert (AHEAD in done.stderr) is as_draft is (command != "experts")


def test_they_can_be_planned_for_what_they_are(mtp_only: Path) -> None:
    context = ContextParams(n_ctx=512, ctx_type=ContextType.MTP, n_threads=1, n_threads_batch=1)
    plan = moebind.plan(mtp_only, ModelParams(load_mtp=True), context, devices=["1GiB"])
    assert plan.devices[0].context > 0
    with Model.load_from_file(mtp_only, CPU.with_load_mtp(True)) as model, model.new_context(context) as live:
        actual = live.memory_breakdown()
    own = moebind.plan(mtp_only, CPU.with_load_mtp(True), context)
    assert (own.host.context, own.host.compute) == (actual.host.context, actual.host.compute)
    with pytest.raises(ContextCreationError, match="load the model with load_mtp"):
        moebind.plan(mtp_only, ModelParams(load_mtp=False), context, devices=["1GiB"])


@pytest.mark.parametrize(
    "missing",
    [r"blk\.1\.ffn_.*_exps", r"blk\.1\.ffn_down_exps", r"blk\.1\.attn_[qv]\.", "output_norm"],
)
def test_a_trunk_with_holes(tmp_path: Path, missing: str) -> None:
    # With layers that predict further ahead and without the first layer's norm, libllama requires nothing of the trunk.
    shape = tiny.Shape(arch="glm4moe", n_layer=3, n_expert=4, n_mtp=1)
    path = tiny.write(tmp_path / "holes.gguf", shape, without=rf"blk\.0\.attn_norm|{missing}")
    code = (
        "import sys, moebind\n"
        "from moebind import *\n"
        "small = ContextParams(n_ctx=64, n_threads=1, n_threads_batch=1)\n"
        "for call in (lambda: moebind.plan(sys.argv[1], devices=['1GiB']),\n"
        "             lambda: Model.load_from_file(sys.argv[1], ModelParams(n_gpu_layers=0)).new_context(small)):\n"
        "    try: call()\n"
        "    except MoebindError: print('refused')"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "refused\nrefused\n")
