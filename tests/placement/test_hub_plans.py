"""Plans of models that are on the Hugging Face Hub: what is read, and headers that are not what they say."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hub_server import Handler, Hub
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import moebind
import moebind.files.hub
from conftest import CPU, SMALL
from moebind import ContextParams, Gguf, Model, ModelLoadError, ModelParams, NativeError, lib

REPO = "someone/tiny"
MIB = 2**20


def header(n_tensors: int, *values: bytes) -> bytes:
    """The beginning of a GGUF file."""
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, len(values)) + b"".join(values)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def array(key: bytes, kind: int, n: int) -> bytes:
    return text(key) + struct.pack("<IIQ", 9, kind, n)


U8, STRING = 0, 8


@pytest.fixture
def sparse(tmp_path: Path) -> Callable[[bytes, int], Path]:
    """Writes a file that begins with that, and has zeros up to its size."""

    def write(beginning: bytes, size: int) -> Path:
        path = tmp_path / f"sparse-{size}.gguf"
        with path.open("wb") as file:
            file.write(beginning)
            file.truncate(size)
        return path

    return write


# --- what is read ---


@pytest.mark.parametrize("name", ["phi-3.5-moe-q4_k_m", "qwen3-30b-a3b-q4_k_m"])
def test_a_plan_reads_the_header_alone(hub: Hub, shape_path: Callable[[str], Path], name: str) -> None:
    path = shape_path(name)
    hub.repos["someone/large"] = {f"{name}.gguf": path}
    context = ContextParams(n_ctx=4096)
    plan = moebind.plan(f"hf://someone/large/{name}.gguf", ModelParams(), context, devices=["96GiB"])
    local = moebind.plan(path, ModelParams(), context, devices=["96GiB"])
    # 0.7 MiB of 25 GB and 5.6 MiB of 19 GB, and at most one step more.
    assert plan.bytes_read == hub.sent
    assert 0 <= hub.sent - Gguf.from_file(path).data_offset < 4 * MIB
    assert (plan.devices[0], plan.places, plan.n_ctx) == (local.devices[0], local.places, local.n_ctx)
    assert plan.path == f"hf://someone/large/{name}.gguf"
    assert plan.to_dict()["bytes_read"] == hub.sent
    read = f"{hub.sent / MIB:.1f} MiB of the file were read from the Hugging Face Hub; nothing was downloaded."
    assert read in str(plan)
    assert (local.bytes_read, "Hub" in str(local)) == (None, False)


def test_all_files_of_a_split_model(hub: Hub, tiny_path: Callable[..., Path]) -> None:
    plan = moebind.plan(f"hf://{REPO}/F32", ModelParams(), SMALL, devices=["1GiB"])
    local = moebind.plan(tiny_path(3, n_expert=4), ModelParams(), SMALL, devices=["1GiB"])
    assert (plan.devices[0], plan.places) == (local.devices[0], local.places)
    assert hub.sent == plan.bytes_read == 2**18 + 2 * 2**16
    assert moebind.plan(Path(f"hf://{REPO}/F32"), devices=["1GiB"]).path == plan.path
    for name in ("F32/tiny-F32-00002-of-00003.gguf", "*F32*", "F32/tiny-F32.gguf"):
        assert moebind.plan(f"hf://{REPO}/{name}", ModelParams(), SMALL, devices=["1GiB"]).places == plan.places


def test_fit_and_experts(hub: Hub, tiny_path: Callable[..., Path]) -> None:
    address, path = f"hf://{REPO}/Q4_K", tiny_path(n_expert=4)
    fit = moebind.fit(address, memory="3MiB", n_ctx=256, devices=["1GiB"])
    assert fit.model_params == moebind.fit(path, memory="3MiB", n_ctx=256, devices=["1GiB"]).model_params
    assert fit.plan.bytes_read == hub.sent
    assert moebind.experts(address).layers == moebind.experts(path).layers
    with Model.from_pretrained(REPO, "Q4_K", CPU) as model:
        assert model.n_expert == moebind.experts(address).n_expert


def test_a_header_is_read_once_for_a_commit(hub: Hub, tiny_path: Callable[..., Path]) -> None:
    address = f"hf://{REPO}/Q4_K"
    first = moebind.experts(address)
    sent = hub.sent
    hub.requests.clear()
    assert moebind.experts(address) == first
    assert Gguf.from_file(address) is Gguf.from_file(address)
    assert hub.sent == sent
    assert set(hub.requests) == {f"GET /api/models/{REPO}"}
    hub.repos[REPO]["tiny-Q4_K.gguf"] = tiny_path(n_expert=6)
    assert moebind.experts(address).n_expert == 6


def test_what_is_in_the_cache_is_read_there(hub: Hub) -> None:
    Model.from_pretrained(REPO, "F32", CPU).close()
    hub.forget()
    plan = moebind.plan(f"hf://{REPO}/F32", ModelParams(), SMALL, devices=["1GiB"])
    assert plan.bytes_read is None
    assert Path(plan.path).exists()
    assert hub.sent == 0


# --- what is refused ---


def test_gated_repositories(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated[REPO] = "secret"
    with pytest.raises(ModelLoadError, match="someone/tiny is gated"):
        moebind.plan(f"hf://{REPO}/Q4_K")
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert moebind.plan(f"hf://{REPO}/Q4_K", devices=["1GiB"]).fits


def test_parameters_are_checked_as_for_a_file_that_is_here(hub: Hub) -> None:
    for params, message in (
        (ModelParams().with_kv_override("llama.expert_used_count", 9), f"hf://{REPO}/tiny-Q4_K.gguf: the metadata"),
        (ModelParams().with_cpu_override("no_such_tensor"), "no_such_tensor"),
    ):
        with pytest.raises(ModelLoadError, match=message):
            moebind.plan(f"hf://{REPO}/Q4_K", params, devices=["1GiB"])
    with pytest.raises(ValueError, match="hf://OWNER/REPO/FILE.gguf"):
        moebind.plan("hf://tiny")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a GGUF file"),
        (b"GG", "is not a GGUF file"),
        (b"<html>" * 100_000, "is not a GGUF file"),
        (b"GGUF" + b"\xff" * 100_000, "is not a GGUF file"),
        (header(0), "does not say which architecture"),
        # Claims that the file has no room for.
        (header(2**60) + bytes(10**6), "is not a GGUF file"),
        (header(0, array(b"x", STRING, 2**40)) + bytes(10**6), "is not a GGUF file"),
        (header(0, array(b"x", U8, 2**63)) + bytes(10**6), "is not a GGUF file"),
        (header(0, text(b"x") + struct.pack("<I", STRING) + struct.pack("<Q", 2**40)), "is not a GGUF file"),
    ],
)
def test_what_is_no_model(hub: Hub, content: bytes, message: str) -> None:
    hub.repos["someone/odd"] = {"odd.gguf": content}
    with pytest.raises(ModelLoadError, match=f"hf://someone/odd/odd.gguf {message}"):
        moebind.plan("hf://someone/odd/odd.gguf")
    assert hub.sent <= 2**18


@pytest.mark.parametrize(
    ("beginning", "message"),
    [
        (header(0, array(b"x", U8, 2**27)), r"a header of at least \d+ bytes; at most 67108864 are read"),
        (header(2**24), r"a header of at least \d+ bytes; at most 67108864 are read"),
        (header(0, array(b"x", STRING, 2**23)), "'x' is an array of 8388608; at most 4194304 are taken"),
        (header(0, text(b"x") + struct.pack("<IQ", STRING, 2**29)), "'x' is a text of 536870912; at most"),
    ],
)
def test_absurd_claims_cost_no_more_than_a_look(
    hub: Hub, sparse: Callable[[bytes, int], Path], beginning: bytes, message: str
) -> None:
    hub.repos["someone/odd"] = {"odd.gguf": sparse(beginning, 2**40)}
    with pytest.raises(ModelLoadError, match=message):
        moebind.plan("hf://someone/odd/odd.gguf")
    assert hub.sent == 2**18


def test_a_header_without_an_end(
    hub: Hub, sparse: Callable[[bytes, int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Zeros are keys without a name, which is seen at once.
    monkeypatch.setattr(moebind.files.hub, "HEADERS_MAX", 3 * MIB)
    begin = b"GGUF" + struct.pack("<IQQ", 3, 0, 2**50)
    hub.repos["someone/odd"] = {"odd.gguf": sparse(begin, 2**40)}
    with pytest.raises(ModelLoadError, match="key 0 is empty"):
        moebind.plan("hf://someone/odd/odd.gguf")
    assert hub.sent == 2**18
    hub.forget()
    endless = begin + b"".join(text(b"%d" % at) + struct.pack("<I", STRING) + text(b"x" * 100) for at in range(40_000))
    hub.repos["someone/odd"] = {"odd.gguf": sparse(endless, 2**40)}
    with pytest.raises(ModelLoadError, match=rf"at least 31457\d\d bytes; at most {3 * MIB} are read"):
        moebind.plan("hf://someone/odd/odd.gguf")
    assert hub.sent == 3 * MIB
    # The limit is for all files together.
    names = [f"odd-{number:05d}-of-00100.gguf" for number in range(1, 101)]
    one = text(b"split.count") + struct.pack("<IH", 2, 100)
    hub.repos["someone/odd"] = dict.fromkeys(names, sparse(header(0, one), MIB))
    hub.forget()
    with pytest.raises(ModelLoadError, match=f"at most {3 * MIB} are read of a model's files"):
        moebind.plan("hf://someone/odd")
    assert hub.sent <= 3 * MIB


def test_too_many_tensors(hub: Hub) -> None:
    model = header(
        0, text(b"general.architecture") + struct.pack("<I", STRING) + text(b"llama")
    )  # and 40,000 tensors of 8 numbers
    table = b"".join(text(b"t%d" % at) + struct.pack("<IQIQ", 1, 8, 0, 32 * at) for at in range(40_000))
    content = model[:8] + struct.pack("<Q", 40_000) + model[16:] + table
    content += bytes(-len(content) % 32 + 32 * 40_000)
    hub.repos["someone/odd"] = {"odd.gguf": content}
    assert len(Gguf.from_file("hf://someone/odd").tensors) == 40_000
    with pytest.raises(ModelLoadError, match="odd.gguf has 40000 tensors; at most 32768 are planned for"):
        moebind.plan("hf://someone/odd")


def test_files_that_are_not_those_of_one_model(hub: Hub) -> None:
    parts = [f"F32/tiny-F32-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    hub.repos["someone/odd"] = {"alone.gguf": hub.repos[REPO][parts[0]]}
    with pytest.raises(ModelLoadError, match="alone.gguf is one of 3 files; its name says that it is one of 1"):
        moebind.plan("hf://someone/odd/alone.gguf")
    hub.repos["someone/odd"] = dict(zip(parts, [hub.repos[REPO][parts[at]] for at in (0, 2, 1)], strict=True))
    with pytest.raises(ModelLoadError, match=r"00002-of-00003.gguf: the metadata split.no is 2, but it is file 1"):
        moebind.plan("hf://someone/odd", devices=["1GiB"])
    del hub.repos[REPO][parts[1]]
    with pytest.raises(ModelLoadError, match="number 2 is missing"):
        moebind.plan(f"hf://{REPO}/F32")


def test_a_file_that_is_cut_off(hub: Hub, tiny_path: Callable[..., Path]) -> None:
    hub.repos["someone/odd"] = {"odd.gguf": tiny_path(n_expert=4).read_bytes()[:-64]}
    with pytest.raises(ModelLoadError, match="hf://someone/odd/odd.gguf is cut off"):
        moebind.plan("hf://someone/odd")


@pytest.mark.parametrize("length", [0, 1000, None])
def test_a_server_that_sends_something_else(hub: Hub, length: int | None) -> None:
    whole = Path(str(hub.repos[REPO]["tiny-Q4_K.gguf"])).read_bytes()

    def other(handler: Handler, _name: str, _data: bytes) -> bool:
        handler.reply(200, {}, whole[:length])
        return True

    hub.misbehave = other
    with pytest.raises(ModelLoadError, match=f"262144 bytes were asked for, and {len(whole[:length])} came"):
        moebind.plan(f"hf://{REPO}/Q4_K")


def test_a_file_that_goes_away(hub: Hub) -> None:
    def gone(handler: Handler, _name: str, _data: bytes) -> bool:
        handler.reply(404, {"X-Error-Code": "EntryNotFound"})
        return True

    hub.misbehave = gone
    with pytest.raises(ModelLoadError, match="someone/tiny has no such file any more"):
        moebind.plan(f"hf://{REPO}/Q4_K")


def test_no_header_stays_in_memory(hub: Hub) -> None:
    hub.repos["someone/odd"] = {"odd.gguf": b"GGUF" + bytes(1000), "alone.gguf": hub.repos[REPO]["tiny-Q4_K.gguf"]}
    moebind.experts("hf://someone/odd/alone.gguf")
    with pytest.raises(ModelLoadError) as caught:
        moebind.plan("hf://someone/odd/odd.gguf")
    links = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert not [link for link in links if "moebind-hub" in link]
    assert caught.value  # and its traceback, which holds what was local


def test_threads_read_headers_side_by_side(hub: Hub, tiny_path: Callable[..., Path]) -> None:
    names = [f"{REPO}/{wanted}" for wanted in ("Q4_K", "Q4_K_M", "F32")] * 3
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda name: moebind.experts(f"hf://{name}").nbytes, names))
    assert found == [moebind.experts(tiny_path(n_expert=4)).nbytes] * 9


# --- where a header ends ---


@pytest.fixture(scope="module")
def beginning(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes, int], int]:
    path = tmp_path_factory.mktemp("beginning") / "file"

    def end(content: bytes, total: int) -> int:
        path.write_bytes(content)
        return int(lib.moebind_gguf_header_end(str(path).encode(), total))

    return end


@given(data=st.data())
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_beginning_asks_for_more_but_never_for_too_much(
    tiny_path: Callable[..., Path], beginning: Callable[[bytes, int], int], data: st.DataObject
) -> None:
    whole = tiny_path(n_expert=4).read_bytes()
    end = beginning(whole, len(whole))
    offset = Gguf.from_file(tiny_path(n_expert=4)).data_offset
    assert offset - 32 < end <= offset
    known = data.draw(st.one_of(st.integers(0, end + 100), st.integers(0, 400)))
    found = beginning(whole[:known], len(whole))
    if known >= end:
        assert found == end
    elif known == 0:
        assert found == 4
    else:
        assert known < found <= end


@given(data=st.data())
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_header_gives_an_end(
    tiny_path: Callable[..., Path], beginning: Callable[[bytes, int], int], data: st.DataObject
) -> None:
    content = bytearray(tiny_path(n_expert=4).read_bytes()[:20_000])
    for at in data.draw(st.lists(st.integers(0, len(content) - 8), max_size=4)):
        content[at : at + 8] = data.draw(st.one_of(st.binary(min_size=8, max_size=8), st.just(b"\xff" * 8)))
    total = data.draw(st.sampled_from([len(content), 2**20, 2**62, 0]))
    try:
        found = beginning(bytes(content), total)
    except NativeError:
        return  # it claims too much
    assert 0 <= found <= max(total, len(content))
