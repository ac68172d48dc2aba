"""The Hub and its cache, against a server that speaks as the Hugging Face Hub does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hub_server import REPO, TOKEN, Handler, Hub, cached, child

import moebind
from conftest import CPU
from moebind import Gguf, Model, ModelLoadError, ModelNotFoundError
from moebind.files.hub import Address, find, sidecar_in

Misbehave = Callable[[Handler, str, bytes], bool]


def test_what_is_in_the_cache_is_not_downloaded_again(hub: Hub) -> None:
    with Model.from_pretrained(REPO, "Q4_K", CPU) as model:
        path = model.path
    hub.forget()
    with Model.from_pretrained(REPO, "tiny-Q4_K.gguf", CPU) as model:
        assert model.path == path
    assert hub.sent == 0
    assert len(hub.requests) == 1  # whether it is still the newest


def test_a_new_version_is_downloaded(hub: Hub, tiny_path: Callable[..., Path]) -> None:
    with Model.from_pretrained(REPO, "Q4_K", CPU) as model:
        before = model.path
    hub.repos[REPO]["tiny-Q4_K.gguf"] = tiny_path(n_expert=6)
    with Model.from_pretrained(REPO, "Q4_K", CPU) as model:
        assert model.n_expert == 6
        assert model.path != before


def test_revisions(hub: Hub) -> None:
    for revision in (None, "main", "refs/pr/7", hub.commit(REPO)):
        Model.from_pretrained(REPO, "Q4_K", CPU, revision=revision).close()
    with pytest.raises(ModelNotFoundError, match="someone/tiny has no revision 'dev'"):
        Model.from_pretrained(REPO, "Q4_K", CPU, revision="dev")


def test_another_endpoint_and_cache(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with Model.from_pretrained(REPO, "Q4_K", CPU, endpoint=hub.endpoint, cache_dir=tmp_path / "other") as model:
        assert model.path.startswith(str(tmp_path / "other"))
    assert not cached(tmp_path)


def test_a_repository_that_is_not_there(hub: Hub) -> None:
    for token in (None, "wrong"):
        with pytest.raises(
            ModelNotFoundError, match="no repository of models someone/else, or a private one.*HF_TOKEN"
        ):
            Model.from_pretrained("someone/else", "Q4_K", token=token)


def test_gated_and_private_repositories(hub: Hub) -> None:
    hub.gated[REPO] = TOKEN
    for token in (None, "wrong"):
        with pytest.raises(ModelLoadError, match="someone/tiny is gated: ask for access.*HF_TOKEN"):
            Model.from_pretrained(REPO, "Q4_K", CPU, token=token)
    Model.from_pretrained(REPO, "Q4_K", CPU, token=TOKEN).close()
    hub.private[REPO] = TOKEN
    with pytest.raises(ModelNotFoundError, match="a private one"):
        Model.from_pretrained(REPO, "F32", CPU)
    Model.from_pretrained(REPO, "F32", CPU, token=TOKEN).close()


def test_tokens_of_the_environment_stay_with_the_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.private[REPO] = TOKEN
    seen: list[str | None] = []

    def look(handler: Handler, _name: str, _data: bytes) -> bool:
        seen.append(handler.headers.get("Authorization"))
        return False

    hub.misbehave = look
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    Model.from_pretrained(REPO, "Q4_K", CPU).close()
    assert moebind.experts(f"hf://{REPO}/F32").n_expert == 4
    assert set(seen) == {None}  # files lie on another host
    with pytest.raises(ModelNotFoundError, match="a private one"):
        Model.from_pretrained(REPO, "Q4_K_M", CPU, token=False)


def test_no_token_where_one_is_asked_for(hub: Hub) -> None:
    with pytest.raises(ModelLoadError, match="token is True, but there is none"):
        Model.from_pretrained(REPO, "Q4_K", token=True)


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (200, b"{", "does not"),
        (200, b"[]", "does not understand"),
        (200, b'{"id": "a/b", "sha": "x", "siblings": 3}', "does not understand"),
        (200, b"{}", "does not understand"),
        (403, None, "the Hub refuses.*HF_TOKEN"),
        (500, None, r"does not answer as it should: ((?!more information)[\s\S])*500((?!more information)[\s\S])*$"),
    ],
)
def test_a_hub_that_answers_nonsense(hub: Hub, status: int, body: bytes | None, message: str) -> None:
    hub.list_status, hub.list_body = status, body
    with pytest.raises(ModelLoadError, match=message):
        Model.from_pretrained(REPO, "Q4_K")


def test_a_commit_that_is_no_name(hub: Hub) -> None:
    hub.list_body = b'{"id": "a/b", "sha": "../../x", "siblings": [{"rfilename": "../a.gguf", "size": 4}]}'
    with pytest.raises(ModelLoadError):
        Model.from_pretrained(REPO, "../a.gguf")


def test_the_cache_is_enough_when_the_hub_cannot_be_reached(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    Model.from_pretrained(REPO, "F32", CPU).close()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for only in (False, True):
        Model.from_pretrained(REPO, "F32", CPU, local_files_only=only).close()
    assert moebind.plan(f"hf://{REPO}/f32", devices=["1GiB"]).bytes_read is None
    with pytest.raises(
        ModelLoadError, match=r"cannot be reached .*HF_ENDPOINT.*(\n.*)*matches 'Q4_K'; there is\n.*F32"
    ):
        Model.from_pretrained(REPO, "Q4_K", CPU)
    with pytest.raises(ModelNotFoundError, match="matches 'Q4_K'; there is"):
        Model.from_pretrained(REPO, "Q4_K", CPU, local_files_only=True)
    with pytest.raises(ModelNotFoundError, match="not in the cache, and local_files_only"):
        Model.from_pretrained("someone/else", "Q4_K", CPU, local_files_only=True)
    with pytest.raises(ModelLoadError, match=r"cannot be reached .*refused; someone/else is not in the cache"):
        Model.from_pretrained("someone/else", "Q4_K", CPU)


def test_offline(hub: Hub, tmp_path: Path) -> None:
    Model.from_pretrained(REPO, "Q4_K", CPU).close()
    hub.forget()
    done = child(
        f"""
        with Model.from_pretrained("{REPO}", "Q4_K", ModelParams(n_gpu_layers=0)) as model:
            print(model.n_expert)
        print(moebind.experts("hf://{REPO}/Q4_K").n_expert)
        for ask in (lambda: Model.from_pretrained("{REPO}/x".replace("/x", "2"), "Q4_K"), lambda: moebind.plan("hf://a/b/c")):
            try:
                ask()
            except moebind.ModelLoadError as error:
                print(error)
        """,
        HF_HUB_OFFLINE="1",
        HF_HUB_CACHE=str(tmp_path / "cache"),
    )
    assert done.stdout.splitlines() == [
        "4",
        "4",
        "someone/tiny2: the Hub is not asked, since HF_HUB_OFFLINE is set; someone/tiny2 is not in the cache",
        "a/b: the Hub is not asked, since HF_HUB_OFFLINE is set; a/b is not in the cache",
    ], done.stderr
    assert not hub.requests


def test_without_huggingface_hub() -> None:
    done = child(
        """
        import sys
        assert not {"huggingface_hub", "fsspec", "moebind.files.hub"} & set(sys.modules)
        sys.modules["huggingface_hub"] = None
        for ask in (lambda: Model.from_pretrained("a/b", "c"), lambda: moebind.plan("hf://a/b/c")):
            try:
                ask()
            except ImportError as error:
                print(error)
        """
    )
    expected = "the Hugging Face Hub is reached through huggingface_hub: pip install 'moebind[hub]'"
    assert done.stdout.splitlines() == [expected] * 2, done.stderr


def test_a_full_disk(hub: Hub, tmp_path: Path) -> None:
    # A limit on the size of files says what a full disk says, but for its number.
    done = child(
        f"""
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, 2**18))
        try:
            Model.from_pretrained("{REPO}", "Q4_K")
        except moebind.ModelLoadError as error:
            print(error)
        """,
        HF_HUB_CACHE=str(tmp_path / "cache"),
    )
    assert f"someone/tiny cannot be written to {tmp_path / 'cache'}: File too large. 0.00 GiB are needed" in done.stdout
    assert "cache_dir, or set HF_HUB_CACHE" in done.stdout
    assert not cached(tmp_path)


def test_a_cache_that_may_not_be_written_to(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelLoadError, match=f"cannot be written to {tmp_path}/file/cache: Not a directory"):
        Model.from_pretrained(REPO, "Q4_K", cache_dir=tmp_path / "file" / "cache")


def breaking(times: int, how: str) -> Misbehave:
    """Break off the first so many answers."""
    left = [times]

    def misbehave(handler: Handler, _name: str, data: bytes) -> bool:
        if not left[0]:
            return False
        left[0] -= 1
        handler.half(data) if how == "half" else handler.drop()
        return True

    return misbehave


@pytest.mark.parametrize("how", ["half", "drop"])
def test_a_connection_that_breaks_is_made_again(hub: Hub, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # huggingface_hub waits between its tries
    hub.misbehave = breaking(2, how)
    with Model.from_pretrained(REPO, "Q4_K", CPU) as model:
        path = model.path
    assert Path(path).read_bytes() == Path(str(hub.repos[REPO]["tiny-Q4_K.gguf"])).read_bytes()
    hub.misbehave = breaking(2, how)
    assert moebind.experts(f"hf://{REPO}/F32").n_expert == 4


@pytest.mark.parametrize("how", ["half", "drop"])
def test_a_connection_that_always_breaks(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.misbehave = breaking(1000, how)
    with pytest.raises(ModelLoadError, match="someone/tiny: the Hub does not answer as it should"):
        Model.from_pretrained(REPO, "Q4_K", CPU)
    assert not cached(tmp_path)
    with pytest.raises(ModelLoadError, match="someone/tiny: the Hub does not answer as it should"):
        moebind.plan(f"hf://{REPO}/Q4_K")


def test_gguf_on_the_hub(hub: Hub) -> None:
    remote, local = (
        Gguf.from_file(f"hf://{REPO}/tiny-Q4_K.gguf"),
        Gguf.from_file(str(hub.repos[REPO]["tiny-Q4_K.gguf"])),
    )
    assert list(remote) == list(local)
    for key in local:
        np.testing.assert_array_equal(remote[key], local[key])
    assert remote.path == f"hf://{REPO}/tiny-Q4_K.gguf"
    assert remote.bytes_read == hub.sent
    assert local.bytes_read is None
    assert list(remote.tensors) == list(local.tensors)
    tensor = remote.tensors["output_norm.weight"]
    assert tensor.offset == local.tensors["output_norm.weight"].offset
    with pytest.raises(ModelLoadError, match="only the header was read; Model.from_pretrained"):
        tensor.data()
    Model.from_pretrained(REPO, "Q4_K", CPU).close()
    assert Gguf.from_file(f"hf://{REPO}/tiny-Q4_K.gguf").tensors["output_norm.weight"].data().shape == (64,)


def test_what_lies_beside_models(hub: Hub) -> None:
    sizes = {"mmproj-a-F16.gguf": 3, "sub/mtp-tiny.gguf": 4, "imatrix.gguf": 5, "imatrix.dat": 6, "eagle3-x.gguf": 7}
    hub.repos[REPO] |= {name: b"x" * size for name, size in sizes.items()}
    found = find(Address.parse(f"hf://{REPO}/Q4_K"))
    told = {name: size for name, size in sizes.items() if name.endswith(".gguf")} | {"mmproj-tiny-F16.gguf": 4}
    assert dict(found.beside) == told
    assert sidecar_in(f"hf://{REPO}@main/Q4_K", "mmproj") == f"hf://{REPO}@main/mmproj-tiny-F16.gguf"
    assert sidecar_in(f"hf://{REPO}/Q4_K", "eagle3") == f"hf://{REPO}/eagle3-x.gguf"
    assert dict(find(Address(REPO, "mmproj-a-F16.gguf")).beside).keys() == told.keys() - {"mmproj-a-F16.gguf"}
    hub.repos[REPO] = {"tiny.gguf": b"GGUF"}
    assert sidecar_in(f"hf://{REPO}", "mmproj") is None
