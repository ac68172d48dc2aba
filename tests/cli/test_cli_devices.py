"""Devices and sizes on a command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Capture, run
from hypothesis import given
from hypothesis import strategies as st

from moebind._core.sizes import parse_size
from moebind.cli.devices import exact_size, separate
from moebind.placement.described_devices import is_description

MakeTiny = Callable[..., Path]


@given(st.integers(1, 2**59) | st.sampled_from([2**20, 2**30, 3 * 2**29, 10**9, 1536]))
def test_an_exact_size_is_read_as_it_was(size: int) -> None:
    assert parse_size("size", exact_size(size)) == size
    assert is_description(exact_size(size))


def test_exact_sizes_are_short() -> None:
    assert [exact_size(size) for size in (2**34, 3 * 2**29, 1536, 1001)] == ["16GiB", "1536MiB", "1536B", "1001B"]


def test_devices_one_by_one() -> None:
    assert separate(None) is separate([]) is None
    assert separate(["24GiB"]) == ["24GiB"]
    assert separate(["24GiB,12GiB", "CUDA0"]) == ["24GiB", "12GiB", "CUDA0"]
    assert separate(["none"]) == []
    with pytest.raises(ValueError, match="--device is none beside 24GiB; choose"):
        separate(["24GiB,none"])


def test_another_machine(tiny_path: MakeTiny, capsys: Capture) -> None:
    path = tiny_path(n_expert=4)

    def capacities(*options: object) -> list[int]:
        assert run("plan", path, *options, "--json") == 0
        return [device["capacity"] for device in json.loads(capsys.readouterr().out)["devices"]]

    assert capacities("--device", "24GiB,12GiB", "--host", "64GiB") == [24 * 2**30, 12 * 2**30, 2**36]
    assert capacities("--device", "vulkan:16GiB,8GiB", "--host", "2GiB") == [2**34, 2**33, 2**31]
    assert capacities("--device", "none", "--host", "2GiB") == [2**31]
    assert run("fit", path, "--device", "none", "--host", "2GiB", "-c", 256, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["host"] == 2**31
    assert told["plan"]["fits"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "64"], "--host is '64', which is so many bytes: give a unit, as in '64GiB'"),
        (["--host", "much"], "--host is 'much'; it takes a number of bytes"),
        (["--device", "24GiB,", "--host", "1GiB"], "--device is ''; it takes the size of a device"),
        (["--device", "none,24GiB"], "--device is none beside 24GiB"),
        (["--device", "vulkan:16"], "after 'vulkan:' comes a size"),
        (["--device", "vulkan"], "--device is 'vulkan'; it takes the size of a device that need not be here, such as"),
    ],
)
def test_what_is_no_machine(tiny_path: MakeTiny, capsys: Capture, options: list[str], message: str) -> None:
    for command in ("plan", "fit"):
        assert run(command, tiny_path(), *options) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert message in said.err
