#include "grammar_steps.h"

#include <algorithm>
#include <stdexcept>
#include <unordered_set>

namespace {

// One call may take so many steps, to which a new stack counts as many: about half a second.
constexpr size_t work_max   = 16 * 1000 * 1000;
constexpr size_t stack_work = 200;
constexpr size_t stacks_max = 20000;
constexpr size_t depth_max  = 20000;

bool ends(const llama_grammar_element * element) {
    return element->type == LLAMA_GRETYPE_END || element->type == LLAMA_GRETYPE_ALT;
}

// Behind the terminal that begins here: a class has several elements.
const llama_grammar_element * behind(const llama_grammar_element * element) {
    element++;
    while (element->type == LLAMA_GRETYPE_CHAR_ALT || element->type == LLAMA_GRETYPE_CHAR_RNG_UPPER) {
        element++;
    }
    return element;
}

}  // namespace

namespace moebind {

size_t grammar_steps::hash::operator()(const grammar_stack & stack) const {
    size_t value = stack.size();
    for (const auto * element : stack) {
        value = (value ^ reinterpret_cast<size_t>(element)) * 0x9E3779B97F4A7C15u;
    }
    return value ^ (value >> 32);
}

void grammar_steps::work(size_t amount) {
    worked += amount;
    if (worked > work_max) {
        throw std::runtime_error("the grammar can be read in too many ways here: make it less ambiguous");
    }
}

uint32_t grammar_steps::intern(const grammar_stack & stack) {
    const auto [found, is_new] = ids.emplace(stack, uint32_t(stacks.size()));
    if (is_new) {
        work(stack.size() + stack_work);
        bytes += stack.size() * sizeof(stack[0]) + stack_work;
        stacks.push_back(&found->first);
        followers.emplace_back();
        followed.push_back(false);
    }
    return found->second;
}

std::vector<uint32_t> grammar_steps::expand(grammar_stack stack) {
    std::vector<uint32_t>                   result;
    std::vector<grammar_stack>              todo{ std::move(stack) };
    std::unordered_set<grammar_stack, hash> seen;
    while (!todo.empty()) {
        const auto [found, is_new] = seen.insert(std::move(todo.back()));
        todo.pop_back();
        if (!is_new) {
            continue;
        }
        const grammar_stack & current = *found;
        work(current.size() + stack_work);
        if (current.size() > depth_max) {
            throw std::runtime_error("the text nests too deep");
        }
        if (current.empty() || current.back()->type != LLAMA_GRETYPE_RULE_REF) {
            result.push_back(intern(current));
            if (result.size() > stacks_max) {
                throw std::runtime_error("the grammar can be read in too many ways here: make it less ambiguous");
            }
            continue;
        }
        const auto *  reference = current.back();
        grammar_stack rest(current.begin(), current.end() - 1);
        if (!ends(reference + 1)) {
            rest.push_back(reference + 1);
        }
        for (const auto * element = rules[reference->value].data();; element++) {
            grammar_stack next = rest;
            if (!ends(element)) {
                next.push_back(element);
            }
            todo.push_back(std::move(next));
            while (!ends(element)) {
                work(1);
                element++;
            }
            if (element->type == LLAMA_GRETYPE_END) {
                break;
            }
        }
    }
    std::sort(result.begin(), result.end());
    return result;
}

const std::vector<uint32_t> & grammar_steps::after(uint32_t id) {
    if (!followed[id]) {
        grammar_stack next = stack(id);
        const auto *  rest = behind(next.back());
        next.pop_back();
        if (!ends(rest)) {
            next.push_back(rest);
        }
        auto found    = expand(std::move(next));
        bytes += found.size() * sizeof(found[0]);
        followers[id] = std::move(found);
        followed[id]  = true;
    }
    return followers[id];
}

character read_character(const char * at, const char * end) {
    const auto first  = static_cast<uint8_t>(*at);
    const int  length = first < 0x80   ? 1
                        : first < 0xC2 ? 0
                        : first < 0xE0 ? 2
                        : first < 0xF0 ? 3
                        : first < 0xF5 ? 4
                                       : 0;
    if (length == 0 || first == 0) {
        return { character::invalid, 0, 0, end };
    }
    uint32_t value = length == 1 ? first : first & (0x7F >> length);
    int      left  = length - 1;
    for (at++; left > 0 && at < end; at++, left--) {
        if ((static_cast<uint8_t>(*at) & 0xC0) != 0x80) {
            return { character::invalid, 0, 0, end };
        }
        value = (value << 6) | (static_cast<uint8_t>(*at) & 0x3F);
    }
    uint32_t low = value << (6 * left), high = low | ((1u << (6 * left)) - 1);
    low = std::max(low, length == 3 ? 0x800u : length == 4 ? 0x10000u : 0u);
    if (high >= 0xD800 && low <= 0xDFFF) {  // surrogates are no characters
        if (low >= 0xD800) {
            return { character::invalid, 0, 0, end };
        }
        high = 0xD7FF;
    }
    high = std::min(high, 0x10FFFFu);
    if (low > high) {
        return { character::invalid, 0, 0, end };
    }
    return { left == 0 ? character::whole : character::partial, low, high, at };
}

bool is_token_rule(const llama_grammar_element * element) {
    return element->type == LLAMA_GRETYPE_TOKEN || element->type == LLAMA_GRETYPE_TOKEN_NOT;
}

bool matches_token(const llama_grammar_element * element, llama_token token) {
    return (element->value == static_cast<uint32_t>(token)) == (element->type == LLAMA_GRETYPE_TOKEN);
}

bool matches(const llama_grammar_element * element, const character & read) {
    if (element->type == LLAMA_GRETYPE_CHAR_ANY) {
        return true;
    }
    const bool positive = element->type == LLAMA_GRETYPE_CHAR;
    // Which of them the class names. Unfinished characters are few, so that sorting can be left to them.
    std::vector<std::pair<uint32_t, uint32_t>> named;
    const auto *                               end = behind(element);
    while (element < end) {
        const uint32_t from = element->value;
        const bool     pair = element + 1 < end && element[1].type == LLAMA_GRETYPE_CHAR_RNG_UPPER;
        const uint32_t to   = pair ? element[1].value : from;
        element += pair ? 2 : 1;
        if (from <= read.high && read.low <= to) {
            if (positive || read.low == read.high) {
                return positive;
            }
            named.emplace_back(from, to);
        }
    }
    if (positive) {
        return false;
    }
    std::sort(named.begin(), named.end());
    uint64_t next = read.low;  // the first that none of the ranges so far has
    for (const auto & [from, to] : named) {
        if (from > next) {
            break;
        }
        next = std::max<uint64_t>(next, uint64_t(to) + 1);
    }
    return next <= read.high;
}

}  // namespace moebind
