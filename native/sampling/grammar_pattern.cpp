#include "grammar_pattern.h"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <iterator>
#include <stdexcept>

namespace moebind {

namespace {

// std::regex backtracks without a limit. It moves over text through iterators, and these count: a search may take so many
// steps, about 30 ms, and in a long text four for each byte. That takes a stack of at most 240 MiB.
constexpr size_t steps_least = 400 * 1000;
constexpr size_t steps_most  = 1600 * 1000;

struct counter {
    size_t * steps;
    size_t   most;
};

class counted {
  public:
    using iterator_category = std::bidirectional_iterator_tag;
    using value_type        = char;
    using difference_type   = std::ptrdiff_t;
    using pointer           = const char *;
    using reference         = const char &;

    counted() = default;
    counted(const char * at, const counter * steps) : at(at), steps(steps) {}

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

    const char * at = nullptr;

  private:
    const counter * steps = nullptr;

    void count() const {
        if (++*steps->steps > steps->most) {
            throw std::runtime_error("a trigger pattern takes too long on the text so far: write it simpler");
        }
    }
};

}  // namespace

// Reads a pattern that std::regex has taken, and makes the automaton from its end: what a part leads to is there already.
class grammar_pattern::reader {
  public:
    explicit reader(grammar_pattern & made) : made(made), text(made.pattern) {}

    void read() {
        const part all = choice();
        if (at != text.size()) {
            throw unknown();
        }
        made.nodes.push_back({ node::accept });
        made.entry = write(all, 0);
    }

    struct unknown {};

  private:
    struct part {
        enum { bytes, sequence, choice, some, any, maybe, begin, end, look } kind;
        uint32_t          set = 0;
        std::vector<part> parts;
    };

    grammar_pattern &   made;
    const std::string & text;
    size_t              at    = 0;
    size_t              looks = 0;  // lookaheads that are open

    bool takes(const char * what) {
        const size_t size = std::strlen(what);
        if (text.compare(at, size, what) != 0) {
            return false;
        }
        at += size;
        return true;
    }

    part choice() {
        part found{ part::choice };
        do {
            part sequence{ part::sequence };
            while (at < text.size() && text[at] != '|' && text[at] != ')') {
                sequence.parts.push_back(repeated(atom()));
            }
            found.parts.push_back(std::move(sequence));
        } while (takes("|"));
        return found;
    }

    part atom() {
        if (takes("^")) {
            return { part::begin };
        }
        if (takes("$")) {
            if (looks > 0) {
                throw unknown();
            }
            return { part::end };
        }
        if (takes("(")) {
            const bool look = takes("?=") || takes("?!");
            looks += look;
            if (!look) {
                takes("?:");
            }
            part inner = choice();
            looks -= look;
            if (!takes(")")) {
                throw unknown();
            }
            return look ? part{ part::look, 0, { std::move(inner) } } : inner;
        }
        const size_t from = at++;
        if (text[from] == '[') {
            end_of_class();
        } else if (text[from] == '\\') {
            end_of_escape();
        }
        return { part::bytes, set_of(text.substr(from, at - from)) };
    }

    void end_of_class() {
        while (at < text.size() && text[at] != ']') {
            const char inner = at + 1 < text.size() ? text[at + 1] : '\0';
            if (text[at] == '[' && (inner == ':' || inner == '.' || inner == '=')) {
                at = text.find(std::string{ inner, ']' }, at + 2);
                if (at == std::string::npos) {
                    throw unknown();
                }
                at += 2;
            } else {
                at += text[at] == '\\' ? 2 : 1;
            }
        }
        if (++at > text.size()) {
            throw unknown();
        }
    }

    void end_of_escape() {
        const char what = at < text.size() ? text[at++] : 'b';
        if (what == 'b' || what == 'B' || (what >= '1' && what <= '9')) {
            throw unknown();
        }
        at += what == 'x' ? 2 : what == 'u' ? 4 : what == 'c' ? 1 : 0;
    }

    // The bytes that a part of the pattern takes, which std::regex says itself.
    uint32_t set_of(const std::string & written) {
        std::bitset<256> set;
        if (written.size() == 1 && written != ".") {
            set.set(static_cast<unsigned char>(written[0]));
        } else {
            const std::regex single(written);
            for (size_t byte = 0; byte < set.size(); byte++) {
                set[byte] = std::regex_match(std::string(1, static_cast<char>(byte)), single);
            }
        }
        made.sets.push_back(set);
        return static_cast<uint32_t>(made.sets.size() - 1);
    }

    part repeated(part inner) {
        decltype(part::kind) kind;
        if (takes("*")) {
            kind = part::any;
        } else if (takes("+")) {
            kind = part::some;
        } else if (takes("?")) {
            kind = part::maybe;
        } else if (takes("{")) {
            kind = text[at] == '0' ? part::any : part::some;
            at   = text.find('}', at);
            if (at++ == std::string::npos) {
                throw unknown();
            }
        } else {
            return inner;
        }
        takes("?");
        if (inner.kind == part::look || inner.kind == part::begin || inner.kind == part::end) {
            throw unknown();
        }
        return part{ kind, 0, { std::move(inner) } };
    }

    uint32_t add(node made_now) {
        made.nodes.push_back(made_now);
        return static_cast<uint32_t>(made.nodes.size() - 1);
    }

    // The node that a part begins with, if it leads to `next`.
    uint32_t write(const part & given, uint32_t next) {
        switch (given.kind) {
            case part::bytes: return add({ node::bytes, next, given.set });
            case part::begin: return add({ node::begin, next });
            case part::end: return add({ node::end, next });
            case part::sequence:
                for (auto each = given.parts.rbegin(); each != given.parts.rend(); ++each) {
                    next = write(*each, next);
                }
                return next;
            case part::choice: {
                uint32_t first = write(given.parts[0], next);
                for (size_t i = 1; i < given.parts.size(); i++) {
                    first = add({ node::either, first, write(given.parts[i], next) });
                }
                return first;
            }
            // What a lookahead asks for may come later than the rest of the match.
            case part::look: return add({ node::either, next, write(given.parts[0], 0) });
            case part::maybe: return add({ node::either, next, write(given.parts[0], next) });
            case part::any:
            case part::some: {
                const uint32_t loop = add({ node::either, next });
                const uint32_t body = write(given.parts[0], loop);
                made.nodes[loop].other = body;
                return given.kind == part::any ? loop : body;
            }
        }
        throw unknown();
    }
};

// The automaton at one place of the text.
class grammar_pattern::run {
  public:
    explicit run(const grammar_pattern & pattern) : pattern(pattern), starts(pattern.nodes.size(), std::string::npos) {}

    size_t first = std::string::npos;  // where something begins that may match

    // Comes to a node, and to those behind it that take no byte.
    void enter(uint32_t id, size_t start, bool at_begin) {
        todo.push_back(id);
        while (!todo.empty()) {
            const uint32_t now = todo.back();
            todo.pop_back();
            if (starts[now] <= start) {
                continue;
            }
            if (starts[now] == std::string::npos) {
                reached.push_back(now);
            }
            starts[now]        = start;
            const node & found = pattern.nodes[now];
            switch (found.kind) {
                case node::accept: first = std::min(first, start); break;
                case node::begin:
                    if (at_begin) {
                        todo.push_back(found.next);
                    }
                    break;
                case node::either:
                    todo.push_back(found.next);
                    todo.push_back(found.other);
                    break;
                case node::end:
                    if (at_end) {
                        todo.push_back(found.next);
                    }
                    break;
                case node::bytes: break;
            }
        }
    }

    // Takes a byte; all that is left are the nodes behind it.
    void step(unsigned char byte) {
        const pattern_threads before = threads();
        for (uint32_t id : reached) {
            starts[id] = std::string::npos;
        }
        reached.clear();
        for (const auto & [id, start] : before) {
            const node & from = pattern.nodes[id];
            if (from.kind == node::bytes && pattern.sets[from.other][byte]) {
                enter(from.next, start, false);
            }
        }
    }

    // The text ends here, for now.
    void end(bool at_begin) {
        at_end = true;
        for (const auto & [id, start] : threads()) {
            if (pattern.nodes[id].kind == node::end) {
                enter(pattern.nodes[id].next, start, at_begin);
            }
        }
    }

    // Where it goes on from.
    pattern_threads threads() const {
        pattern_threads found;
        for (uint32_t id : reached) {
            const auto kind = pattern.nodes[id].kind;
            if (kind == node::bytes || kind == node::end) {
                found.emplace_back(id, starts[id]);
            }
        }
        return found;
    }

  private:
    const grammar_pattern & pattern;
    std::vector<size_t>     starts;  // by node
    std::vector<uint32_t>   reached;
    std::vector<uint32_t>   todo;
    bool                    at_end = false;
};

grammar_pattern::grammar_pattern(const std::string & pattern) : pattern(pattern), compiled(pattern) {
    try {
        reader(*this).read();
    } catch (const reader::unknown &) {
        nodes.clear();
    }
}

size_t grammar_pattern::read(pattern_threads & threads, const std::string & text, size_t from, size_t before) const {
    run now(*this);
    for (const auto & [id, start] : threads) {
        now.enter(id, start, false);
    }
    for (size_t at = from; at < text.size(); at++) {
        now.enter(entry, before + at, before + at == 0);
        now.step(static_cast<unsigned char>(text[at]));
    }
    const size_t end = before + text.size();
    now.enter(entry, end, end == 0);
    threads = now.threads();
    now.end(end == 0);
    return now.first;
}

size_t grammar_pattern::search(const std::string & text, size_t start, size_t before, size_t & steps) const {
    const counter limit{ &steps, std::min(steps_least + 4 * text.size(), steps_most) };
    const counted begin(text.data() + (start - before), &limit), end(text.data() + text.size(), &limit);
    std::match_results<counted> match;
    // As llama.cpp: from ^ to $, a pattern is compared with the whole text first.
    const bool anchored = start == 0 && pattern.front() == '^' && pattern.back() == '$';
    if (!(anchored && std::regex_match(begin, end, match, compiled))) {
        const auto flags = start == 0 ? std::regex_constants::match_default : std::regex_constants::match_not_bol;
        if (!std::regex_search(begin, end, match, compiled, flags)) {
            return std::string::npos;
        }
    }
    // As llama.cpp: the grammar begins with the first group that matched something, or else with the match.
    size_t group = 1;
    while (group < match.size() && match.length(group) == 0) {
        group++;
    }
    return before + static_cast<size_t>(match[group < match.size() ? group : 0].first.at - text.data());
}

}  // namespace moebind
