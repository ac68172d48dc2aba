"""Where servers listen."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from moebind import ServerError
from moebind.server import address
from moebind.server.address import Address, parse


def free(host: str, port: int) -> Address:
    return Address.free(host, port, guarded=True)


def test_a_free_port_is_found_and_kept_free() -> None:
    found = free("127.0.0.1", 0)
    assert 0 < found.port < 65536
    assert found.local
    with socket.create_server((found.host, found.port)):
        pass


def test_no_connection_takes_it_meanwhile() -> None:
    first, last = map(int, Path(address.PORT_RANGE).read_text().split())
    for _ in range(20):
        assert not first <= free("127.0.0.1", 0).port <= last


def test_ports_that_are_taken_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        monkeypatch.setattr(address, "_quiet_ports", lambda: [taken, taken])
        assert free("127.0.0.1", 0).port not in {0, taken}


@pytest.mark.parametrize("written", ["", "1024 65535", "many"])
def test_where_all_ports_are_given_away_one_of_these_is_taken(
    written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "range").write_text(written)
    for path in (tmp_path / "range", tmp_path / "none"):
        monkeypatch.setattr(address, "PORT_RANGE", str(path))
        assert free("127.0.0.1", 0).port > 0


def test_a_port_in_use_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        for host in ("127.0.0.1", "0.0.0.0"):
            with pytest.raises(ServerError, match=rf"{host}:{port} is in use: .* choose another port"):
                free(host, port)


def test_nobody_is_let_in_by_mistake() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:  # what needs no port is said first
        port = other.getsockname()[1]
        for host in ("0.0.0.0", "192.0.2.1"):
            with pytest.raises(ValueError, match=rf"^host is '{host}', .* can reach, and there is no key"):
                Address.free(host, port, guarded=False)
    assert Address.free("127.0.0.1", 0, guarded=False).local


def test_another_machines_address_is_refused() -> None:
    with pytest.raises(ServerError, match=r"192\.0\.2\.1 is no address of this machine"):  # of nobody, by RFC 5737
        free("192.0.2.1", 0)


@pytest.mark.parametrize(
    ("host", "local", "url"),
    [
        ("127.0.0.1", True, "http://127.0.0.1:{}"),
        ("127.1.2.3", True, "http://127.1.2.3:{}"),
        ("localhost", True, "http://localhost:{}"),
        ("0.0.0.0", False, "http://127.0.0.1:{}"),
    ],
)
def test_who_reaches_it(host: str, local: bool, url: str) -> None:
    found = free(host, 0)
    assert (found.local, found.url) == (local, url.format(found.port))


def test_ipv6_is_in_brackets() -> None:
    assert Address("::1", 80, True).url == "http://[::1]:80"
    assert Address("::", 80, False).url == "http://[::1]:80"


@pytest.mark.parametrize("host", ["", "no such host", "a,b", "x/y.sock", "a" * 300])
def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match="^host is"):
        free(host, 0)


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_out_of_range_is_refused(port: int) -> None:
    with pytest.raises(ValueError, match="^port is"):
        free("127.0.0.1", port)


def test_both_in_one() -> None:
    assert parse("127.0.0.1:11435") == ("127.0.0.1", 11435)
    assert parse("name:0") == ("name", 0)
    assert parse("[::1]:80") == ("::1", 80)


@pytest.mark.parametrize("text", ["", "11435", ":80", "127.0.0.1", "127.0.0.1:", "a:b", "::1:80", "a:-1", "a:\u0661"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^--bind is .*it takes HOST:PORT"):
        parse(text)
