"""What a projector says of itself; and that bitmaps and chunks need no more than its base class."""

from __future__ import annotations

import os
from collections.abc import Callable

import projectors
import pytest

from moebind.errors import ClosedError
from moebind.mtmd import default_marker
from moebind.mtmd.projector_base import ProjectorBase

SeeingMaker = Callable[[str], projectors.Seeing]


def test_what_it_says_of_itself(seeing: SeeingMaker) -> None:
    model, mtmd = seeing("gemma3")
    assert (mtmd.support_vision, mtmd.support_audio, mtmd.audio_sample_rate) == (True, False, None)
    assert (mtmd.decode_use_mrope, mtmd.decode_use_non_causal()) == (False, True)
    assert mtmd.marker == default_marker() == "<__media__>"
    assert mtmd.model is model
    assert mtmd.params is projectors.PARAMS
    assert repr(mtmd) == f"<MtmdContext {os.path.basename(mtmd.path)}>"
    assert (seeing("ultravox").mtmd.support_vision, seeing("ultravox").mtmd.support_audio) == (False, True)
    assert not seeing("ultravox").mtmd.decode_use_non_causal()


def test_closed(seeing: SeeingMaker) -> None:
    assert isinstance(seeing("gemma3").mtmd, ProjectorBase)
    closed = ProjectorBase()
    for name in ("marker", "support_vision", "support_audio", "audio_sample_rate", "decode_use_mrope"):
        with pytest.raises(ClosedError):
            getattr(closed, name)
