// A grammar as an automaton that is built as far as it is used: each place is a set of stacks, and where a character leads
// from there is found once.
#pragma once

#include "grammar_rules.h"
#include "grammar_steps.h"
#include "token_trie.h"

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <unordered_map>
#include <vector>

namespace moebind {

class grammar_automaton {
  public:
    using place                 = uint32_t;
    static constexpr place none = 0;  // no stack is left: the text is forbidden

    explicit grammar_automaton(const llama_grammar_rules & rules) : steps(rules), places(1) {}

    // Begins to count the work of one call.
    void begin() { steps.begin(); }
    void work(size_t amount) { steps.work(amount); }

    // About how many bytes it has come to take.
    size_t size() const { return bytes + steps.size(); }

    place                      at(const std::vector<grammar_stack> & stacks);
    std::vector<grammar_stack> stacks(place from) const;

    // Whether the text may end here.
    bool complete(place from) const { return places[from].complete; }

    // Where a character leads to, by its code point.
    place after(place from, uint32_t code) {
        return code < 128 && places[from].ascii && (*places[from].ascii)[code] != unknown ? (*places[from].ascii)[code]
                                                                                       : found(from, code);
    }

    // Whether one of these characters leads on.
    bool any_after(place from, uint32_t low, uint32_t high);

    // Where the rules lead to that name a token, rather than describe text.
    place                                      after_token(place from, llama_token token);
    std::vector<const llama_grammar_element *> token_rules(place from) const;

    // Where a text leads to, which may go on with a character that has begun, and end within one, which then is
    // unfinished: its place is the one before it.
    place run(place from, const std::string & text, std::string & unfinished);

    // Whether many characters lead from one place to the other, as inside a string, and more than anywhere else.
    bool common(place from, place to);

    // Whether every text below a node leads on from here, by characters that are as common: back to this place, or from one
    // to the next.
    bool takes_all(place from, const token_trie::slice & below);

  private:
    static constexpr place unknown = UINT32_MAX;

    // Characters from `begin` up to the next of these, which no rule tells apart here.
    struct range {
        uint32_t begin;
        place    to;
    };

    struct set {
        std::vector<uint32_t>                   stacks;
        bool                                    complete = false;
        std::unique_ptr<std::array<place, 128>> ascii;
        std::vector<range>                      others;  // beyond ASCII; empty: not asked for yet
        bool                                    sorted = false;  // whether the next two are known
        place                                   main   = none;   // where most characters lead
        token_trie::slice                       to_main;         // which ones
    };

    struct hash {
        size_t operator()(const std::vector<uint32_t> & ids) const;
    };

    grammar_steps                                           steps;
    std::deque<set>                                         places;  // the first is none
    std::unordered_map<std::vector<uint32_t>, place, hash> known;
    size_t                                                  bytes = 0;

    place   intern(std::vector<uint32_t> ids);
    place   found(place from, uint32_t code);
    place   follow(place from, uint32_t code);
    range * range_of(place from, uint32_t code);
    place   resolved(place from, range & some);
    set &   sort(place from);
};

}  // namespace moebind
