"""Vocabularies of every kind, in files without weights: for what needs text and nothing else."""

from __future__ import annotations

from pathlib import Path

import gguf
import tiny


def byte_characters() -> list[str]:
    """The characters that stand for the 256 bytes in a byte-level vocabulary."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


def bpe(pre: str) -> dict[str, object]:
    """Byte-level BPE with a pre-tokenizer of this name: every byte, and a few merges."""
    tokens = [*byte_characters(), "aa", "aaaa", "th", "the", "<|end|>"]
    kinds = [gguf.TokenType.NORMAL] * (len(tokens) - 1) + [gguf.TokenType.CONTROL]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [int(kind) for kind in kinds],
        "tokenizer.ggml.merges": ["a a", "aa aa", "t h", "th e"],
        "tokenizer.ggml.eos_token_id": len(tokens) - 1,
        "tokenizer.ggml.bos_token_id": len(tokens) - 1,
    }


def wpm() -> dict[str, object]:
    """WordPiece: words, parts of words, and nothing for the rest."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "▁the", "▁a", "▁b", "a", "b", "s", "▁,", "▁."]
    kinds = [gguf.TokenType.CONTROL] * 5 + [gguf.TokenType.NORMAL] * (len(tokens) - 5)
    return {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [int(kind) for kind in kinds],
        "tokenizer.ggml.cls_token_id": 2,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.seperator_token_id": 3,
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.mask_token_id": 4,
    }


def ugm() -> dict[str, object]:
    """Unigram: a few pieces, and ``<unk>`` for the rest."""
    tokens = ["<pad>", "</s>", "<unk>", "▁", "▁the", "▁a", "a", "b", "c", "ab"]
    kinds = [gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.UNKNOWN] + [gguf.TokenType.NORMAL] * (len(tokens) - 3)
    return {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-float(index) for index in range(len(tokens))],
        "tokenizer.ggml.token_type": [int(kind) for kind in kinds],
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
    }


def rwkv() -> dict[str, object]:
    """RWKV: every byte, and a few longer tokens."""
    tokens = ["<s>", *(f"\\x{byte:02x}" for byte in range(256)), "the", " the", "aa"]
    return {
        "tokenizer.ggml.model": "rwkv",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [int(gguf.TokenType.CONTROL)] + [int(gguf.TokenType.NORMAL)] * (len(tokens) - 1),
    }


def write(path: Path, vocabulary: dict[str, object], **more: object) -> Path:
    """Write a file that ``ModelParams(vocab_only=True)`` loads."""
    metadata = {key: value for key, value in tiny._metadata(tiny.Shape()).items() if not key.startswith("tokenizer.")}
    tiny._write_file(path, "llama", {**metadata, **vocabulary, **more}, {})
    return path
