"""The statuses with which commands end."""

from __future__ import annotations

import pytest

import moebind
from moebind.cli.statuses import FAILED, MISUSED, status_of


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("x"), MISUSED),
        (TypeError("x"), MISUSED),
        (IndexError("x"), MISUSED),
        (UnicodeError("x"), MISUSED),
        (OSError("x"), FAILED),
        (ImportError("x"), FAILED),
        (moebind.MoebindError("x"), FAILED),
        (moebind.ModelNotFoundError("x"), FAILED),
    ],
)
def test_what_tells_of_an_error(error: Exception, status: int) -> None:
    assert status_of(error) == status
