"""The models that are here: in folders and in the Hugging Face Hub's cache, and whether they fit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import SupportsIndex

from moebind._core import checks
from moebind._core.shown import shown
from moebind._core.sizes import show_size
from moebind._core.tables import Column, text_table
from moebind.backend.devices import Device
from moebind.errors import FitError, MoebindError
from moebind.files.model_card import ModelCard, inspect, printable, show_count
from moebind.files.model_files import ModelFiles, in_folder
from moebind.params.misplaced import explained_with_fields
from moebind.params.params import ContextParams, ModelParams
from moebind.placement.fit import Fit, fit
from moebind.placement.summary import does_not_fit

__all__ = ["ListedModel", "list_models", "listing_text"]


@dataclass(frozen=True)
class ListedModel:
    """A model that is here, or a file beside models. Made by :func:`list_models`.

    Attributes
    ----------
    name : str
        Its file, from the folder that was searched; or its address on the Hugging Face Hub, which commands and
        functions take as it is.
    path : str
        Its first file.
    n_files, nbytes : int
        Files that are here, and their bytes.
    kind : str
        ``"model"``, or what lies beside models: ``"mmproj"``, ``"imatrix"``, ``"mtp"``, ``"eagle3"``, ``"dflash"``,
        ``"dspark"``, ``"adapter"``.
    architecture, type : str or None
        llama.cpp's name for what it computes, and what it was quantised to.
    n_params, n_params_active : int
        As in :class:`ModelCard`.
    n_expert, n_expert_used : int
        Experts in a layer, and how many of them work on a token.
    fits : bool or None
        Whether it fits; None if that was not asked, or cannot be said.
    fit : str or None
        How it fits, or why it does not, in a few words.
    n_ctx : int or None
        Tokens of context that fit with it.
    problem : str or None
        Why it cannot be used.
    """

    name: str
    path: str
    n_files: int
    nbytes: int
    kind: str = "model"
    architecture: str | None = None
    type: str | None = None
    n_params: int = 0
    n_params_active: int = 0
    n_expert: int = 0
    n_expert_used: int = 0
    fits: bool | None = None
    fit: str | None = None
    n_ctx: int | None = None
    problem: str | None = None

    def to_dict(self) -> dict[str, object]:
        """The row as plain values, for JSON; sizes are bytes."""
        return asdict(self)


@explained_with_fields(model="list_models(folders, model_params={})", context="list_models(folders, context_params={})")
def list_models(
    folders: Sequence[str | os.PathLike[str]] = (),
    *,
    hub: bool | None = None,
    fits: bool = True,
    memory: SupportsIndex | str | Mapping[str, SupportsIndex | str] | None = None,
    margin: SupportsIndex | str | None = None,
    n_ctx: SupportsIndex | None = None,
    devices: Sequence[Device | str | int] | None = None,
    host: SupportsIndex | str | None = None,
    model_params: ModelParams | None = None,
    context_params: ContextParams | None = None,
    progress: Callable[[str], object] | None = None,
) -> list[ListedModel]:
    """List the models in folders and in the Hugging Face Hub's cache, and whether they fit. Loads nothing.

    The files of a split model are one model. A file that cannot be read is a row that says why.

    Parameters
    ----------
    folders
        They are searched with all folders in them, but hidden ones.
    hub
        Whether to list what is in the Hub's cache. None: if there are no ``folders``.
    fits
        Whether to find out how each fits, as :func:`fit` does; without, only headers are read.
    memory, margin, n_ctx, devices, host, model_params, context_params
        As for :func:`fit`.
    progress
        What is called with the name of each, before it is looked at.

    Returns
    -------
    list[ListedModel]
        By folder and name.

    Raises
    ------
    ModelNotFoundError
        If there is no such folder.
    ImportError
        For the Hub's cache, if huggingface_hub is missing; it comes with the extra ``hub``.
    ValueError
        If an argument is out of range.

    Examples
    --------
    >>> for row in moebind.list_models(["models"], devices=["24GiB"], host="64GiB"):
    ...     print(row.name, row.fit or row.problem)
    """
    if isinstance(folders, (str, bytes, os.PathLike)) or not isinstance(folders, Sequence):
        raise TypeError(f"folders is {shown(folders)}; it takes a list, such as ['models']")
    look = partial(
        fit,
        memory=memory,
        margin=margin,
        n_ctx=n_ctx,
        devices=devices,
        host=host,
        model_params=model_params,
        context_params=context_params,
    )
    wanted = look if checks.boolean("fits", fits) else None
    rows = []
    for files in _found(folders, not folders if hub is None else checks.boolean("hub", hub)):
        if progress is not None:
            progress(files.name)
        rows.append(_row(files, wanted))
    return rows


def listing_text(rows: Sequence[ListedModel]) -> str:
    """A table of models; what lies beside them, and what cannot be used, has a remark."""
    columns = [
        Column("model", left=True),
        Column("size"),
        Column("type", left=True),
        Column("parameters", left=True),
        Column("experts", left=True),
        Column("fits", left=True),
    ]
    cells: list[list[object]] = []
    for row in rows:
        first: list[object] = [printable(row.name), show_size(row.nbytes)]
        if row.kind != "model":
            cells.append([*first, row.kind])
        elif row.problem is not None:
            cells.append([*first, printable(row.problem)])
        else:
            active = f", {show_count(row.n_params_active)} active" if row.n_params_active < row.n_params else ""
            experts = f"{row.n_expert}, {row.n_expert_used} used" if row.n_expert else "-"
            context = "" if row.n_ctx is None or not row.fits else f", context {row.n_ctx}"
            params = f"{show_count(row.n_params)}{active}"
            cells.append([*first, row.type or "-", params, experts, f"{row.fit or ''}{context}"])
    asked = any(row.fit is not None for row in rows)
    if not asked:
        columns = columns[:-1]
        cells = [line[:5] for line in cells]
    return "\n".join(text_table(columns, cells))


def _found(folders: Sequence[str | os.PathLike[str]], cached: bool) -> Iterator[ModelFiles]:
    for folder in folders:
        yield from in_folder(folder)
    if cached:
        from moebind.files.hub import in_cache

        yield from in_cache()


def _row(files: ModelFiles, look: Callable[[str], Fit] | None) -> ListedModel:
    row = ListedModel(files.name, files.paths[0], len(files.paths), files.nbytes, files.sidecar or "model")
    if files.sidecar is not None:
        return row
    try:
        card = inspect(row.path)
        row = replace(
            row,
            kind=card.kind,
            architecture=card.architecture,
            type=_type(card),
            n_params=card.n_params,
            n_params_active=card.n_params_active,
            n_expert=card.n_expert,
            n_expert_used=card.n_expert_used,
        )
        if card.problems:
            return _with_problem(row, card.problems[0])
        if look is None or card.kind != "model":
            return row
        plan = look(row.path).plan
        return replace(row, fits=plan.fits, fit=plan.summary, n_ctx=plan.n_ctx)
    except FitError as error:
        return replace(row, fits=False, fit=does_not_fit(error.missing))
    except (MoebindError, OSError) as error:
        return _with_problem(row, str(error))


def _with_problem(row: ListedModel, message: str) -> ListedModel:
    """A message in one line, without the folder that the row's name has."""
    return replace(row, problem=" ".join(message.replace(row.path, os.path.basename(row.path)).split()))


def _type(card: ModelCard) -> str | None:
    if card.ftype is not None:
        return card.ftype.name
    return card.types[0].type.name if card.types else None
