"""A model for lm-evaluation-harness: ``moebind``.

Importing this module registers it. Versions of the harness up to 0.4.13 look for models in their own package only; for
them ``python -m moebind.integrations.lm_eval`` is the command ``lm_eval``, after importing this module. Later ones find
the model by its entry point, in the group ``lm_eval.models``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from moebind._core import checks
from moebind._core.shown import shown
from moebind.files.download import local_file
from moebind.integrations.loading import LOADING, parameters
from moebind.integrations.row_scores import Row, score_rows
from moebind.model.model import Model

try:
    from lm_eval import utils
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
    from tqdm import tqdm
except ModuleNotFoundError as error:
    if error.name not in {"lm_eval", "tqdm"}:  # something that the harness lacks
        raise
    _WITHOUT = "the model for lm-evaluation-harness needs that package: pip install 'moebind[lm-eval]'"
    if __name__ == "__main__":
        raise SystemExit(f"moebind: {_WITHOUT}") from None
    raise ModuleNotFoundError(_WITHOUT, name=error.name) from error

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

__all__ = ["MoebindLM", "main"]

#: Texts that are computed together.
N_SEQ_MAX = 16
#: Tokens of a reply, unless the task says how many.
MAX_GEN_TOKS = 256
#: What a task may say of how tokens are chosen, and what it is called here.
_CHOOSING = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
    "seed": "seed",
}
#: What is taken where a task samples and does not say, as transformers does, for which tasks are written.
_SAMPLING = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0}


@register_model("moebind")
class MoebindLM(TemplateLM):
    """A GGUF file as a model of the harness.

    Parameters
    ----------
    path
        The file, or its address on the Hugging Face Hub.
    batch_size
        How many texts are computed together, if it is more than 1, which the harness has where nothing is said.
    n_seq_max
        The same, whatever ``batch_size`` says.
    max_gen_toks
        Tokens of a reply, unless the task says how many.
    max_batch_size, device
        Of the harness; not needed here.
    **settings
        How the model is loaded: see :func:`moebind.integrations.loading.parameters`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        batch_size: int | str = 1,
        n_seq_max: int | None = None,
        max_gen_toks: int = MAX_GEN_TOKS,
        max_batch_size: object = None,
        device: object = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        if path is None:
            other = ", not pretrained" if "pretrained" in settings else ""
            raise ValueError(f"--model_args has no path; the model moebind takes path=FILE.gguf{other}")
        if unknown := [name for name in settings if name not in LOADING]:
            raise ValueError(
                f"--model_args has {shown(unknown[0])}; the model moebind takes path, n_seq_max, max_gen_toks, "
                f"{', '.join(LOADING)}"
            )
        asked = int(batch_size) if str(batch_size).isdecimal() else 1
        together = n_seq_max or (asked if asked > 1 else N_SEQ_MAX)
        self.max_gen_toks = checks.integer("max_gen_toks", max_gen_toks, 1)
        given = checks.path("path", path)
        model_params, context_params = parameters(given, settings)
        self.path = local_file(given)  # only now, when nothing else is wrong
        self.model = Model.load_from_file(self.path, model_params)
        # One cache for all: texts share what they begin with, and a long one may have all of it.
        self.context = self.model.new_context(context_params.with_n_seq_max(together).with_kv_unified(True))

    @property
    def max_length(self) -> int:
        """Tokens of the longest text: as many as the context has, and as the model was trained with."""
        return min(self.context.n_ctx_seq, self.model.n_ctx_train or self.context.n_ctx_seq)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        token = self.model.token_eos
        if token is None:
            raise ValueError(f"{self.path} has no token that ends a text, with which the harness begins some")
        return int(token)

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that has nothing before it."""
        token = self.model.token_bos
        return self.eot_token_id if token is None else int(token)

    @property
    def tokenizer_name(self) -> str:
        """What tells requests that the harness keeps from those of other models."""
        return os.path.basename(self.path)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The template's source, which the harness keeps with the results."""
        return self.model.chat_template() if chat_template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Messages as a text."""
        return self.model.chat_format(chat_history, continue_final_message=not add_generation_prompt).prompt

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        """The tokens of a text; with those at its beginning, if the model wants them and the text has none."""
        if add_special_tokens is None:
            bos = self.model.token_bos
            begun = bos is not None and string.startswith(self.model.token_to_str(bos, special=True) or "\0")
            add_special_tokens = not begun
        tokens: list[int] = self.model.str_to_token(string, add_special=add_special_tokens).tolist()
        return tokens

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        **_: object,
    ) -> list[tuple[float, bool]]:
        rows = [self._row(given, scored) for _, given, scored in requests]
        found: list[tuple[float, bool]] = [(0.0, True)] * len(rows)
        for at, result in tqdm(score_rows(self.context, rows), total=len(rows), disable=disable_tqdm, desc="scoring"):
            found[at] = (result.logprob, result.is_greedy)
            if (pair := requests[at][0]) is not None:
                self.cache_hook.add_partial("loglikelihood", pair, found[at])
        return found

    def _row(self, given: list[int], scored: list[int]) -> Row:
        """A row; of one that is too long, the end."""
        if len(scored) > self.max_length:
            raise ValueError(
                f"an answer has {len(scored)} tokens; this model scores {self.max_length}: raise n_ctx, as far as the "
                "model goes"
            )
        room = self.max_length + 1 - len(scored)
        return Row(tuple(given[-room:]), tuple(scored))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The logarithms of the probabilities of texts; long ones in windows, each token once."""
        windows: list[tuple[None, list[int], list[int]]] = []
        owners: list[int] = []
        for at, (text,) in enumerate(each.args for each in requests):
            for window in utils.get_rolling_token_windows(
                self.tok_encode(text), self.prefix_token_id, max_seq_len=self.max_length, context_len=1
            ):
                windows.append((None, *utils.make_disjoint_window(window)))
                owners.append(at)
        totals = [0.0] * len(requests)
        for at, (logprob, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[at] += logprob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Texts that go on from others, up to what ends them."""
        prompts = [self._prompt(*each.args) for each in requests]
        texts = [""] * len(prompts)
        bar = tqdm(total=len(prompts), disable=disable_tqdm, desc="generating")
        with bar, self.context.generate_many(prompts) as pieces:
            for at, piece in pieces:
                texts[at] += piece.text
                if piece.stop_reason is not None:
                    bar.update()
                    self.cache_hook.add_partial("generate_until", requests[at].args, texts[at])
        return texts

    def _prompt(self, text: str, given: dict[str, Any]) -> dict[str, Any]:
        """What ``generate_many`` takes for a request."""
        taken = dict(normalize_gen_kwargs(given, self.max_gen_toks))
        max_tokens, until = taken.pop("max_gen_toks"), taken.pop("until", [])
        samples = taken.pop("do_sample", False)
        if taken.get("num_beams") == 1:
            del taken["num_beams"]
        if unknown := [name for name in taken if name not in _CHOOSING]:
            raise ValueError(
                f"the task has generation_kwargs {unknown[0]}={shown(taken[unknown[0]])}; known are do_sample, "
                f"{', '.join(_CHOOSING)}, and num_beams=1"
            )
        if samples:
            taken = _SAMPLING | taken
        elif "repetition_penalty" in taken:
            taken = {"temperature": 0.0, "repetition_penalty": taken["repetition_penalty"]}
        else:
            taken = {}  # always the likeliest, whatever else is said
        room = self.max_length - max_tokens
        if room < 1:
            raise ValueError(
                f"the task asks for {max_tokens} tokens, and a text may have {self.max_length}: raise n_ctx, as far as "
                "the model goes, or set max_gen_toks"
            )
        tokens = self.tok_encode(text)[-room:] or [self.prefix_token_id]
        stop = [each for each in ([until] if isinstance(until, str) else until) if each]
        chosen = {_CHOOSING[name]: value for name, value in taken.items()}
        return {"prompt": tokens, "max_tokens": max_tokens, "stop": stop, **chosen}


def main() -> None:
    """Do what the harness's command does, with this model in it."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
