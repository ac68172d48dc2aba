"""What of this machine's settings reaches llama-server: nothing."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from serving import CONTEXT, EXTRA, SMALL_SERVER, ask, complete, family, until

from moebind.server import Server
from moebind.server.isolation import Folder, environment
from moebind.server.process import program

MakeTiny = Callable[..., Path]
#: What nobody asked for. Some of it adds to what arguments say, and has no argument that takes it back.
UNASKED = {
    "LLAMA_ARG_CTX_SIZE": "64",
    "LLAMA_ARG_PORT": "1",
    "LLAMA_ARG_HOST": "0.0.0.0",
    "LLAMA_ARG_CORS_ORIGINS": "*",
    "LLAMA_ARG_OVERRIDE_TENSOR": "nothing=NOWHERE",
    "LLAMA_ARG_EMBEDDINGS": "1",
    "LLAMA_ARG_N_PREDICT": "1",
    "LLAMA_API_KEY": "theirs",
    "LLAMA_CACHE": "/no/such/folder",
    "AIP_MODE": "PREDICTION",
    "AIP_HTTP_PORT": "1",
}
CONFIG = "[*]\nctx-size = 64\napi-key = theirs\nn-predict = 1\nembedding = true\ncors-origins = *\nalias = theirs\n"


@pytest.fixture
def unasked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment that has llama-server do other things."""
    for name, value in UNASKED.items():
        monkeypatch.setenv(name, value)
    for name in ("XDG_CONFIG_HOME", "HOME"):
        home = tmp_path / name
        config = home / "llama.cpp" if name == "XDG_CONFIG_HOME" else home / ".config/llama.cpp"
        config.mkdir(parents=True)
        (config / "config.ini").write_text(CONFIG)
        monkeypatch.setenv(name, str(home))


def as_asked(server: Server, model: str | None = None) -> None:
    """Nothing of it is so."""
    query = "" if model is None else f"?model={model}"
    assert complete(server.url, model, n_predict=3).said["tokens_predicted"] == 3
    props = ask(server.url, f"/props{query}").said
    assert props["default_generation_settings"]["n_ctx"] == CONTEXT.n_ctx
    listed = [each["id"] for each in ask(server.url, "/v1/models").said["data"]]
    assert listed == [each.name for each in server.models]
    assert ask(server.url, "/health").headers["access-control-allow-origin"] == server.url


def test_it_would_be_otherwise(unasked: None, tiny_path: MakeTiny) -> None:
    # That the tests below can fail.
    command = [program(), "--model", str(tiny_path(n_expert=4))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "LLAMA_ARG_OVERRIDE_TENSOR" in done.stderr
    assert "using config file" in done.stdout + done.stderr


def test_one_model(unasked: None, tiny_path: MakeTiny) -> None:
    with Server(tiny_path(n_expert=4), **SMALL_SERVER) as server:
        as_asked(server)
        assert "using config file" not in server.log


def test_several_models(unasked: None, tiny_path: MakeTiny, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m/a.gguf").symlink_to(tiny_path(n_expert=4))
    with Server(models_dir=tmp_path / "m", **SMALL_SERVER) as server:
        as_asked(server, "a")
        assert "using config file" not in server.log


def test_every_variable_that_it_reads_is_kept_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    help_ = subprocess.run([program(), "--help"], capture_output=True, text=True, check=True).stdout
    names = set(re.findall(r"\(env: (\w+)\)", help_))
    assert len(names) > 100
    for name in names:
        monkeypatch.setenv(name, "theirs")
    folder = Folder()
    try:
        got = folder.environment()
    finally:
        folder.remove()
    assert not names & {*got}
    assert "theirs" not in got.values()
    assert got["PATH"] == os.environ["PATH"]


@pytest.mark.parametrize("where", ["user", "etc"])
def test_files_of_configuration_are_left_alone(where: str, tmp_path: Path) -> None:
    config = tmp_path / "llama.cpp/config.ini"
    config.parent.mkdir()
    config.write_text(CONFIG)
    command = [program(), "--model", str(tmp_path / "none.gguf"), "--port", "0"]
    variables = environment()
    if where == "user":
        variables["XDG_CONFIG_HOME"] = str(tmp_path)
    else:
        alone = ["unshare", "--map-root-user", "--mount"]
        if shutil.which("unshare") is None or subprocess.run([*alone, "true"], check=False).returncode:
            pytest.skip("no other /etc can be shown to a process here")
        command = [*alone, "sh", "-c", 'mount --bind "$0" /etc && exec "$@"', str(tmp_path), *command]
    for left_alone in (True, False):
        if not left_alone:
            del variables["LLAMA_NO_CONFIG_FILES"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=variables)
        assert done.returncode == 1
        assert "failed to load model" in done.stderr
        assert ("using config file" in done.stdout + done.stderr) is not left_alone


def test_libraries_in_the_current_folder_are_left_alone(tmp_path: Path) -> None:
    # As a download may have put them there: opening one runs what is in it.
    if shutil.which("cc") is None:
        pytest.skip("there is no compiler here")
    source = tmp_path / "theirs.c"
    source.write_text(
        '#include <stdio.h>\n__attribute__((constructor)) static void run(void) { puts("theirs ran"); }\n'
    )
    for name in ("cpu-theirs", "cuda", "rpc"):
        library = tmp_path / f"libggml-{name}.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    command = [program(), "--list-devices"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, cwd=tmp_path)
    assert "Available devices" in done.stdout + done.stderr
    assert "theirs ran" not in done.stdout
    # That it would be seen: they are opened where they are asked for.
    asked = {**os.environ, "GGML_BACKEND_PATH": str(tmp_path / "libggml-rpc.so")}
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, cwd=tmp_path, env=asked)
    assert "theirs ran" in done.stdout


def test_a_folder_is_its_owners() -> None:
    folder = Folder(["sesame", "open"])
    try:
        path = Path(folder.environment()["LLAMA_ARG_API_KEY_FILE"])
        assert path.read_text() == "sesame\nopen\n"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        child = os.fork()
        if child == 0:
            folder.remove()
            os._exit(0)
        os.waitpid(child, 0)
        assert path.exists()
    finally:
        folder.remove()
    assert not path.parent.exists()
    folder.remove()


def test_without_keys_there_is_no_file_of_them() -> None:
    folder = Folder()
    assert "LLAMA_ARG_API_KEY_FILE" not in folder.environment()
    assert os.listdir(folder.path) == []
    folder.remove()


@pytest.mark.parametrize("several", [False, True])
def test_a_key_is_asked_for_and_told_to_nobody(several: bool, tiny_path: MakeTiny, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").symlink_to(tiny_path(n_expert=4))
    given = {"models_dir": tmp_path} if several else {"model": tmp_path / "a.gguf"}
    keys = ["sesame-open-1", "sesame-open-2"]
    verbose = (*EXTRA, "--log-verbosity", "5")
    with Server(**given, **{**SMALL_SERVER, "extra": verbose}, api_key=keys) as server:  # type: ignore[arg-type]
        for key in keys:
            assert complete(server.url, "a", Authorization=f"Bearer {key}").status == 200
        assert complete(server.url, "a", X_Api_Key=keys[0]).status == 200
        for wrong in ({}, {"Authorization": "Bearer sesame"}, {"Authorization": "Bearer "}):
            assert complete(server.url, "a", **wrong).status == 401
        assert ask(server.url, "/health").status == 200
        processes = family(server)
        assert len(processes) == 2 + several
        ports = {
            where.laddr.port for each in processes for where in each.net_connections("inet") if where.status == "LISTEN"
        }
        for port in ports:  # those of the models, too
            assert complete(f"http://127.0.0.1:{port}", "a").status == 401
        assert len(ports) == 1 + several
        assert not [each for each in processes if "sesame" in " ".join(each.cmdline())]
    assert "sesame" not in server.log
    assert "open-2" not in server.log


def test_other_pages_are_told_nothing(tiny_path: MakeTiny) -> None:
    with Server(tiny_path(n_expert=4), **SMALL_SERVER) as server:
        for method in ("GET", "OPTIONS"):
            answer = ask(server.url, "/v1/models", method=method, Origin="https://evil.example")
            assert answer.headers["access-control-allow-origin"] == server.url
        assert answer.headers["access-control-allow-credentials"] == "false"
    asked = [*EXTRA, "--cors-origins", "https://page.example"]
    with Server(tiny_path(n_expert=4), **{**SMALL_SERVER, "extra": asked}) as server:
        assert ask(server.url, "/health").headers["access-control-allow-origin"] == "https://page.example"


def test_nobody_has_it_download_models(tiny_path: MakeTiny, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").symlink_to(tiny_path(n_expert=4))
    with Server(models_dir=tmp_path, **SMALL_SERVER) as server:
        ask(server.url, "/models", {"model": "someone/something"})
        assert complete(server.url, "someone/something").status != 200
        until(lambda: "HTTPLIB failed: Could not establish connection" in server.log)  # a thread of its own tries
