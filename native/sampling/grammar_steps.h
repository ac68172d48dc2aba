// How a grammar goes on after a character: the stacks that llama.cpp's llama_grammar_advance_stack finds, each of them
// once.
//
// llama.cpp looks at each candidate anew for every way in which the grammar can have come to it, which takes time
// exponential in a token's length: 200 times "a"? do not end. Here a stack has a number, and what follows it is found
// once.
#pragma once

#include "grammar_rules.h"

#include <cstdint>
#include <deque>
#include <string>
#include <unordered_map>
#include <vector>

namespace moebind {

class grammar_steps {
  public:
    explicit grammar_steps(const llama_grammar_rules & rules) : rules(rules) {}

    uint32_t              intern(const grammar_stack & stack);
    const grammar_stack & stack(uint32_t id) const { return *stacks[id]; }

    // The stacks that a stack becomes when the rules on its top are opened: each is empty or has a terminal on top.
    std::vector<uint32_t> expand(grammar_stack stack);

    // The stacks after the terminal on top of this one.
    const std::vector<uint32_t> & after(uint32_t id);

    // Counts work, and throws when one call, which begins here, takes too much of it.
    void begin() { worked = 0; }
    void work(size_t amount);

    // About how many bytes are kept.
    size_t size() const { return bytes; }

  private:
    struct hash {
        size_t operator()(const grammar_stack & stack) const;
    };

    const llama_grammar_rules &                       rules;
    std::unordered_map<grammar_stack, uint32_t, hash> ids;
    std::deque<const grammar_stack *>                 stacks;
    std::deque<std::vector<uint32_t>>                 followers;
    std::deque<bool>                                  followed;
    size_t                                            worked = 0;
    size_t                                            bytes  = 0;
};

// Code points: [low, high] is one, or those that an unfinished sequence of bytes can become.
struct character {
    enum { whole, partial, invalid } kind;
    uint32_t     low;
    uint32_t     high;
    const char * next;  // behind it
};

// Reads the next character of UTF-8; stricter than llama.cpp, which takes overlong forms and surrogates too.
character read_character(const char * at, const char * end);

bool is_token_rule(const llama_grammar_element * element);
bool matches_token(const llama_grammar_element * element, llama_token token);

// Whether the class of characters that begins with this element has one of these.
bool matches(const llama_grammar_element * element, const character & read);

}  // namespace moebind
