// A trigger's pattern: a std::regex, and an automaton that reads a text once, as it grows, and tells where to try it.
//
// Searching the whole text after each token would take time with the square of its length. The automaton finds every match,
// and a few that are none: it takes a repetition {m,n} for one without an end, and a lookahead to hold. So std::regex has
// the last word, but is only asked when something may have matched, and from where that begins.
#pragma once

#include <bitset>
#include <cstdint>
#include <regex>
#include <string>
#include <utility>
#include <vector>

namespace moebind {

// The states that the automaton is in, and the earliest place in the text that each was come to from.
using pattern_threads = std::vector<std::pair<uint32_t, size_t>>;

class grammar_pattern {
  public:
    explicit grammar_pattern(const std::string & pattern);

    // Whether the automaton knows all of the pattern. It does not know \b, \B, \1 and a $ in a lookahead: whether these
    // match can change with text that comes later.
    bool known() const { return !nodes.empty(); }

    // Reads the bytes of `text` from `from` on; `before` have come before `text`. Returns where in all of it something begins
    // that may match now and could not before, or npos.
    size_t read(pattern_threads & threads, const std::string & text, size_t from, size_t before) const;

    // Where the grammar begins, by std::regex, in a text of which `before` bytes are left out, or npos. Matches begin at
    // `start` or later. Throws when it takes too long.
    size_t search(const std::string & text, size_t start, size_t before, size_t & steps) const;

  private:
    struct node {
        enum { bytes, either, begin, end, accept } kind;
        uint32_t next  = 0;
        uint32_t other = 0;  // of either; of bytes, which of the sets
    };

    class reader;
    class run;

    std::string                   pattern;
    std::regex                    compiled;
    std::vector<node>             nodes;
    std::vector<std::bitset<256>> sets;
    uint32_t                      entry = 0;
};

}  // namespace moebind
