#include "grammar_masks.h"

#include <algorithm>

namespace moebind {

namespace {

// What a grammar may keep of what it has found out; then it begins anew.
constexpr size_t size_max   = size_t(16) << 20;
// Grammars that a model keeps, though no sampler has them.
constexpr size_t recent_max = 4;
// A mask is more than its bits.
constexpr size_t mask_extra = 100;

}  // namespace

grammar_masks::grammar_masks(std::shared_ptr<const grammar_rules> rules, std::shared_ptr<const grammar_tokens> tokens) :
    rules(std::move(rules)), tokens(std::move(tokens)) {
    forget();
}

void grammar_masks::forget() {
    masks.clear();
    automaton = std::make_unique<grammar_automaton>(rules->rules);
}

size_t grammar_masks::size() const {
    return automaton->size() + masks.size() * ((tokens->texts.size() + 63) / 64 * 8 + mask_extra);
}

// What fails has not found out everything: it is to fail again.
template <class Use> auto grammar_masks::use(const Use & what) {
    std::lock_guard<std::mutex> held(lock);
    if (size() > size_max) {
        forget();
    }
    automaton->begin();
    try {
        return what();
    } catch (...) {
        forget();
        throw;
    }
}

bool grammar_masks::take(grammar_state & at, llama_token token, const std::string & piece) {
    return use([&]() { return moebind::take(at, *automaton, token, piece); });
}

bool grammar_masks::takes(const grammar_state & at, llama_token token, const std::string & piece) {
    grammar_state copy;
    copy.stacks     = at.stacks;
    copy.unfinished = at.unfinished;
    return take(copy, token, piece);
}

bool grammar_masks::complete(const grammar_state & at) {
    return at.unfinished.empty() && use([&]() { return automaton->complete(automaton->at(at.stacks)); });
}

std::shared_ptr<const token_mask> grammar_masks::mask(const grammar_state & at, bool only_known) {
    return use([&]() {
        const auto from = automaton->at(at.stacks);
        uint64_t   key  = from;
        for (size_t i = 0; i < 3; i++) {  // an unfinished character has three bytes at most, and none of them is zero
            key = key << 8 | (i < at.unfinished.size() ? uint8_t(at.unfinished[i]) : 0);
        }
        const auto known = masks.find(key);
        if (known != masks.end()) {
            counted.found++;
            return known->second;
        }
        if (only_known) {
            return std::shared_ptr<const token_mask>();
        }
        counted.made++;
        return masks[key] = std::make_shared<const token_mask>(find(from, at.unfinished));
    });
}

moebind_grammar_counts grammar_masks::counts() const {
    std::lock_guard<std::mutex> held(lock);
    moebind_grammar_counts      now = counted;
    now.bytes                       = size();
    return now;
}

token_mask grammar_masks::find(grammar_automaton::place from, const std::string & unfinished) {
    const token_texts & texts = tokens->texts;
    token_mask          mask(texts.size());
    walk(from, unfinished, mask);
    if (!unfinished.empty()) {
        return mask;
    }
    for (const llama_grammar_element * rule : automaton->token_rules(from)) {
        const bool   single = rule->type == LLAMA_GRETYPE_TOKEN;
        const size_t first  = single ? rule->value : 0;
        const size_t last   = single ? first + 1 : texts.size();
        automaton->work(last - first);
        for (size_t id = first; id < last; id++) {
            if (texts[id].kind != token_text::end && matches_token(rule, llama_token(id))) {
                mask.add(llama_token(id));
            }
        }
    }
    if (automaton->complete(from)) {
        for (size_t id = 0; id < texts.size(); id++) {
            if (texts[id].kind == token_text::end) {
                mask.add(llama_token(id));
            }
        }
    }
    return mask;
}

void grammar_masks::walk(grammar_automaton::place from, const std::string & unfinished, token_mask & mask) {
    // Where the text of a node leads to: the place before the character that is unfinished.
    struct level {
        grammar_automaton::place place;
        bool                     common;  // whether all characters so far were
        uint8_t                  size;
        char                     unfinished[4];
    };
    const token_trie & trie = tokens->trie();
    const auto         add  = [&](uint32_t begin, uint32_t end) {
        for (uint32_t i = begin; i < end; i++) {
            mask.add(trie.tokens[i]);
        }
    };
    std::vector<level> levels(trie.deepest + 1);
    levels[0] = { from, true, uint8_t(unfinished.size()), {} };
    std::copy(unfinished.begin(), unfinished.end(), levels[0].unfinished);
    uint32_t visited = 0;
    for (uint32_t node = 1; node < trie.size(); visited++) {
        const level & above = levels[trie.depths[node] - 1];
        level &       here  = levels[trie.depths[node]];
        const uint8_t byte  = trie.bytes[node];
        bool          alive;
        here.common = above.common;
        if (above.size == 0 && byte < 128) {
            here.place = automaton->after(above.place, byte);
            here.size  = 0;
            alive      = here.place != grammar_automaton::none;
        } else {
            here                         = above;
            here.unfinished[here.size++] = char(byte);
            const character read         = read_character(here.unfinished, here.unfinished + here.size);
            if (read.kind == character::partial) {
                alive = automaton->any_after(above.place, read.low, read.high);
            } else {
                here.size  = 0;
                here.place = read.kind == character::whole ? automaton->after(above.place, read.low) : grammar_automaton::none;
                alive      = here.place != grammar_automaton::none;
            }
        }
        if (!alive) {
            node = trie.ends[node];
            continue;
        }
        const bool sliced = trie.sliced[node] != 0;
        if (sliced && here.common) {
            here.common = automaton->common(above.place, here.place);
        }
        if (sliced && here.common && automaton->takes_all(here.place, trie.slices[trie.sliced[node]])) {
            add(trie.first[node], trie.first[trie.ends[node]]);
            node = trie.ends[node];
        } else {
            add(trie.first[node], trie.first[node + 1]);
            node++;
        }
    }
    automaton->work(visited);
    counted.visited += visited;
}

}  // namespace moebind

moebind_grammars::moebind_grammars(const llama_vocab & vocab) :
    vocab(vocab), tokens(std::make_shared<const moebind::grammar_tokens>(vocab)) {}

std::shared_ptr<moebind::grammar_masks> moebind_grammars::read(const std::string & text, const std::string & root) {
    const auto same = [&](const entry & each) { return each.text == text && each.root == root; };
    {
        std::lock_guard<std::mutex> held(lock);
        const auto                  known = std::find_if(recent.begin(), recent.end(), same);
        if (known != recent.end()) {
            std::rotate(known, known + 1, recent.end());
            return recent.back().grammar;
        }
    }
    auto made = std::make_shared<moebind::grammar_masks>(moebind::read_grammar(&vocab, text, root), tokens);
    std::lock_guard<std::mutex> held(lock);
    const auto                  known = std::find_if(recent.begin(), recent.end(), same);
    if (known != recent.end()) {
        return known->grammar;  // another thread was faster
    }
    if (recent.size() == moebind::recent_max) {
        recent.erase(recent.begin());
    }
    recent.push_back({ text, root, made });
    return made;
}

moebind_grammars * moebind_grammars_new(const llama_vocab * vocab) { return new moebind_grammars(*vocab); }

void moebind_grammars_free(moebind_grammars * grammars) { delete grammars; }
