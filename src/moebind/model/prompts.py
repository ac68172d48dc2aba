"""Prompts: what a model makes of text, token ids or chat messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from moebind._core import checks
from moebind._core.shown import shown
from moebind.chat.messages import checked_messages
from moebind.chat.templates import ChatTemplates
from moebind.model.hyperparameters import Hyperparameters

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

__all__ = ["Prompts"]


class Prompts(ChatTemplates, Hyperparameters):
    """A model as its contexts use it. :class:`moebind.Model` is one."""

    def _prompt_tokens(self, prompt: str | ArrayLike | Sequence[Mapping[str, object]]) -> NDArray[np.int32]:
        """The tokens of a prompt, at least one.

        Raises
        ------
        TypeError, ValueError
        """
        checked = self._checked_prompt(prompt)
        if isinstance(checked, list):
            checked = self.apply_chat_template(checked)
        tokens = self.str_to_token(checked) if isinstance(checked, str) else checked
        if tokens.size == 0:
            raise ValueError("prompt has no tokens; it takes at least one")
        return tokens

    def _checked_prompt(
        self, prompt: str | ArrayLike | Sequence[Mapping[str, object]]
    ) -> str | NDArray[np.int32] | list[Mapping[str, object]]:
        """What of a prompt can be known before it is rendered, and made into tokens: which kind it is, and its form.

        Raises
        ------
        TypeError, ValueError
        """
        if isinstance(prompt, str):
            checks.utf8("prompt", prompt)
            return prompt
        if isinstance(prompt, (list, tuple)) and any(isinstance(each, Mapping) for each in prompt):
            checked_messages(prompt)
            return list(prompt)
        if isinstance(prompt, (list, tuple)) and prompt and all(isinstance(each, str) for each in prompt):
            raise TypeError(
                f"prompt is {shown(prompt)}; it takes one text: several are for context.generate_many([...]), or for "
                "an engine as [engine.generate(p) for p in prompts]"
            )
        if prompt is None or isinstance(prompt, (int, float, bytes, Mapping)):
            raise TypeError(f"prompt is {shown(prompt)}; it takes text, token ids, or a list of chat messages")
        tokens = checks.int32_array("prompt", prompt, 0, self.n_vocab - 1)
        if tokens.size == 0:
            raise ValueError("prompt has no tokens; it takes at least one")
        return tokens
