// The texts of a vocabulary as a trie of bytes: what many tokens begin with is looked at once.
#pragma once

#include "grammar_tokens.h"

#include <cstdint>
#include <vector>

namespace moebind {

// The nodes come in the order of a walk: behind each are those below it. So a walk is a loop, a subtree is a range, and so
// are the tokens in it.
struct token_trie {
    // What comes below a node, if its text ends with a whole character.
    struct slice {
        uint64_t ascii[2] = {};     // characters that occur
        bool     others   = false;  // whether others do
        bool     clean    = true;   // whether all of it is UTF-8, perhaps cut off at its end
        uint32_t longest  = 0;      // characters in a row, one that is cut off included
    };

    explicit token_trie(const token_texts & texts);

    uint32_t size() const { return uint32_t(bytes.size()); }

    // Of each node; the first is the empty text.
    std::vector<uint8_t>  bytes;
    std::vector<uint32_t> depths;
    std::vector<uint32_t> ends;    // behind its subtree
    std::vector<uint32_t> first;   // of its tokens, in `tokens`; one more at the end
    std::vector<uint32_t> sliced;  // which of the slices it has; 0: none, being small

    std::vector<llama_token> tokens;
    std::vector<slice>       slices;
    uint32_t                 deepest = 0;
};

}  // namespace moebind
