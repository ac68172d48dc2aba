// What a lazy grammar waits for.
#pragma once

#include "llama.h"

#include <regex>
#include <string>
#include <vector>

namespace moebind {

struct grammar_triggers {
    std::vector<std::string> words;
    std::vector<std::string> patterns;
    std::vector<llama_token> tokens;
    std::vector<std::regex>  compiled;

    // Compiles the patterns; throws what std::regex does not take.
    void compile();

    // Where in `text` the grammar begins, or npos. What comes before `old` was searched for the words already.
    size_t find(const std::string & text, size_t old) const;
};

}  // namespace moebind
