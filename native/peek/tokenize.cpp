// Tokens as text, without losing any of it, and texts as tokens, with as much stack as they take. Pre-tokenizers that
// llama.cpp has no code of its own for are std::regex, which recurses over each run of letters, digits or spaces that an
// expression swallows whole.
#include "big_stack.h"
#include "llama-vocab.h"
#include "shim.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace {

constexpr size_t stack_base     = size_t(256) << 10;
constexpr size_t stack_per_byte = 1024;  // reserved
constexpr size_t used_per_byte  = 320;   // measured

constexpr size_t superbpe_digits_max = 2'000;

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

// The longest stretch that one match can swallow: a run without spaces and the spaces beside it.
size_t longest_run(const char * text, size_t size) {
    size_t longest = 0, before = 0;
    for (size_t start = 0; start < size;) {
        size_t end = start + 1;
        while (end < size && is_space(text[end]) == is_space(text[start])) {
            end++;
        }
        longest = std::max(longest, before + (end - start));
        before  = end - start;
        start   = end;
    }
    return longest;
}

// This one looks for groups of three digits from each digit to the end of its number, which takes hours for a long one.
void check_numbers(const llama_vocab * vocab, const char * text, size_t size) {
    if (vocab->get_pre_type() != LLAMA_VOCAB_PRE_TYPE_SUPERBPE) {
        return;
    }
    for (size_t i = 0, digits = 0; i < size; i++) {
        digits = text[i] >= '0' && text[i] <= '9' ? digits + 1 : 0;
        if (digits > superbpe_digits_max) {
            throw std::runtime_error("the text has a number of more than " + std::to_string(superbpe_digits_max) +
                                     " digits, which this model's pre-tokenizer takes too long for");
        }
    }
}

size_t stack_for(const llama_vocab * vocab, const char * text, size_t size) {
    if (llama_vocab_type(vocab) != LLAMA_VOCAB_TYPE_BPE) {
        return stack_base;
    }
    check_numbers(vocab, text, size);
    const size_t        run    = longest_run(text, size);
    static const size_t memory = size_t(sysconf(_SC_PHYS_PAGES)) * size_t(sysconf(_SC_PAGESIZE));
    const size_t        most   = memory / 2 / used_per_byte;
    if (run > most) {
        throw std::runtime_error("the text has a run of " + std::to_string(run) +
                                 " bytes without a change between words and spaces; this machine can take " +
                                 std::to_string(most));
    }
    return stack_base + stack_per_byte * run;
}

}  // namespace

int32_t moebind_tokenize(const llama_vocab * vocab, const char * text, int32_t text_len, llama_token * tokens,
                         int32_t n_tokens_max, bool add_special, bool parse_special) {
    int32_t count = 0;
    moebind::on_big_stack(stack_for(vocab, text, static_cast<size_t>(text_len)), [&] {
        count = llama_tokenize(vocab, text, text_len, tokens, n_tokens_max, add_special, parse_special);
    });
    return count;
}

int32_t moebind_detokenize(const llama_vocab * vocab, const llama_token * tokens, int32_t n_tokens, char * text,
                           int32_t text_len_max, bool special) {
    if (llama_vocab_type(vocab) == LLAMA_VOCAB_TYPE_WPM) {
        return llama_detokenize(vocab, tokens, n_tokens, text, text_len_max, false, special);
    }
    int64_t total = 0;
    int32_t strip = vocab->get_add_space_prefix();
    for (int32_t i = 0; i < n_tokens; i++) {
        const int32_t at = (int32_t) std::min<int64_t>(total, text_len_max);
        const int32_t n  = llama_token_to_piece(vocab, tokens[i], text + at, text_len_max - at, strip, special);
        strip = 0;
        total += std::abs(n);  // negative: it did not fit
    }
    if (total > INT32_MAX) {
        throw std::runtime_error("the text has " + std::to_string(total) + " bytes, more than llama.cpp can count");
    }
    return (int32_t) (total <= text_len_max ? total : -total);
}
