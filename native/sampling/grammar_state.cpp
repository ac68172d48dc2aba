#include "grammar_state.h"

#include "shim.h"

#include <algorithm>

namespace moebind {

bool complete(const grammar_state & at) {
    return at.unfinished.empty() && std::any_of(at.stacks.begin(), at.stacks.end(),
                                                [](const grammar_stack & stack) { return stack.empty(); });
}

void take(grammar_state & at, grammar_steps & steps, llama_token token, const std::string & piece) {
    std::vector<uint32_t> now, found;
    for (const auto & stack : at.stacks) {
        const uint32_t id = steps.intern(stack);
        if (stack.empty()) {
            continue;
        }
        if (!is_token_rule(stack.back())) {
            now.push_back(id);
        } else if (token >= 0 && at.unfinished.empty() && matches_token(stack.back(), token)) {
            const auto & next = steps.after(id);
            found.insert(found.end(), next.begin(), next.end());
        }
    }
    const std::string text = at.unfinished + piece;
    const char *      pos  = text.data();
    const char *      end  = pos + text.size();
    std::string       unfinished;
    if (piece.empty()) {
        now.clear();
    }
    while (pos < end && !now.empty()) {
        const character       read = read_character(pos, end);
        std::vector<uint32_t> next;
        for (uint32_t id : now) {
            const auto & stack = steps.stack(id);
            steps.work(1);
            if (read.kind == character::invalid || stack.empty() || is_token_rule(stack.back()) ||
                !matches(stack.back(), read)) {
                continue;
            }
            if (read.kind == character::partial) {
                next.push_back(id);
            } else {
                const auto & after = steps.after(id);
                next.insert(next.end(), after.begin(), after.end());
            }
        }
        std::sort(next.begin(), next.end());
        next.erase(std::unique(next.begin(), next.end()), next.end());
        now = std::move(next);
        if (read.kind == character::partial) {
            unfinished.assign(pos, end);
        }
        pos = read.next;
    }
    found.insert(found.end(), now.begin(), now.end());
    std::sort(found.begin(), found.end());
    found.erase(std::unique(found.begin(), found.end()), found.end());
    if (found.empty()) {
        throw rejection("the grammar forbids token " + std::to_string(token) + " here");
    }
    std::vector<grammar_stack> stacks;
    for (uint32_t id : found) {
        stacks.push_back(steps.stack(id));
    }
    at.stacks     = std::move(stacks);
    at.unfinished = std::move(unfinished);
}

}  // namespace moebind

bool moebind_grammar_takes(const char * grammar, const char * text) {
    const auto               rules = moebind::read_grammar(nullptr, grammar, "root");
    moebind::grammar_steps   steps(rules->rules);
    moebind::grammar_state   at;
    at.stacks = rules->start;
    try {
        moebind::take(at, steps, LLAMA_TOKEN_NULL, text);
        return true;
    } catch (const moebind::rejection &) {
        return false;
    }
}
