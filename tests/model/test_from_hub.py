"""Model.from_pretrained, against a server that speaks as the Hugging Face Hub does."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hub_server import F32, REPO, Handler, Hub, cached, child

from conftest import CPU
from moebind import Model, ModelLoadError, ModelNotFoundError

# --- what is loaded ---


@pytest.mark.parametrize("name", [F32.format(1), F32.format(3), "F32/tiny-F32.gguf", "*F32*", "f32"])
def test_all_files_of_a_split_model(hub: Hub, tmp_path: Path, name: str) -> None:
    with Model.from_pretrained(REPO, name, CPU) as model:
        assert model.n_expert == 4
        assert model.params == CPU
        assert model.path.startswith(str(tmp_path / "cache"))
        assert model.path.endswith(F32.format(1))
    # These, and nothing else of the repository.
    assert hub.sent == sum(hub.size(REPO, F32.format(number)) for number in (1, 2, 3))
    assert cached(tmp_path) == [F32.format(number)[4:] for number in (1, 2, 3)]


def test_the_only_model_of_a_repository(hub: Hub) -> None:
    hub.repos["someone/one"] = {"a.gguf": hub.repos[REPO]["tiny-Q4_K.gguf"], "mmproj-a.gguf": b"GGUF"}
    with Model.from_pretrained("someone/one", params=CPU) as model:
        assert model.n_expert == 4


# --- what is refused ---


def test_what_does_not_match(hub: Hub) -> None:
    with pytest.raises(
        ModelNotFoundError, match=r"no GGUF file that matches 'Q9'; there is\n(.*\n)*.*tiny-Q4_K_M.gguf"
    ):
        Model.from_pretrained(REPO, "Q9")
    with pytest.raises(ModelNotFoundError, match=r"has 3 models; give the name of one:\n"):
        Model.from_pretrained(REPO)
    del hub.repos[REPO][F32.format(2)]
    with pytest.raises(ModelNotFoundError, match="number 2 is missing"):
        Model.from_pretrained(REPO, "F32")
    assert hub.sent == 0


def test_a_file_that_is_no_model(hub: Hub) -> None:
    with pytest.raises(ModelLoadError, match="not a GGUF file"):
        Model.from_pretrained(REPO, "mmproj-tiny-F16.gguf", CPU)


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        ((3,), {}, TypeError, "repo_id is 3"),
        ((Path("a/b"),), {}, TypeError, "OWNER/NAME"),
        (("a",), {}, ValueError, "OWNER/NAME"),
        (("a/b/c",), {}, ValueError, "OWNER/NAME"),
        (("a/b:Q4_K_M",), {}, ValueError, "colon as filename"),
        (("a/b@main",), {}, ValueError, "@ as revision"),
        (("hf://a/b",), {}, ValueError, "OWNER/NAME"),
        (("a/b\n",), {}, ValueError, "OWNER/NAME"),
        (("a..x/b",), {}, ValueError, r"a\.\.x/b"),
        ((REPO, 3), {}, TypeError, "filename is 3"),
        ((REPO, ""), {}, ValueError, "filename is ''"),
        ((REPO, "a\0"), {}, ValueError, "characters that no name has"),
        ((REPO, "\ud800"), {}, ValueError, "characters that no name has"),
        ((REPO, "Q4_K", 3), {}, TypeError, "params is 3"),
        ((REPO, "Q4_K"), {"revision": 3}, TypeError, "revision is 3"),
        ((REPO, "Q4_K"), {"revision": ""}, ValueError, "revision is ''"),
        ((REPO, "Q4_K"), {"token": 3}, TypeError, "token is a int"),
        ((REPO, "Q4_K"), {"token": "a\nb"}, ValueError, "^token has characters that none has$"),
        ((REPO, "Q4_K"), {"token": ""}, ValueError, "^token has"),
        ((REPO, "Q4_K"), {"endpoint": "http://\ud800"}, ValueError, "^endpoint has"),
        ((REPO, "Q4_K"), {"cache_dir": 3}, TypeError, "cache_dir is 3"),
        ((REPO, "Q4_K"), {"cache_dir": "a\0"}, ValueError, "NUL"),
        ((REPO, "Q4_K"), {"local_files_only": 1}, TypeError, "local_files_only is 1"),
        ((REPO, "Q4_K"), {"endpoint": 3}, TypeError, "endpoint is a int"),
    ],
)
def test_wrong_arguments(
    hub: Hub, arguments: tuple[object, ...], keywords: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Model.from_pretrained(*arguments, **keywords)  # type: ignore[arg-type]
    assert not hub.requests


# --- files of any names ---


def bytes_of(hub: Hub, *names: str) -> list[bytes]:
    return [Path(str(hub.repos[REPO][name])).read_bytes() for name in names]


def test_files_by_their_addresses(hub: Hub, tmp_path: Path) -> None:
    """The first is here, under another name; the others, too, have names that say nothing of each other."""
    parts = [F32.format(number) for number in (1, 2, 3)]
    first, *others = bytes_of(hub, *parts)
    (tmp_path / "first.gguf").write_bytes(first)
    hub.repos[REPO] |= {"second.gguf": others[0], "more/third.gguf": others[1]}
    paths: list[str | Path] = [tmp_path / "first.gguf"]
    paths += [f"hf://{REPO}/second.gguf", Path(f"hf://{REPO}@main/more/third.gguf")]
    with Model.load_from_splits(paths, CPU) as model:
        assert model.n_expert == 4
        assert [Path(path).name for path in model._paths] == ["first.gguf", "second.gguf", "third.gguf"]
    assert cached(tmp_path) == ["second.gguf", "third.gguf"]


def test_each_address_of_a_split_model_is_one_file(hub: Hub, tmp_path: Path) -> None:
    parts = [F32.format(number) for number in (1, 2, 3)]
    for addresses in (
        [f"hf://{REPO}/{part}" for part in parts],
        [f"hf://{REPO}/F32"],
        [f"hf://{REPO}/F32/tiny-F32.gguf"],
    ):
        with Model.load_from_splits(addresses, CPU) as model:
            assert model.n_expert == 4
            assert [path[-len(parts[0]) :] for path in model._paths] == parts
    assert hub.sent == sum(map(len, bytes_of(hub, *parts)))  # each once
    with pytest.raises(ModelLoadError):  # in another order it is no model
        Model.load_from_splits([f"hf://{REPO}/{part}" for part in reversed(parts)], CPU)


@pytest.mark.parametrize("missing", ["none.gguf", f"hf://{REPO}/none.gguf", "hf://someone/else/a.gguf", "hf://one"])
def test_a_file_that_is_missing_is_told_before_a_download(hub: Hub, missing: str) -> None:
    with pytest.raises((ModelNotFoundError, ValueError), match="none.gguf|someone/else|hf://one"):
        Model.load_from_splits([f"hf://{REPO}/tiny-Q4_K.gguf", missing], CPU)
    assert hub.sent == 0


def test_parameters_that_are_wrong_are_told_before_a_download(hub: Hub) -> None:
    with pytest.raises(TypeError, match="params is 7"):
        Model.load_from_splits([f"hf://{REPO}/tiny-Q4_K.gguf"], 7)  # type: ignore[arg-type]
    assert not hub.requests


# --- downloads that end early ---


def test_ctrl_c_leaves_nothing_half_loaded(hub: Hub, tmp_path: Path) -> None:
    stalled, over = tmp_path / "stalled", threading.Event()

    def stall(handler: Handler, name: str, data: bytes) -> bool:
        if stalled.exists() or name != F32.format(2):
            return False
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[: len(data) // 2])
        handler.wfile.flush()
        stalled.touch()
        over.wait(60)
        return True

    hub.misbehave = stall
    done = child(
        f"""
        import os, signal, threading, time
        signal.signal(signal.SIGINT, signal.default_int_handler)

        def interrupt():
            while not os.path.exists("{stalled}"):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt, daemon=True).start()
        try:
            Model.from_pretrained("{REPO}", "F32")
        except KeyboardInterrupt:
            print("stopped")
        """,
        HF_HUB_CACHE=str(tmp_path / "cache"),
        HF_HUB_DISABLE_PROGRESS_BARS="1",
    )
    over.set()
    assert done.stdout == "stopped\n", done.stderr
    assert cached(tmp_path) == ["tiny-F32-00001-of-00003.gguf"]
    hub.forget()
    with Model.from_pretrained(REPO, "F32", CPU) as model:
        assert model.n_expert == 4
    assert hub.sent <= sum(hub.size(REPO, F32.format(number)) for number in (2, 3))
