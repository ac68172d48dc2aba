"""The vocabulary of the reference models, as transformers reads it; the tests do not import it."""

from __future__ import annotations

import architectures
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """As Llama's own tokenizer: a space is ``▁``, one comes first, and what is no token of its own is bytes."""
    tokens = architectures.VOCABULARY
    made = Tokenizer(
        models.BPE({token: i for i, token in enumerate(tokens)}, [], unk_token=tokens[0], byte_fallback=True)
    )
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = {
        "unk_token": AddedToken("<unk>", special=True),
        "bos_token": AddedToken("<s>", special=True),
        "eos_token": AddedToken("</s>", special=True),
        "pad_token": AddedToken("</s>", special=True),
    }
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **special)
