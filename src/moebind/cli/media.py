"""Pictures and sound on the command line: options that take them, and the projector that they need."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moebind.files.sidecars import beside

if TYPE_CHECKING:
    from moebind.model.model import Model
    from moebind.mtmd.projector import MtmdContext

__all__ = ["Audio", "Counted", "Images", "Projector", "opened", "projector_for"]

Images = Annotated[
    list[Path] | None,
    typer.Option("--image", metavar="FILE", help="A picture to look at; or --audio FILE.", show_default=False),
]
Audio = Annotated[
    list[Path] | None,
    typer.Option("--audio", metavar="FILE", help="Sound to hear.", show_default=False, hidden=True),
]
Projector = Annotated[
    str | None,
    typer.Option(
        "--mmproj", "-mm", metavar="FILE", help="The projector.", show_default="mmproj* beside the model", hidden=True
    ),
]
Counted = Annotated[
    str | None,
    typer.Option("--mmproj", "-mm", metavar="FILE", help="A projector to be counted.", show_default=False),
]


def projector_for(model: str, mmproj: str | None, media: Sequence[Path]) -> str | None:
    """The projector's file that a command needs; None: it needs none.

    Raises
    ------
    ValueError
        If there are pictures or sound, and no projector.
    """
    if mmproj is not None or not media:
        return mmproj
    near = beside(model, "mmproj")
    if near is None:
        raise ValueError(
            f"{media[0]} needs the model's projector, and none (mmproj*.gguf) lies beside it: give its file, --mmproj "
            "FILE"
        )
    return near


@contextmanager
def opened(path: str | None, model: Model, n_threads: int) -> Iterator[MtmdContext | None]:
    """A projector, loaded; None without one."""
    if path is None:
        yield None
        return
    from moebind.mtmd.projector import MtmdContext, MtmdContextParams

    with MtmdContext.init_from_file(path, model, MtmdContextParams(n_threads=n_threads)) as mtmd:
        yield mtmd
