#include "grammar_trigger.h"

#include "big_stack.h"

#include <algorithm>

namespace moebind {

namespace {

constexpr size_t stack_size = size_t(256) << 20;

}  // namespace

void grammar_triggers::compile(const std::vector<std::string> & written) {
    on_big_stack(stack_size, [&]() {
        for (const std::string & pattern : written) {
            patterns.emplace_back(pattern);
        }
    });
}

size_t grammar_triggers::find(const heard_text & heard, size_t searched, std::vector<pattern_threads> & threads) const {
    const std::string & text  = heard.text;
    size_t              first = std::string::npos;
    for (const std::string & word : words) {
        first = std::min(first, text.find(word, searched - std::min(searched, word.size() - 1)));
    }
    if (first != std::string::npos) {
        return first;
    }
    size_t steps = 0;  // of all of them
    for (size_t i = 0; i < patterns.size() && first == std::string::npos; i++) {
        const grammar_pattern & pattern = patterns[i];
        const size_t start = pattern.known() ? pattern.read(threads[i], text, searched, heard.before) : 0;
        if (start != std::string::npos) {
            on_big_stack(stack_size, [&]() { first = pattern.search(text, start, heard.before, steps); });
        }
    }
    return first == std::string::npos ? first : first - heard.before;
}

void grammar_triggers::forget(heard_text & heard, const std::vector<pattern_threads> & threads) const {
    size_t kept = heard.before + heard.text.size();
    for (const std::string & word : words) {
        kept = std::min(kept, heard.before + heard.text.size() - std::min(heard.text.size(), word.size() - 1));
    }
    for (size_t i = 0; i < patterns.size(); i++) {
        for (const auto & [node, start] : threads[i]) {
            kept = std::min(kept, start);
        }
        kept = patterns[i].known() ? kept : 0;
    }
    size_t old = 0;  // whole tokens, since one that begins with a trigger may be read as itself
    while (old < heard.tokens.size() && heard.before + heard.tokens[old].second <= kept) {
        old++;
    }
    if (old == 0) {
        return;
    }
    const size_t cut = heard.tokens[old - 1].second;
    heard.before += cut;
    heard.text.erase(0, cut);
    heard.tokens.erase(heard.tokens.begin(), heard.tokens.begin() + std::ptrdiff_t(old));
    for (auto & [token, end] : heard.tokens) {
        end -= cut;
    }
}

}  // namespace moebind
