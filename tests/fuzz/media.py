"""Decodes damaged pictures and sound, to see that each ends in an exception or a bitmap.

    python tests/fuzz/media.py --count 20000 --seed 7

One child decodes many of them; where it ends, or does not end, the mutant is told, and another child goes on after it.
"""

from __future__ import annotations

import argparse
import io
import resource
import signal
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

#: Bytes that a decoder may take at most, besides what the process has; and seconds for one mutant.
MEMORY_MAX, SECONDS_MAX = 2**32, 60
#: Numbers at which checks and decoders differ.
EDGES = [0, 1, 2, 3, 7, 8, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 2**24, 2**31 - 1, 2**31, 2**32 - 1]


def picture(kind: str, seed: int, **options: object) -> bytes:
    """A small picture of a format of Pillow's."""
    from PIL import Image

    random = np.random.default_rng(seed)
    size = tuple(random.integers(3, 40, 2))
    image = Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8))
    mode = ["RGB", "L", "P", "RGB"][seed % 4]
    file = io.BytesIO()
    image.convert("RGB" if kind == "JPEG" and mode == "P" else mode).save(file, kind, **options)
    return file.getvalue()


def flac(samples: np.ndarray) -> bytes:
    """A FLAC file of 16 bits and one channel, not compressed."""
    block = 192
    frames = [_flac_frame(at, samples[at * block : (at + 1) * block]) for at in range(samples.size // block)]
    packed = (16_000 << 44 | 15 << 36 | len(frames) * block).to_bytes(8, "big")
    return b"fLaC\x80\0\0\x22" + struct.pack(">HH", block, block) + bytes(6) + packed + bytes(16) + b"".join(frames)


def _flac_frame(number: int, samples: np.ndarray) -> bytes:
    head = bytes([0xFF, 0xF8, 0x10 | 5, 0x08, number])  # 192 samples, 16 kHz, one channel of 16 bits
    body = head + bytes([_crc(head, 0x07, 8)]) + b"\x02" + samples.astype(">i2").tobytes()
    return body + struct.pack(">H", _crc(body, 0x8005, 16))


def _crc(data: bytes, polynomial: int, width: int) -> int:
    value, top, mask = 0, 1 << (width - 1), (1 << width) - 1
    for byte in data:
        value ^= byte << (width - 8)
        for _ in range(8):
            value = (value << 1 ^ (polynomial if value & top else 0)) & mask
    return value


def mp3() -> bytes:
    """Ten frames of silence, of MPEG 1, layer 3, with a tag before them."""
    return b"ID3\x04\0\0\0\0\0\x05hello" + (b"\xff\xfb\x90\xc0" + bytes(413)) * 10


def whole(kind: str, seed: int) -> bytes:
    """A file of a format, as it should be."""
    import projectors

    tone = np.sin(np.arange(192 * 5) / 9) * 0.7
    match kind:
        case "WAV":
            return projectors.wav(tone, 8000 + 1000 * (seed % 5), 1 + seed % 2)
        case "FLAC":
            return flac(np.round(tone * 32767))
        case "MP3":
            return mp3()
        case "JPEG":
            return picture(kind, seed, progressive=bool(seed % 2), quality=60)
        case _:
            return picture(kind, seed)


FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WAV", "FLAC", "MP3")


def mutant(kind: str, seed: int) -> bytes:
    """A file with one to four changes, mostly near its beginning, where headers are."""
    random = np.random.default_rng([seed, FORMATS.index(kind)])
    data = bytearray(whole(kind, seed))
    for _ in range(int(random.integers(1, 5))):
        at = int(len(data) * random.random() ** 2) if len(data) else 0
        edge = EDGES[int(random.integers(len(EDGES)))]
        order = ("<", ">")[int(random.integers(2))]
        match int(random.integers(6)):
            case 0 if data:
                data[min(at, len(data) - 1)] ^= 1 << int(random.integers(8))
            case 1:
                data[at : at + 4] = struct.pack(order + "I", edge)
            case 2:
                data[at : at + 2] = struct.pack(order + "H", edge & 0xFFFF)
            case 3:
                del data[at : at + int(random.integers(1, 40))]
            case 4:
                data[at:at] = data[at : at + int(random.integers(1, 200))]
            case _ if random.random() < 0.3:
                del data[max(at, 16) :]
    return bytes(data)


def decode_all(kind: str, first: int, last: int) -> None:
    """What a child does: say which mutant comes, and then what came of it."""
    import projectors

    from moebind import MoebindError, set_log
    from moebind.mtmd import Bitmap

    set_log(None)
    with tempfile.TemporaryDirectory() as folder:
        ears = projectors.load(Path(folder), "ultravox").mtmd
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_MAX, used + MEMORY_MAX))
        for seed in range(first, last):
            print(seed, end=" ", flush=True)
            signal.alarm(SECONDS_MAX)
            try:
                Bitmap.from_buffer(mutant(kind, seed), ears)
                print("works", flush=True)
            except (MoebindError, ValueError) as error:
                print("refused" if isinstance(error, MoebindError) else "odd", flush=True)


@dataclass
class Report:
    """What came of the mutants."""

    mutants: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)


def run(
    count: int, seed: int, kinds: tuple[str, ...] = FORMATS, child: Callable[..., list[str]] | None = None
) -> Report:
    """Decode so many mutants of each format."""
    report = Report()
    for kind in kinds:
        at, end = seed * 1_000_000, seed * 1_000_000 + count
        while at < end:
            command = (child or _child)(kind, at, end)
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            for number, outcome in _told(done.stdout):
                at = number + 1
                report.mutants += 1
                report.outcomes[f"{kind}: {outcome or 'ended'}"] += 1
            if done.returncode != 0:
                why = "hangs" if done.returncode == -signal.SIGALRM else f"ended with {done.returncode}"
                report.findings.append(f"{kind} {at - 1}: the process {why}\n{done.stderr[-2000:]}")
                if not done.stdout:
                    return report  # it did not even begin
    return report


def _child(kind: str, first: int, last: int) -> list[str]:
    return [sys.executable, __file__, "--decode", kind, "--from", str(first), "--to", str(last)]


def _told(said: str) -> Iterator[tuple[int, str]]:
    for line in said.splitlines():
        number, _, outcome = line.partition(" ")
        yield int(number), outcome.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=500, help="mutants of each format")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--decode", choices=FORMATS, help="what a child does")
    parser.add_argument("--from", dest="first", type=int)
    parser.add_argument("--to", dest="last", type=int)
    arguments = parser.parse_args()
    if arguments.decode:
        decode_all(arguments.decode, arguments.first, arguments.last)
        return
    report = run(arguments.count, arguments.seed)
    for name, number in sorted(report.outcomes.items()):
        print(f"{name}: {number}")
    print(*report.findings, sep="\n")
    sys.exit(1 if report.findings else 0)


if __name__ == "__main__":
    main()
