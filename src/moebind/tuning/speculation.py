"""What drafts tokens, as a part of a configuration: neither a model's parameters nor a context's say it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from moebind.files.architecture_facts import USE_OTHER_CONTEXT
from moebind.params.draft import MTP, Draft

if TYPE_CHECKING:
    from moebind.context.context import Context
    from moebind.context.speculative import Speculative

__all__ = ["Speculation"]


@dataclass(frozen=True)
class Speculation:
    """What drafts tokens for a context.

    Attributes
    ----------
    kind : str or None
        llama.cpp's name, as ``--spec-type`` takes it, such as ``"ngram-mod"`` or ``"draft-mtp"``; None: what the
        draft's file says.
    draft : str or None
        The file of a model that drafts.
    n_max : int or None
        The most tokens to draft at once; None: llama.cpp's default.
    """

    kind: str | None = None
    draft: str | None = None
    n_max: int | None = None

    @property
    def name(self) -> str:
        """It in a few words."""
        if self.counted is None:
            return f"{self.kind} drafts"
        who = "the model's own layers" if self.draft is None else os.path.basename(self.draft)
        if self.n_max is None:
            return f"tokens drafted by {who}"
        return f"up to {self.n_max} token{'s' * (self.n_max != 1)} drafted by {who}"

    @property
    def counted(self) -> Draft | None:
        """What takes memory, as plans count it; n-grams take none to speak of."""
        return Draft(self.draft) if self.draft is not None or self.own_layers else None

    @property
    def own_layers(self) -> bool:
        """Whether the model's own layers draft, which predict further ahead, and are loaded for that."""
        return self.kind == MTP and self.draft is None

    @property
    def values(self) -> dict[str, str | int]:
        """Values of the commands' options, by their names."""
        found = {"spec_type": self.kind, "model_draft": self.draft, "spec_draft_n_max": self.n_max}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def settings(self) -> dict[str, str]:
        """Options of commands, and of llama-server, by their names without dashes."""
        names = {"spec_type": "spec-type", "model_draft": "spec-draft-model", "spec_draft_n_max": "spec-draft-n-max"}
        return {names[name]: str(value) for name, value in self.values.items()}

    @property
    def options(self) -> list[str]:
        """Options of commands that write text."""
        return [word for name, value in self.settings.items() for word in (f"--{name}", value)]

    @property
    def python(self) -> list[str]:
        """Lines of Python that make it for a ``model`` and its ``context``."""
        if self.draft is None:
            more = "" if self.n_max is None else f", n_max={self.n_max}"
            if not self.own_layers:
                return [f"speculative = moebind.Speculative(context, kind={self.kind!r}{more})"]
            return [f"params = moebind.MtpSpeculativeParams({more[2:]})",
                    "speculative = moebind.MtpSpeculative(context, params=params)"]  # fmt: skip
        return [
            f"draft = moebind.Draft({self.draft!r})",
            "draft_model = Model.load_from_file(draft.path, draft.loaded_for(model.params))",
            "draft_params = draft.context_for(context.params, context.n_ctx, ahead=bool(draft_model.n_layer_nextn))",
            f"other = context if draft_model.meta['general.architecture'] in {USE_OTHER_CONTEXT} else None",
            "draft_context = draft_model.new_context(draft_params, ctx_other=other)",
            f"speculative = moebind.Speculative(context, draft_context, n_max={self.n_max})",
        ]

    @contextmanager
    def opened(self, context: Context) -> Iterator[Speculative]:
        """Have it draft for a context, until it is left.

        Raises
        ------
        SpeculativeError
            If it cannot draft for this context.
        ModelLoadError, ContextCreationError
            If the draft's file is none, or cannot be loaded.
        """
        from moebind.context.drafted_by import drafted_by

        numbers: dict[str, Any] = {} if self.n_max is None else {"n_max": self.n_max}
        with drafted_by(context, self.counted, [] if self.kind is None else [self.kind], **numbers) as speculative:
            yield speculative

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Speculation:
        """What :meth:`to_dict` gave.

        Raises
        ------
        TypeError
            If it is something else.
        """
        found = cls(**fields)
        if not all(each is None or isinstance(each, str) for each in (found.kind, found.draft)):
            raise TypeError(f"what drafts is {fields}")
        if not (found.n_max is None or isinstance(found.n_max, int)):
            raise TypeError(f"what drafts is {fields}")
        return found
