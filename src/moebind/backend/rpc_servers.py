"""RPC servers of llama.cpp's, whose devices are used like our own.

A server can go away at any time. The connections to it (``native/replaced/rpc_connections.cpp``) then answer in its
place, with zeros, so that llama.cpp stays whole; and whatever uses the server looks, around each of its calls, whether
it is still there (:func:`watched`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from moebind._core import checks
from moebind._core.arguments import explained
from moebind._core.caller import warn
from moebind._core.native import CData, decoded, ffi, lib
from moebind._core.shown import shown
from moebind.backend.devices import Device, describe, devices, init, lock, native_devices, users
from moebind.errors import MoebindError, NativeError, RpcServerError

__all__ = ["add_rpc_server", "remove_rpc_server"]

#: Seconds that a server has to take a connection and to answer its first message.
CONNECT_TIMEOUT = 5.0
#: Seconds that it may be silent later, unless ``add_rpc_server`` says so; native/replaced/rpc_connections.cpp waits.
SILENCE_TIMEOUT = 300.0
#: Servers whose devices are listed; and those whose connections belong to the process that this one was forked from.
_endpoints: set[str] = set()
_parents_endpoints: set[str] = set()


_CLOSE = "close what used it; it can be added again then"


def _state(endpoint: str) -> tuple[int, str]:
    """The state of a server, without asking it, and the reason if it was lost."""
    reason = ffi.new("char[]", 512)
    return lib.moebind_rpc_state(endpoint.encode(), reason, len(reason)), decoded(reason)


def _lost_error(endpoint: str, reason: str) -> RpcServerError:
    forget_server(endpoint)
    return RpcServerError(f"the RPC server {endpoint} {reason}", endpoint)


def endpoints_of(natives: Iterable[CData]) -> tuple[str, ...]:
    """The servers that these devices belong to."""
    found = {
        decoded(lib.ggml_backend_dev_description(device))
        for device in natives
        if decoded(lib.ggml_backend_reg_name(lib.ggml_backend_dev_backend_reg(device))) == "RPC"
    }
    return tuple(sorted(found))


def check(endpoints: Sequence[str]) -> None:
    """Raise if one of these servers was lost since its connection was made.

    Raises
    ------
    RpcServerError
    """
    for endpoint in endpoints:
        if lib.moebind_rpc_state(endpoint.encode(), ffi.NULL, 0) == lib.MOEBIND_RPC_SERVER_LOST:
            raise _lost_error(endpoint, f"{_state(endpoint)[1]}: {_CLOSE}")


@contextmanager
def watched(endpoints: Sequence[str]) -> Iterator[None]:
    """Stand around native calls that use these servers: what they gave back is worth something only if this passes.

    Raises
    ------
    RpcServerError
        If one was lost before or meanwhile. It takes the place of what llama.cpp made of that.
    """
    check(endpoints)
    try:
        yield
    except MoebindError as error:
        try:
            check(endpoints)
        except RpcServerError as lost:
            raise lost from error
        raise
    check(endpoints)


def _reach(endpoint: str) -> None:
    """Connect to a server that is not in use, and ask it something.

    Raises
    ------
    RpcServerError
    """
    state, reason = _state(endpoint)
    if state == lib.MOEBIND_RPC_SERVER_IN_USE:
        return
    if state == lib.MOEBIND_RPC_SERVER_LOST:
        raise _lost_error(endpoint, reason)
    failed: NativeError | None = None
    try:
        settle([endpoint])
    except NativeError as error:
        failed = error
    state, reason = _state(endpoint)
    if failed is not None or state == lib.MOEBIND_RPC_SERVER_LOST:
        if "said nothing" in reason:
            reason += ": it hangs, or another process uses it, since llama.cpp's servers take one client at a time"
        raise _lost_error(endpoint, reason or "cannot be used") from failed


def settle(endpoints: Sequence[str]) -> None:
    """Wait until these servers have done all that they were sent, most of which has no answer."""
    numbers = ffi.new("size_t[2]")
    for endpoint in endpoints:
        lib.ggml_backend_rpc_get_device_memory(endpoint.encode(), 0, numbers, numbers + 1)


def before_load(chosen: Sequence[Device] | None, overrides: Iterable[str]) -> tuple[str, ...]:
    """Find out which servers are there, since llama.cpp asks all of them when it loads a model.

    Parameters
    ----------
    chosen
        The devices that the model is to use; None: all.
    overrides
        The targets of its tensor overrides: names of devices and buffer types.

    Returns
    -------
    tuple[str, ...]
        Those that the model may use.

    Raises
    ------
    RpcServerError
        If one that is asked for is not there. Others are taken out of the list, with a warning.
    """
    wanted = {device.description for device in chosen or () if device.backend == "RPC"}
    targets = set(overrides)
    named = [device for device in native_devices() if decoded(lib.ggml_backend_dev_name(device)) in targets]
    wanted.update(endpoints_of(named))
    check(sorted(wanted))
    wanted &= _endpoints  # a device that went in good order is told like any that is not there
    # Buffer types, among which overrides have their targets, are asked of all devices.
    everybody = chosen is None or targets
    for endpoint in sorted(wanted | _endpoints if everybody else wanted):
        try:
            _reach(endpoint)
        except RpcServerError as error:
            if endpoint in wanted:
                raise
            warn(f"{error}. Its devices are not used any more")
    return tuple(sorted(wanted | (_endpoints if chosen is None else set())))


def _normalised(endpoint: str) -> str:
    checks.text("endpoint", endpoint)
    match = re.fullmatch(r"([^:\s]+):(\d{1,5})", endpoint)
    if match is None or not 0 < int(match[2]) < 65536:
        raise ValueError(
            f"endpoint is {shown(endpoint)}; it takes 'host:port' with a port from 1 to 65535 (IPv4 or a name)"
        )
    return f"{match[1]}:{int(match[2])}"


@explained()
def add_rpc_server(endpoint: str, timeout: float | None = SILENCE_TIMEOUT) -> list[Device]:
    """Make the devices of an RPC server usable.

    llama.cpp's RPC protocol has no authentication and no encryption: use it on networks that you trust. If a server is
    lost while something uses it, every call that needs it raises :class:`RpcServerError`.

    Parameters
    ----------
    endpoint
        ``"host:port"``: a name or an IPv4 address, and a port.
    timeout
        Seconds that the server may be silent while something waits for it. It sends nothing while it computes, so this
        also limits how long one computation (of at most ``n_ubatch`` tokens) may take. None: no limit.

    Returns
    -------
    list[Device]
        The server's devices; adding a server again returns the same ones.

    Raises
    ------
    ValueError
        If ``endpoint`` is not of the form ``"host:port"``.
    RpcServerError
        If nothing answers there within 5 seconds, or something that is not a matching RPC server does.

    Notes
    -----
    Uses ``ggml_backend_rpc_add_server``.
    """
    endpoint = _normalised(endpoint)
    seconds = 1e9 if timeout is None else checks.number("timeout", timeout, 0.001, 1e9)
    init()
    if endpoint in _parents_endpoints:
        raise MoebindError(
            f"the RPC server {endpoint} is connected to the process that this one was forked from, and llama.cpp would "
            "use that connection: use another server, or start a process instead of forking one"
        )
    with lock:
        lib.moebind_rpc_timeouts(endpoint.encode(), round(1000 * CONNECT_TIMEOUT), round(1000 * seconds))
        if not lib.moebind_rpc_forget(endpoint.encode()):
            check([endpoint])
        _reach(endpoint)
        try:
            server = lib.ggml_backend_rpc_add_server(endpoint.encode())
            if server:
                lib.moebind_rpc_renew(endpoint.encode())
        except NativeError as error:
            raise _lost_error(endpoint, _state(endpoint)[1]) from error
        check([endpoint])
        if not server:
            raise _lost_error(endpoint, _state(endpoint)[1] or "offers no devices")
        lib.ggml_backend_register(server)
        _endpoints.add(endpoint)
        own = {lib.ggml_backend_reg_dev_get(server, i) for i in range(lib.ggml_backend_reg_dev_count(server))}
        return [describe(index, native) for index, native in enumerate(native_devices()) if native in own]


def remove_rpc_server(endpoint: str) -> None:
    """Remove an RPC server's devices from the list, so that no model uses them unless the server is added again.

    Parameters
    ----------
    endpoint
        ``"host:port"``, as it was added. Nothing happens if it is not in the list.

    Raises
    ------
    MoebindError
        If a model uses the server; close it first.

    Notes
    -----
    Uses ``ggml_backend_unload``.
    """
    endpoint = _normalised(endpoint)
    for name in [device.name for device in devices() if device.backend == "RPC" and device.description == endpoint]:
        if any(not model.closed for model in users.get(name, ())):
            raise MoebindError(f"a model uses {name}, which is of the RPC server {endpoint}: close it first")
    forget_server(endpoint)


def forget_server(endpoint: str) -> None:
    """Take a server's devices out of the list, if they are in it. Nothing new may use them."""
    with lock:
        if endpoint in _endpoints:
            _endpoints.discard(endpoint)
            # The registry returns the one that was added under this name, without asking the server.
            lib.moebind_rpc_remove_server(lib.ggml_backend_rpc_add_server(endpoint.encode()))


def _after_fork() -> None:
    _parents_endpoints.update(_endpoints)
    for endpoint in tuple(_endpoints):
        forget_server(endpoint)


os.register_at_fork(after_in_child=_after_fork)
