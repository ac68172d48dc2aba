"""Which files of a repository are meant, and addresses of files on the Hub."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moebind import Model, ModelNotFoundError, plan
from moebind._core.checks import on_hub
from moebind.files.hub_address import Address, choose, meant

FILES = {
    "README.md": 10,
    "imatrix.gguf": 5,
    "mmproj-model-F16.gguf": 7,
    "model-IQ4_XS.gguf": 20,
    "model-Q4_K.gguf": 30,
    "model-Q4_K_M.gguf": 2**31,
    "model.Q8_0.gguf": 50,
    "BF16/model-BF16-00001-of-00003.gguf": 1,
    "BF16/model-BF16-00002-of-00003.gguf": 2,
    "BF16/model-BF16-00003-of-00003.gguf": 3,
}
SPLITS = tuple(name for name in FILES if name.startswith("BF16"))


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("model-Q4_K.gguf", ("model-Q4_K.gguf",)),
        ("Q4_K", ("model-Q4_K.gguf",)),
        ("q4_k_m", ("model-Q4_K_M.gguf",)),
        ("*Q4_K_M*", ("model-Q4_K_M.gguf",)),
        ("model-Q4_?.gguf", ("model-Q4_K.gguf",)),
        ("Q8_0", ("model.Q8_0.gguf",)),
        ("iq4_xs", ("model-IQ4_XS.gguf",)),
        ("bf16", SPLITS),
        (SPLITS[1], SPLITS),
        ("BF16/model-BF16.gguf", SPLITS),
        ("*-00003-of-*", SPLITS),
        ("BF16/*", SPLITS),
        ("mmproj-model-F16.gguf", ("mmproj-model-F16.gguf",)),
        ("mmproj*", ("mmproj-model-F16.gguf",)),
    ],
)
def test_what_is_meant(wanted: str, found: tuple[str, ...]) -> None:
    assert choose(FILES, wanted, "a/b") == found


#: Heads that draft for the model beside them.
DRAFTS = {
    "mtp-X-27B-Q4_0.gguf": 1,
    "mtp-X-27B-Q8_0.gguf": 1,
    "X-27B-eagle3-BF16.gguf": 1,
    "dflash-X-27B-F16.gguf": 1,
    "draft/dspark-X-27B-Q6_K.gguf": 1,
}


def test_what_drafts_for_a_model_is_none() -> None:
    files = {**DRAFTS, "X-27B-Q8_0.gguf": 2}
    assert choose(files, None, "a/b") == choose(files, "Q8_0", "a/b") == ("X-27B-Q8_0.gguf",)
    assert choose(files, "*Q8_0*", "a/b") == choose(files, "*", "a/b") == ("X-27B-Q8_0.gguf",)
    for wanted in ("Q4_0", "BF16", "F16", "Q6_K"):
        with pytest.raises(ModelNotFoundError, match=f"no GGUF file that matches '{wanted}'"):
            choose(files, wanted, "a/b")
    with pytest.raises(ModelNotFoundError, match="no GGUF file that is a model by itself"):
        choose(DRAFTS, None, "a/b")
    assert choose({**DRAFTS, "X-27B-MTP-Q4_0.gguf": 2}, None, "a/b") == ("X-27B-MTP-Q4_0.gguf",)


@pytest.mark.parametrize("name", DRAFTS)
def test_what_drafts_can_be_asked_for(name: str) -> None:
    assert choose({**DRAFTS, "X-27B-Q8_0.gguf": 2}, name, "a/b") == (name,)
    assert choose({**DRAFTS, "X-27B-Q8_0.gguf": 2}, f"{name[:-6]}*", "a/b") == (name,)


@pytest.mark.parametrize(
    "wanted", ["Q4", "K", "XS", "4_K_M", "F16", "Q6_K", "Q4_XS", "model", "other.gguf", "README.md", "*.bin", "["]
)
def test_what_is_not_there(wanted: str) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        choose(FILES, wanted, "a/b")
    message = str(caught.value)
    assert repr(wanted) in message
    assert "model-Q4_K_M.gguf (2.00 GiB)" in message
    assert "BF16/model-BF16-00001-of-00003.gguf (0.0 MiB, 3 files)" in message
    assert "README" not in message.replace(wanted, "")


@pytest.mark.parametrize("wanted", [None, "*", "*model*", "*.gguf"])
def test_several_models_are_listed(wanted: str | None) -> None:
    with pytest.raises(ModelNotFoundError, match=r"a/b has \d models.*; give the name of one:\n") as caught:
        choose(FILES, wanted, "a/b")
    assert "model.Q8_0.gguf" in str(caught.value)


def test_long_lists_are_shortened() -> None:
    with pytest.raises(ModelNotFoundError, match="and 80 more$"):
        choose({f"model-{number}.gguf": 1 for number in range(100)}, None, "a/b")


def test_the_only_model() -> None:
    files = dict.fromkeys(("mmproj.gguf", "README.md", "m.imatrix.gguf"), 1)
    with pytest.raises(ModelNotFoundError, match="no GGUF file that is a model by itself"):
        choose(files, None, "a/b")
    assert choose({**files, "m.gguf": 1}, None, "a/b") == ("m.gguf",)
    with pytest.raises(ModelNotFoundError, match="has no GGUF file$"):
        choose({"README.md": 1}, None, "a/b")


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_a_missing_split_is_named(missing: int) -> None:
    files = {name: size for name, size in FILES.items() if f"-0000{missing}-of" not in name}
    with pytest.raises(ModelNotFoundError, match=f"2 files of .* that they are 3; number {missing} is missing"):
        choose(files, "BF16", "a/b")


def test_a_split_too_many_is_refused() -> None:
    with pytest.raises(ModelNotFoundError, match="4 files of .* which say that they are 3"):
        choose({**FILES, "BF16/model-BF16-00004-of-00003.gguf": 1}, "BF16", "a/b")
    with pytest.raises(ModelNotFoundError, match="number 2 is missing"):
        choose({"m-00001-of-99999.gguf": 1}, None, "a/b")
    with pytest.raises(ModelNotFoundError, match="1 files of m.gguf, which say that they are 0"):
        choose({"m-00001-of-00000.gguf": 1}, None, "a/b")


def test_a_whole_model_and_its_splits_are_two() -> None:
    files = {"m.gguf": 1, "m-00001-of-00002.gguf": 1, "m-00002-of-00002.gguf": 1}
    assert choose(files, "m.gguf", "a/b") == ("m.gguf",)
    assert choose(files, "m-00002-of-00002.gguf", "a/b") == ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf")
    with pytest.raises(ModelNotFoundError, match="2 models"):
        choose(files, None, "a/b")


@given(
    st.dictionaries(
        st.one_of(
            st.text(max_size=12).map(lambda stem: stem + ".gguf"),
            st.builds(
                lambda s, n, m: f"{s}-{n:05d}-of-{m:05d}.gguf", st.text("ab/", max_size=3), *[st.integers(0, 4)] * 2
            ),
        ),
        st.integers(0, 2**40),
        max_size=8,
    ),
    st.one_of(st.none(), st.text(min_size=1, max_size=12)),
)
def test_any_list_and_any_wish(files: dict[str, int], wanted: str | None) -> None:
    try:
        found = choose(files, wanted, "a/b")
    except ModelNotFoundError:
        return
    assert found
    assert set(found) <= set(files)


@pytest.mark.parametrize(
    ("text", "repo", "revision", "wanted"),
    [
        ("hf://a/b", "a/b", None, None),
        ("hf://a/b/", "a/b", None, None),
        ("hf://a/b/c.gguf", "a/b", None, "c.gguf"),
        ("hf://a.x/b-y_z/c/d.gguf", "a.x/b-y_z", None, "c/d.gguf"),
        ("hf://a/b@main/c.gguf", "a/b", "main", "c.gguf"),
        ("hf://a/b@main", "a/b", "main", None),
        ("hf://a/b@refs/pr/12/c/d.gguf", "a/b", "refs/pr/12", "c/d.gguf"),
        ("hf://a/b@refs%2Fpr%2F12/c.gguf", "a/b", "refs/pr/12", "c.gguf"),
        ("hf://a/b@refs/convert/x", "a/b", "refs/convert/x", None),
        ("hf://a/b/c@d.gguf", "a/b", None, "c@d.gguf"),
        ("hf://a/b/*Q4_K_M*", "a/b", None, "*Q4_K_M*"),
    ],
)
def test_addresses(text: str, repo: str, revision: str | None, wanted: str | None) -> None:
    assert on_hub(text)
    assert Address.parse(text) == Address(repo, wanted, revision)


def test_path_objects_are_addresses_too() -> None:
    path = str(Path("hf://a/b@main/c/d.gguf"))
    assert path == "hf:/a/b@main/c/d.gguf"
    assert on_hub(path)
    assert Address.parse(path) == Address("a/b", "c/d.gguf", "main")
    assert not on_hub("hf:a/b")
    assert not on_hub("./hf:/a/b")


@pytest.mark.parametrize(
    "text", ["hf://", "hf://a", "hf:///b", "hf://a/", "hf:// /b/c", "hf://datasets/a/b", "hf://a/b@/c", "hf://a:x/b/c"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"hf://OWNER/REPO/FILE\.gguf"):
        Address.parse(text)


@given(st.text())
def test_any_text_as_an_address(text: str) -> None:
    try:
        found = Address.parse(f"hf://{text}")
    except ValueError:
        return
    assert found.repo.count("/") == 1


def test_names_of_files_are_addresses() -> None:
    for revision in (None, "main", "refs/pr/3", "refs/convert/parquet", "feature/x", "refs/heads/main"):
        address = Address("a/b", None, revision)
        name = address.name_of("c/d.gguf")
        assert Address.parse(name) == Address("a/b", "c/d.gguf", address.revision)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("https://huggingface.co/o/r/resolve/main/x.gguf", "hf://o/r/x.gguf"),
        ("https:/huggingface.co/o/r/blob/v1.0/a/x.gguf?download=true", "hf://o/r@v1.0/a/x.gguf"),
        ("https://hf.co/o/r", "hf://o/r"),
        ("HF://o/r/x.gguf", "hf://o/r/x.gguf"),
        ("hf:/o/r/x.gguf", "hf://o/r/x.gguf"),
        ("o/r:Q4_K_M", "hf://o/r/Q4_K_M"),
        ("o/r", None),
        ("C:/models/x.gguf", None),
        ("https://example.com/o/r", None),
        ("", None),
    ],
)
def test_what_seems_to_be_an_address(text: str, address: str | None) -> None:
    assert meant(text) == address


@pytest.mark.parametrize("text", ["https://huggingface.co/o/r/resolve/main/x.gguf", "o/r:x.gguf", "HF://o/r/x.gguf"])
def test_a_path_that_seems_to_be_an_address(text: str) -> None:
    for call in (plan, Model.load_from_file):
        with pytest.raises(ModelNotFoundError, match="does not exist; .* write hf://o/r/x.gguf"):
            call(text)


@pytest.mark.parametrize("text", ["hf://o/r/x.gguf", "https://huggingface.co/o/r/blob/main/x.gguf"])
def test_an_address_in_place_of_a_repository(text: str) -> None:
    with pytest.raises(ValueError, match=r"it takes 'OWNER/NAME': Model.load_from_file, .* write hf://o/r/x.gguf"):
        Model.from_pretrained(text)


@pytest.mark.parametrize("text", ["moe.gguf", "./moe.gguf", "/models/MOE.GGUF", "C:\\models\\moe.gguf"])
def test_a_file_in_place_of_a_repository(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"a file is loaded with Model.load_from_file({text!r})") + "$"):
        Model.from_pretrained(text)


def test_a_file_whose_path_looks_like_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    assert Address("models/moe.gguf").repo == "models/moe.gguf"
    (tmp_path / "models" / "moe.gguf").touch()
    with pytest.raises(ValueError, match=r"a file is loaded with Model\.load_from_file\('models/moe.gguf'\)$"):
        Address("models/moe.gguf")
