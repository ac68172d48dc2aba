#include "grammar_state.h"

#include "grammars.h"

namespace moebind {

bool take(grammar_state & at, grammar_automaton & automaton, llama_token token, const std::string & piece) {
    using place            = grammar_automaton::place;
    const place from       = automaton.at(at.stacks);
    std::string unfinished = at.unfinished;
    const place named =
        token >= 0 && unfinished.empty() ? automaton.after_token(from, token) : grammar_automaton::none;
    const place read = piece.empty() ? grammar_automaton::none : automaton.run(from, piece, unfinished);
    if (named == grammar_automaton::none && read == grammar_automaton::none) {
        return false;
    }
    at.stacks = automaton.stacks(read);
    for (grammar_stack & stack : automaton.stacks(named)) {
        at.stacks.push_back(std::move(stack));
    }
    at.unfinished = read == grammar_automaton::none ? std::string() : std::move(unfinished);
    return true;
}

}  // namespace moebind

bool moebind_grammar_takes(const char * grammar, const char * text) {
    const auto                 rules = moebind::read_grammar(nullptr, grammar, "root");
    moebind::grammar_automaton automaton(rules->rules);
    moebind::grammar_state     at;
    at.stacks = rules->start;
    return moebind::take(at, automaton, LLAMA_TOKEN_NULL, text);
}
