// Where in a grammar a text has come to.
#pragma once

#include "grammar_pattern.h"
#include "grammar_rules.h"
#include "grammar_steps.h"
#include "llama.h"

#include <string>
#include <vector>

namespace moebind {

struct grammar_state {
    std::vector<grammar_stack>   stacks;
    std::string                  unfinished;  // bytes of a character
    bool                         waiting = false;
    std::vector<pattern_threads> threads;  // while waiting, of each trigger pattern
};

// Whether the text may end here.
bool complete(const grammar_state & at);

// Takes a piece of text into the grammar, which some rule may instead take as a token (token >= 0); throws a rejection.
void take(grammar_state & at, grammar_steps & steps, llama_token token, const std::string & piece);

}  // namespace moebind
