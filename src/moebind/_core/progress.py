"""Progress bars, where tqdm is installed."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["progress_bar"]


def progress_bar(
    name: str | Callable[[], str], *, only_on_terminals: bool = False, leave: bool = True
) -> tuple[Callable[[float], bool], Callable[[], None]]:
    """A bar from 0 to 100 %: what to call with a fraction, and what to call at the end.

    Parameters
    ----------
    name
        What stands before it; what returns it, if it changes.
    only_on_terminals
        Draw nothing into a file or a pipe.
    leave
        Whether the bar stays when it is full.

    Raises
    ------
    ImportError
        If tqdm is not installed.
    """
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("progress bars are drawn with tqdm: pip install 'moebind[cli]'") from error
    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}"
    description = name if callable(name) else lambda: name
    shown = description()
    bar = tqdm(
        total=100, desc=shown, unit="%", bar_format=form, leave=leave, disable=None if only_on_terminals else False
    )

    def progress(fraction: float) -> bool:
        nonlocal shown
        shown, before = description(), shown
        bar.set_description_str(shown, refresh=shown != before)
        bar.update(100 * fraction - bar.n)
        return True

    return progress, bar.close
