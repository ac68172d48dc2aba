"""Servers that go away, hang or talk nonsense in the middle of something: an exception, and everything else goes on."""

from __future__ import annotations

import gc
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import moebind
import moebind.backend.rpc_servers
from conftest import CPU, SMALL
from moebind import Batch, Device, Model, ModelLoadError, ModelParams, MoebindError, RpcServerError, lib

sys.path.insert(0, str(Path(__file__).parent))
from relay import ANSWERED, Relay, worker_process  # beside this file

MakeTiny = Callable[..., Path]

WAYS = ["close", "reset", "hang", "garbage", "half"]
SAYS = "closed the connection|said nothing for|not as an RPC server|not asked for|cannot be true"


@pytest.fixture(scope="module")
def worker() -> Iterator[str]:
    with worker_process() as (_, endpoint):
        yield endpoint


@pytest.fixture
def relay(worker: str) -> Iterator[Relay]:
    """Each is a server of its own to moebind, and the same worker behind it."""
    with Relay(worker) as relay:
        yield relay
    assert relay.endpoint not in [device.description for device in moebind.devices()]


@pytest.fixture
def device(relay: Relay) -> Iterator[Device]:
    [device] = moebind.add_rpc_server(relay.endpoint, timeout=60)
    yield device
    moebind.backend.rpc_servers.forget_server(relay.endpoint)


@pytest.fixture
def params(device: Device) -> ModelParams:
    return ModelParams(devices=(device,)).with_cpu_override("ffn_down_exps")


@pytest.fixture
def path(tiny_path: MakeTiny) -> Path:
    return tiny_path(n_expert=4)


def others_work(path: Path) -> None:
    """Another model, in this process."""
    with Model.load_from_file(path, CPU) as model, model.new_context(SMALL) as context:
        assert len(list(context.generate("a", max_tokens=3))) > 0


def lost_for_good(model: Model, relay: Relay) -> None:
    """Every call that needs the server says so; closing works, and so does the server, once it is better."""
    [context] = model._children
    calls: list[Callable[[], object]] = [
        lambda: context.decode(Batch.get_one([1])),  # type: ignore[attr-defined]
        lambda: list(context.generate("a", max_tokens=2)),  # type: ignore[attr-defined]
        lambda: context.get_logits(),  # type: ignore[attr-defined]
        lambda: context.kv_cache_clear(),  # type: ignore[attr-defined]
        lambda: context.kv_cache_seq_rm(0, 0, 1),  # type: ignore[attr-defined]
        lambda: context.memory_breakdown(),  # type: ignore[attr-defined]
        lambda: context.synchronize(),  # type: ignore[attr-defined]
        lambda: model.new_context(SMALL),
        lambda: model.devices,
    ]
    for call in calls:
        with pytest.raises(RpcServerError, match=SAYS) as raised:
            call()
        assert relay.endpoint in str(raised.value)
    # What needs no server goes on.
    assert model.tokens_to_str(model.str_to_token("hello")).endswith("hello")
    assert relay.endpoint not in repr(context)
    with pytest.raises(ModelLoadError, match=relay.endpoint):
        Model.load_from_file(model.path, model.params)
    with pytest.raises(RpcServerError, match="close what used it"):
        moebind.add_rpc_server(relay.endpoint)
    path = Path(model.path)
    model.close()
    assert context.closed
    others_work(path)


def works_again(relay: Relay, path: Path) -> None:
    relay.behave()
    gc.collect()  # exceptions hold frames, which hold what was used in them
    [device] = moebind.add_rpc_server(relay.endpoint, timeout=60)
    with Model.load_from_file(path, ModelParams(devices=(device,))) as model, model.new_context(SMALL) as context:
        assert len(list(context.generate("a", max_tokens=3))) > 0


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("command", ["set_tensor", "alloc_buffer", "get_device_memory", "any"])
def test_during_a_load(relay: Relay, device: Device, path: Path, command: str, how: str) -> None:
    relay.misbehave(command, how)
    with pytest.raises(ModelLoadError, match=SAYS) as raised:
        Model.load_from_file(path, ModelParams(devices=(device,)).with_cpu_override("ffn_down_exps"))
    assert relay.endpoint in str(raised.value)
    others_work(path)
    if how != "hang":  # this relay hangs for good
        works_again(relay, path)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("command", ["hello", "get_device_memory", "device_count", "get_alignment", "get_max_size"])
def test_while_it_is_added(relay: Relay, path: Path, monkeypatch: pytest.MonkeyPatch, command: str, how: str) -> None:
    patience = 0.3 if how == "hang" else 60.0
    monkeypatch.setattr("moebind.backend.rpc_servers.CONNECT_TIMEOUT", patience)
    relay.misbehave(command, how)
    with pytest.raises(RpcServerError, match=SAYS) as raised:
        moebind.add_rpc_server(relay.endpoint, timeout=patience)
    assert relay.endpoint in str(raised.value)
    others_work(path)
    if how != "hang":
        works_again(relay, path)
        moebind.backend.rpc_servers.forget_server(relay.endpoint)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("command", ["alloc_buffer", "buffer_clear", "get_alloc_size", "any"])
def test_while_a_context_is_made(relay: Relay, params: ModelParams, path: Path, command: str, how: str) -> None:
    with Model.load_from_file(path, params) as model:
        relay.misbehave(command, how)
        if command == "get_alloc_size" and command not in relay.seen:
            relay.misbehave("any", how)
        with pytest.raises(RpcServerError, match=SAYS):
            model.new_context(SMALL)
        with pytest.raises(RpcServerError, match=relay.endpoint):
            model.new_context(SMALL)
    others_work(path)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("command", ["set_tensor", "graph_compute", "get_tensor", "any"])
def test_during_a_decode(relay: Relay, params: ModelParams, path: Path, command: str, how: str) -> None:
    model = Model.load_from_file(path, params)
    context = model.new_context(SMALL)
    context.decode(Batch.get_one([1, 2, 3]))
    before = context.get_logits_ith(-1).copy()
    assert np.abs(before).sum() > 0
    view = context.get_logits_ith(-1)
    relay.misbehave(command, how)
    with pytest.raises(RpcServerError, match=SAYS):
        context.decode(Batch.get_one([4, 5, 6, 7]))
        context.get_logits()
    lost_for_good(model, relay)
    assert view.shape == before.shape  # it can be read, whatever it shows
    with pytest.raises(RpcServerError, match="close what used it"):
        moebind.add_rpc_server(relay.endpoint)
    del view
    if how != "hang":
        works_again(relay, path)


@pytest.mark.parametrize("how", WAYS)
def test_during_generate(relay: Relay, params: ModelParams, path: Path, how: str) -> None:
    model = Model.load_from_file(path, params)
    context = model.new_context(SMALL)
    pieces = context.generate("hello", max_tokens=100)
    next(pieces)
    relay.misbehave("any", how)
    with pytest.raises(RpcServerError, match=relay.endpoint):
        for _ in pieces:
            pass
    lost_for_good(model, relay)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize(
    "call",
    [
        lambda context: context.kv_cache_clear(True),
        lambda context: (context.kv_cache_seq_add(0, 2, 9, 3), context.decode(Batch.get_one([5]))),
        lambda context: (context.decode(Batch.get_one([5])), context.synchronize()),
    ],
)
def test_during_other_calls(
    relay: Relay, params: ModelParams, path: Path, how: str, call: Callable[[moebind.Context], object]
) -> None:
    model = Model.load_from_file(path, params)
    context = model.new_context(SMALL)
    context.decode(Batch.get_one([1, 2, 3]))
    context.synchronize()
    relay.misbehave("any", how)
    with pytest.raises(RpcServerError, match=relay.endpoint):
        call(context)
        # What is only sent is noticed by what follows and has an answer.
        context.decode(Batch.get_one([5]))
        context.get_logits()
    lost_for_good(model, relay)


@pytest.mark.parametrize("how", WAYS)
def test_during_close(relay: Relay, params: ModelParams, path: Path, how: str) -> None:
    model = Model.load_from_file(path, params)
    context = model.new_context(SMALL)
    context.decode(Batch.get_one([1, 2, 3]))
    relay.misbehave("any", how)
    model.close()
    assert context.closed
    others_work(path)


@pytest.mark.parametrize("how", WAYS)
def test_during_states(relay: Relay, params: ModelParams, path: Path, tmp_path: Path, how: str) -> None:
    model = Model.load_from_file(path, params)
    context = model.new_context(SMALL)
    context.decode(Batch.get_one([1, 2, 3]))
    state, sequence = context.state_get(), context.state_seq_get(0)
    relay.misbehave("get_tensor", how)
    with pytest.raises(RpcServerError, match=relay.endpoint):
        context.state_get()
    calls: list[Callable[[], object]] = [
        lambda: context.state_set(state),
        lambda: context.state_seq_get(0),
        lambda: context.state_seq_set(sequence, 0),
        lambda: context.state_save_file(tmp_path / "state", [1, 2, 3]),
    ]
    for call in calls:
        with pytest.raises(RpcServerError, match=relay.endpoint):
            call()
    assert not (tmp_path / "state").exists()
    model.close()
    others_work(path)


@pytest.mark.parametrize("how", WAYS)
def test_state_through_the_c_api(relay: Relay, params: ModelParams, path: Path, how: str) -> None:
    with Model.load_from_file(path, params) as model, model.new_context(SMALL) as context:
        context.decode(Batch.get_one([1, 2, 3]))
        size = lib.llama_state_get_size(context.native)
        state = moebind.ffi.new("uint8_t[]", size)
        assert lib.llama_state_get_data(context.native, state, size) == size
        relay.misbehave("any", how)
        lib.llama_state_get_data(context.native, state, size)
        lib.llama_state_set_data(context._pointer, state, size)
        assert lib.moebind_rpc_state(relay.endpoint.encode(), moebind.ffi.NULL, 0) == lib.MOEBIND_RPC_SERVER_LOST
        with pytest.raises(RpcServerError, match=relay.endpoint):
            context.synchronize()
    others_work(path)


@pytest.mark.parametrize(
    ("command", "content"),
    [
        ("get_alignment", struct.pack("<Q", 0)),
        ("get_alignment", struct.pack("<Q", 3)),
        ("get_alignment", struct.pack("<Q", 2**62)),
        ("get_max_size", struct.pack("<Q", 0)),
        ("alloc_buffer", struct.pack("<QQ", 5, 1)),
        ("alloc_buffer", struct.pack("<QQ", 5, 2**63)),
        ("buffer_get_base", struct.pack("<Q", 0)),
        ("get_device_memory", struct.pack("<QQ", 2**64 - 1, 0)),
        ("get_alignment", b"12345678" * 2),
    ],
)
def test_answers_that_cannot_be_true(relay: Relay, path: Path, command: str, content: bytes) -> None:
    relay.misbehave(command, content)
    with pytest.raises(MoebindError, match=SAYS) as raised:
        [device] = moebind.add_rpc_server(relay.endpoint, timeout=60)
        with Model.load_from_file(path, ModelParams(devices=(device,))) as model, model.new_context(SMALL):
            pass
    assert relay.endpoint in str(raised.value)
    others_work(path)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    command=st.sampled_from(sorted(ANSWERED)),
    content=st.binary(max_size=40),
    extra=st.binary(max_size=3),
    how=st.booleans(),
)
def test_any_answer(worker: str, path: Path, command: str, content: bytes, extra: bytes, how: bool) -> None:
    """Of any size, with and without a frame; what a tensor holds is the one thing that nobody can judge."""
    if command == "get_tensor" and not extra:
        extra = b"x"
    said = ""
    framed = struct.pack("<Q", len(content)) + content if how else content
    with Relay(worker) as relay:
        try:
            [device, *_] = moebind.add_rpc_server(relay.endpoint, timeout=60)
            relay.misbehave(command, ("send", framed + extra))
            with (
                Model.load_from_file(path, ModelParams(devices=(device,))) as model,
                model.new_context(SMALL) as context,
            ):
                list(context.generate("a", max_tokens=3))
        except MoebindError as error:
            said = str(error)
        finally:
            moebind.backend.rpc_servers.forget_server(relay.endpoint)
    # A server may also say, in good order, that it has no memory.
    assert not said or relay.endpoint in said or "buffer" in said, said
    gc.collect()


def test_a_buffer_that_the_server_has_no_memory_for(relay: Relay, params: ModelParams, path: Path) -> None:
    relay.misbehave("alloc_buffer", struct.pack("<QQ", 0, 0))
    with pytest.raises(ModelLoadError, match="unable to allocate"):
        Model.load_from_file(path, params)
    works_again(relay, path)


def test_a_server_that_went_while_idle(relay: Relay, device: Device, path: Path) -> None:
    relay.misbehave("any", "close")
    [listed] = [each for each in moebind.devices() if each.name == device.name]
    assert (listed.memory_total, listed.memory_free) == (0, 0)
    with pytest.warns(UserWarning, match=f"{relay.endpoint} .* Its devices are not used any more"):
        Model.load_from_file(path, ModelParams(n_gpu_layers=0)).close()
    assert device.name not in [each.name for each in moebind.devices()]
    with pytest.raises(ModelLoadError, match=relay.endpoint):
        Model.load_from_file(path, ModelParams(devices=(device,)))
    works_again(relay, path)


def test_two_servers_of_which_one_goes(relay: Relay, device: Device, path: Path) -> None:
    with moebind.loopback_device() as stays:
        both = Model.load_from_file(path, ModelParams(devices=(stays, device), tensor_split=(1, 1)))
        one = Model.load_from_file(path, ModelParams(devices=(stays,)))
        broken, whole = both.new_context(SMALL), one.new_context(SMALL)
        expected = [piece.token for piece in whole.generate("hello", max_tokens=5)]
        relay.misbehave("any", "reset")
        with pytest.raises(RpcServerError, match=relay.endpoint):
            list(broken.generate("hello", max_tokens=5))
        whole.kv_cache_clear()
        assert [piece.token for piece in whole.generate("hello", max_tokens=5)] == expected
        both.close()
        assert [piece.token for piece in whole.generate("hello", max_tokens=5)] == expected
        one.close()


def test_a_model_that_is_closed_leaves_others_on_its_server_alone(path: Path) -> None:
    with moebind.loopback_device() as device:
        params = ModelParams(devices=(device,))
        stays, goes = Model.load_from_file(path, params), Model.load_from_file(path, params)
        context, other = stays.new_context(SMALL), goes.new_context(SMALL)
        expected = [piece.token for piece in context.generate("hello", max_tokens=20)]
        list(other.generate("hello", max_tokens=5))
        context.kv_cache_clear()
        pieces = context.generate("hello", max_tokens=20)
        # Freeing a buffer has the server forget its graphs, in the middle of using one again and again.
        tokens = [next(pieces).token for _ in range(10)]
        other.close()
        tokens += [next(pieces).token for _ in range(5)]
        goes.close()
        assert [*tokens, *(piece.token for piece in pieces)] == expected
        stays.close()
