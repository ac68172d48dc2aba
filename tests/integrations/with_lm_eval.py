"""moebind as a model of lm-evaluation-harness, on task files of this machine. ``test_lm_eval.py`` installs it.

The comparison with the harness's own model needs torch and transformers 4, too: CONTRIBUTING.md.
"""

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
from hub_server import REPO, Hub, cached
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

from moebind import Batch, ContextParams, ModelNotFoundError
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


#: A text that is long enough to tell samplers apart.
LONG: dict[str, object] = {"until": [], "max_gen_toks": 24}


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


def test_the_entry_point_is_found_as_later_versions_find_it() -> None:
    """They register where the model is before they import it, as they do with their own; here it is done by hand."""
    program = """
from importlib.metadata import entry_points
from lm_eval.api.registry import get_model, model_registry
(found,) = entry_points(group="lm_eval.models", name="moebind")
model_registry.register(found.name, target=found.value)
model = get_model("moebind")
print(model.__module__, model.__name__)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "moebind.integrations.lm_eval MoebindLM\n"), done.stderr


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
    "given",
    [
        {"do_sample": False, "top_p": 0.95},
        {"do_sample": False, "top_k": 3, "min_p": 0.1, "seed": 7, "num_beams": 1},
        {"top_p": 0.95},
        {"temperature": 0.0, "top_p": 1.0},
    ],
)
def test_what_is_not_sampled_is_the_likeliest(lm: MoebindLM, given: dict[str, object]) -> None:
    for more in ({}, {"repetition_penalty": 1.3}):
        plain, told = (
            lm.generate_until([request("generate_until", "Hello", LONG | kwargs | more)] * 4, disable_tqdm=True)
            for kwargs in ({}, given)
        )
        assert {*told} == {*plain}
        assert len({*told}) == 1
    assert lm._prompt("Hello", LONG | {"repetition_penalty": 1.3, "top_p": 0.9})["repeat_penalty"] == 1.3


def test_what_a_task_leaves_open_is_as_in_transformers(lm: MoebindLM) -> None:
    taken = lm._prompt("Hello", LONG | {"do_sample": True, "top_p": 0.9})
    open_ones = {name: taken[name] for name in ("temperature", "top_k", "top_p", "min_p")}
    assert open_ones == {"temperature": 1.0, "top_k": 50, "top_p": 0.9, "min_p": 0.0}
    texts = lm.generate_until([request("generate_until", "Hello", LONG | {"do_sample": True})] * 4, disable_tqdm=True)
    assert len({*texts}) > 1


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"until": [], "num_beams": 2}, "the task has generation_kwargs num_beams=2; known are do_sample, temperature"),
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
    for given, told in (({}, "path=FILE.gguf$"), ({"pretrained": str(path)}, "path=FILE.gguf, not pretrained$")):
        with pytest.raises(ValueError, match=f"--model_args has no path; the model moebind takes {told}"):
            MoebindLM(**given)


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


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with task files for each kind of request, and the documents that they are about."""
    folder = tmp_path_factory.mktemp("tasks")
    docs = [
        {"question": f"Is {n} even? {'The answer is' * (n % 3)}", "choices": [" yes", " no", " maybe"], "answer": n % 2}
        for n in range(12)
    ]
    (folder / "docs.jsonl").write_text("\n".join(map(json.dumps, docs)), encoding="utf-8")
    for name, task in TASKS.items():
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "docs.jsonl")}}}
        content = json.dumps({"task": name, **data, "test_split": "test", **task})
        (folder / f"{name}.yaml").write_text(content, encoding="utf-8")
    return folder


def offline(folder: Path) -> dict[str, str]:
    return {"HF_HOME": str(folder), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def test_the_command_on_task_files(path: Path, tasks: Path, tmp_path: Path) -> None:
    arguments = ["--model", "moebind", "--model_args", f"path={path},cpu_moe=True,n_ctx=512,n_threads=1"]
    arguments += ["--tasks", ",".join(TASKS), "--include_path", str(tasks), "--output_path", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "moebind.integrations.lm_eval", *arguments],
        env=os.environ | offline(tmp_path / "hf"),
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


def test_the_command_with_an_address(hub: Hub, tasks: Path, tmp_path: Path) -> None:
    arguments = [
        "--model",
        "moebind",
        "--model_args",
        f"path=hf://{REPO}/tiny-Q4_K.gguf,cpu_moe=True,n_ctx=512,n_threads=1",
    ]
    arguments += ["--tasks", "choices", "--include_path", str(tasks), "--output_path", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "moebind.integrations.lm_eval", *arguments],
        env=os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert cached(tmp_path) == ["tiny-Q4_K.gguf"]
    (written,) = (tmp_path / "out").rglob("results*.json")
    on_hub = json.loads(written.read_text(encoding="utf-8"))["results"]
    lm = MoebindLM(str(hub.repos[REPO]["tiny-Q4_K.gguf"]), **SMALL)
    here = evaluated(lm, tasks, ["choices"])["results"]
    lm.model.close()
    assert on_hub["choices"]["acc,none"] == here["choices"]["acc,none"]


def test_addresses(hub: Hub, tmp_path: Path) -> None:
    for wrong in ({"max_gen_toks": 0}, {"n_ctx": -1}, {"params": tmp_path / "none.json"}):
        with pytest.raises((ValueError, OSError), match="max_gen_toks|n_ctx|none.json"):
            MoebindLM(f"hf://{REPO}/Q4_K", **wrong)
    assert hub.sent == 0
    with pytest.raises(ModelNotFoundError, match="matches 'Q9'"):
        MoebindLM(f"hf://{REPO}/Q9", **SMALL)
    lm = MoebindLM(f"hf://{REPO}/Q4_K", **SMALL)
    assert Path(lm.path).is_relative_to(tmp_path / "cache")
    lm.model.close()


#: The tasks whose answers are scores. What a random model writes is bytes, which each side decodes in its own way.
SCORED = ["choices", "texts"]


def evaluated(lm: Any, tasks: Path, names: list[str]) -> dict[str, Any]:
    found = simple_evaluate(lm, tasks=names, task_manager=TaskManager(include_path=str(tasks)), bootstrap_iters=0)
    assert found is not None
    return found


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_scores_are_those_of_the_harness_own_model(
    name: str, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch", reason="needs torch and transformers")
    transformers = pytest.importorskip("transformers", reason="needs torch and transformers")
    if not transformers.__version__.startswith("4."):
        pytest.skip("tests/numerics/make_references.py knows transformers 4 only")
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "numerics"))
    import datasets
    import make_references
    import reference_tokenizer
    from lm_eval.models.huggingface import HFLM

    torch.set_num_threads(1)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    theirs = HFLM(
        pretrained=make_references.finished(name),
        tokenizer=reference_tokenizer.tokenizer(),
        batch_size=8,
        max_length=512,
        device="cpu",
        backend="causal",
    )
    exact = {"context_params": {"n_ctx": 512, "type_k": "F32", "type_v": "F32", "flash_attn_type": "DISABLED"}}
    (tmp_path / "exact.json").write_text(json.dumps(exact), encoding="utf-8")
    params = {"n_gpu_layers": 0, "n_threads": 1, "params": tmp_path / "exact.json"}
    ours = MoebindLM(make_references.DATA / f"{name}.gguf", **params)
    expected, found = evaluated(theirs, tasks, SCORED), evaluated(ours, tasks, SCORED)
    ours.model.close()
    assert found["results"]["choices"]["acc,none"] == expected["results"]["choices"]["acc,none"]
    choices, texts = (zip(found["samples"][each], expected["samples"][each], strict=True) for each in SCORED)
    for mine, other in choices:
        for ((score, greedy),), ((reference, also_greedy),) in zip(mine["resps"], other["resps"], strict=True):
            assert score == pytest.approx(reference, abs=NEAR)
            assert greedy == also_greedy
    for mine, other in texts:
        assert mine["resps"][0][0] == pytest.approx(other["resps"][0][0], abs=NEAR)
