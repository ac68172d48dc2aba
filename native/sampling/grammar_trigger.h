// What a lazy grammar waits for: words, patterns and tokens. A pattern is a std::regex, as in llama.cpp, but its search is
// limited in steps and has a large stack: a pattern can come from a chat template, and the text from the model.
#pragma once

#include "llama.h"

#include <regex>
#include <string>
#include <utility>
#include <vector>

namespace moebind {

struct grammar_triggers {
    std::vector<std::string> words;
    std::vector<std::string> patterns;
    std::vector<llama_token> tokens;
    std::vector<std::regex>  compiled;

    // Compiles the patterns; throws what std::regex does not take.
    void compile();

    // Where in `text` the grammar begins, or npos. The first `searched` bytes were searched for the words already.
    size_t find(const std::string & text, size_t searched) const;

    // Drops the beginning of a text in which nothing was found, as far as no word can begin there. Patterns need it all.
    void forget(std::string & text, std::vector<std::pair<llama_token, size_t>> & tokens) const;
};

}  // namespace moebind
