#include "grammar_automaton.h"

#include <algorithm>

namespace moebind {

namespace {

// So many ranges of characters may be told apart in a place for a look at whether all of them lead to the same.
constexpr size_t ranges_looked_at = 64;
// So many of ASCII lead to a place that is common: a letter of a word does not, letters as such do.
constexpr size_t common_min       = 8;

}  // namespace

size_t grammar_automaton::hash::operator()(const std::vector<uint32_t> & ids) const {
    size_t value = ids.size();
    for (uint32_t id : ids) {
        value = (value ^ id) * 0x9E3779B97F4A7C15u;
    }
    return value ^ (value >> 32);
}

grammar_automaton::place grammar_automaton::intern(std::vector<uint32_t> ids) {
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
    if (ids.empty()) {
        return none;
    }
    const auto [entry, is_new] = known.emplace(std::move(ids), place(places.size()));
    if (is_new) {
        const std::vector<uint32_t> & kept = entry->first;
        steps.work(kept.size() + 100);
        set & made    = places.emplace_back();
        made.stacks   = kept;
        made.complete = std::any_of(kept.begin(), kept.end(), [&](uint32_t id) { return steps.stack(id).empty(); });
        bytes += 2 * kept.size() * sizeof(uint32_t) + sizeof(set) + 100;
    }
    return entry->second;
}

grammar_automaton::place grammar_automaton::at(const std::vector<grammar_stack> & stacks) {
    std::vector<uint32_t> ids;
    for (const grammar_stack & stack : stacks) {
        ids.push_back(steps.intern(stack));
    }
    return intern(std::move(ids));
}

std::vector<grammar_stack> grammar_automaton::stacks(place from) const {
    std::vector<grammar_stack> result;
    for (uint32_t id : places[from].stacks) {
        result.push_back(steps.stack(id));
    }
    return result;
}

grammar_automaton::place grammar_automaton::follow(place from, uint32_t code) {
    const character       read{ character::whole, code, code, nullptr };
    std::vector<uint32_t> next;
    for (uint32_t id : places[from].stacks) {
        const grammar_stack & stack = steps.stack(id);
        steps.work(1);
        if (!stack.empty() && !is_token_rule(stack.back()) && matches(stack.back(), read)) {
            const auto & after = steps.after(id);
            steps.work(after.size());
            next.insert(next.end(), after.begin(), after.end());
        }
    }
    return intern(std::move(next));
}

grammar_automaton::place grammar_automaton::found(place from, uint32_t code) {
    if (from == none) {
        return none;
    }
    if (code >= 128) {
        return resolved(from, *range_of(from, code));
    }
    if (!places[from].ascii) {
        places[from].ascii = std::make_unique<std::array<place, 128>>();
        places[from].ascii->fill(unknown);
        bytes += sizeof(*places[from].ascii);
    }
    return (*places[from].ascii)[code] = follow(from, code);
}

grammar_automaton::range * grammar_automaton::range_of(place from, uint32_t code) {
    std::vector<range> & ranges = places[from].others;
    if (ranges.empty()) {
        std::vector<uint32_t> begins{ 128 };
        for (uint32_t id : places[from].stacks) {
            const grammar_stack & stack = steps.stack(id);
            if (stack.empty() || is_token_rule(stack.back()) || stack.back()->type == LLAMA_GRETYPE_CHAR_ANY) {
                continue;
            }
            const llama_grammar_element * element = stack.back();
            do {
                // A character of its own, or the last of a range, ends one; it begins where it stands.
                steps.work(1);
                const bool last = element->type == LLAMA_GRETYPE_CHAR_RNG_UPPER;
                if (!last && element->value > 128) {
                    begins.push_back(element->value);
                }
                const bool single = !last && element[1].type != LLAMA_GRETYPE_CHAR_RNG_UPPER;
                if ((last || single) && element->value >= 128 && element->value < UINT32_MAX) {
                    begins.push_back(element->value + 1);
                }
                element++;
            } while (element->type == LLAMA_GRETYPE_CHAR_ALT || element->type == LLAMA_GRETYPE_CHAR_RNG_UPPER);
        }
        std::sort(begins.begin(), begins.end());
        begins.erase(std::unique(begins.begin(), begins.end()), begins.end());
        for (uint32_t begin : begins) {
            ranges.push_back({ begin, unknown });
        }
        bytes += ranges.size() * sizeof(range);
    }
    const auto behind = std::upper_bound(ranges.begin(), ranges.end(), code,
                                         [](uint32_t value, const range & each) { return value < each.begin; });
    return &*std::prev(behind);
}

grammar_automaton::place grammar_automaton::resolved(place from, range & some) {
    if (some.to == unknown) {
        some.to = follow(from, some.begin);
    }
    return some.to;
}

bool grammar_automaton::any_after(place from, uint32_t low, uint32_t high) {
    if (from == none) {
        return false;
    }
    range *       some   = range_of(from, low);
    const auto &  ranges = places[from].others;
    const range * end    = ranges.data() + ranges.size();
    for (; some != end && some->begin <= high; some++) {
        steps.work(1);
        if (resolved(from, *some) != none) {
            return true;
        }
    }
    return false;
}

std::vector<const llama_grammar_element *> grammar_automaton::token_rules(place from) const {
    std::vector<const llama_grammar_element *> rules;
    for (uint32_t id : places[from].stacks) {
        const grammar_stack & stack = steps.stack(id);
        if (!stack.empty() && is_token_rule(stack.back())) {
            rules.push_back(stack.back());
        }
    }
    return rules;
}

grammar_automaton::place grammar_automaton::after_token(place from, llama_token token) {
    std::vector<uint32_t> next;
    for (uint32_t id : places[from].stacks) {
        const grammar_stack & stack = steps.stack(id);
        if (!stack.empty() && is_token_rule(stack.back()) && matches_token(stack.back(), token)) {
            const auto & after = steps.after(id);
            next.insert(next.end(), after.begin(), after.end());
        }
    }
    return intern(std::move(next));
}

grammar_automaton::place grammar_automaton::run(place from, const std::string & text, std::string & unfinished) {
    const std::string whole = unfinished + text;
    const char *      at    = whole.data();
    const char *      end   = at + whole.size();
    while (at < end && from != none) {
        const character read = read_character(at, end);
        steps.work(1);
        if (read.kind == character::partial) {
            unfinished.assign(at, end);
            return any_after(from, read.low, read.high) ? from : none;
        }
        from = read.kind == character::invalid ? none : after(from, read.low);
        at   = read.next;
    }
    unfinished.clear();
    return from;
}

grammar_automaton::set & grammar_automaton::sort(place from) {
    set & here = places[from];
    if (here.sorted) {
        return here;
    }
    std::unordered_map<place, size_t> times;
    for (uint32_t code = 1; code < 128; code++) {
        times[after(from, code)]++;
    }
    times.erase(none);
    for (const auto & [to, n] : times) {
        // Of equals always the same, whatever their order is.
        if (here.main == none || n > times[here.main] || (n == times[here.main] && to < here.main)) {
            here.main = to;
        }
    }
    if (here.main != none && times[here.main] >= common_min) {
        for (uint32_t code = 1; code < 128; code++) {
            if (after(from, code) == here.main) {
                here.to_main.ascii[code / 64] |= uint64_t(1) << code % 64;
            }
        }
        range_of(from, 128);
        here.to_main.others = here.others.size() <= ranges_looked_at &&
                              std::all_of(here.others.begin(), here.others.end(),
                                          [&](range & some) { return resolved(from, some) == here.main; });
    } else {
        here.main = none;
    }
    here.sorted = true;
    return here;
}

bool grammar_automaton::common(place from, place to) { return from != none && to != none && sort(from).main == to; }

bool grammar_automaton::takes_all(place from, const token_trie::slice & below) {
    if (!below.clean) {
        return false;
    }
    for (uint32_t left = below.longest; left > 0; left--) {
        const set & here = sort(from);
        if (here.main == none || (below.ascii[0] & ~here.to_main.ascii[0]) != 0 ||
            (below.ascii[1] & ~here.to_main.ascii[1]) != 0 || (below.others && !here.to_main.others)) {
            return false;
        }
        if (here.main == from) {
            return true;
        }
        from = here.main;
    }
    return true;
}

}  // namespace moebind
