// A grammar as a sampler: llama.cpp's language and parser, and its own automaton and masks.
//
// It differs from llama_sampler_init_grammar in what happens where that one ends the process or does not end: a token
// that the grammar forbids is refused and leaves the state as it was, nothing left to choose is an error, and time is
// bounded (grammar_steps.h). Control tokens are not text: only a rule that names the token lets one through.
#include "grammar_masks.h"
#include "grammar_state.h"
#include "grammar_trigger.h"
#include "grammars.h"
#include "shim.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace {

using namespace moebind;

// So many candidates are looked at one by one, where no mask is known: making one takes longer.
constexpr size_t few = 64;

struct grammar_sampler {
    std::shared_ptr<grammar_masks>          masks;
    std::vector<llama_token>                shown;     // hidden ones whose text counts all the same
    std::shared_ptr<const grammar_triggers> triggers;  // of a lazy one
    grammar_state                           now;
    std::string                             written;  // what of the text is there before the first token
    mutable heard_text                      heard;    // while it waits; what is asked about is in it for that time only

    // The token that was asked about last, and what it leads to: it is the one that is accepted next.
    mutable llama_token   asked = LLAMA_TOKEN_NULL;
    mutable grammar_state then;

    void reset();

    // The tokens that it lets through here; null, if that is not known yet and `only_known`.
    std::shared_ptr<const token_mask> allowed(bool only_known = false) const;

    bool knows(llama_token token) const { return token >= 0 && static_cast<size_t>(token) < masks->texts().size(); }
    const std::string & piece(llama_token token) const { return *masks->texts()[token].piece; }
    auto                kind(llama_token token) const {
        return std::find(shown.begin(), shown.end(), token) == shown.end() ? masks->texts()[token].kind : token_text::text;
    }
};

grammar_sampler & of(const llama_sampler * sampler) { return *static_cast<grammar_sampler *>(sampler->ctx); }

void grammar_sampler::reset() {
    grammar_state first;
    first.stacks  = masks->start();
    first.waiting = triggers != nullptr;
    if (first.waiting) {
        first.threads.resize(triggers->patterns.size());
    }
    if (!written.empty() && !masks->take(first, LLAMA_TOKEN_NULL, written)) {
        throw std::runtime_error("the grammar forbids what the text begins with");
    }
    now   = std::move(first);
    heard = {};
    asked = LLAMA_TOKEN_NULL;
}

std::shared_ptr<const token_mask> grammar_sampler::allowed(bool only_known) const {
    auto mask = masks->mask(now, only_known);
    if (mask == nullptr || shown.empty()) {
        return mask;
    }
    auto more = std::make_shared<token_mask>(*mask);
    for (llama_token token : shown) {
        if (masks->takes(now, token, piece(token))) {
            more->add(token);
        }
    }
    return more;
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

enum class verdict { allowed, unknown, forbidden, incomplete };

verdict verdict_of(bool taken) { return taken ? verdict::allowed : verdict::forbidden; }

// Whether a token may come, and the state after it if it may.
verdict after(const grammar_sampler & grammar, llama_token token, grammar_state & next) {
    if (!grammar.knows(token)) {
        return verdict::unknown;
    }
    const auto          kind  = grammar.kind(token);
    const std::string & piece = grammar.piece(token);
    next                      = grammar.now;
    if (next.waiting) {
        const auto & tokens = grammar.triggers->tokens;
        if (std::find(tokens.begin(), tokens.end(), token) != tokens.end()) {
            next.waiting = false;
            return verdict_of(grammar.masks->take(next, token, piece));
        }
        const heard_with   more(grammar.heard, token, piece);
        const heard_text & heard = grammar.heard;
        const size_t       start = grammar.triggers->find(heard, heard.text.size() - piece.size(), next.threads);
        if (start == std::string::npos) {
            return verdict::allowed;
        }
        next.waiting = false;
        size_t begin = 0;
        for (const auto & [id, end] : heard.tokens) {
            if (end > start) {
                const bool whole = begin >= start;
                const size_t from = whole ? begin : start;
                if (!grammar.masks->take(next, whole ? id : LLAMA_TOKEN_NULL, heard.text.substr(from, end - from))) {
                    return verdict::forbidden;
                }
            }
            begin = end;
        }
        return verdict::allowed;
    }
    if (kind == token_text::end) {
        return grammar.masks->complete(next) ? verdict::allowed : verdict::incomplete;
    }
    return verdict_of(grammar.masks->take(next, token, kind == token_text::text ? piece : std::string()));
}

[[noreturn]] void refuse(llama_token token, verdict why) {
    const std::string number = std::to_string(token);
    switch (why) {
        case verdict::unknown:
            throw std::runtime_error("token " + number + " is not in the vocabulary");
        case verdict::incomplete:
            throw std::runtime_error("the grammar's text is not complete, so that token " + number +
                                     ", which ends it, is forbidden");
        default:
            throw std::runtime_error("the grammar forbids token " + number + " here");
    }
}

[[noreturn]] void nothing_left(bool at_end) {
    throw std::runtime_error(
        at_end ? "the grammar's text is complete, and no token that ends a text is left to choose"
               : "the grammar forbids every candidate that is left: put it first in the chain, before samplers that remove "
                 "candidates");
}

const char * grammar_name(const llama_sampler *) { return "grammar"; }

// What a token leads to is then in `then`, if it is allowed.
verdict asked_about(const grammar_sampler & grammar, llama_token token) {
    if (token < 0 || grammar.asked != token) {
        grammar.asked       = LLAMA_TOKEN_NULL;
        const verdict found = after(grammar, token, grammar.then);
        if (found != verdict::allowed) {
            return found;
        }
        grammar.asked = token;
    }
    return verdict::allowed;
}

void grammar_accept(llama_sampler * sampler, llama_token token) {
    grammar_sampler & grammar = of(sampler);
    const verdict     found   = asked_about(grammar, token);
    if (found != verdict::allowed) {
        refuse(token, found);
    }
    grammar.now   = std::move(grammar.then);
    grammar.asked = LLAMA_TOKEN_NULL;
    if (grammar.now.waiting) {
        heard_text & heard = grammar.heard;
        heard.text += grammar.piece(token);
        heard.tokens.emplace_back(token, heard.text.size());
        grammar.triggers->forget(heard, grammar.now.threads);
    } else {
        grammar.heard = {};
    }
}

void grammar_apply(llama_sampler * sampler, llama_token_data_array * candidates) {
    const grammar_sampler & grammar = of(sampler);
    if (grammar.now.waiting) {
        return;
    }
    const auto   mask = grammar.allowed(candidates->size <= few);
    const size_t n    = grammar.masks->texts().size();
    bool         left = false;
    for (size_t i = 0; i < candidates->size; i++) {
        llama_token_data & candidate = candidates->data[i];
        const bool         asked     = candidate.logit > -INFINITY;  // else nobody chooses it
        const bool         known     = size_t(uint32_t(candidate.id)) < n;
        const bool         good =
            known && (mask ? mask->has(candidate.id) : asked && moebind_grammar_allows(sampler, candidate.id));
        left            = left || (good && asked);
        candidate.logit = good || !asked ? candidate.logit : -INFINITY;
    }
    if (!left) {
        nothing_left(grammar.masks->complete(grammar.now));
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

llama_sampler * moebind_sampler_grammar(moebind_grammars * grammars, const char * grammar, const char * root) {
    auto made   = std::make_unique<grammar_sampler>();
    made->masks = grammars->read(grammar, root);
    return llama_sampler_init(&grammar_interface, made.release());
}

void moebind_grammar_begin(llama_sampler * sampler) { of(sampler).reset(); }

void moebind_grammar_written(llama_sampler * sampler, const char * text) {
    of(sampler).written = text;
    of(sampler).reset();
}

void moebind_grammar_show(llama_sampler * sampler, const llama_token * tokens, size_t n_tokens) {
    grammar_sampler & grammar = of(sampler);
    for (size_t i = 0; i < n_tokens; i++) {
        const token_text & token = grammar.masks->texts().at(tokens[i]);
        if (token.kind == token_text::hidden && !token.piece->empty()) {
            grammar.shown.push_back(tokens[i]);
        }
    }
    grammar.asked = LLAMA_TOKEN_NULL;
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
    return asked_about(of(sampler), token) == verdict::allowed;
}

bool moebind_grammar_waits(const llama_sampler * sampler) { return of(sampler).now.waiting; }

llama_token moebind_grammar_likeliest(const llama_sampler * sampler, const float * logits, int32_t n) {
    const grammar_sampler & grammar = of(sampler);
    const llama_token       first   = moebind_likeliest(logits, n);
    if (logits[first] > -INFINITY && moebind_grammar_allows(sampler, first)) {
        return first;
    }
    if (grammar.now.waiting) {
        return LLAMA_TOKEN_NULL;
    }
    const auto        mask  = grammar.allowed();
    // The logits may be those of a model with another vocabulary.
    const llama_token end   = std::min(n, llama_token(grammar.masks->texts().size()));
    llama_token       found = LLAMA_TOKEN_NULL;
    float             most  = -INFINITY;
    for (llama_token token = 0; token < end; token++) {
        if (logits[token] > most && mask->has(token)) {
            most  = logits[token];
            found = token;
        }
    }
    if (found == LLAMA_TOKEN_NULL) {
        nothing_left(grammar.masks->complete(grammar.now));
    }
    return found;
}

void moebind_grammar_counted(const llama_sampler * sampler, moebind_grammar_counts * counts) {
    *counts = of(sampler).masks->counts();
}
