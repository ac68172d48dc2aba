"""Tiny models of every architecture that libllama knows, with each number changed and each tensor left out.

    python tests/fuzz/gguf_architectures.py [ARCHITECTURE ...]

Little is known of an architecture but its name: a model is completed from what libllama, and moebind, say is missing
or of the wrong shape; what nobody says is in ``gguf_recipes.py``. Those that load are then loaded again, and computed
with, with each key 0, odd, or missing, and without each tensor. Whatever ends the process belongs into
src/moebind/files/architecture_checks.py. All of them take minutes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import gguf_files
import numpy as np
import tiny
from gguf_files import ARRAY, STRING, File, Tensor, Value
from gguf_recipes import RECIPES, SEEDS, WHOLE, WITHOUT_FLASH_ATTENTION
from patience import answers

import moebind
from moebind import lib
from moebind.files.architecture_facts import DRAFT_FROM_STATES

SOURCE = Path(__file__).resolve().parents[2] / "vendor" / "llama.cpp" / "src" / "llama-arch.cpp"
HANG_SECONDS = 20
STEPS_MAX = 400
#: What a tiny model has; libllama says what else it wants.
NUMBERS: dict[str, object] = {
    "block_count": 2,
    "context_length": 512,
    "embedding_length": 64,
    "feed_forward_length": 96,
    "attention.head_count": 4,
    "attention.head_count_kv": 4,
    "attention.key_length": 16,
    "attention.value_length": 16,
    "attention.sliding_window": 32,
    "attention.layer_norm_epsilon": 1e-5,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.dimension_count": 16,
    "rope.dimension_sections": [4, 4, 0, 0],
    "expert_count": 4,
    "expert_used_count": 2,
    "expert_shared_count": 1,
    "expert_feed_forward_length": 32,
    "expert_shared_feed_forward_length": 32,
    "expert_gating_func": 2,
    "ssm.conv_kernel": 4,
    "ssm.inner_size": 128,
    "ssm.state_size": 16,
    "ssm.time_step_rank": 4,
    "ssm.group_count": 1,
    "wkv.head_size": 16,
    "full_attention_interval": 2,
    "attention.sliding_window_pattern": [1, 0],
    "attention.indexer.key_length": 16,
    "attention.indexer.head_count": 4,
}


def names() -> list[str]:
    """All architectures of this llama.cpp."""
    table = SOURCE.read_text(encoding="utf-8").partition("LLM_ARCH_NAMES = {")[2].partition("};")[0]
    return re.findall(r'\{ LLM_ARCH_\w+,\s*"([^"]+)"', table)


@dataclass
class Candidate:
    """A model in the making."""

    architecture: str
    vocabulary: list[Value]
    numbers: dict[str, object]
    tensors: dict[str, list[int]]

    @classmethod
    def of(cls, architecture: str, vocabulary: list[Value]) -> Candidate:
        """What an architecture's model begins as."""
        numbers = {**NUMBERS, **RECIPES.get(architecture, {})}
        numbers = {key: value for key, value in numbers.items() if value is not None}
        tensors = {
            name.format(layer): list(shape)
            for name, shape in SEEDS.get(architecture, {}).items()
            for layer in range(numbers["block_count"])  # type: ignore[call-overload]
        }
        return cls(architecture, vocabulary, numbers, tensors)

    def file(self) -> File:
        file = File([Value(b"general.architecture", STRING, STRING, [self.architecture.encode()]), *self.vocabulary])
        for key, value in self.numbers.items():
            file.values.append(_encoded(key if key.startswith(WHOLE) else f"{self.architecture}.{key}", value))
        integers = 26  # tables of ids
        for name, shape in self.tensors.items():
            file.tensors.append(Tensor(name.encode(), list(shape), integers if "tid2eid" in name else 0, 0))
        return file

    def write(self, path: Path, seed: int | None = None) -> Path:
        """Write the model. Without a seed its weights are all 0, and take no room."""
        file = self.file()
        header = file.header()
        with path.open("wb") as target:
            target.write(header)
            target.truncate(len(header) + file.data_size())
            if seed is not None:
                random = np.random.default_rng(seed)
                for tensor in file.tensors:
                    numbers = random.standard_normal(tensor.nbytes // 4, np.float32) / 8
                    content = numbers.tobytes() if tensor.kind == 0 else b"\0" * tensor.nbytes
                    target.write(content + b"\0" * (-len(content) % gguf_files.ALIGNMENT))
        return path

    def follow(self, complaint: str) -> bool:
        """Do what libllama asks for; False when it asks for nothing that we know."""
        if found := re.search(r"tensor '([^']+)' not found", complaint):
            self.tensors[found[1]] = [1]
        elif found := re.search(r"tensor '([^']+)' has wrong shape; expected ([\d, ]+?),? got", complaint):
            self.tensors[found[1]] = [int(each) for each in found[2].replace(" ", "").strip(",").split(",")]
        elif "only a vocabulary" in complaint:
            self.tensors["token_embd.weight"] = [1]
        elif found := re.search(r"does without (.+?)(?: or |\n|$)", complaint):
            self.tensors |= {name: [1] for name in found[1].split(", ") if name not in self.tensors}
        elif found := re.search(r"key not found in model: [^.]+\.(\S+)", complaint):
            if found[1] in self.numbers:
                return False
            self.numbers[found[1]] = 2
        elif found := re.search(r"key [^.]+\.(\S+) has wrong type \w+ but expected type (\w+)", complaint):
            wanted = {"f32": 1.0, "u32": 2, "bool": True, "str": "silu", "arr": [2, 2]}.get(found[2])
            if self.numbers.get(found[1]) == wanted:
                return False
            self.numbers[found[1]] = wanted
        else:
            return False
        return True

    def changed(self) -> Iterator[tuple[str, Candidate]]:
        """Every variant, with what it is called."""
        for name in self.tensors:
            if not name.startswith("blk.1."):
                yield f"without {name}", self.changed_in(tensors={k: v for k, v in self.tensors.items() if k != name})
        for key, value in self.numbers.items():
            others = [None, *({int: [0, 3], float: [0.0, float("nan")]}.get(type(value), []))]
            others += [[0] * len(value)] if isinstance(value, list) else []
            for other in others:
                numbers = {k: v for k, v in self.numbers.items() if k != key}
                yield f"{key}={other}", self.changed_in(numbers=numbers if other is None else {**numbers, key: other})

        # Of two layers one predicts further ahead, and what the file has is both, or only that.
        numbers = {**self.numbers, "nextn_predict_layers": 1}
        yield "nextn_predict_layers=1", self.changed_in(numbers=numbers)
        ahead = {name: shape for name, shape in self.tensors.items() if not name.startswith("blk.0.")}
        yield "nextn_predict_layers=1, without blk.0", self.changed_in(numbers=numbers, tensors=ahead)

    def changed_in(self, **fields: object) -> Candidate:
        """A copy of which these fields are others."""
        copy = deepcopy(self)
        for name, value in fields.items():
            setattr(copy, name, value)
        return copy


def _encoded(key: str, value: object) -> Value:
    items = value if isinstance(value, list) else [value]
    kind, form = {str: (STRING, ""), float: (6, "<f"), bool: (7, "<?"), int: (4, "<I")}[type(items[0])]
    content = [each.encode() if isinstance(each, str) else struct.pack(form, each) for each in items]
    return Value(key.encode(), ARRAY if isinstance(value, list) else kind, kind, content)


def context_of(model: moebind.Model, params: moebind.ContextParams) -> moebind.ContextParams:
    """Parameters with which this architecture's graph can be made."""
    if model.meta["general.architecture"] in WITHOUT_FLASH_ATTENTION:
        return params.with_flash_attn_type(moebind.FlashAttnType.DISABLED)
    return params


def compute(model: moebind.Model, context: moebind.Context) -> None:
    """Have the model compute something, from what it takes."""
    architecture = model.meta["general.architecture"]
    if architecture in DRAFT_FROM_STATES:
        width = lib.moebind_model_n_embd_inp_enc(model._open())
        context.encode(moebind.Batch.from_embeddings(np.zeros((3, width), np.float32)))
    elif model.has_encoder:
        context.encode(moebind.Batch.get_one([1, 2, 40]))
    if architecture == "eagle3":
        batch = moebind.BatchExt(context)
        for pos, token in enumerate([1, 2, 40]):
            batch.add(0, pos, token=token, embedding=np.zeros(model.n_embd_inp, np.float32), output=pos == 2)
        context.process(batch)
    elif model.has_decoder:
        context.decode(moebind.Batch.get_one([1, 2, 40]))


def _work(pipe: Connection, load_mtp: bool) -> None:
    moebind.set_log(None)
    params = moebind.ContextParams(n_ctx=64, n_threads=1, n_threads_batch=1)
    while (path := pipe.recv()) is not None:
        try:
            with moebind.Model.load_from_file(path, moebind.ModelParams(n_gpu_layers=0, load_mtp=load_mtp)) as model:
                with model.new_context(context_of(model, params)) as context:
                    compute(model, context)
            pipe.send("works")
        except (moebind.MoebindError, ValueError) as error:
            pipe.send(str(error))


class Loader:
    """Loads files in a process that may die, with the layers that predict ahead if there are some."""

    def __init__(self, folder: str | Path, *, load_mtp: bool = False) -> None:
        self._path, self._load_mtp = Path(folder) / "candidate.gguf", load_mtp
        self._start()

    def _start(self) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        self._worker = multiprocessing.get_context("spawn").Process(target=_work, args=(theirs, self._load_mtp))
        self._worker.start()
        theirs.close()

    def outcome(self, candidate: Candidate) -> str:
        """``works``, what the exception says, or ``!`` and how the process ended."""
        try:
            self._pipe.send(str(candidate.write(self._path)))
            if answers(self._pipe, self._worker.pid or 0, HANG_SECONDS):
                return str(self._pipe.recv())
            self._worker.kill()
            ended = "hangs"
        except (EOFError, ConnectionError):
            self._worker.join()
            ended = f"the process ended with {self._worker.exitcode}"
        self._worker.join()
        self._start()
        return f"!{ended}"

    def close(self) -> None:
        self._pipe.send(None)
        self._worker.join()


def vocabulary_in(folder: Path) -> list[Value]:
    """The vocabulary that all of these models have; a tiny model with it is written into the folder."""
    plain, _ = gguf_files.parse(tiny.write(folder / "plain.gguf", tiny.Shape()))
    return [value for value in plain.values if value.key.startswith(b"tokenizer.")]


def complete(candidate: Candidate, outcome_of: Callable[[Candidate], str]) -> str:
    """Add to a model what is asked for; how it ends."""
    outcome = outcome_of(candidate)
    for _ in range(STEPS_MAX):
        if not candidate.follow(outcome):
            break
        outcome = outcome_of(candidate)
    return outcome


def examine(architectures: list[str]) -> tuple[dict[str, str], Counter[str], list[str]]:
    """What became of each architecture's own model, how the variants ended, and what ended the process."""
    completed, outcomes, findings = {}, Counter[str](), []
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = vocabulary_in(Path(folder))
        loader = Loader(folder)
        for architecture in architectures:
            candidate = Candidate.of(architecture, vocabulary)
            completed[architecture] = outcome = complete(candidate, loader.outcome)
            variants = candidate.changed() if outcome == "works" else iter([("as it is", candidate)])
            for what, variant in variants:
                outcome = loader.outcome(variant)
                outcomes[outcome if outcome == "works" or outcome[0] == "!" else "refused"] += 1
                if outcome[0] == "!":
                    findings.append(f"{architecture}, {what}: {outcome[1:]}")
        loader.close()
    return completed, outcomes, findings


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("architectures", nargs="*")
    completed, outcomes, findings = examine(parser.parse_args().architectures or names())
    for architecture, outcome in completed.items():
        print(f"{architecture:24} {outcome if outcome == 'works' else outcome[-140:]!r}")
    print(f"{sum(outcome == 'works' for outcome in completed.values())} of {len(completed)} work; variants: {outcomes}")
    print(*findings, sep="\n")
    return bool(findings)


if __name__ == "__main__":
    sys.exit(main())
