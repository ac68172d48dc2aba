"""What a machine without a network needs for benchmarks/gpu.py, in folders of at most so many bytes.

Some machines take only so much at a time. So what is brought is cut: ``carry/1``, ``carry/2`` and so on are brought one
after the other, or all at once, and each has a list of all files. What is whole is put where it belongs.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "vendor"))

MANIFEST = "carry.json"
SOURCE = "llama.cpp.tar.xz"
#: For building and testing; what the machine has already can be left out.
REQUIREMENTS = (
    "cffi>=2.0",
    "scikit-build-core>=0.11",
    "cmake>=3.26",
    "ninja>=1.11",
    "numpy>=1.23",
    "nvidia-ml-py",
    "gguf>=0.17",
    "hypothesis>=6.100",
    "psutil>=5.9",
    "pytest>=8",
    "pytest-timeout>=2.3",
    "sybil>=8",
    "tqdm>=4.60",
)
#: Where there is no toolkit, or a part of it is missing.
CUDA_REQUIREMENTS = (
    "nvidia-cuda-nvcc>=13,<14",
    "nvidia-cuda-runtime>=13,<14",
    "nvidia-cuda-cccl>=13,<14",
    "nvidia-cublas>=13,<14",
)
#: Wheels of Linux are named after the oldest C library that they take.
PLATFORMS = (*(f"manylinux_2_{minor}_x86_64" for minor in range(39, 16, -1)), "manylinux2014_x86_64", "linux_x86_64")


def sha256_of(path: Path) -> str:
    """The checksum of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def wanted(skip: Sequence[str] = (), cuda: bool = False) -> list[str]:
    """Requirements, without those of these names."""
    names = [*REQUIREMENTS, *(CUDA_REQUIREMENTS if cuda else ())]
    return [name for name in names if name.split(">")[0] not in skip]


def download(folder: Path, requirements: Sequence[str], python: str) -> None:
    """Have pip bring wheels for a Python of this version."""
    platforms = [part for name in PLATFORMS for part in ("--platform", name)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary", ":all:", "--dest", folder]
    command += ["--python-version", python, "--implementation", "cp", *platforms, *requirements]
    subprocess.run([str(part) for part in command], check=True)


def pack(folder: Path, *, python: str, skip: Sequence[str], cuda: bool, commit: str, part_size: int) -> list[Path]:
    """Gather everything, and cut it into parts."""
    sys.path.insert(0, str(ROOT / "examples"))
    import demo_model

    with tempfile.TemporaryDirectory(dir=ROOT / "build") as scratch:
        gathered = Path(scratch)
        subprocess.run([sys.executable, ROOT / "vendor/fetch.py"], check=True)
        with tarfile.open(gathered / SOURCE, "w:xz") as archive:
            archive.add(ROOT / "vendor/llama.cpp", "llama.cpp")
        (gathered / "wheels").mkdir()
        download(gathered / "wheels", wanted(skip, cuda), python)
        (gathered / "cache").mkdir()
        shutil.copyfile(demo_model.dense_model(), gathered / "cache" / demo_model.DENSE)
        (gathered / "commit").write_text(commit + "\n", encoding="utf-8")
        return cut(gathered, folder, part_size)


def cut(source: Path, folder: Path, part_size: int) -> list[Path]:
    """Put all files of ``source`` into parts of ``folder``, which are at most ``part_size`` bytes with their lists.

    Models come last: the first part is enough for a build.
    """
    names = sorted(str(path.relative_to(source)) for path in source.rglob("*") if path.is_file())
    files = [source / name for name in sorted(names, key=lambda name: name.startswith("cache/"))]
    listed = [
        {"path": str(path.relative_to(source)), "size": path.stat().st_size, "sha256": sha256_of(path)}
        for path in files
    ]
    manifest = json.dumps({"files": listed}, indent=1).encode()
    if part_size <= len(manifest) + 4096:
        raise ValueError(f"a part has {part_size} bytes, and the list of files alone takes {len(manifest)}")
    if folder.exists():
        shutil.rmtree(folder)
    parts: list[Path] = []
    left = 0
    for path, entry in zip(files, listed, strict=True):
        with path.open("rb") as file:
            at = 0
            while at < path.stat().st_size or at == 0:
                if left <= 0:
                    parts.append(folder / str(len(parts) + 1))
                    parts[-1].mkdir(parents=True)
                    (parts[-1] / MANIFEST).write_bytes(manifest)
                    left = part_size - len(manifest)
                piece = file.read(left)
                (parts[-1] / f"{entry['sha256'][:32]}.{at}").write_bytes(piece)
                at += len(piece)
                left -= len(piece)
                if not piece:
                    break
    return parts


def join(folder: Path, target: Path) -> list[str]:
    """Put together what is there, into ``target``; pieces wait there for those that come later. What is missing still.

    A file whose checksum is not what the list says is refused.
    """
    pieces = target / "pieces"
    pieces.mkdir(parents=True, exist_ok=True)
    manifests = sorted(folder.glob(f"*/{MANIFEST}"))
    for manifest in manifests:
        shutil.copyfile(manifest, target / MANIFEST)
        for piece in manifest.parent.iterdir():
            if piece.name != MANIFEST and not (pieces / piece.name).exists():
                shutil.copyfile(piece, pieces / f"{piece.name}.unfinished")
                (pieces / f"{piece.name}.unfinished").replace(pieces / piece.name)
    if not (target / MANIFEST).exists():
        raise FileNotFoundError(f"{folder} has no parts: make them with --step pack, where there is a network")
    missing: list[str] = []
    for entry in json.loads((target / MANIFEST).read_text(encoding="utf-8"))["files"]:
        path = target / entry["path"]
        if path.exists() and path.stat().st_size == entry["size"]:
            continue
        found = sorted(pieces.glob(f"{entry['sha256'][:32]}.[0-9]*"), key=lambda piece: int(piece.suffix[1:]))
        found = [piece for piece in found if piece.suffix != ".unfinished"]
        if sum(piece.stat().st_size for piece in found) != entry["size"] or not found:
            missing.append(entry["path"])
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(path.name + ".unfinished")
        with unfinished.open("wb") as file:
            for piece in found:
                file.write(piece.read_bytes())
        if sha256_of(unfinished) != entry["sha256"]:
            raise ValueError(f"{entry['path']} is damaged: its pieces are not those that were cut")
        unfinished.replace(path)
        for piece in found:
            piece.unlink()
    return missing


def place(target: Path, root: Path = ROOT) -> None:
    """Put the source and the demo model, if they are whole, where the build and the examples look."""
    from fetch import cache_folder

    if (target / SOURCE).exists() and not (root / "vendor/llama.cpp").exists():
        with tarfile.open(target / SOURCE) as archive:
            archive.extractall(root / "vendor", filter="data")
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    for path in (target / "cache").glob("*.gguf"):
        if not (cache / path.name).exists():
            shutil.copyfile(path, cache / path.name)
