"""Which devices a server uses where some only stand in for others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from serving import PATIENCE, SMALL_SERVER

import moebind
from moebind import ModelParams
from moebind.server import Server


def test_stand_ins_are_left_out_unless_they_are_named(tiny_path: Callable[..., Path]) -> None:
    """They end with the process that started them, which a server may outlive."""
    path = tiny_path(n_expert=4)
    others = {name: value for name, value in SMALL_SERVER.items() if name != "model_params"}
    with moebind.loopback_device() as own:
        for params, used in ((None, []), (ModelParams(devices=[own]), [own.name])):
            with Server(path, model_params=params, **others) as server:
                server.wait_ready(PATIENCE)
                [model] = server.models
                assert [each.name for each in model.used] == used
