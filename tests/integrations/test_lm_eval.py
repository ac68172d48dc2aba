"""moebind as a model of lm-evaluation-harness, on task files of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

lm_eval = pytest.importorskip("lm_eval", reason="needs the extra [lm-eval]")

from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

from moebind import Batch, ContextParams
from moebind.integrations.lm_eval import MoebindLM

#: What a row's score may differ by in another order of sums.
NEAR = 1e-3
SMALL = {"n_gpu_layers": 0, "n_threads": 1, "n_ctx": 512}


@pytest.fixture(scope="module")
def path(tiny_path: Callable[..., Path]) -> Path:
    return tiny_path(n_expert=4, n_ctx_train=256)


@pytest.fixture(scope="module")
def lm(path: Path) -> Iterator[MoebindLM]:
    lm = MoebindLM(path, **SMALL)
    yield lm
    lm.model.close()


def request(kind: str, *arguments: Any) -> Instance:
    return Instance(kind, {}, arguments, 0)


def logprobs(lm: MoebindLM, tokens: list[int]) -> np.ndarray:
    """After each token, the logarithm of the probability of every token."""
    with lm.model.new_context(ContextParams(n_ctx=512, n_threads=1, n_threads_batch=1)) as context:
        batch = Batch(len(tokens))
        batch.add_sequence(tokens, 0, logits_all=True)
        context.decode(batch)
        logits = context.get_logits().astype(np.float64)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def test_it_is_registered(lm: MoebindLM) -> None:
    assert get_model("moebind") is MoebindLM
    assert (lm.max_length, lm.context.n_seq_max) == (256, 16)


def test_answers(lm: MoebindLM) -> None:
    pairs = [("Is it warm?", answer) for answer in (" yes", " no", " maybe not")]
    pairs += [("", "Hello"), ("It is ", "cold"), ("One", " and two")]
    found = lm.loglikelihood([request("loglikelihood", *pair) for pair in pairs], disable_tqdm=True)
    for (given, answer), (score, greedy) in zip(pairs, found, strict=True):
        both = lm.tok_encode(given + answer, add_special_tokens=True)
        n = len(lm.tok_encode(given.rstrip(), add_special_tokens=True))
        rows = logprobs(lm, both)
        assert score == pytest.approx(sum(rows[at - 1, both[at]] for at in range(n, len(both))), abs=NEAR)
        assert greedy == all(rows[at - 1].argmax() == both[at] for at in range(n, len(both)))


def test_whole_texts_also_longer_than_the_context(lm: MoebindLM) -> None:
    texts = ["It is.", "the cat and the dog " * 30]
    found = lm.loglikelihood_rolling([request("loglikelihood_rolling", each) for each in texts], disable_tqdm=True)
    for text, score in zip(texts, found, strict=True):
        tokens = lm.tok_encode(text)
        expected, done = 0.0, 0
        while done < len(tokens):
            # As many as fit are predicted; those of the last window with all before them that fits, too.
            n = min(lm.max_length, len(tokens) - done)
            inputs = ([lm.prefix_token_id, *tokens])[done + n - lm.max_length if done else 0 : done + n]
            rows = logprobs(lm, inputs)[-n:]
            expected += sum(row[token] for row, token in zip(rows, tokens[done : done + n], strict=True))
            done += n
        assert len(tokens) > lm.max_length or text == texts[0]
        assert score == pytest.approx(expected, abs=NEAR * max(1, len(tokens) / 40))


def test_an_answer_that_is_too_long(lm: MoebindLM) -> None:
    found = lm.loglikelihood([request("loglikelihood", "question " * 60, " yes")], disable_tqdm=True)
    assert np.isfinite(found[0][0])  # the end of the question counts
    with pytest.raises(ValueError, match=r"an answer has \d+ tokens; this model scores 256: raise n_ctx"):
        lm.loglikelihood([request("loglikelihood", "?", "yes " * 150)])


def test_texts_that_go_on(lm: MoebindLM) -> None:
    greedy = {"until": [], "max_gen_toks": 12}
    texts = ["Hello", "", "the " * 200]
    found = lm.generate_until([request("generate_until", text, greedy) for text in texts], disable_tqdm=True)
    with lm.model.new_context(ContextParams(n_ctx=512, n_threads=1, n_threads_batch=1)) as context:
        for text, written in zip(texts, found, strict=True):
            tokens = lm.tok_encode(text)[-244:]
            assert context.generate(tokens, max_tokens=12).complete().text == written
    stop = found[0][3:5]
    kwargs = {"until": [stop, ""], "max_gen_toks": 12, "do_sample": False, "temperature": 0.7}
    (stopped,) = lm.generate_until([request("generate_until", "Hello", kwargs)], disable_tqdm=True)
    assert stopped == found[0][: found[0].index(stop)]
    kwargs = {"until": "x", "max_gen_toks": 12, "do_sample": True, "temperature": 2.0, "seed": 1}
    twice = [lm.generate_until([request("generate_until", "Hello", kwargs)], disable_tqdm=True) for _ in range(2)]
    assert twice[0] == twice[1] != found[:1]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"until": [], "num_beams": 2}, "the task has generation_kwargs num_beams; known are temperature"),
        ({"until": [], "max_gen_toks": 256}, "the task asks for 256 tokens, and a text may have 256: raise n_ctx"),
    ],
)
def test_what_a_task_may_not_ask(lm: MoebindLM, given: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        lm.generate_until([request("generate_until", "Hello", given)])


def test_arguments(path: Path) -> None:
    for given, n in (({"batch_size": 4}, 4), ({"batch_size": "auto"}, 16), ({"batch_size": 4, "n_seq_max": 1}, 1)):
        lm = MoebindLM(path, **given, **SMALL)
        assert lm.context.n_seq_max == n
        lm.model.close()
    with pytest.raises(ValueError, match="--model_args has 'cpu_mo'; the model moebind takes path, n_seq_max"):
        MoebindLM(path, cpu_mo=True)


TASKS = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "doc_to_choice": "{{choices}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "texts": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
    "replies": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
        "metric_list": [{"metric": "exact_match"}],
    },
}


def test_the_command_on_task_files(path: Path, tmp_path: Path) -> None:
    docs = [{"question": f"Is {n} even?", "choices": [" yes", " no"], "answer": n % 2} for n in range(6)]
    (tmp_path / "docs.jsonl").write_text("\n".join(map(json.dumps, docs)), encoding="utf-8")
    for name, task in TASKS.items():
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "docs.jsonl")}}}
        (tmp_path / f"{name}.yaml").write_text(
            json.dumps({"task": name, **data, "test_split": "test", **task}), encoding="utf-8"
        )
    arguments = ["--model", "moebind", "--model_args", f"path={path},cpu_moe=True,n_ctx=512,n_threads=1"]
    arguments += ["--tasks", ",".join(TASKS), "--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")]
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "moebind.integrations.lm_eval", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (written,) = (tmp_path / "out").rglob("results*.json")
    results = json.loads(written.read_text(encoding="utf-8"))["results"]
    assert {*results} == {*TASKS}
    assert 0 <= results["choices"]["acc,none"] <= 1
    assert results["texts"]["word_perplexity,none"] > 1
    for name in TASKS:
        assert f"|{name}" in done.stdout.replace(" ", "")


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_scores_are_those_of_the_harness_own_model(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs torch and transformers")
    transformers = pytest.importorskip("transformers", reason="needs torch and transformers")
    if name != "llama" and not transformers.__version__.startswith("4."):
        pytest.skip("tests/numerics/make_references.py knows the experts of transformers 4 only")
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "numerics"))
    import make_references
    from lm_eval.models.huggingface import HFLM
    from tokenizers import Tokenizer, models

    words = {f"t{token}": token for token in range(make_references.architectures.N_VOCAB)}
    special = {"bos_token": "t1", "eos_token": "t2", "pad_token": "t2", "unk_token": "t0"}
    vocabulary = Tokenizer(models.WordLevel(words, special["unk_token"]))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=vocabulary, **special)
    made = make_references.finished(name)
    theirs = HFLM(pretrained=made, tokenizer=tokenizer, batch_size=8, max_length=512, device="cpu", backend="causal")
    exact = {"context_params": {"n_ctx": 512, "type_k": "F32", "type_v": "F32", "flash_attn_type": "DISABLED"}}
    (tmp_path / "exact.json").write_text(json.dumps(exact), encoding="utf-8")
    params = {"n_gpu_layers": 0, "n_threads": 1, "params": tmp_path / "exact.json"}
    ours = MoebindLM(make_references.DATA / f"{name}.gguf", **params)
    random = np.random.default_rng(1)
    rows = []
    for _ in range(40):
        question = random.integers(3, len(words), 60).tolist()
        rows += [(("", ""), question, random.integers(3, len(words), n).tolist()) for n in (1, 4, 8, 8)]
    expected = theirs._loglikelihood_tokens(rows, disable_tqdm=True)
    found = ours._loglikelihood_tokens(rows, disable_tqdm=True)
    ours.model.close()
    assert np.abs(np.array(expected)[:, 0] - np.array(found)[:, 0]).max() < NEAR
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
