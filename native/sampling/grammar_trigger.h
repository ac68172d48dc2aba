// What a lazy grammar waits for: words, patterns and tokens. A pattern can come from a chat template, and the text from the
// model, so that its search is limited in steps and has a large stack.
#pragma once

#include "grammar_pattern.h"
#include "llama.h"

#include <string>
#include <utility>
#include <vector>

namespace moebind {

// What a lazy grammar has read while it waits, as far as it may still matter.
struct heard_text {
    size_t                                      before = 0;  // bytes that were forgotten
    std::string                                 text;
    std::vector<std::pair<llama_token, size_t>> tokens;  // of the text, and where in it each ends
};

struct grammar_triggers {
    std::vector<std::string>     words;
    std::vector<grammar_pattern> patterns;
    std::vector<llama_token>     tokens;

    // Compiles the patterns; throws what std::regex does not take.
    void compile(const std::vector<std::string> & written);

    // Where in the text the grammar begins, or npos. All but what is behind `searched` was looked at before, which led to
    // these threads, one list for each pattern.
    size_t find(const heard_text & heard, size_t searched, std::vector<pattern_threads> & threads) const;

    // Drops the beginning of a text in which nothing was found, as far as nothing that begins there can be found later.
    void forget(heard_text & heard, const std::vector<pattern_threads> & threads) const;
};

}  // namespace moebind
