"""Files of models from the Hub, without loading them. tests/model/test_from_hub.py has all that can go wrong there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hub_server import F32, REPO, Hub, cached

import moebind
from moebind import ModelLoadError, ModelNotFoundError


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
