#include "grammar_rules.h"

#include "big_stack.h"
#include "grammar_steps.h"
#include "grammars.h"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <stdexcept>

namespace {

// The parser recurses into parentheses.
constexpr size_t nesting_max  = 1000;
// Beyond this, llama.cpp takes a repetition for one without an end.
constexpr size_t repeats_max  = 2000;
// A repetition is written out: "abc"{1000} becomes 3000 elements.
constexpr size_t elements_max = 1 << 18;
constexpr size_t token_max    = 1000;
constexpr size_t stack_size   = size_t(64) << 20;

std::string where(const std::string & text, size_t at) {
    size_t line = 1, column = 1;
    for (size_t i = 0; i < at && i < text.size(); i++) {
        column = text[i] == '\n' ? 1 : column + ((text[i] & 0xC0) != 0x80);
        line += text[i] == '\n';
    }
    return "line " + std::to_string(line) + ", column " + std::to_string(column) + ": ";
}

// Looks through the text before the parser does, for what that one would not survive or would read otherwise than it is
// written. What is malformed is left to the parser.
class scanner {
  public:
    explicit scanner(const std::string & text) : text(text) {}

    void scan() {
        size_t item   = 0;  // elements that the last item takes
        size_t nested = 0;
        while (at < text.size()) {
            const size_t start = at;
            switch (text[at++]) {
                case '#':
                    at = text.find_first_of("\r\n", at);
                    break;
                case '"':
                    item = quoted('"');
                    break;
                case '[':
                    if (at < text.size() && text[at] == '^') {
                        at++;
                    }
                    item = quoted(']');
                    if (item == 0) {
                        fail(start, "an empty class, which would match the empty text");
                    }
                    break;
                case '<':
                    at   = text.find('>', at);
                    item = 1;
                    if (at != std::string::npos && at - start > token_max) {
                        fail(start, "the text of a token has more than " + std::to_string(token_max) + " bytes");
                    }
                    break;
                case '(':
                    if (++nested > nesting_max) {
                        fail(start, "parentheses nest deeper than " + std::to_string(nesting_max));
                    }
                    break;
                case ')':
                    nested -= nested > 0;
                    item = 1;
                    break;
                case '{':
                    repetition(start, item);
                    break;
                case '.':
                    item = 1;
                    break;
                default:
                    if (std::isalnum(static_cast<unsigned char>(text[start])) || text[start] == '-') {
                        item = 1;  // the last letter of a name
                    }
            }
        }
    }

  private:
    const std::string & text;
    size_t              at       = 0;
    size_t              elements = 0;

    [[noreturn]] void fail(size_t place, const std::string & what) {
        throw std::runtime_error(where(text, place) + what);
    }

    size_t quoted(char end) {
        const size_t start = at;
        while (at < text.size() && text[at] != end) {
            at += text[at] == '\\' ? 2 : 1;
        }
        const size_t length = at - start;
        at++;
        return length;
    }

    void space() {
        while (at < text.size() && (std::isspace(static_cast<unsigned char>(text[at])) || text[at] == '#')) {
            at = text[at] == '#' ? text.find_first_of("\r\n", at) : at + 1;
        }
    }

    size_t number(size_t start, size_t otherwise) {
        space();
        size_t value = 0;
        bool   found = false;
        for (; at < text.size() && std::isdigit(static_cast<unsigned char>(text[at])); at++) {
            value = value * 10 + (text[at] - '0');
            found = true;
            if (value > repeats_max) {
                fail(start, "more than " + std::to_string(repeats_max) + " repetitions");
            }
        }
        space();
        return found ? value : otherwise;
    }

    void repetition(size_t start, size_t item) {
        const size_t least = number(start, 0);
        size_t       most  = least;
        if (at < text.size() && text[at] == ',') {
            at++;
            most = number(start, repeats_max + 1);
        }
        if (most < least) {
            fail(start, "a repetition {m,n} with m > n");
        }
        elements += item * (most > repeats_max ? least + 1 : most);
        if (elements > elements_max) {
            fail(start, "the repetitions make the grammar too large");
        }
    }
};

// The parser ends its messages with all of the text that follows the error.
std::string with_place(const std::string & message, const std::string & text) {
    const size_t cut = message.find(" at ");
    if (cut == std::string::npos) {
        return message;
    }
    const std::string rest = message.substr(cut + 4);
    if (rest.size() > text.size() || text.compare(text.size() - rest.size(), rest.size(), rest) != 0) {
        return message;
    }
    return where(text, text.size() - rest.size()) + message.substr(0, cut);
}

bool ends(const llama_grammar_element & element) {
    return element.type == LLAMA_GRETYPE_END || element.type == LLAMA_GRETYPE_ALT;
}

std::string name_of(const llama_grammar_parser & parser, size_t rule) {
    for (const auto & [name, id] : parser.symbol_ids) {
        if (id == rule) {
            return name;
        }
    }
    return std::to_string(rule);
}

void check_defined(const llama_grammar_parser & parser, uint32_t n_vocab) {
    const auto & rules = parser.rules;
    for (size_t i = 0; i < rules.size(); i++) {
        if (rules[i].empty()) {
            throw std::runtime_error("the rule '" + name_of(parser, i) + "' is used, but not defined");
        }
        for (const auto & element : rules[i]) {
            if (element.type == LLAMA_GRETYPE_RULE_REF &&
                (element.value >= rules.size() || rules[element.value].empty())) {
                throw std::runtime_error("the rule '" + name_of(parser, element.value) + "' is used, but not defined");
            }
            if ((element.type == LLAMA_GRETYPE_TOKEN || element.type == LLAMA_GRETYPE_TOKEN_NOT) &&
                element.value >= n_vocab) {
                throw std::runtime_error("there is no token " + std::to_string(element.value));
            }
        }
    }
}

// Which rules can be empty, also by way of others.
std::vector<bool> find_nullable(const llama_grammar_rules & rules) {
    struct alternate {
        size_t rule;
        size_t missing;  // references not yet known to be empty
    };
    std::vector<alternate>           alternates;
    std::vector<std::vector<size_t>> used_in(rules.size());
    std::vector<size_t>              todo;
    for (size_t i = 0; i < rules.size(); i++) {
        std::vector<size_t> references;
        bool                terminals = false;
        for (const auto & element : rules[i]) {
            if (ends(element)) {
                if (!terminals) {
                    for (size_t reference : references) {
                        used_in[reference].push_back(alternates.size());
                    }
                    if (references.empty()) {
                        todo.push_back(alternates.size());
                    }
                    alternates.push_back({ i, references.size() });
                }
                references.clear();
                terminals = false;
            } else if (element.type == LLAMA_GRETYPE_RULE_REF) {
                references.push_back(element.value);
            } else {
                terminals = true;
            }
        }
    }
    std::vector<bool> nullable(rules.size());
    while (!todo.empty()) {
        const size_t rule = alternates[todo.back()].rule;
        todo.pop_back();
        if (nullable[rule]) {
            continue;
        }
        nullable[rule] = true;
        for (size_t user : used_in[rule]) {
            if (--alternates[user].missing == 0) {
                todo.push_back(user);
            }
        }
    }
    return nullable;
}

// A reference with which a rule can begin.
struct beginning {
    size_t rule;
    bool   harmless;  // behind something, and last: "a"* may be repeated, since a stack that is opened does not grow
};

// Which rules lead to each other and back: they get the same number (Tarjan, without recursion).
std::vector<size_t> find_circles(const std::vector<std::vector<beginning>> & first) {
    const size_t        n = first.size();
    std::vector<size_t> circle(n, SIZE_MAX), order(n, SIZE_MAX), lowest(n), open;
    size_t              seen = 0;
    for (size_t i = 0; i < n; i++) {
        std::vector<std::pair<size_t, size_t>> path;  // rule, and which of its references comes next
        if (order[i] == SIZE_MAX) {
            path.emplace_back(i, 0);
        }
        while (!path.empty()) {
            const auto [rule, next] = path.back();
            if (next == 0) {
                order[rule] = lowest[rule] = seen++;
                open.push_back(rule);
            }
            if (next < first[rule].size()) {
                path.back().second++;
                const size_t other = first[rule][next].rule;
                if (order[other] == SIZE_MAX) {
                    path.emplace_back(other, 0);
                } else if (circle[other] == SIZE_MAX) {
                    lowest[rule] = std::min(lowest[rule], order[other]);
                }
                continue;
            }
            path.pop_back();
            if (!path.empty()) {
                lowest[path.back().first] = std::min(lowest[path.back().first], lowest[rule]);
            }
            if (lowest[rule] == order[rule]) {
                size_t member;
                do {
                    member = open.back();
                    open.pop_back();
                    circle[member] = rule;
                } while (member != rule);
            }
        }
    }
    return circle;
}

// A rule that begins with itself, also behind what can be empty, would never reach a character.
void check_left_recursion(const llama_grammar_parser & parser) {
    const auto &                        rules    = parser.rules;
    const std::vector<bool>             nullable = find_nullable(rules);
    std::vector<std::vector<beginning>> first(rules.size());
    for (size_t i = 0; i < rules.size(); i++) {
        bool open = true, begun = false;
        for (size_t j = 0; j < rules[i].size(); j++) {
            const auto & element = rules[i][j];
            if (ends(element)) {
                open  = true;
                begun = false;
            } else if (open && element.type == LLAMA_GRETYPE_RULE_REF) {
                first[i].push_back({ element.value, begun && ends(rules[i][j + 1]) });
                open  = nullable[element.value];
                begun = true;
            } else {
                open = false;
            }
        }
    }
    const auto circle = find_circles(first);
    for (size_t i = 0; i < rules.size(); i++) {
        for (const beginning & each : first[i]) {
            if (!each.harmless && circle[i] == circle[each.rule]) {
                throw std::runtime_error("the rule '" + name_of(parser, each.rule) +
                                         "' begins with itself (left recursion): let it begin with something else");
            }
        }
    }
}

}  // namespace

std::shared_ptr<const moebind::grammar_rules> moebind::read_grammar(const llama_vocab * vocab, const std::string & text,
                                                                    const std::string & root) {
    scanner(text).scan();
    auto result = std::make_shared<grammar_rules>();
    on_big_stack(stack_size, [&]() {
        llama_grammar_parser parser(vocab);
        try {
            // As llama_grammar_parser::parse does it, which writes errors to standard error.
            const char * at = text.c_str();
            while (*at != 0 && std::strchr(" \t\r\n#", *at) != nullptr) {
                at += *at == '#' ? std::strcspn(at, "\r\n") : 1;
            }
            while (*at != 0) {
                at = parser.parse_rule(at);
            }
        } catch (const std::exception & error) {
            throw std::runtime_error(with_place(error.what(), text));
        }
        const auto found = parser.symbol_ids.find(root);
        if (found == parser.symbol_ids.end() || found->second >= parser.rules.size() ||
            parser.rules[found->second].empty()) {
            throw std::runtime_error("there is no rule '" + root + "'");
        }
        check_defined(parser, vocab == nullptr ? UINT32_MAX : uint32_t(llama_vocab_n_tokens(vocab)));
        check_left_recursion(parser);
        result->rules = std::move(parser.rules);
        result->names = parser.symbol_ids;
        // A rule of which the root is the only element: what it can begin with.
        const llama_grammar_element begin[] = { { LLAMA_GRETYPE_RULE_REF, found->second }, { LLAMA_GRETYPE_END, 0 } };
        grammar_steps               steps(result->rules);
        for (uint32_t id : steps.expand({ begin })) {
            result->start.push_back(steps.stack(id));
        }
        if (result->start.empty()) {
            throw std::runtime_error("the rule '" + root + "' describes no text");
        }
    });
    return result;
}

void moebind_grammar_check(const char * grammar, const char * root) { moebind::read_grammar(nullptr, grammar, root); }
