"""What a wheel bundles: the table, the licences that are made of it, and the list that the wheel has."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "cmake"))
import bundled
from checkout import page

VENDORED = ROOT / "vendor/llama.cpp"


def test_licences_are_those_of_this_llama_cpp() -> None:
    assert bundled.differences() == []
    assert (bundled.LICENCES / "llama.cpp.txt").read_bytes() == (VENDORED / "LICENSE").read_bytes()


def test_every_licence_says_what_it_is() -> None:
    for name, text in bundled.licences().items():
        said = re.search(r"icense|ublic domain|ublic Domain|Permission is hereby granted|Redistribution", text)
        assert said is not None, name
        assert "*/" not in text, name


def test_every_bundled_library_of_others_is_in_the_table() -> None:
    # A newer llama.cpp with another folder here needs a row in cmake/bundled.py.
    folders = {path.name for path in (VENDORED / "vendor").iterdir() if path.is_dir()}
    assert folders == {"cpp-httplib", "hash", "miniaudio", "nlohmann", "sheredom", "stb"}
    hashes = {path.name for path in (VENDORED / bundled.OTHERS / "hash").iterdir() if path.is_dir()}
    assert hashes == {"rotate-bits", "sha1", "sha256", "xxhash"}
    assert hashes < {each.name for each in bundled.BUNDLED}


def test_the_list_is_cyclonedx() -> None:
    listed = json.dumps(bundled.sbom("1.2.3rc1", ["ggml", "llama-server"], page=True))
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(listed) is None
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(listed.replace('"name"', '"nome"')) is not None


def test_the_list_names_the_llama_cpp_that_was_built() -> None:
    pin = bundled.read_lock()
    components = {each["name"]: each for each in bundled.sbom("1", [])["components"]}
    assert components.keys() == {each.name for each in bundled.BUNDLED}
    llama = components["llama.cpp"]
    assert llama["pedigree"]["commits"] == [{"uid": pin.commit}]
    assert llama["externalReferences"][0]["hashes"][0]["content"] == pin.sha256
    patches = {each["name"].partition(":")[2]: each["value"] for each in llama["properties"]}
    assert patches == {
        f"vendor/patches/{path.name}": f"sha256:{bundled.sha256_of(path)}"
        for path in (ROOT / "vendor/patches").glob("*.patch")
    }
    left_out = bundled.sbom("1", [], without=["config-files"])["components"][0]["properties"]
    assert {each["name"].partition(":")[2] for each in left_out} == patches.keys() - {
        "vendor/patches/config-files.patch"
    }


def test_the_page_for_browsers_is_listed_if_it_is_there() -> None:
    assert bundled.PAGE not in {each["name"] for each in bundled.sbom("1", [])["components"]}
    listed = bundled.sbom("1", [], page=True)
    (found,) = [each for each in listed["components"] if each["name"] == bundled.PAGE]
    assert bundled.PAGE in listed["dependencies"][1]["dependsOn"]
    # The same as in the licences beside the page, which vendor/page.py writes.
    text = page.licences(page.SOURCE)
    titles = re.findall(r"^={80}\n(.+?)(?: \(.+\))?\n={80}$", text, re.MULTILINE)
    assert sorted(f"{each['name']} {each.get('version', '')}".rstrip() for each in found["components"]) == sorted(
        titles
    )
    assert len(titles) > 300


def test_packages_of_npm(tmp_path: Path) -> None:
    (tmp_path / "src/vendors/three").mkdir(parents=True)
    (tmp_path / "src/vendors/three/LICENSE").touch()
    (tmp_path / "src/app.ts").write_text("import { a } from '@scope/one';\nimport 'two';\n")
    one = {"version": "1.0", "license": "(MIT OR ISC)", "integrity": "sha512-AQID", "dependencies": {"two": "2"}}
    two = {"version": "2.0", "integrity": "sha512-BAUG"}
    paths = {"node_modules/@scope/one": one, "node_modules/two": two, "node_modules/@scope/one/node_modules/two": two}
    (tmp_path / "package-lock.json").write_text(json.dumps({"packages": {"": {}, **paths, "node_modules/tests": two}}))
    by_name = {each["name"]: each for each in bundled.page_component(tmp_path)["components"]}
    assert by_name.keys() == {"@scope/one", "two", "three"}
    assert by_name["@scope/one"]["purl"] == "pkg:npm/%40scope/one@1.0"
    assert by_name["@scope/one"]["licenses"] == [{"expression": "(MIT OR ISC)"}]
    (archive,) = by_name["@scope/one"]["externalReferences"]
    assert archive["hashes"] == [{"alg": "SHA-512", "content": "010203"}]
    assert "licenses" not in by_name["two"]
    assert by_name["three"] == {"type": "library", "bom-ref": "llama-ui/three", "name": "three"}


def test_versions_are_read_from_the_sources() -> None:
    versions = {each.name: each.found_version(VENDORED) for each in bundled.BUNDLED if each.source}
    assert all(re.fullmatch(r"\d+\.\d+(\.\d+)?", version) for version in versions.values()), versions
    assert versions.keys() == {"ggml", "nlohmann-json", "cpp-httplib", "miniaudio", "stb_image", "xxhash"}


def test_what_is_no_longer_told_is_named(tmp_path: Path) -> None:
    folder = tmp_path / bundled.OTHERS / "stb"
    folder.mkdir(parents=True)
    (folder / "stb_image.h").write_text("nothing of it\n")
    row = next(each for each in bundled.BUNDLED if each.name == "stb_image")
    with pytest.raises(bundled.BundledError, match=r"stb_image\.h of this llama\.cpp no longer has the licence"):
        row.text(tmp_path)
    with pytest.raises(bundled.BundledError, match=r"does not tell the version of stb_image any more"):
        row.found_version(tmp_path)


def test_licences_that_differ_are_found(tmp_path: Path) -> None:
    for path in bundled.LICENCES.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert bundled.differences(tmp_path) == []
    (tmp_path / "ours.txt").write_text("no part of it\n")
    (tmp_path / "sha256.txt").write_text("changed\n")
    (tmp_path / "xxhash.txt").unlink()
    assert bundled.differences(tmp_path) == ["ours.txt", "sha256.txt", "xxhash.txt"]


def test_the_program_writes_the_list(tmp_path: Path) -> None:
    target = tmp_path / "folder/list.json"
    command = [sys.executable, str(ROOT / "cmake/bundled.py"), "--check", "--sbom", str(target), "--version", "7"]
    subprocess.run([*command, "--page", "--built", "ggml"], check=True)
    listed = json.loads(target.read_text())
    assert listed["metadata"]["component"]["properties"] == [{"name": "moebind:built", "value": "ggml"}]
    assert listed["components"][-1]["name"] == bundled.PAGE
