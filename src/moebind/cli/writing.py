"""What the commands that write text work with: a model, its context, and what sees or drafts for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from moebind.cli.drafts import DRAFTS, draft_of, drafting
from moebind.cli.given import Given
from moebind.cli.holes import check_written
from moebind.cli.loading import load, new_context
from moebind.cli.media import opened, projector_for
from moebind.cli.output import note
from moebind.cli.parameters import only

if TYPE_CHECKING:
    from moebind.context.context import Context
    from moebind.context.speculative import Speculative
    from moebind.mtmd.projector import MtmdContext

__all__ = ["Writing", "writing"]


class Writing(NamedTuple):
    """A context, whose model is ``context.model``; the projector, and what drafts, where the options ask for them."""

    context: Context
    mtmd: MtmdContext | None
    speculative: Speculative | None


@contextmanager
def writing(
    model: str,
    given: Given,
    device: Sequence[str] | None,
    *,
    fitted: bool,
    mmproj: str | None,
    media: Sequence[Path],
) -> Iterator[Writing]:
    """Load what a command writes with, and close it at the end.

    Parameters
    ----------
    model, given, device, fitted
        As for :func:`moebind.cli.loading.load`.
    mmproj, media
        The projector's file, if it is given; the files that are to be looked at, or heard.

    Raises
    ------
    ValueError
        If there are such files and no projector, or something that drafts, which takes text alone; this is found out
        before anything is loaded.
    ModelLoadError
        If the model cannot be loaded, or weights are missing in its file.
    """
    projector = projector_for(model, mmproj, media)
    drafts = [option.flag for option, _ in given.of(only(DRAFTS, "spec_type", "model_draft", "hf_repo_draft"))]
    if media and drafts and given.values["spec_type"] != "none":
        raise ValueError(
            f"{media[0]} and {drafts[0]} are both given, and a prompt with pictures or sound is not drafted for: leave "
            "one of them out"
        )
    check_written(model)
    loaded, context_params, draft = load(model, given, device, fitted=fitted, draft_of=draft_of, mmproj=projector)
    with (
        loaded,
        opened(projector, loaded, context_params.n_threads_batch) as mtmd,
        new_context(loaded, context_params) as context,
        nullcontext() if media else drafting(given, context, draft) as speculative,
    ):
        if media and (draft is not None or given.values["spec_type"] not in {None, "none"}):
            note("what --params or --tuned drafts with is left out: a prompt with pictures or sound is not drafted for")
        yield Writing(context, mtmd, speculative)
