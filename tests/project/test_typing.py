"""The promise to mypy: a typed program passes --strict, a mistaken one does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

GOOD = """
from collections.abc import Mapping

import numpy as np
from moebind import Batch, ChatMessage, Context, ContextParams, GgmlType, Model, ModelParams, RoutingRecorder, Sampler
from moebind import bench, json_schema_to_grammar
from moebind.bench import OffloadReport

def main(path: str) -> str:
    params = ModelParams(n_gpu_layers=-1).with_n_cpu_moe(12).with_tensor_override("x", "CPU", strict=False)
    wanted: ContextParams = ContextParams().with_n_ctx(4096).with_type_k(GgmlType.Q8_0)
    with Model.load_from_file(path, params) as model, model.new_context(wanted) as context:
        batch = Batch(8)
        batch.add_sequence(model.str_to_token("a"), 0)
        context.decode(batch)
        row: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = context.get_logits_ith(-1)
        token: int = Sampler.chain([Sampler.top_k(4), Sampler.dist(1)]).sample(context)
        n: int | None = model.token_bos
        messages: list[Mapping[str, object]] = [{"role": "user", "content": "Hello"}]
        message: ChatMessage = context.chat([{"role": "user", "content": "Hello"}], max_tokens=4).complete()
        messages.append(message)
        names: list[str] = [call["function"]["name"] for call in message["tool_calls"]]
        print(model.apply_chat_template(messages, enable_thinking=False), names)
        shape = {"type": "array", "items": {"type": "integer"}}
        Sampler.chain([Sampler.json_schema(model, shape), Sampler.from_callable(lambda c: c.sort()), Sampler.greedy()])
        grammar: str = json_schema_to_grammar(shape) + str(Sampler.grammar(model, "root ::= x").try_accept(token))
        other: Model = Model.from_pretrained("owner/name", "Q4_K_M", params, revision="main")
        other.close()
        report: OffloadReport = bench.offload(path, ["all"], devices=["loopback"])
        print(report.to_markdown(), [row.decode.mean for row in report if row.decode is not None])
        recorder = RoutingRecorder()
        ContextParams().with_eval_callback(recorder).with_n_ctx(int((recorder + recorder).counts.sum()))
        return "".join(piece.text for piece in context.generate([token, n or 0], stop=["."])) + str(row.argmax())
"""
BAD = {
    "ContextParams().with_n_ctx('4096')": "arg-type",
    "ContextParams().with_n_cxt(4096)": "attr-defined",
    "ContextParams(nctx=3)": "call-arg",
    "ModelParams().with_cpu_moe_all(1)": "call-arg|misc",
    "Model.load_from_file(3)": "arg-type",
    "Model.from_pretrained('owner/name', 3)": "arg-type",
    "Sampler.top_p('0.9')": "arg-type",
    "Model.load_from_file('x').create_completion('a')": "attr-defined",
    "Model.load_from_file('x', n_gpu_layers=1)": "call-arg",
    "fit('x', n_ctxx=1)": "call-arg",
    "Sampler.logit_bias([(1, 2.0)])": "arg-type",
    "Sampler.from_callable(lambda candidates: 3)": "arg-type|return-value|misc",
}


def mypy(program: str, folder: Path) -> str:
    path = folder / "program.py"
    path.write_text(program, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(folder), "--config-file", "", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder).stdout


@pytest.mark.timeout(300)
def test_programs(tmp_path: Path) -> None:
    assert "Success" in mypy(GOOD, tmp_path)
    said = mypy("from moebind import *\n" + "\n".join(BAD), tmp_path)
    for line, (code, kind) in enumerate(BAD.items(), 2):
        found = [each for each in said.splitlines() if f"program.py:{line}:" in each and "error" in each]
        assert found, code
        assert any(f"[{each}]" in found[0] for each in kind.split("|")), found
