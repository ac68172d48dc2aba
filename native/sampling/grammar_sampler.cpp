// A grammar as a sampler: llama.cpp's language and parser, and its own steps.
//
// It differs from llama_sampler_init_grammar in what happens where that one ends the process or does not end: a token
// that the grammar forbids is refused and leaves the state as it was, nothing left to choose is an error, and time is
// bounded (grammar_steps.h). Control tokens are not text: only a rule that names the token lets one through.
#include "grammar_rules.h"
#include "grammar_state.h"
#include "grammar_steps.h"
#include "grammar_tokens.h"
#include "grammar_trigger.h"
#include "shim.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <unordered_set>

namespace {

using namespace moebind;

struct grammar_sampler {
    std::shared_ptr<const token_texts>      tokens;
    std::shared_ptr<const grammar_rules>    rules;
    std::shared_ptr<const grammar_triggers> triggers;  // of a lazy one
    grammar_state                           now;
    std::string                             written;  // what of the text is there before the first token
    mutable heard_text                      heard;    // while it waits; what is asked about is in it for that time only

    // The token that was asked about last, and what it leads to: it is the one that is accepted next.
    mutable llama_token   asked = LLAMA_TOKEN_NULL;
    mutable grammar_state then;

    void reset();
};

grammar_sampler & of(const llama_sampler * sampler) { return *static_cast<grammar_sampler *>(sampler->ctx); }

void grammar_sampler::reset() {
    grammar_state first;
    first.stacks  = rules->start;
    first.waiting = triggers != nullptr;
    if (first.waiting) {
        first.threads.resize(triggers->patterns.size());
    }
    if (!written.empty()) {
        grammar_steps steps(rules->rules);
        take(first, steps, LLAMA_TOKEN_NULL, written);
    }
    now   = std::move(first);
    heard = {};
    asked = LLAMA_TOKEN_NULL;
}

// A text with a token more, as long as this lives.
class heard_with {
  public:
    heard_with(heard_text & heard, llama_token token, const std::string & piece) : heard(heard), size(heard.text.size()) {
        heard.tokens.emplace_back(token, size + piece.size());
        heard.text += piece;
    }
    ~heard_with() {
        heard.text.resize(size);
        heard.tokens.pop_back();
    }
    heard_with(const heard_with &)             = delete;
    heard_with & operator=(const heard_with &) = delete;

  private:
    heard_text & heard;
    const size_t size;
};

// The state after a token; throws a rejection.
grammar_state after(const grammar_sampler & grammar, llama_token token) {
    if (token < 0 || static_cast<size_t>(token) >= grammar.tokens->size()) {
        throw rejection("token " + std::to_string(token) + " is not in the vocabulary");
    }
    const auto [kind, text]   = (*grammar.tokens)[token];
    const std::string & piece = *text;
    grammar_state       next  = grammar.now;
    grammar_steps       steps(grammar.rules->rules);
    if (next.waiting) {
        const auto & tokens = grammar.triggers->tokens;
        if (std::find(tokens.begin(), tokens.end(), token) != tokens.end()) {
            next.waiting = false;
            take(next, steps, token, piece);
            return next;
        }
        const heard_with   more(grammar.heard, token, piece);
        const heard_text & heard = grammar.heard;
        const size_t       start = grammar.triggers->find(heard, heard.text.size() - piece.size(), next.threads);
        if (start == std::string::npos) {
            return next;
        }
        next.waiting = false;
        size_t begin = 0;
        for (const auto & [id, end] : heard.tokens) {
            if (end > start) {
                const bool whole = begin >= start;
                const size_t from = whole ? begin : start;
                take(next, steps, whole ? id : LLAMA_TOKEN_NULL, heard.text.substr(from, end - from));
            }
            begin = end;
        }
        return next;
    }
    if (kind == token_text::end) {
        if (!complete(next)) {
            throw rejection("the grammar's text is not complete, so that token " + std::to_string(token) +
                            ", which ends it, is forbidden");
        }
        return next;
    }
    take(next, steps, token, kind == token_text::text ? piece : std::string());
    return next;
}

// Which of the candidates the grammar lets through, all of them walking through the grammar side by side.
class filter {
  public:
    filter(const grammar_sampler & grammar, llama_token_data_array & candidates) :
        now(grammar.now), tokens(*grammar.tokens), candidates(candidates), steps(grammar.rules->rules) {}

    void apply() {
        const bool at_end = complete(now);
        for (const auto & stack : now.stacks) {
            if (!stack.empty()) {
                (is_token_rule(stack.back()) ? token_rules : first).push_back(steps.intern(stack));
            }
        }
        for (size_t i = 0; i < candidates.size; i++) {
            llama_token_data & candidate = candidates.data[i];
            if (!(candidate.logit > -INFINITY)) {
                continue;  // nobody chooses it
            }
            const bool known = candidate.id >= 0 && static_cast<size_t>(candidate.id) < tokens.size();
            const auto kind  = known ? tokens[candidate.id].kind : token_text::hidden;
            if (known && (kind == token_text::end ? at_end : named(candidate.id))) {
                n_allowed++;
            } else if (kind != token_text::text || !add(i, *tokens[candidate.id].piece)) {
                candidate.logit = -INFINITY;
            }
        }
        walk();
        for (const auto & item : items) {
            if (item.allowed) {
                n_allowed++;
            } else {
                candidates.data[item.index].logit = -INFINITY;
            }
        }
        if (n_allowed == 0) {
            throw std::runtime_error(
                at_end ? "the grammar's text is complete, and no token that ends a text is left to choose"
                       : "the grammar forbids every candidate that is left: put it first in the chain, before samplers "
                         "that remove candidates");
        }
    }

  private:
    struct item {
        uint32_t     index;
        bool         allowed;
        uint32_t     level;  // in which it was read last
        character    read;
        const char * end;
    };

    // Candidates that have come equally far. Many stacks may share one.
    using list = std::shared_ptr<const std::vector<uint32_t>>;

    // What was found out about a list in this level.
    struct steps_from {
        std::unordered_map<uint64_t, list>                  after;  // by terminal
        std::unordered_map<uint32_t, std::vector<uint32_t>> by_character;
        std::vector<uint32_t>                               unfinished;
    };

    const grammar_state &                     now;
    const token_texts &                       tokens;
    llama_token_data_array &                  candidates;
    grammar_steps                             steps;
    std::vector<uint32_t>                     first;        // stacks that go on with a character
    std::vector<uint32_t>                     token_rules;  // and with a token
    std::vector<item>                         items;
    std::deque<std::string>                   texts;                   // that do not lie in the vocabulary
    std::vector<const llama_grammar_element *> beginnings;             // the terminals of the first, each once
    char                                      begins_with[128] = {};  // whether one of them has it, where asked
    size_t                                    n_allowed        = 0;

    bool named(llama_token id) const {
        return now.unfinished.empty() && std::any_of(token_rules.begin(), token_rules.end(), [&](uint32_t rule) {
                   return matches_token(steps.stack(rule).back(), id);
               });
    }

    // Terminals with the same number match the same: one character has its own, a class that of its place.
    static uint64_t number(const llama_grammar_element * terminal) {
        const auto behind = terminal[1].type;
        const bool single = terminal->type == LLAMA_GRETYPE_CHAR && behind != LLAMA_GRETYPE_CHAR_ALT &&
                            behind != LLAMA_GRETYPE_CHAR_RNG_UPPER;
        return single ? uint64_t(1) << 63 | terminal->value : reinterpret_cast<uint64_t>(terminal);
    }

    static bool is_single(uint64_t number) { return number >> 63 != 0; }

    bool begins(const character & read) {
        if (beginnings.empty()) {
            std::unordered_set<uint64_t> seen;
            for (uint32_t id : first) {
                if (seen.insert(number(steps.stack(id).back())).second) {
                    beginnings.push_back(steps.stack(id).back());
                }
            }
        }
        const bool ascii = read.kind == character::whole && read.low < sizeof(begins_with);
        if (ascii && begins_with[read.low] != 0) {
            return begins_with[read.low] > 0;
        }
        steps.work(beginnings.size());
        const bool found = read.kind != character::invalid &&
                           std::any_of(beginnings.begin(), beginnings.end(),
                                       [&](const auto * terminal) { return matches(terminal, read); });
        if (ascii) {
            begins_with[read.low] = found ? 1 : -1;
        }
        return found;
    }

    // False if already its first character is forbidden.
    bool add(size_t i, const std::string & piece) {
        const std::string & text = now.unfinished.empty() ? piece : texts.emplace_back(now.unfinished + piece);
        const char *        end  = text.data() + text.size();
        const character     read = read_character(text.data(), end);
        if (first.empty() || !begins(read)) {
            return false;
        }
        items.push_back({ uint32_t(i), false, 0, read, end });
        return true;
    }

    // All candidates go through the grammar side by side, a character at a time.
    void walk() {
        auto all = std::make_shared<std::vector<uint32_t>>(items.size());
        for (uint32_t i = 0; i < items.size(); i++) {
            (*all)[i] = i;
        }
        std::unordered_map<uint32_t, std::vector<list>> here, next;
        for (uint32_t id : first) {
            here[id].push_back(all);
        }
        for (uint32_t level = 0; !here.empty() && !items.empty(); level++) {
            std::unordered_map<const void *, steps_from> known;
            std::vector<list>                            merged;  // lives as long as what is known of it
            next.clear();
            for (auto & [id, lists] : here) {
                const grammar_stack & stack = steps.stack(id);
                if (stack.empty() || is_token_rule(stack.back()) || steps.after(id).empty()) {
                    continue;
                }
                if (lists.size() > 1) {
                    lists = { merge(lists) };
                }
                merged.push_back(lists[0]);
                const list matched = step(level, lists[0], known[lists[0].get()], stack.back());
                if (!matched->empty()) {
                    for (uint32_t follower : steps.after(id)) {
                        auto & others = next[follower];
                        if (std::find(others.begin(), others.end(), matched) == others.end()) {
                            others.push_back(matched);
                        }
                        steps.work(1);
                    }
                }
            }
            std::swap(here, next);
        }
    }

    // Several ways may lead to one stack, each with some of the candidates.
    list merge(const std::vector<list> & lists) {
        auto whole = std::make_shared<std::vector<uint32_t>>();
        for (const list & each : lists) {
            steps.work(each->size());
            whole->insert(whole->end(), each->begin(), each->end());
        }
        std::sort(whole->begin(), whole->end());
        whole->erase(std::unique(whole->begin(), whole->end()), whole->end());
        return whole;
    }

    const character & read(uint32_t level, item & candidate) {
        if (candidate.level != level) {
            candidate.read  = read_character(candidate.read.next, candidate.end);
            candidate.level = level;
        }
        return candidate.read;
    }

    // Which of these candidates go on behind a terminal; those that end there are allowed.
    list step(uint32_t level, const list & from, steps_from & known, const llama_grammar_element * terminal) {
        const uint64_t key   = number(terminal);
        const auto     found = known.after.find(key);
        if (found != known.after.end()) {
            return found->second;
        }
        auto       matched = std::make_shared<std::vector<uint32_t>>();
        const auto look_at = [&](const std::vector<uint32_t> & some) {
            char answers[128] = {};  // for ASCII, which is asked again and again
            steps.work(some.size());
            for (uint32_t i : some) {
                item & candidate = items[i];
                if (candidate.allowed) {
                    continue;
                }
                const character & now_read = read(level, candidate);
                if (now_read.kind == character::whole && now_read.low < sizeof(answers)) {
                    char & answer = answers[now_read.low];
                    if (answer == 0) {
                        answer = matches(terminal, now_read) ? 1 : -1;
                    }
                    if (answer < 0) {
                        continue;
                    }
                } else if (now_read.kind == character::invalid || !matches(terminal, now_read)) {
                    continue;
                }
                if (now_read.next == candidate.end) {
                    candidate.allowed = true;
                } else {
                    matched->push_back(i);
                }
            }
        };
        // Sorting the candidates by character pays when many single ones are asked for: a list of words.
        if (is_single(key) && known.after.size() >= 4) {
            if (known.by_character.empty() && known.unfinished.empty()) {
                steps.work(from->size());
                for (uint32_t i : *from) {
                    const character & one = read(level, items[i]);
                    (one.low == one.high ? known.by_character[one.low] : known.unfinished).push_back(i);
                }
            }
            const auto some = known.by_character.find(terminal->value);
            if (some != known.by_character.end()) {
                look_at(some->second);
            }
            look_at(known.unfinished);
        } else {
            look_at(*from);
        }
        return known.after[key] = std::move(matched);
    }
};

const char * grammar_name(const llama_sampler *) { return "grammar"; }

const grammar_state & asked_about(const grammar_sampler & grammar, llama_token token) {
    if (token < 0 || grammar.asked != token) {
        grammar.asked = LLAMA_TOKEN_NULL;
        grammar.then  = after(grammar, token);
        grammar.asked = token;
    }
    return grammar.then;
}

void grammar_accept(llama_sampler * sampler, llama_token token) {
    grammar_sampler & grammar = of(sampler);
    asked_about(grammar, token);
    grammar.now   = std::move(grammar.then);
    grammar.asked = LLAMA_TOKEN_NULL;
    if (grammar.now.waiting) {
        heard_text & heard = grammar.heard;
        heard.text += *(*grammar.tokens)[token].piece;
        heard.tokens.emplace_back(token, heard.text.size());
        grammar.triggers->forget(heard, grammar.now.threads);
    } else {
        grammar.heard = {};
    }
}

void grammar_apply(llama_sampler * sampler, llama_token_data_array * candidates) {
    if (!of(sampler).now.waiting) {
        filter(of(sampler), *candidates).apply();
    }
}

void grammar_reset(llama_sampler * sampler) { of(sampler).reset(); }

void grammar_free(llama_sampler * sampler) { delete &of(sampler); }

llama_sampler * grammar_clone(const llama_sampler * sampler) {
    return llama_sampler_init(sampler->iface, new grammar_sampler(of(sampler)));
}
llama_sampler_i grammar_interface = [] {
    llama_sampler_i functions = {};
    functions.name            = grammar_name;
    functions.accept          = grammar_accept;
    functions.apply           = grammar_apply;
    functions.reset           = grammar_reset;
    functions.clone           = grammar_clone;
    functions.free            = grammar_free;
    return functions;
}();

}  // namespace

llama_sampler * moebind_sampler_grammar(const llama_vocab * vocab, const char * grammar, const char * root) {
    auto rules = read_grammar(vocab, grammar, root);
    return llama_sampler_init(&grammar_interface,
                              new grammar_sampler{ read_tokens(*vocab), std::move(rules), nullptr, {}, {}, {}, LLAMA_TOKEN_NULL, {} });
}

void moebind_grammar_begin(llama_sampler * sampler) { of(sampler).reset(); }

void moebind_grammar_written(llama_sampler * sampler, const char * text) {
    of(sampler).written = text;
    of(sampler).reset();
}

void moebind_grammar_show(llama_sampler * sampler, const llama_token * tokens, size_t n_tokens) {
    auto texts = std::make_shared<token_texts>(*of(sampler).tokens);
    for (size_t i = 0; i < n_tokens; i++) {
        auto & [kind, piece] = texts->at(tokens[i]);
        if (kind == token_text::hidden && !piece->empty()) {
            kind = token_text::text;
        }
    }
    of(sampler).tokens = std::move(texts);
    of(sampler).asked  = LLAMA_TOKEN_NULL;
}

void moebind_grammar_wait(llama_sampler * sampler, const char ** words, size_t n_words, const char ** patterns,
                          size_t n_patterns, const llama_token * tokens, size_t n_tokens) {
    auto triggers = std::make_shared<grammar_triggers>();
    triggers->words.assign(words, words + n_words);
    triggers->tokens.assign(tokens, tokens + n_tokens);
    triggers->compile({ patterns, patterns + n_patterns });
    of(sampler).triggers = std::move(triggers);
    of(sampler).reset();
}

bool moebind_grammar_allows(const llama_sampler * sampler, llama_token token) {
    try {
        asked_about(of(sampler), token);
        return true;
    } catch (const rejection &) {
        return false;
    }
}

bool moebind_grammar_waits(const llama_sampler * sampler) { return of(sampler).now.waiting; }
