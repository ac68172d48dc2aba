"""``moebind get``: a model from the Hugging Face Hub, after a look at whether it fits."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from moebind._core import checks
from moebind._core.sizes import show_size
from moebind.cli import options as o
from moebind.cli.budgets import Margin, Memory, budgets
from moebind.cli.devices import Devices, Host, checked_size, device_list, separate
from moebind.cli.drafts import MTP, SIDECARS, draft_beside, kinds_of
from moebind.cli.model_argument import Hub, on_hub
from moebind.cli.output import note, show, show_json
from moebind.errors import FitError
from moebind.files.download import download
from moebind.files.hub import HubFiles, find
from moebind.files.hub import download as hub_download
from moebind.files.hub_address import Address
from moebind.files.model_card import ModelCard, inspect, show_count
from moebind.files.model_files import sidecar_kind
from moebind.params.draft import Draft
from moebind.placement.fit import fit
from moebind.placement.summary import does_not_fit

#: What files beside models are for.
_KINDS = {
    "mmproj": "a projector, by which it sees or hears: --mmproj",
    "imatrix": "an importance matrix, for moebind quantize --imatrix",
    **{kind: f"what drafts for it: --spec-type draft-{kind}" for kind in sorted(SIDECARS)},
}
_A_DRAFT = "a draft that is a model of its own is got as such"
#: More are counted.
_BESIDE_MAX = 8
Wanted = Annotated[
    str | None,
    typer.Argument(
        metavar="OWNER/REPO[:QUANT]",
        help="What to download: a quantisation of a repository, or hf://OWNER/REPO/FILE.gguf.",
        show_default=False,
    ),
]


def command(
    wanted: Wanted = None,
    hf_repo: Hub = None,
    spec_type: Annotated[
        str | None,
        typer.Option("--spec-type", metavar="KIND", help="With what drafts for it, such as draft-mtp or draft-eagle3."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Download nothing.")] = False,
    memory: Memory = None,
    margin: Margin = None,
    device: Devices = None,
    host: Host = None,
    as_json: o.AsJson = False,
) -> None:
    """Download a model from the Hugging Face Hub. Tells its size first, and whether it fits here.

    Example: moebind get OWNER/REPO:Q4_K_M

    The path of its first file is the last line of the output. Ends with 1 if the answer is no.
    """
    if (wanted is None) == (hf_repo is None):
        raise ValueError("there is no model, or two: give OWNER/REPO[:QUANT] or -hf")
    given = wanted or hf_repo or ""
    address = given if checks.on_hub(given) else on_hub(given, "--hf-repo" if wanted is None else "what to download")
    kinds = _with_files(kinds_of(spec_type))
    files = find(Address.parse(address))
    if sidecar_kind(os.path.basename(files.files[0][0])) is not None:
        _get_sidecar(address, files, yes=yes, dry_run=dry_run, as_json=as_json)
        return
    beside = _beside(files)
    card = inspect(address)
    draft, drafting = _draft_of(address, kinds)
    try:
        found = fit(
            address,
            memory=budgets(memory),
            margin=margin,
            devices=device_list(separate(device)),
            host=None if host is None else checked_size(host, "--host"),
            draft=draft,
        )
        fits, how = found.plan.fits, f"{found.plan.summary}, context {found.plan.n_ctx}"
    except FitError as error:
        fits, how = False, does_not_fit(error.missing)
    here = card.bytes_read is None  # its files are read where they are
    if not as_json:
        for line in (_described(card), *_with(drafting), f"Here: {how}.", *_told(beside)):
            show(line) if dry_run else note(line)
    missing = 0 if here else card.nbytes
    if drafting is not None and not drafting.paths:
        missing += sum(nbytes for _, nbytes in drafting.files)
    if missing and not (dry_run or yes):
        _ask(f"Download {show_size(missing)}{'' if fits else ', which does not fit here'}?")
    paths = () if dry_run and not here else card.paths if here else download(address)
    drafts = () if drafting is None else drafting.paths or (() if dry_run else hub_download(drafting))
    if drafts and not as_json:
        note(f"What drafts for it: {drafts[0]}")
    if as_json:
        found_here = {"fits": fits, "fit": how, "here": here, "paths": list(paths)}
        show_json({"address": address, "nbytes": card.nbytes, **found_here, "drafts": list(drafts), "beside": beside})
    elif paths:
        show(paths[0])


def _with_files(kinds: list[str]) -> list[str]:
    """The kinds of drafts, each of which has to have a file, or layers, that a repository can have."""
    for each in kinds:
        if each != MTP and each.removeprefix("draft-") not in SIDECARS:
            known = ", ".join(f"draft-{kind}" for kind in sorted(SIDECARS))
            raise ValueError(f"--spec-type is {each}, of which a repository has no file; it takes {known}")
    return kinds


def _draft_of(address: str, kinds: Sequence[str]) -> tuple[Draft | None, HubFiles | None]:
    """What is to draft for a model, for a fit, and its file, if that lies beside it; None: nothing is, or no file."""
    beside = draft_beside(address, kinds, f"leave --spec-type out, or get a repository that has one ({_A_DRAFT})")
    if beside is not None:
        return Draft(beside), find(Address.parse(beside))
    return (Draft() if MTP in kinds else None), None


def _with(drafting: HubFiles | None) -> list[str]:
    if drafting is None:
        return []
    return [
        f"With {drafting.files[0][0]}: {show_size(sum(nbytes for _, nbytes in drafting.files))}, which drafts for it"
    ]


def _get_sidecar(address: str, files: HubFiles, *, yes: bool, dry_run: bool, as_json: bool) -> None:
    """Download a file that lies beside models, which by itself fits nowhere."""
    (name, nbytes), here = files.files[0], bool(files.paths)
    kind = str(sidecar_kind(os.path.basename(name)))
    if not as_json:
        line = f"{name}: {show_size(nbytes)}, {_KINDS[kind]}"
        show(line) if dry_run else note(line)
    if not (here or dry_run or yes):
        _ask(f"Download {show_size(nbytes)}?")
    paths = files.paths if here else () if dry_run else download(address)
    if as_json:
        show_json({"address": address, "nbytes": nbytes, "kind": kind, "here": here, "paths": list(paths)})
    elif paths:
        show(paths[0])


def _beside(files: HubFiles) -> list[dict[str, object]]:
    """What lies beside the model in its repository."""
    return [
        {
            "address": files.address.name_of(name),
            "kind": sidecar_kind(os.path.basename(name)),
            "nbytes": nbytes,
        }
        for name, nbytes in files.beside
    ]


def _told(beside: Sequence[Mapping[str, object]]) -> list[str]:
    shown = [f"Beside it: {each['address']} ({_KINDS[str(each['kind'])]})" for each in beside[:_BESIDE_MAX]]
    more = len(beside) - len(shown)
    return [*shown, *([f"  and {more} more"] if more else [])]


def _described(card: ModelCard) -> str:
    experts = f", {card.n_expert} experts" if card.n_expert else ""
    n_files = len(card.paths)
    name = os.path.basename(card.path)
    return (
        f"{name}: {show_size(card.nbytes)}{f' in {n_files} files' if n_files > 1 else ''}, {card.architecture}, "
        f"{show_count(card.n_params)} parameters{experts}"
    )


def _ask(question: str) -> None:
    """Go on after a yes.

    Raises
    ------
    ValueError
        If there is no terminal to ask on.
    typer.Exit
        After a no.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ValueError("there is no terminal to ask on: give --yes to download, or --dry-run to only look")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        note("Nothing was downloaded.")
        raise typer.Exit(1)
