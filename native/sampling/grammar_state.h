// Where in a grammar a text has come to.
#pragma once

#include "grammar_automaton.h"
#include "grammar_pattern.h"
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

// Takes a piece of text into the grammar, which some rule may instead take as a token (token >= 0). False: the grammar
// forbids it, and the state is as it was; no exception, whose way out takes as long as everything else that a token takes.
bool take(grammar_state & at, grammar_automaton & automaton, llama_token token, const std::string & piece);

}  // namespace moebind
