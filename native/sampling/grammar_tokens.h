// The tokens of a vocabulary as grammars see them: texts, ends, and what has no text.
#pragma once

#include "llama-vocab.h"

#include <string>
#include <vector>

namespace moebind {

// The text is the vocabulary's.
struct token_text {
    enum : uint8_t { text, end, hidden } kind;
    const std::string * piece;
};

using token_texts = std::vector<token_text>;

inline token_texts read_tokens(const llama_vocab & vocab) {
    token_texts texts;
    for (llama_token id = 0; id < static_cast<llama_token>(vocab.n_tokens()); id++) {
        const std::string & piece   = vocab.token_to_piece(id);
        const bool          special = vocab.token_get_attr(id) & (LLAMA_TOKEN_ATTR_CONTROL | LLAMA_TOKEN_ATTR_UNKNOWN);
        const bool          hidden  = special || piece.empty() || piece.find('\0') != std::string::npos;
        const auto          other   = hidden ? token_text::hidden : token_text::text;
        texts.push_back({ vocab.is_eog(id) ? token_text::end : other, &piece });
    }
    return texts;
}

}  // namespace moebind
