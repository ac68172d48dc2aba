"""Files of models from the Hub, without loading them. tests/model/test_from_hub.py has all that can go wrong there."""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lora
import pytest
from hub_server import F32, REPO, Hub, cached, child

import moebind
from conftest import CPU
from moebind import Model, ModelLoadError, ModelNotFoundError
from moebind.files.download import local_file


@pytest.mark.parametrize("arguments", [(REPO, "F32"), (f"hf://{REPO}/F32",), (f"hf://{REPO}/{F32.format(2)}",)])
def test_all_files_of_a_model(hub: Hub, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    paths = moebind.download(*arguments)
    assert [path[-len(F32) + 1 :] for path in paths] == [F32.format(number) for number in (1, 2, 3)]
    assert moebind.inspect(paths[0]).paths == paths
    hub.forget()
    assert moebind.download(*arguments) == paths  # from the cache
    assert hub.sent == 0
    assert moebind.download(*arguments, local_files_only=True) == paths
    other = moebind.download(*arguments, cache_dir=tmp_path / "other")
    assert all(path.startswith(str(tmp_path / "other")) for path in other)
    assert cached(tmp_path) == sorted(F32.format(number)[4:] for number in (1, 2, 3))


def test_what_is_not_there(hub: Hub) -> None:
    with pytest.raises(ModelNotFoundError, match="matches 'Q9'"):
        moebind.download(REPO, "Q9")
    with pytest.raises(ModelLoadError, match="is not in the cache"):
        moebind.download(REPO, "F32", local_files_only=True)
    assert hub.sent == 0


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        ((3,), {}, TypeError, "repo_id is 3"),
        (("a",), {}, ValueError, "OWNER/NAME"),
        (("a/b:Q4_K_M",), {}, ValueError, "give what follows the colon as filename"),
        (("hf://a/b/c.gguf", "Q4"), {}, ValueError, "leave filename and revision out"),
        (("hf://a/b/c.gguf",), {"revision": "v1"}, ValueError, "leave filename and revision out"),
        (("hf://a",), {}, ValueError, "addresses look like"),
        (("a/b",), {"token": 3}, TypeError, "token is a int"),
        (("a/b",), {"endpoint": ""}, ValueError, "endpoint has characters"),
        (("a/b",), {"local_files_only": 1}, TypeError, "local_files_only is 1"),
    ],
)
def test_arguments(
    arguments: tuple[object, ...], keywords: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        moebind.download(*arguments, **keywords)  # type: ignore[arg-type]


def test_addresses_where_files_are_taken(hub: Hub, tmp_path: Path, moe: Model, first: lora.Pairs) -> None:
    hub.repos[REPO]["lora.gguf"] = lora.write(tmp_path / "lora.gguf", first)
    hub.repos[REPO]["imatrix.gguf"] = b"not an importance matrix"
    with Model.load_from_file(f"hf://{REPO}/Q4_K", CPU) as model:
        assert Path(model.path).name == "tiny-Q4_K.gguf"
        assert Path(model.path).is_relative_to(tmp_path / "cache")
    with moe.lora_adapter_init(f"hf://{REPO}/lora.gguf") as adapter:
        assert Path(adapter.path).is_relative_to(tmp_path / "cache")
    source = f"hf://{REPO}/F32"
    written = moebind.quantize(source, tmp_path / "q8.gguf", moebind.Ftype.Q8_0, progress=False)
    assert written.paths == (str(tmp_path / "q8.gguf"),)
    with pytest.raises(moebind.QuantizeError, match="is not an importance matrix"):
        moebind.quantize(source, None, moebind.Ftype.Q8_0, imatrix=f"hf://{REPO}/imatrix.gguf", dry_run=True)
    hub.forget()
    assert local_file(source) == local_file(f"hf://{REPO}/{F32.format(2)}")
    assert hub.sent == 0
    assert local_file("no/such/file.gguf") == "no/such/file.gguf"


def test_wrong_parameters_are_told_before_a_download(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="params is"):
        Model.load_from_file(f"hf://{REPO}/Q4_K", 7)  # type: ignore[arg-type]
    assert cached(tmp_path) == []


@pytest.mark.parametrize("text", ["hf://someone/tiny/Q9", "hf://someone/nothing/Q4_K", "hf://tiny"])
def test_addresses_of_nothing(hub: Hub, moe: Model, tmp_path: Path, text: str) -> None:
    takers: list[Callable[[], object]] = [
        lambda: Model.load_from_file(text, CPU),
        lambda: moe.lora_adapter_init(text),
        lambda: moebind.quantize(text, None, moebind.Ftype.Q8_0, dry_run=True),
        lambda: moebind.quantize(local_file(f"hf://{REPO}/F32"), None, moebind.Ftype.Q8_0, imatrix=text, dry_run=True),
        lambda: moebind.plan(f"hf://{REPO}/Q4_K", mmproj=text),
    ]
    for take in takers:
        with pytest.raises((ModelNotFoundError, moebind.MtmdNotFoundError, ValueError), match="tiny|nothing"):
            take()


def test_files_in_chunks_are_left_to_hf_xet(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """As huggingface_hub does it where hf_xet is installed: the file goes into the same cache."""
    from huggingface_hub import file_download

    asked = []

    def fetch(*, incomplete_path: Path, xet_file_data: Any, expected_size: int, **_: object) -> None:
        asked.append((xet_file_data.file_hash, xet_file_data.refresh_route, expected_size))
        incomplete_path.write_bytes(Path(str(hub.repos[REPO]["tiny-Q4_K.gguf"])).read_bytes())

    monkeypatch.setattr(file_download, "xet_get", fetch)
    monkeypatch.setattr(file_download, "is_xet_available", lambda: True)
    hub.xet["tiny-Q4_K.gguf"] = "1" * 64
    (path,) = moebind.download(REPO, "Q4_K")
    assert hub.sent == 0
    ((digest, route, size),) = asked
    assert (digest, route, size) == ("1" * 64, f"{hub.endpoint}/xet-token", Path(path).stat().st_size)
    assert moebind.inspect(path).n_expert == 4
    # Without it, as any other file.
    monkeypatch.setattr(file_download, "is_xet_available", lambda: False)
    hub.xet["tiny-Q4_K_M.gguf"] = "2" * 64
    (path,) = moebind.download(REPO, "Q4_K_M")
    assert hub.sent == Path(path).stat().st_size
    assert len(asked) == 1


def stored(hub: Hub, name: str, storage: Path, tmp_path: Path) -> dict[str, str]:
    """A file in a storage of hf_xet's own, in a folder, which the Hub names; what a process that downloads it needs."""
    pytest.importorskip("hf_xet")
    done = child(
        f"""
        import hf_xet
        with hf_xet.XetSession().new_upload_commit(endpoint="local://{storage}") as commit:
            file = commit.start_upload_file("{hub.repos[REPO][name]}")
        print(file.result().xet_info.hash)
        """,
        HF_XET_CACHE=str(tmp_path / "xet"),
    )
    assert done.returncode == 0, done.stderr
    hub.xet[name], hub.xet_storage = done.stdout.strip(), f"local://{storage}"
    folders = {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_XET_CACHE": str(tmp_path / "xet")}
    return {**folders, "HF_HUB_DISABLE_XET": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


DOWNLOAD = f"""
try:
    print(*moebind.download("{REPO}", "Q4_K"))
except moebind.ModelLoadError as error:
    print(error)
"""


def test_files_in_chunks_are_put_together_by_hf_xet(hub: Hub, tmp_path: Path) -> None:
    """With hf_xet itself, and its storage for tests: of the Hub there are only the list and the token."""
    environment = stored(hub, "tiny-Q4_K.gguf", tmp_path / "storage", tmp_path)
    whole = Path(str(hub.repos[REPO]["tiny-Q4_K.gguf"])).read_bytes()
    done = child(DOWNLOAD, **environment)
    path = Path(done.stdout.strip())
    assert path.read_bytes() == whole, done.stderr
    assert path.is_relative_to(tmp_path / "cache")
    assert any("/xet-token" in request for request in hub.requests)
    assert hub.sent == 0
    shutil.rmtree(tmp_path / "cache")
    done = child(DOWNLOAD, **{**environment, "HF_HUB_DISABLE_XET": "1"})
    assert Path(done.stdout.strip()).read_bytes() == whole
    assert hub.sent == len(whole)


@pytest.mark.parametrize(
    ("prelude", "storage", "told"),
    [
        ("", "local://{}/other", f"{REPO} cannot be downloaded: hf_xet says: .*; with HF_HUB_DISABLE_XET=1 in the"),
        (
            "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (2**18, 2**18))",
            "local://{}/storage",
            f"{REPO} cannot be written to .*/cache: File too large. 0.00 GiB are needed, .* are free",
        ),
    ],
)
def test_what_hf_xet_cannot_do(hub: Hub, tmp_path: Path, prelude: str, storage: str, told: str) -> None:
    environment = stored(hub, "tiny-Q4_K.gguf", tmp_path / "storage", tmp_path)
    hub.xet_storage = storage.format(tmp_path)
    done = child(prelude + DOWNLOAD, **environment)
    assert re.match(told, done.stdout), done.stdout + done.stderr
    assert cached(tmp_path) == []


def test_ctrl_c_stops_hf_xet(hub: Hub, tmp_path: Path) -> None:
    """While its storage says nothing. What is not in chunks is downloaded after that."""
    pytest.importorskip("hf_xet")
    hub.xet["tiny-Q4_K.gguf"] = "1" * 64
    with socket.create_server(("127.0.0.1", 0)) as storage:
        hub.xet_storage = f"http://127.0.0.1:{storage.getsockname()[1]}"
        done = child(
            f"""
            import os, psutil, signal, threading, time
            signal.signal(signal.SIGINT, signal.default_int_handler)

            def connected():
                others = [each.raddr for each in psutil.Process().net_connections() if each.raddr]
                return any(each.port == {storage.getsockname()[1]} for each in others)

            def interrupt():
                while not connected():
                    time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGINT)

            threading.Thread(target=interrupt, daemon=True).start()
            try:
                moebind.download("{REPO}", "Q4_K")
            except KeyboardInterrupt:
                print("stopped")
            print(len(moebind.download("{REPO}", "Q4_K_M")))
            """,
            HF_HUB_CACHE=str(tmp_path / "cache"),
            HF_XET_CACHE=str(tmp_path / "xet"),
            HF_HUB_DISABLE_XET="0",
            HF_HUB_DISABLE_PROGRESS_BARS="1",
        )
    assert done.stdout == "stopped\n1\n", done.stderr
    assert cached(tmp_path) == ["tiny-Q4_K_M.gguf"]


def test_the_cache_is_that_of_huggingface_hub(hub: Hub, tmp_path: Path) -> None:
    """What either brought, the other has."""
    import huggingface_hub

    (ours,) = moebind.download(REPO, "Q4_K")
    theirs = huggingface_hub.hf_hub_download(
        REPO, "tiny-Q4_K.gguf", local_files_only=True, cache_dir=tmp_path / "cache"
    )
    assert theirs == ours
    name = "tiny-Q4_K_M.gguf"
    theirs = huggingface_hub.hf_hub_download(REPO, name, endpoint=hub.endpoint, cache_dir=tmp_path / "cache")
    hub.forget()
    assert moebind.download(REPO, "Q4_K_M") == (theirs,)
    assert hub.sent == 0
    assert {row.name for row in moebind.list_models(fits=False)} == {
        f"hf://{REPO}/tiny-Q4_K.gguf",
        f"hf://{REPO}/{name}",
    }


def test_other_names_of_arguments() -> None:
    with pytest.raises(TypeError, match="has no argument 'file'; it is 'filename' here"):
        moebind.download(REPO, file="Q4_K")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="did you mean 'cache_dir'"):
        moebind.download(REPO, cachedir="/tmp")  # type: ignore[call-arg]  # noqa: S108
