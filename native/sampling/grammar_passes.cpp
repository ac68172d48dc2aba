// What all texts of a grammar have in common: whether a chat's grammar really holds a reply to what was asked.
#include "grammar_rules.h"
#include "grammars.h"

#include <algorithm>
#include <string>
#include <vector>

namespace {

void append(std::string & text, uint32_t code) {
    if (code < 0x80) {
        text += char(code);
    } else if (code < 0x800) {
        text += { char(0xC0 | code >> 6), char(0x80 | (code & 0x3F)) };
    } else if (code < 0x10000) {
        text += { char(0xE0 | code >> 12), char(0x80 | (code >> 6 & 0x3F)), char(0x80 | (code & 0x3F)) };
    } else {
        text += { char(0xF0 | code >> 18), char(0x80 | (code >> 12 & 0x3F)), char(0x80 | (code >> 6 & 0x3F)),
                  char(0x80 | (code & 0x3F)) };
    }
}

// An alternative of a rule: what it refers to, and the texts that stand in it.
struct alternative {
    std::vector<uint32_t>    references;
    std::vector<std::string> texts;
};

std::vector<alternative> alternatives_of(const llama_grammar_rule & rule) {
    std::vector<alternative> found(1);
    std::string              text;
    const auto               end_text = [&]() {
        if (!text.empty()) {
            found.back().texts.push_back(std::move(text));
            text.clear();
        }
    };
    for (size_t i = 0; i < rule.size(); i++) {
        const auto & element = rule[i];
        const bool   single  = element.type == LLAMA_GRETYPE_CHAR && rule[i + 1].type != LLAMA_GRETYPE_CHAR_ALT &&
                            rule[i + 1].type != LLAMA_GRETYPE_CHAR_RNG_UPPER;
        if (single) {
            append(text, element.value);
            continue;
        }
        end_text();
        if (element.type == LLAMA_GRETYPE_RULE_REF) {
            found.back().references.push_back(element.value);
        } else if (element.type == LLAMA_GRETYPE_ALT) {
            found.emplace_back();
        }
    }
    return found;
}

using all_rules = std::vector<std::vector<alternative>>;

// Which rules are marked, or have in each alternative a reference to one that is found, or a text that is wanted.
template <class Wanted> std::vector<bool> spread(const all_rules & rules, std::vector<bool> marked, const Wanted & wanted) {
    for (bool changed = true; changed;) {
        changed = false;
        for (size_t i = rules.size(); i-- > 0;) {  // the parser writes repetitions as rules that refer to later ones
            if (!marked[i] && std::all_of(rules[i].begin(), rules[i].end(), [&](const alternative & each) {
                    return std::any_of(each.references.begin(), each.references.end(), [&](uint32_t to) { return marked[to]; }) ||
                           std::any_of(each.texts.begin(), each.texts.end(), wanted);
                })) {
                marked[i] = changed = true;
            }
        }
    }
    return marked;
}

bool reaches(const all_rules & rules, uint32_t root, const std::vector<bool> & marked) {
    std::vector<bool>     seen(rules.size());
    std::vector<uint32_t> todo{ root };
    while (!todo.empty()) {
        const uint32_t rule = todo.back();
        todo.pop_back();
        if (marked[rule]) {
            return true;
        }
        if (seen[rule]) {
            continue;
        }
        seen[rule] = true;
        for (const alternative & each : rules[rule]) {
            todo.insert(todo.end(), each.references.begin(), each.references.end());
        }
    }
    return false;
}

}  // namespace

bool moebind_grammar_passes(const char * grammar, const char * root_name, const char ** names, const char ** texts,
                            size_t n_names, bool some) {
    const auto read = moebind::read_grammar(nullptr, grammar, root_name);
    all_rules  rules;
    for (const auto & rule : read->rules) {
        rules.push_back(alternatives_of(rule));
    }
    std::vector<bool> marked(rules.size());
    for (size_t i = 0; i < n_names; i++) {
        const std::string text = texts[i];
        const auto        has  = spread(rules, std::vector<bool>(rules.size()),
                                        [&](const std::string & each) { return each.find(text) != std::string::npos; });
        for (const auto & [name, id] : read->names) {
            marked[id] = marked[id] || (name.find(names[i]) != std::string::npos && (text.empty() || has[id]));
        }
    }
    const uint32_t root = read->names.at(root_name);
    return some ? reaches(rules, root, marked) : spread(rules, marked, [](const std::string &) { return false; })[root];
}
