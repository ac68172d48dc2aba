#include "grammar_trigger.h"

#include "big_stack.h"

#include <algorithm>
#include <iterator>
#include <stdexcept>

namespace {

// std::regex backtracks without a limit. It moves over text through iterators, and these count: one search may take so
// many steps, about 30 ms, and a stack of at most 60 MiB.
constexpr size_t steps_max  = 400 * 1000;
constexpr size_t stack_size = size_t(256) << 20;

class counted {
  public:
    using iterator_category = std::bidirectional_iterator_tag;
    using value_type        = char;
    using difference_type   = std::ptrdiff_t;
    using pointer           = const char *;
    using reference         = const char &;

    counted() = default;
    counted(const char * at, size_t * steps) : at(at), steps(steps) {}

    reference operator*() const {
        count();
        return *at;
    }
    counted & operator++() {
        count();
        ++at;
        return *this;
    }
    counted operator++(int) {
        counted before = *this;
        ++*this;
        return before;
    }
    counted & operator--() {
        count();
        --at;
        return *this;
    }
    counted operator--(int) {
        counted before = *this;
        --*this;
        return before;
    }
    bool operator==(const counted & other) const { return at == other.at; }
    bool operator!=(const counted & other) const { return at != other.at; }

    const char * at    = nullptr;

  private:
    size_t * steps = nullptr;

    void count() const {
        if (++*steps > steps_max) {
            throw std::runtime_error("a trigger pattern takes too long on the text so far: write it simpler");
        }
    }
};

bool starts_with(const std::string & text, const char * beginning) { return text.rfind(beginning, 0) == 0; }

// Whether a pattern is a choice: a|b, but not (a|b).
bool is_choice(const std::string & pattern) {
    int  nested   = 0;
    bool in_class = false;
    for (size_t i = 0; i < pattern.size(); i++) {
        const char each = pattern[i];
        if (each == '\\') {
            i++;
        } else if (in_class) {
            in_class = each != ']';
        } else if (each == '[') {
            in_class = true;
        } else if (each == '|' && nested == 0) {
            return true;
        } else {
            nested += (each == '(') - (each == ')');
        }
    }
    return false;
}

}  // namespace

namespace moebind {

void grammar_triggers::compile() {
    on_big_stack(stack_size, [&]() {
        for (const std::string & pattern : patterns) {
            compiled.emplace_back(pattern);
        }
    });
}

size_t grammar_triggers::find(const std::string & text, size_t searched) const {
    size_t first = std::string::npos;
    for (const std::string & word : words) {
        first = std::min(first, text.find(word, searched - std::min(searched, word.size() - 1)));
    }
    if (first != std::string::npos || patterns.empty()) {
        return first;
    }
    size_t steps = 0;  // of all of them
    on_big_stack(stack_size, [&]() {
        for (size_t i = 0; i < patterns.size() && first == std::string::npos; i++) {
            const std::string &         pattern = patterns[i];
            const counted               begin(text.data(), &steps), end(text.data() + text.size(), &steps);
            std::match_results<counted> match;
            // As llama.cpp: from ^ to $, a pattern is compared with the whole text first.
            const bool anchored = pattern.front() == '^' && pattern.back() == '$';
            if (!(anchored && std::regex_match(begin, end, match, compiled[i]))) {
                // [\s\S]* takes any text. A pattern that begins with it matches from the first character on, or not at
                // all, so only that is tried. A search would begin again at each later character: as long as nothing
                // matches, which is most of the time, it would take time with the square of the text.
                const auto flags = starts_with(pattern, "[\\s\\S]*") && !is_choice(pattern) ? std::regex_constants::match_continuous
                                                                     : std::regex_constants::match_default;
                if (!std::regex_search(begin, end, match, compiled[i], flags)) {
                    continue;
                }
            }
            // As llama.cpp: the grammar begins with the first group that matched something, or else with the match.
            size_t group = 1;
            while (group < match.size() && match.length(group) == 0) {
                group++;
            }
            first = match[group < match.size() ? group : 0].first.at - text.data();
        }
    });
    return first;
}

void grammar_triggers::forget(std::string & text, std::vector<std::pair<llama_token, size_t>> & tokens) const {
    if (!patterns.empty()) {
        return;
    }
    size_t kept = 0;
    for (const std::string & word : words) {
        kept = std::max(kept, word.size() - 1);
    }
    size_t old = 0;  // whole tokens, since one that begins with a trigger may be read as itself
    while (old < tokens.size() && tokens[old].second + kept <= text.size()) {
        old++;
    }
    if (old == 0) {
        return;
    }
    const size_t cut = tokens[old - 1].second;
    text.erase(0, cut);
    tokens.erase(tokens.begin(), tokens.begin() + std::ptrdiff_t(old));
    for (auto & [token, end] : tokens) {
        end -= cut;
    }
}

}  // namespace moebind
