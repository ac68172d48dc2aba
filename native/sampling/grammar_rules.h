// A grammar that was read and checked: rules in which every step ends.
//
// llama.cpp's parser reads it. What that parser would not survive is refused before, with its place (nesting, repetitions
// that take the memory); what its rules would never end with is refused after (left recursion, rules that are missing).
#pragma once

#include "llama-grammar.h"

#include <map>
#include <memory>
#include <string>
#include <vector>

namespace moebind {

// A place in each of the rules that are open, the innermost last; all but the last are where their rule goes on.
using grammar_stack = std::vector<const llama_grammar_element *>;

struct grammar_rules {
    llama_grammar_rules        rules;
    std::vector<grammar_stack> start;  // of the root
    std::map<std::string, uint32_t> names;
};

// Reads a grammar with llama.cpp's parser. Throws, with line and column, what llama.cpp would not take, would take for
// something else, or could take for ever on. Without a vocabulary, tokens can be named by their number only.
std::shared_ptr<const grammar_rules> read_grammar(const llama_vocab * vocab, const std::string & text,
                                                  const std::string & root);

}  // namespace moebind
